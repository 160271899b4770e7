"""A planted bias is found, and none where there is none; two models are compared; and what the report says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import tiny_model, word_tokenizer, words
from tiny_pairs import PLEASANT, UNPLEASANT, A, B, made_up_scores, make_pairs
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from course_utils import bias
from course_utils.bias import analyse, contrastive, difference_in_differences
from course_utils.bias.contrastive import Pair
from course_utils.bias.scores import PairScores, measure_pairs
from course_utils.bias.statistics import preferences
from course_utils.pruning.attention import bypass_attention


def everything(**options) -> list[Pair]:
    kinds = ("neutral", "paraphrase", "identity")
    controls = [p for n, kind in enumerate(kinds) for p in make_pairs(kind, kind, seed=n + 50, **options)]
    return make_pairs(a=A, b=B, **options) + controls


def measured_model(seed: int, planted: float) -> PairScores:
    """A random model to which both group words are the same; ``planted`` adds a liking for the pleasant after A."""
    model = tiny_model(seed=seed, layers=1)
    with torch.no_grad():
        embedding = model.get_input_embeddings().weight
        embedding[B] = embedding[A]
        head = model.get_output_embeddings().weight
        liking = torch.nn.functional.normalize(head[PLEASANT] - head[UNPLEASANT], dim=0)

    def lean(_module, _args, inputs, output):
        output.last_hidden_state += planted * (inputs["input_ids"] == A).any(1)[:, None, None] * liking

    hook = model.base_model.register_forward_hook(lean, with_kwargs=True)
    scores = measure_pairs(model, word_tokenizer(), everything(templates=8, swaps=8), batch_size=64)
    hook.remove()
    return scores


def test_a_planted_bias_is_found_and_none_without_it():
    clean, planted = measured_model(0, 0.0), measured_model(0, 2.0)
    verdict = analyse(planted).verdict["group"]
    assert "evidence of a preference for x over y" in verdict and "no evidence of a preference" not in verdict
    assert "no evidence of a preference between x and y" in analyse(clean).verdict["group"]
    assert "evidence of a preference for y over x" in analyse(measured_model(0, -2.0)).verdict["group"]
    change = difference_in_differences(clean, planted)
    row = change.differences.set_index("quantity").loc["preference"]
    assert row["p_holm"] < 0.05 and row["ci_low"] > 0 and row["neutral_change"] == pytest.approx(0, abs=1e-6)
    flips = change.flips.set_index("axis")
    assert flips.loc["group", "to_a"] > 10 and flips.loc["group", "to_b"] == 0 and flips.loc["group", "p"] < 0.001
    assert flips.loc["neutral", ["to_a", "to_b", "p"]].tolist() == [0, 0, 1]


def measured_symmetry(*, neutral_too: bool) -> PairScores:
    """A model to which A is B, asked about this swap alone; the neutral swap is another one, or the same once more."""
    model = tiny_model(layers=1)
    with torch.no_grad():
        embedding = model.get_input_embeddings().weight
        embedding[B] = embedding[A]
    swaps = [tuple(map(words, ids)) for ids in (([A], [B]), ([A, 4], [B, 4]), ([A, 5], [B, 5]))]
    pairs = []
    for pair in everything(templates=4, swaps=3):
        a, b = swaps[len(pairs) // 8 % 3]
        if pair.kind == "demographic" or (neutral_too and pair.kind == "neutral"):
            pair = replace(pair, a=a, b=b)
        pairs.append(pair)
    return measure_pairs(model, word_tokenizer(), pairs)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_symmetric_model_differs_by_exactly_nothing_and_that_is_said():
    found = analyse(measured_symmetry(neutral_too=False))
    words = found.verdict["group"]
    assert "no evidence of a preference between x and y (0.00 (0.00 to 0.00) nats, p = 1.000)" in words
    assert "The endings move 0.00 (0.00 to 0.00) times as much as for a neutral swap: less." in words
    assert "Activations differ 0.00 (0.00 to 0.00) times as much as for a neutral swap: less; " in words
    found = analyse(measured_symmetry(neutral_too=True))
    words = found.verdict["group"]
    assert "move by exactly nothing, as for a neutral swap. Activations differ by exactly nothing, as for a" in words
    assert "nan" not in str(found)


def test_a_ratio_of_some_draws_only_has_no_interval():
    scores = made_up_scores(swaps=2)
    silent = (scores.frame["axis"] == "group") & (scores.frame["swap"] == "group0")  # the other swap does something
    frame = scores.frame.assign(log_likelihood=scores.frame["log_likelihood"].where(~silent, 0.0))
    relative = scores.relative * ~silent.to_numpy()[:, None, None]
    words = analyse(replace(scores, frame=frame, relative=relative)).verdict["group"]
    assert words.count("(no interval) times as much as for a neutral swap: no evidence of a difference") == 2


def test_difference_in_differences_by_hand():
    base = made_up_scores(0, effects={"group": 0.2})
    frame, relative = base.frame.copy(), base.relative.copy()
    group, neutral = ((frame["axis"] == axis).to_numpy() for axis in ("group", "neutral"))
    frame.loc[group, "log_likelihood"] += 0.5 * frame.loc[group, "valence"]  # preference up by 1
    frame.loc[neutral, "log_likelihood"] += 0.2 * frame.loc[neutral, "valence"]  # and by 0.4
    relative[group] += 0.25
    change = difference_in_differences(base, replace(base, frame=frame, relative=relative))
    table = change.differences.set_index("quantity")
    assert list(table.index) == ["preference", "absolute", "relative"]
    assert table.loc["preference", ["change", "neutral_change", "difference"]].tolist() == pytest.approx([1, 0.4, 0.6])
    assert table.loc["preference", "pruned"] - table.loc["preference", "base"] == pytest.approx(1)
    assert table.loc["relative", ["change", "neutral_change"]].tolist() == pytest.approx([0.25, 0], abs=1e-6)
    before, after = (
        preferences(replace(base, frame=f)).query("axis == 'group'")["preference"] for f in (base.frame, frame)
    )
    assert change.flips.set_index("axis").loc["group", "to_a"] == ((before <= 0) & (after > 0)).sum()
    same = difference_in_differences(base, base)
    assert (same.differences["difference"] == 0).all() and (same.differences["p"] == 1).all()
    assert (same.flips[["to_a", "to_b"]] == 0).all(axis=None)


@pytest.mark.filterwarnings("error")  # the mean of no places
def test_models_are_compared_without_activations():
    full = made_up_scores()
    bare = replace(full, sites=(), relative=full.relative[:, :0])
    with_sites, without = (difference_in_differences(scores, scores).differences for scores in (full, bare))
    assert without["quantity"].tolist() == ["preference", "absolute"]
    assert without["base"].tolist() == with_sites["base"].tolist()[:2]


def test_different_pairs_are_refused():
    tokenizer, model = word_tokenizer(), tiny_model(layers=1)
    one, other = (measure_pairs(model, tokenizer, make_pairs(seed=seed)) for seed in (0, 1))
    relabelled = measure_pairs(model, tokenizer, [replace(pair, template=pair.template + "!") for pair in make_pairs()])
    fewer = measure_pairs(model, tokenizer, make_pairs()[:-2])
    other_text = measure_pairs(model, tokenizer, [replace(pair, before="w9 ") for pair in make_pairs()])
    for wrong in (other, relabelled, fewer, other_text):
        with pytest.raises(ValueError, match="same pairs"):
            difference_in_differences(one, wrong)


def trained_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes and a few hundred merges, learnt from the course's templates."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    texts = [pair.text_a for pair in contrastive.pairs("gender")]
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_one_call_reports_an_axis():
    model = tiny_model(layers=1, vocab_size=600, max_position_embeddings=256)
    axis = contrastive.Axis("hats", "demographic", (("red", "blue", "reds", "blues"), ("old", "new", "olds", "news")))
    found = bias.report(model, trained_tokenizer(), [axis])
    pairs = contrastive.pairs(axis, split="evaluation")
    assert (found.scores.frame["axis"] == axis.name).sum() == len(pairs)
    assert set(found.scores.frame["split"]) == {"evaluation"}
    assert set(found.scores.frame["kind"]) == {"demographic", *contrastive.CONTROLS}
    text = str(found)
    assert list(found.verdict) == [axis.name] and found.verdict[axis.name] in text
    assert "identity: 0.00 (0.00 to 0.00) nats" in text and "excluded" in text


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_bypassed_attention_has_no_ratio_and_spoils_no_other():
    model = tiny_model()
    bypass_attention(model, [1])
    found = analyse(measure_pairs(model, word_tokenizer(), everything()))
    places = found.tables["activations_by_place"]
    bypassed = (places["site"] == "attention_out") & (places["block"] == 1)
    assert places.loc[bypassed, ["ratio", "p", "p_holm"]].isna().all(axis=None)
    assert places.loc[~bypassed, ["ratio", "p", "p_holm"]].notna().all(axis=None)
    assert found.tables["activations"].notna().all(axis=None)


def test_too_few_units_are_named():
    axes = {f"axis {i}": 0.0 for i in range(4)}
    few = analyse(made_up_scores(templates=6, effects=axes)).verdict["axis 0"]
    assert "with 6 templates, 10 swaps and 4 axes no p is below 0.12" in few  # 4 x 2 of 64
    assert "So few units" not in analyse(made_up_scores(effects=axes)).verdict["axis 0"]

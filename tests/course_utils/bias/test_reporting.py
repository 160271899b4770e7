"""Scores by hand on tiny models, planted bias that must be found, nulls where nothing may be, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from tiny import FAMILIES, log_likelihood, tiny_model, word_tokenizer, words
from tiny_pairs import PLEASANT, UNPLEASANT, A, B, gap, make_pairs
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from course_utils import bias
from course_utils.bias import analyse, contrastive, difference_in_differences
from course_utils.bias.contrastive import Pair
from course_utils.bias.scores import PairScores, measure_pairs
from course_utils.bias.statistics import activation_means, activation_ratio, behaviour, preferences
from course_utils.models.architectures import describe
from course_utils.pruning.attention import bypass_attention


def everything(**options) -> list[Pair]:
    kinds = ("neutral", "paraphrase", "identity")
    controls = [p for n, kind in enumerate(kinds) for p in make_pairs(kind, kind, seed=n + 50, **options)]
    return make_pairs(a=A, b=B, **options) + controls


@torch.no_grad()
def by_hand(model, pair: Pair, site: str, block: int) -> tuple[float, float, float]:
    """Log-likelihood difference, relative difference and 1 - cosine of one pair, without batches or padding."""
    architecture, kept = describe(model), []
    module = {"attention_out": architecture.attentions, "mlp_out": architecture.mlps}[site][block].contribution
    hook = module.register_forward_hook(lambda _m, _x, out: kept.append(out[0] if isinstance(out, tuple) else out))
    difference = gap(model, pair)
    hook.remove()
    a, b = (states.flatten(0, -2)[-len(pair.after.split()) :].double() for states in kept)
    relative = (a - b).norm(dim=-1) / ((a.norm(dim=-1) + b.norm(dim=-1)) / 2)
    cosine = 1 - torch.nn.functional.cosine_similarity(a, b)
    return difference, float(relative.mean()), float(cosine.mean())


# --- measuring ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_by_hand(family):
    model, pairs = tiny_model(family), make_pairs(templates=3)
    scores = measure_pairs(model, word_tokenizer(), pairs, batch_size=4)
    assert scores.relative.shape == scores.cosine.shape == (len(pairs), 2, 3)
    assert scores.sites == ("attention_out", "mlp_out") and scores.blocks == (0, 1, 2)
    for i in range(0, len(pairs), 5):
        for s, site in enumerate(scores.sites):
            for block in scores.blocks:
                want = by_hand(model, pairs[i], site, block)
                row = scores.frame.loc[i]
                got = row["log_likelihood"], scores.relative[i, s, block], scores.cosine[i, s, block]
                assert got == pytest.approx(want, rel=1e-3, abs=2e-5)
                assert row["tokens"] == len(pairs[i].after.split()) and row["excluded"] == 0
                assert (row["axis"], row["swap"], row["template"]) == (pairs[i].axis, pairs[i].swap, pairs[i].template)
    # (GPT-NeoX runs attention and MLP side by side: the first MLP hasn't seen the difference yet)
    assert np.isfinite(scores.frame["log_likelihood"]).all() and (scores.relative[..., 1:] > 0).all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_identity_is_exactly_zero(family, dtype):
    pairs = make_pairs("identity", "identity", swaps=5) + make_pairs(swaps=2)
    scores = measure_pairs(tiny_model(family, dtype=dtype), word_tokenizer(), pairs, batch_size=7)
    same = (scores.frame["kind"] == "identity").to_numpy()
    assert same.sum() == 40
    assert (scores.frame["log_likelihood"][same] == 0).all() and (scores.frame["log_likelihood"][~same] != 0).all()
    for values in (scores.relative, scores.cosine):
        assert (values[same] == 0).all() and (values[~same][..., 1:] > 0).all()


def test_low_precision_agrees_with_float32():
    tokenizer, pairs = word_tokenizer(), make_pairs()
    exact, low = (measure_pairs(tiny_model(dtype=dtype), tokenizer, pairs) for dtype in (torch.float32, torch.bfloat16))
    assert low.relative.dtype == np.float32
    np.testing.assert_allclose(low.relative, exact.relative, rtol=0.1, atol=0.02)
    assert np.corrcoef(low.frame["log_likelihood"], exact.frame["log_likelihood"])[0, 1] > 0.99


@pytest.mark.parametrize("family", FAMILIES)
def test_batches_padding_and_order_do_not_matter(family):
    model, tokenizer, pairs = tiny_model(family), word_tokenizer(), make_pairs()
    alone = measure_pairs(model, tokenizer, pairs, batch_size=1)
    together = measure_pairs(model, tokenizer, pairs, batch_size=24)
    shuffled = np.random.default_rng(0).permutation(len(pairs))
    other = measure_pairs(model, tokenizer, [pairs[i] for i in shuffled], batch_size=5)
    for frame, relative, order in (
        (together.frame, together.relative, np.arange(len(pairs))),
        (other.frame, other.relative, shuffled),
    ):
        np.testing.assert_allclose(frame["log_likelihood"], alone.frame["log_likelihood"][order], atol=2e-5)
        np.testing.assert_allclose(relative, alone.relative[order], atol=2e-5)
    assert together.fingerprint == alone.fingerprint != other.fingerprint


def test_one_forward_pass_a_batch_and_no_trace():
    model, pairs, passes = tiny_model().train(), make_pairs(templates=4, swaps=2), []
    hook = model.model.register_forward_hook(lambda *_: passes.append(1))
    measure_pairs(model, word_tokenizer(), pairs, batch_size=4)
    hook.remove()
    assert len(passes) == len(pairs) / 4
    assert model.training and not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_bypassed_attention_differs_by_nothing_and_chosen_places_agree():
    model, tokenizer, pairs = tiny_model(), word_tokenizer(), make_pairs()
    bypass_attention(model, [1])
    scores = measure_pairs(model, tokenizer, pairs)
    assert (scores.relative[:, 0, 1] == 0).all() and (scores.cosine[:, 0, 1] == 0).all()
    some = measure_pairs(model, tokenizer, pairs, sites="mlp_out")
    assert (some.sites, some.blocks) == (("mlp_out",), (0, 1, 2))
    np.testing.assert_allclose(some.relative[:, 0], scores.relative[:, 1], atol=1e-6)
    none = measure_pairs(model, tokenizer, pairs, sites=())
    assert none.relative.shape == (len(pairs), 0, 3)
    np.testing.assert_allclose(none.frame["log_likelihood"], scores.frame["log_likelihood"], atol=1e-6)


def test_what_cannot_be_compared_is_counted():
    pairs = make_pairs()
    bare = replace(pairs[0], after="", axis="bare", group_a="u", group_b="v")
    scores = measure_pairs(tiny_model(), word_tokenizer(), [*pairs, bare])
    assert math.isnan(scores.frame["log_likelihood"].iloc[-1]) and np.isnan(scores.relative[-1]).all()
    table = scores.excluded().set_index("axis")
    assert table.loc["bare", ["pairs", "pairs_without_tokens", "tokens"]].tolist() == [1, 1, 0]
    assert table.loc["group", ["pairs", "pairs_without_tokens", "excluded"]].tolist() == [len(pairs), 0, 0]
    assert table.loc["group", "tokens"] == sum(len(pair.after.split()) for pair in pairs)


# --- statistics on scores with a known truth ------------------------------------------------------


def synthetic(
    seed: int = 0,
    *,
    effects: dict[str, float] | None = None,
    ratio: float = 1.0,
    spread: tuple[float, float, float] = (0.3, 0.5, 0.5),
    templates: int = 12,
    swaps: int = 10,
) -> PairScores:
    """Double differences ``effect`` + template + swap + cell noise; relative ones ``ratio`` times the neutral."""
    generator, rows, relative = np.random.default_rng(seed), [], []
    template_relative = generator.normal(size=(templates, 1))
    kinds = dict.fromkeys(effects or ["group"], "demographic") | {kind: kind for kind in contrastive.CONTROLS}
    for axis, kind in kinds.items():
        parts = (generator.normal(size=size) for size in ((templates, 1), (1, swaps), (templates, swaps)))
        noise = sum(sd * part for sd, part in zip(spread, parts, strict=True))
        preference = 0 * noise if kind == "identity" else noise + (effects or {}).get(axis, 0.0)
        noise = 0.2 * (
            template_relative + generator.normal(size=(1, swaps)) + generator.normal(size=(templates, swaps))
        )
        level = 0.3 * np.exp(noise) * {"demographic": ratio, "identity": 0.0}.get(kind, 1.0)
        for (t, s), value in np.ndenumerate(preference):
            for valence in (1, -1):
                rows.append(
                    {"axis": axis, "kind": kind, "template": f"t{t}", "swap": f"{axis}{s}", "group_a": "x"}
                    | {"group_b": "y", "valence": valence, "split": "evaluation", "tokens": 8, "excluded": 1}
                    | {"log_likelihood": 0.7 + valence * value / 2}
                )
                relative.append(level[t, s] * np.array([[1.0, 1.1, 0.9], [2.0, 1.0, 0.5]]))
    relative = np.array(relative, dtype=np.float32)
    return PairScores(pd.DataFrame(rows), relative, relative**2 / 2, ("attention_out", "mlp_out"), (0, 1, 2), "same")


def test_preferences_by_hand_cancel_what_the_endings_share():
    model, pairs = tiny_model(), make_pairs(templates=2, swaps=2)
    items = preferences(measure_pairs(model, word_tokenizer(), pairs))
    assert len(items) == 4
    for item in items.itertuples():
        total = 0.0
        for pair in pairs:
            if (pair.template, pair.swap) == (item.template, item.swap):
                assert len(pair.after.split()) > 1
                for sign, text in ((1, pair.text_a), (-1, pair.text_b)):
                    ending = log_likelihood(model, text, len(text.split()) - 1)  # alone: the rest is the same
                    total += sign * pair.valence * ending
        assert item.preference == pytest.approx(total, abs=1e-4)


def test_paraphrases_are_averaged_and_incomplete_items_left_out():
    scores = synthetic(templates=3, swaps=2)
    doubled = pd.concat([scores.frame, scores.frame.assign(log_likelihood=lambda f: f["log_likelihood"] * 3)])
    both = preferences(replace(scores, frame=doubled))
    np.testing.assert_allclose(both["preference"], 2 * preferences(scores)["preference"])
    frame = scores.frame.copy()
    frame.loc[0, "log_likelihood"] = math.nan
    assert len(preferences(replace(scores, frame=frame))) == len(both) - 1


def test_no_more_than_one_null_in_twenty_is_called_a_preference():
    # templates and swaps vary equally: the hardest case, where each sign-flip test alone finds too much
    table = behaviour(synthetic(1, effects={f"axis {i}": 0.0 for i in range(200)}, spread=(1.0, 1.0, 1.0)))
    tested = table[table["kind"] == "demographic"]
    assert len(tested) == 200
    assert (tested["p"] < 0.05).mean() <= 0.05 + 2.6 * math.sqrt(0.05 * 0.95 / 200)
    assert (tested["p_holm"] < 0.05).sum() <= 1


def test_planted_effects_are_found_with_their_size_and_direction():
    effects = {f"axis {i}": 1.0 if i % 2 else -1.0 for i in range(40)}
    table = behaviour(synthetic(2, effects=effects)).set_index("axis").loc[list(effects)]
    truth = np.array(list(effects.values()))
    assert (table["p"] < 0.05).mean() > 0.9
    assert (np.sign(table["preference"]) == truth).all()
    assert ((table["ci_low"] < truth) & (truth < table["ci_high"])).mean() > 0.85
    assert (table["p_holm"] >= table["p"]).all() and (table["smallest_p"] == 2**-9).all()


def test_behaviour_columns_of_controls():
    table = behaviour(synthetic(effects={"group": 0.5})).set_index("axis")
    assert table.loc[list(contrastive.CONTROLS), "p_holm"].isna().all() and table["p_holm"].notna().sum() == 1
    assert table.loc["identity", ["preference", "ci_low", "ci_high", "absolute"]].tolist() == [0, 0, 0, 0]
    assert table.loc["identity", "p"] == 1
    assert math.isnan(table.loc["neutral", "to_neutral"]) and table.loc["paraphrase", "to_neutral"] > 0


def test_activation_ratio_finds_what_exceeds_a_neutral_swap_and_nothing_else():
    found, false = [], []
    for seed in range(40):
        found.append(activation_ratio(synthetic(seed, ratio=1.5), by_place=False).iloc[0])
        false.append(activation_ratio(synthetic(seed), by_place=False).iloc[0])
    assert np.mean([row["ratio_low"] > 1 for row in found]) > 0.9
    assert np.mean([row["ratio_low"] < 1.5 < row["ratio_high"] for row in found]) > 0.85
    assert np.mean([not row["ratio_low"] < 1 < row["ratio_high"] for row in false]) <= 0.05 + 2.6 * 0.035
    assert all((row["p"] < 0.05) == (not row["ratio_low"] < 1 < row["ratio_high"]) for row in found + false)


def test_activation_tables_have_a_row_a_place():
    scores = synthetic(ratio=2.0, effects={"one": 0.0, "two": 0.0})
    places = activation_ratio(scores)
    assert len(places) == 2 * 2 * 3 and set(places["axis"]) == {"one", "two"}
    assert ((places["p_holm"] >= places["p"]) & (places["ratio"] > 1.5)).all()
    one = scores.frame["axis"] == "one"
    cell = places.query("axis == 'one' and site == 'mlp_out' and block == 0").iloc[0]
    assert cell["demographic"] == pytest.approx(scores.relative[one, 1, 0].mean(), rel=1e-5)
    assert cell["ratio"] == pytest.approx(cell["demographic"] / cell["neutral"])
    means = activation_means(scores).query("axis == 'one' and site == 'mlp_out' and block == 0").iloc[0]
    assert means["value"] == cell["demographic"]
    assert means["ci_low"] < means["value"] < means["ci_high"]


# --- a planted bias in a model --------------------------------------------------------------------


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
    plt.close(found.plot())
    found = analyse(measured_symmetry(neutral_too=True))
    words = found.verdict["group"]
    assert "move by exactly nothing, as for a neutral swap. Activations differ by exactly nothing, as for a" in words
    assert "nan" not in str(found)
    plt.close(found.plot())


def test_a_ratio_of_some_draws_only_has_no_interval():
    scores = synthetic(swaps=2)
    silent = (scores.frame["axis"] == "group") & (scores.frame["swap"] == "group0")  # the other swap does something
    frame = scores.frame.assign(log_likelihood=scores.frame["log_likelihood"].where(~silent, 0.0))
    relative = scores.relative * ~silent.to_numpy()[:, None, None]
    words = analyse(replace(scores, frame=frame, relative=relative)).verdict["group"]
    assert words.count("(no interval) times as much as for a neutral swap: no evidence of a difference") == 2


# --- comparing two models -------------------------------------------------------------------------


def test_difference_in_differences_by_hand():
    base = synthetic(0, effects={"group": 0.2})
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
    full = synthetic()
    bare = replace(full, sites=(), relative=full.relative[:, :0], cosine=full.cosine[:, :0])
    with_sites, without = (difference_in_differences(scores, scores).differences for scores in (full, bare))
    assert without["quantity"].tolist() == ["preference", "absolute"]
    assert without["base"].tolist() == with_sites["base"].tolist()[:2]


def test_different_pairs_are_refused():
    tokenizer, model = word_tokenizer(), tiny_model(layers=1)
    one, other = (measure_pairs(model, tokenizer, make_pairs(seed=seed)) for seed in (0, 1))
    relabelled = measure_pairs(model, tokenizer, [replace(pair, template=pair.template + "!") for pair in make_pairs()])
    fewer = measure_pairs(model, tokenizer, make_pairs()[:-2])
    for wrong in (other, relabelled, fewer):
        with pytest.raises(ValueError, match="same pairs"):
            difference_in_differences(one, wrong)


# --- the report -----------------------------------------------------------------------------------


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
    axis = contrastive.invented_axis(3, swaps=3)
    found = bias.report(model, trained_tokenizer(), [axis])
    pairs = contrastive.pairs(axis, split="evaluation")
    assert (found.scores.frame["axis"] == axis.name).sum() == len(pairs)
    assert set(found.scores.frame["split"]) == {"evaluation"}
    assert set(found.scores.frame["kind"]) == {"invented", *contrastive.CONTROLS}
    assert set(found.tables) == {"behaviour", "activations", "activations_by_place", "excluded"}
    text = str(found)
    assert list(found.verdict) == [axis.name] and found.verdict[axis.name] in text
    assert "identity: 0.00 (0.00 to 0.00) nats" in text and "excluded" in text


def test_the_figure_shows_every_axis_beside_its_controls():
    figure = analyse(synthetic(ratio=1.4, effects={"one": 0.0, "two": 1.0})).plot()
    preference, ratio, *lines = figure.axes[:4]
    assert [tick.get_text() for tick in preference.get_xticklabels()] == ["one", "two", *contrastive.CONTROLS]
    assert [panel.get_title() for panel in lines] == ["attention_out", "mlp_out"]
    for panel in lines:
        assert {"one", "two", "neutral", "paraphrase"} <= set(panel.get_legend_handles_labels()[1])
        assert len(panel.collections) == 4  # a band for each line
    assert next(tick.get_text() for tick in ratio.get_yticklabels()) == "one, attention_out"
    plt.close(figure)


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
    plt.close(found.plot())


def test_too_few_units_are_named():
    axes = {f"axis {i}": 0.0 for i in range(4)}
    few = analyse(synthetic(templates=4, effects=axes)).verdict["axis 0"]
    assert "with 4 templates, 10 swaps and 4 axes no p is below 0.50" in few
    assert "So few units" not in analyse(synthetic(effects=axes)).verdict["axis 0"]


def test_statistics_refuse_what_has_no_control():
    scores = synthetic()
    kinds = scores.frame["kind"]
    alone, controls = (
        replace(scores, frame=scores.frame[keep], relative=scores.relative[keep], cosine=scores.cosine[keep])
        for keep in (kinds == "demographic", kinds != "demographic")
    )
    for statistic in (behaviour, activation_ratio, analyse, lambda s: difference_in_differences(s, s)):
        with pytest.raises(ValueError, match="no neutral pairs"):
            statistic(alone)
    for statistic in (activation_ratio, analyse):
        with pytest.raises(ValueError, match="no axis beside"):
            statistic(controls)
    with pytest.raises(ValueError, match="No activations"):
        activation_means(replace(scores, relative=scores.relative[:, :0], sites=()))
    with pytest.raises(ValueError, match="unpleasantly"):
        preferences(replace(scores, frame=scores.frame.assign(valence=0)))

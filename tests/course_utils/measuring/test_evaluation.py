"""Perplexity, benchmark scores and paired comparisons, against plain re-computations and lm-eval's own classes."""

from __future__ import annotations

import copy
import math

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from lm_eval.api.instance import Instance
from masked import unchanged
from tiny import FAMILIES, tiny_batches, tiny_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.utils.data import DataLoader
from transformers import BatchEncoding, PreTrainedTokenizerFast

from course_utils.measuring import benchmark_tasks
from course_utils.measuring.benchmark_tasks import CheckedLM, build_tasks
from course_utils.measuring.evaluation import bits_ratio, evaluate, paired, perplexity, perplexity_ratio
from course_utils.models import architectures
from course_utils.models.architectures import describe
from course_utils.pruning.adaptive import calibrate, make_adaptive
from course_utils.pruning.attention import bypass_attention
from course_utils.pruning.depth import remove_blocks
from course_utils.pruning.width import neuron_importance, prune_neurons
from course_utils.support.uncertainty import ratio_interval
from course_utils.text.rows import TokenBlocks

# ----------------------------------------------------------------------------------------------------- perplexity


def plain_row_nll(model, batches) -> list[float]:
    """Each row alone, without padding, through the model's own loss."""
    rows = []
    for batch in batches:
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            ids = ids[mask.bool()][None]
            with torch.no_grad():
                rows.append(float(model(ids, labels=ids).loss) * (ids.shape[1] - 1))
    return rows


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("padding", ["left", "right", None])
def test_perplexity_equals_the_models_own_loss(family, padding, monkeypatch):
    monkeypatch.setattr(architectures, "_LOGITS", 97 * 3)  # three tokens a chunk
    model, batches = tiny_model(family), tiny_batches(padding=padding)
    result = perplexity(model, batches)
    expected = plain_row_nll(model, batches)
    np.testing.assert_allclose(result.row_nll, expected, rtol=1e-5)
    assert result.tokens == sum(int(batch["attention_mask"].sum()) for batch in batches) - 6
    assert result.nll == pytest.approx(sum(expected) / result.tokens, rel=1e-5)
    assert result.perplexity == pytest.approx(math.exp(result.nll))
    assert math.isnan(result.bits_per_byte)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_models_are_summed_in_float32(dtype):
    batches = tiny_batches(rows=4, length=60)
    exact = perplexity(tiny_model(), batches)
    result = perplexity(tiny_model(dtype=dtype), batches)
    assert result.dtype == str(dtype).removeprefix("torch.")
    assert result.nll == pytest.approx(exact.nll, rel=0.02)


def test_every_kind_of_input_gives_the_same_result():
    model, ids = tiny_model(), torch.cat([batch["input_ids"] for batch in tiny_batches()])
    blocks = TokenBlocks(input_ids=ids, num_bytes=torch.full((6,), 30), domain="speeches", split="evaluation")
    kinds = [
        blocks.batches(2),
        (batch for batch in blocks.batches(5)),
        {"input_ids": ids},
        BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)}),
        DataLoader([{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in ids], batch_size=4),
    ]
    result = perplexity(model, ids, batch_size=1)
    for kind in kinds:
        other = perplexity(model, kind)
        assert other.nll == pytest.approx(result.nll, rel=1e-6)
        assert other.fingerprint == result.fingerprint
    counted = perplexity(model, blocks)
    assert counted.bits_per_byte == pytest.approx(counted.row_nll.sum() / math.log(2) / 180)
    assert paired(counted, counted)["a"].tolist() == pytest.approx([counted.perplexity, counted.bits_per_byte])


def test_padding_does_not_change_the_fingerprint_but_order_does():
    model, rows = tiny_model(), tiny_batches(padding="left", size=1)
    bare = [{"input_ids": row["input_ids"][:, row["attention_mask"][0].bool()]} for row in rows]
    assert perplexity(model, rows).fingerprint == perplexity(model, bare).fingerprint
    assert perplexity(model, rows).fingerprint != perplexity(model, rows[::-1]).fingerprint


def test_logits_are_never_larger_than_a_chunk(monkeypatch):
    limit = 97 * 8
    monkeypatch.setattr(architectures, "_LOGITS", limit)
    model, sizes = tiny_model(), []
    model.lm_head.register_forward_hook(lambda _module, _inputs, output: sizes.append(output.numel()))
    perplexity(model, tiny_batches(rows=8, length=60, size=8))  # all logits at once would be 8 * 59 * 97
    assert max(sizes) == limit and sum(sizes) == 8 * 59 * 97


def test_training_mode_of_every_module_is_restored():
    model = tiny_model().train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    perplexity(model, tiny_batches())
    assert [module.training for module in model.modules()] == before
    with pytest.raises(ValueError, match="vocabulary"):
        perplexity(model, torch.full((1, 4), 1000))
    assert [module.training for module in model.modules()] == before


def test_perplexity_refuses_rows_that_hold_nothing_to_predict():
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 1]])
    with pytest.raises(ValueError, match=r"at least two tokens.*row 1"):
        perplexity(tiny_model(), [{"input_ids": torch.ones_like(mask), "attention_mask": mask}])


def test_a_broken_model_gives_infinity_rather_than_an_error():
    model, whole = tiny_model(), perplexity(tiny_model(), tiny_batches())
    model.lm_head.weight.data *= 1e6
    result = perplexity(model, tiny_batches())
    assert result.perplexity == math.inf and math.isfinite(result.nll)
    assert str(result).startswith("perplexity inf (95 % interval inf to inf), ")
    frame = paired(whole, result)
    assert frame["difference"].item() == math.inf and frame["losses"].item() == 6
    assert perplexity_ratio(result, whole)[0] == math.inf


# ------------------------------------------------------------------------------------------------ benchmark tasks


@pytest.fixture(scope="module")
def tokenizer():
    """One token a byte, the byte's own number + 3."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i + 3 for i, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def reader(family="llama", **overrides):
    """A tiny model for the byte tokenizer with room for a question."""
    positions = "n_positions" if family == "gpt2" else "max_position_embeddings"
    return tiny_model(family, **({"vocab_size": 262, positions: 512} | overrides))


WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "two", "dogs", "run", "far", "away", "from", "home"]


@pytest.fixture
def documents(monkeypatch):
    """Twelve made-up documents a task instead of the real ones, in the same columns."""

    def phrase(i: int, count: int) -> str:
        return " ".join(WORDS[(i * 5 + k * 3) % len(WORDS)] for k in range(count))

    def choices(i: int) -> dict:
        count = 3 + i % 3
        return {"text": [phrase(i + k, 1 + k % 3) for k in range(count)], "label": list("ABCDE")[:count]}

    columns = {
        "lambada_openai": lambda i: {"text": phrase(i, 4 + i % 5)},
        "hellaswag": lambda i: {
            "activity_label": "Walking", "ctx_a": phrase(i, 4), "ctx_b": phrase(i, 1),
            "endings": [phrase(i + k, 3 + k) for k in range(4)], "label": str(i % 4),
        },
        "arc_easy": lambda i: {"question": phrase(i, 5), "choices": choices(i), "answerKey": "ABC"[i % 3]},
        "winogrande": lambda i: {
            "sentence": f"{phrase(i, 2)} _ {phrase(i + 1, 3)}", "option1": "cat", "option2": "dogs",
            "answer": str(1 + i % 2),
        },
        "boolq": lambda i: {"passage": phrase(i, 6), "question": phrase(i, 3), "label": int(i % 4 > 0)},
        "copa": lambda i: {
            "premise": "The Cat ran.", "choice1": phrase(i, 3), "choice2": phrase(i + 1, 2),
            "question": ("cause", "effect")[i % 2], "label": int(i % 3 > 0),
        },
        "sciq": lambda i: {
            "support": phrase(i, 3), "question": phrase(i, 4), "distractor1": "a", "distractor2": "mat",
            "distractor3": "far", "correct_answer": "dogs",
        },
    }  # fmt: skip
    monkeypatch.setenv("COURSE_PROFILE", "smoke")
    monkeypatch.setattr(
        benchmark_tasks,
        "_local_documents",
        lambda name: datasets.Dataset.from_list([columns[name](i) for i in range(12)]),
    )
    return tuple(columns)


def ask_pairs(model, tokenizer, texts):
    """(log-likelihood, greedy or not) of each (question, answer)."""
    lm = CheckedLM(model, copy.deepcopy(tokenizer))  # lm-eval changes a tokenizer
    return lm.loglikelihood([Instance("loglikelihood", {}, pair, 0) for pair in texts], disable_tqdm=True)


def answer_alone(model, tokenizer, question, answer, *, room=10**6) -> tuple[float, bool]:
    """The same for one pair, by the model's own logits, with what fits of its question."""
    begun, answer = tokenizer(question)["input_ids"] or [tokenizer.bos_token_id], tokenizer(answer)["input_ids"]
    ids = torch.tensor([begun + answer])[:, -room - 1 :]
    with torch.no_grad():
        log_p = model(ids[:, :-1]).logits[0, -len(answer) :].float().log_softmax(-1)
    return sum(float(row[token]) for row, token in zip(log_p, answer, strict=True)), log_p.argmax(-1).tolist() == answer


SHARED = [("the cat", " sat"), ("the cat", " s"), ("the cat", " sat on a mat"), ("the cat", " saw two"), ("a", " b"),
          ("x" + " x" * 39, " yes"), ("x" + " x" * 39, " no"), ("", "alone")]  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_log_likelihoods_are_those_of_each_answer_alone(family, tokenizer):
    model = reader(family)
    alone = [answer_alone(model, tokenizer, *texts) for texts in SHARED]
    np.testing.assert_allclose(ask_pairs(model, tokenizer, SHARED), alone, rtol=1e-4)


def test_low_precision_is_summed_in_float32(tokenizer):
    model = reader(dtype=torch.bfloat16)
    found = torch.tensor([nats for nats, _ in ask_pairs(model, tokenizer, SHARED)])
    alone = [answer_alone(model, tokenizer, *texts)[0] for texts in SHARED]
    np.testing.assert_allclose(found, alone, rtol=0.02)
    assert not torch.equal(found.bfloat16().float(), found)


def test_what_does_not_fit_of_a_question_is_cut_at_its_beginning(tokenizer):
    model = reader(max_position_embeddings=48)
    alone = [answer_alone(model, tokenizer, *texts, room=48) for texts in SHARED]
    np.testing.assert_allclose(ask_pairs(model, tokenizer, SHARED), alone, rtol=1e-4)


def test_evaluate_reports_scores_floors_and_intervals(documents, tokenizer):
    frame = evaluate(reader(), tokenizer, documents)
    assert list(frame.columns) == [
        "task", "metric", "value", "stderr", "ci_low", "ci_high", "chance", "majority", "documents",
    ]  # fmt: skip
    assert (frame["documents"] == 12).all()
    scores = frame.set_index(["task", "metric"])
    assert ((frame["ci_low"] <= frame["value"]) & (frame["value"] <= frame["ci_high"])).all()
    assert scores.loc[("boolq", "acc"), "chance"] == 0.5
    assert scores.loc[("boolq", "acc"), "majority"] == 0.75  # nine of the twelve are true
    assert scores.loc[("arc_easy", "acc_norm"), "chance"] == pytest.approx((1 / 3 + 1 / 4 + 1 / 5) / 3)
    assert scores.loc[("hellaswag", "acc_norm"), "majority"] == 0.25
    assert scores.loc[("copa", "acc"), "majority"] == pytest.approx(2 / 3)
    assert math.isnan(scores.loc[("sciq", "acc"), "majority"])
    assert scores.loc[("lambada_openai", "acc"), "chance"] == 0
    assert math.isnan(scores.loc[("lambada_openai", "perplexity"), "chance"])
    share = scores.loc[("winogrande", "acc"), "value"]
    wilson = [0.25, 0.0889, 0.5323]  # three of twelve
    assert scores.loc[("boolq", "acc"), ["value", "ci_low", "ci_high"]].tolist() == pytest.approx(wilson, abs=1e-4)
    expected_error = math.sqrt(share * (1 - share) / 11)  # lm-eval's: the sample's standard deviation over sqrt(n)
    assert scores.loc[("winogrande", "acc"), "stderr"] == pytest.approx(expected_error)
    words = frame.attrs["answers"].table.query("metric == 'perplexity'")["value"]
    value, error = scores.loc[("lambada_openai", "perplexity"), ["value", "stderr"]]
    assert (value, error) == pytest.approx((np.exp(-words.mean()), np.exp(-words.mean()) * words.sem()))


def test_the_sample_is_random_fixed_and_nested(documents, tokenizer):
    def texts(limit):
        return [doc["text"] for doc in build_tasks(["lambada_openai"], limit)["lambada_openai"].eval_docs]

    everything = texts(None)
    assert texts(6) == texts(6)
    assert texts(6) != everything[:6]
    assert set(texts(3)) < set(texts(6)) < set(everything) == set(texts(100))


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("lambada_openai", ("EleutherAI/lambada_openai", "default", "test")),
        ("arc_challenge", ("allenai/ai2_arc", "ARC-Challenge", "test")),
        ("hellaswag", ("Rowan/hellaswag", None, "validation")),
    ],
)
def test_the_hub_profile_asks_for_the_stock_dataset(name, asked, documents, monkeypatch):
    calls = []
    local = benchmark_tasks._local_documents("arc_easy" if name == "arc_challenge" else name)

    def load_dataset(path, config, *, split):
        calls.append((path, config, split))
        return local

    monkeypatch.setenv("COURSE_PROFILE", "hub")
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(build_tasks([name], 5)[name].eval_docs) == 5
    assert calls == [asked]


def test_evaluate_leaves_everything_as_it_was(documents, tokenizer):
    model = reader(tie_word_embeddings=True).train()
    generators = torch.get_rng_state(), np.random.get_state()[1].copy()
    with unchanged(model):
        evaluate(model, tokenizer, "boolq", limit=3)
    assert tokenizer.pad_token is None
    assert torch.equal(torch.get_rng_state(), generators[0]) and (np.random.get_state()[1] == generators[1]).all()


def test_pruned_shallower_and_bypassed_models_can_be_measured(documents, tokenizer):
    changes = {
        "uneven": lambda model: prune_neurons(model, neuron_importance(model, "random"), ratio=0.5, layers=[1]),
        "shallow": lambda model: remove_blocks(model, [1]),
        "bypassed": lambda model: bypass_attention(model, [0, 2]),
        "removed": lambda model: bypass_attention(model, [0, 2], remove=True),
    }
    models = {name: reader() for name in changes}
    for name, change in changes.items():
        change(models[name])
    scores = {name: evaluate(model, tokenizer, documents)["value"] for name, model in models.items()}
    pd.testing.assert_series_equal(scores["bypassed"], scores["removed"])
    assert describe(models["uneven"]).intermediate_sizes == (48, 24, 48)  # lm-eval ties weights anew; they stay cut


def test_each_question_decides_for_itself_in_an_adaptive_model(tokenizer):
    model, questions = reader(), [" ".join(WORDS[:n]) for n in range(1, 14)]
    padded = copy.deepcopy(tokenizer)
    padded.pad_token = padded.eos_token
    make_adaptive(model, calibrate(model, padded, questions, left_out=(3, 1, 0)))
    decided, keyword = [], describe(model).cache_keyword
    model.model.register_forward_hook(lambda _m, _a, output: decided.append(output[keyword].left_out.tolist()))
    texts = [(question, answer) for question in questions for answer in (" a", " cat", " sat on")]
    scored = ask_pairs(model, tokenizer, texts)
    assert len({rows[0] for rows in decided}) > 1
    for (question, answer), (likelihood, _) in zip(texts, scored, strict=True):
        ids = torch.tensor([tokenizer(question)["input_ids"]])
        with torch.no_grad():
            output, expected = model(ids, use_cache=True), 0.0
            for token in tokenizer(answer)["input_ids"]:
                expected += float(output.logits[0, -1].log_softmax(-1)[token])
                output = model(torch.tensor([[token]]), **{keyword: output[keyword]}, use_cache=True)
        assert likelihood == pytest.approx(expected, rel=1e-4)


def test_evaluate_says_when_questions_do_not_fit(documents, tokenizer):
    with pytest.warns(UserWarning, match="cut off"):
        evaluate(reader(max_position_embeddings=32), tokenizer, "boolq", limit=3)


def test_evaluate_refuses_an_unknown_task_and_another_models_tokenizer(documents, tokenizer):
    with pytest.raises(ValueError, match=r"'tasks' must be one of .*hellaswag.*; got 'hellaswg'"):
        evaluate(reader(), tokenizer, ["boolq", "hellaswg"])
    with pytest.raises(ValueError, match="token id"):
        evaluate(tiny_model(max_position_embeddings=512), tokenizer, "boolq")


# --------------------------------------------------------------------------------------------- paired comparisons


def test_paired_perplexity_matches_a_hand_computation():
    model_a, model_b, batches = tiny_model(seed=0), tiny_model(seed=1), tiny_batches(rows=8, length=40)
    a, b = perplexity(model_a, batches), perplexity(model_b, batches)
    row = paired(a, b).iloc[0]
    assert row["task"] == "text" and row["metric"] == "perplexity" and row["pairs"] == 8
    assert row["difference"] == pytest.approx(b.perplexity - a.perplexity)
    assert row["ci_low"] < row["difference"] < row["ci_high"]
    assert row["wins"] == (b.row_nll < a.row_nll).sum() and row["losses"] == (b.row_nll > a.row_nll).sum()
    signs = np.array(np.meshgrid(*[[-1, 1]] * 8)).reshape(8, -1)
    sums = np.abs((b.row_nll - a.row_nll) @ signs)
    exact = (sums >= sums.max(initial=0, where=(signs == 1).all(0)) - 1e-9).mean()  # of all 256 sign flips
    assert row["p"] == pytest.approx(exact)


def test_perplexity_ratio_pairs_rows_and_agrees_with_paired():
    model, batches = tiny_model(), tiny_batches(rows=16, length=10)
    before = perplexity(model, batches)
    assert perplexity_ratio(before, before) == (1, 1, 1) and paired(before, before)["p"].item() == 1
    model.model.layers[1].mlp.down_proj.weight.data *= 0.98
    after = perplexity(model, batches)
    value, low, high = perplexity_ratio(after, before)
    assert value == pytest.approx(after.perplexity / before.perplexity)
    expected = ratio_interval(after.row_nll - before.row_nll, before.row_tokens)
    assert (low, high) == pytest.approx(tuple(np.exp(expected[2:])))
    assert low < value < high and high - low < 0.1 * (before.ci_high - before.ci_low) / before.perplexity
    assert perplexity_ratio(before, after) == pytest.approx((1 / value, 1 / high, 1 / low))
    row = paired(before, after).iloc[0]  # certain, although the texts differ a lot from each other
    assert row["ci_high"] - row["ci_low"] < 0.1 * (before.ci_high - before.ci_low)


def test_bits_are_compared_where_the_bytes_are_the_same():
    """By rows, as a ratio of sums; a token needn't be a token."""
    ids, sizes = torch.arange(40).view(4, 10), torch.tensor([3, 9, 4, 7])
    finer, coarser = (TokenBlocks(rows, sizes, "wiki", "evaluation") for rows in (ids, ids[:, :6]))
    a, b = (perplexity(tiny_model(), blocks) for blocks in (finer, coarser))
    value, low, high = bits_ratio(a, b)
    assert value == pytest.approx(a.bits_per_byte / b.bits_per_byte) and low < value < high
    assert (low, high) == pytest.approx(ratio_interval(a.row_nll, b.row_nll)[2:])
    with pytest.raises(ValueError, match="same known bytes"):
        bits_ratio(a, perplexity(tiny_model(), ids))
    with pytest.raises(ValueError, match="same known bytes"):
        bits_ratio(a, perplexity(tiny_model(), finer[[1, 0, 2, 3]]))


def test_paired_accuracies_count_flips_and_use_mcnemar(documents, tokenizer):
    a, b = (evaluate(reader(seed=seed), tokenizer, ["arc_easy", "lambada_openai"]) for seed in (0, 3))
    frame = paired(a, b)
    assert list(frame["metric"]) == ["acc_norm", "acc", "perplexity"]
    assert frame[["a", "b"]].values == pytest.approx(np.transpose([a["value"], b["value"]]))
    arc = frame.iloc[0]
    right_a, right_b = (
        kept.attrs["answers"].table.query("task == 'arc_easy' and metric == 'acc_norm'")["value"].to_numpy()
        for kept in (a, b)
    )
    wins, losses = int(((right_a == 0) & (right_b == 1)).sum()), int(((right_a == 1) & (right_b == 0)).sum())
    assert wins + losses > 0
    assert (arc["wins"], arc["losses"], arc["pairs"]) == (wins, losses, 12)
    tail = sum(math.comb(wins + losses, k) for k in range(min(wins, losses) + 1)) / 2 ** (wins + losses)
    assert arc["p"] == pytest.approx(min(1, 2 * tail))
    assert arc["difference"] == pytest.approx((wins - losses) / 12)
    assert len(paired(a[a["task"] == "arc_easy"], b[b["task"] == "arc_easy"])) == 1  # parts of frames pair too
    pd.concat([a, b])  # attrs must not get in the way


def test_paired_refuses_what_was_not_measured_alike(documents, tokenizer):
    model, batches = tiny_model(), tiny_batches()
    text = perplexity(model, batches)
    scores = evaluate(reader(), tokenizer, "boolq", limit=5)
    for compared in (paired, perplexity_ratio):
        with pytest.raises(ValueError, match="different rows"):
            compared(text, perplexity(model, tiny_batches(seed=1)))
        with pytest.raises(ValueError, match="bfloat16"):
            compared(text, perplexity(tiny_model(dtype=torch.bfloat16), batches))
    with pytest.raises(ValueError, match="different rows or documents"):
        paired(scores, evaluate(reader(), tokenizer, "boolq", limit=6))
    with pytest.raises(ValueError, match="different scores"):
        paired(text, scores)
    with pytest.raises(ValueError, match="DataFrame"):
        paired(scores, pd.DataFrame({"task": ["boolq"]}))


@pytest.mark.embedded
def test_the_embedded_model_scores_as_known():
    from course_utils.models.loading import load_model

    frame = evaluate(*load_model("llama"), ["lambada_openai", "arc_easy"], limit=50).set_index(["task", "metric"])
    assert 0.15 < frame.loc[("lambada_openai", "acc"), "value"] < 0.45
    assert 30 < frame.loc[("lambada_openai", "perplexity"), "value"] < 120
    assert 0.3 < frame.loc[("arc_easy", "acc_norm"), "value"] < 0.65
    assert frame.loc[("arc_easy", "acc_norm"), "ci_low"] > frame.loc[("arc_easy", "acc_norm"), "chance"]

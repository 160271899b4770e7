"""Pairs that share a row get the numbers that they get alone, for less work."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import FAMILIES, tiny_model, token_ids, word_tokenizer, words
from tiny_pairs import make_pairs

from course_utils.adaptive import AdaptiveConfig, ModelIdentity, make_adaptive
from course_utils.architectures import describe
from course_utils.bias.alignment import align_all
from course_utils.bias.contrastive import Pair
from course_utils.bias.packing import packed_batches
from course_utils.bias.scores import measure_pairs
from course_utils.branching import BranchingBatch


def pack(pairs, *, model=None, batch_size=16):
    return packed_batches(describe(model or tiny_model()), word_tokenizer(), pairs, batch_size=batch_size)


def pair(before, a, b, after, *, template="t") -> Pair:
    before, a, b, after = map(words, (before, a, b, after))
    return Pair(f"{before} ", a, b, f" {after}", axis="x", kind="neutral", group_a=a, group_b=b, template=template)


def of(row: torch.Tensor, real: torch.Tensor) -> list[int]:
    return row[real.bool()].tolist()


def test_a_common_beginning_stands_once():
    endings = [[10, 11, 12], [10, 11, 13, 14], [10, 15]]
    (one,) = pack([pair([3, 4], [5], [6, 7], ending) for ending in endings])
    flat = [token for ending in endings for token in ending]
    rows = [of(*both) for both in zip(one.batch.input_ids, one.batch.attention_mask, strict=True)]
    assert rows == [[3, 4, 5, 10, 11, 12, 11, 13, 14, 15], [3, 4, 6, 7, 10, 11, 12, 11, 13, 14, 15]]
    assert one.batch.position_ids[1].tolist() == [0, 1, 2, 3, 4, 5, 6, 5, 6, 7, 5]
    assert one.counts.tolist() == [3, 4, 2] and one.indices == [0, 1, 2]
    assert one.sums(torch.ones(9)).tolist() == [3, 4, 2] and one.sums(torch.arange(9)).tolist() == [3, 18, 15]
    for side in one.sides:
        assert one.batch.input_ids[side.at].tolist() == flat
        assert side.targets[side.which].tolist() == flat
        assert len(side.targets) == len(side.predicting[0]) == 7  # 10 stands for all three
    # what predicts the first token of the second ending is the beginning, not what stands in front of it in the row
    assert one.batch.input_ids[one.sides[0].predicting].tolist() == [5, 10, 11, 10, 11, 13, 10]


texts = st.lists(st.integers(3, 6), min_size=1, max_size=5)


@settings(max_examples=60)
@given(
    before=texts, spans=st.tuples(texts, texts), afters=st.lists(texts, min_size=1, max_size=5), size=st.integers(1, 6)
)
def test_each_token_sees_its_own_text_and_nothing_else(before, spans, afters, size):
    pairs = [pair(before, *spans, after) for after in afters]
    tokenizer, seen = word_tokenizer(), []
    for one in pack(pairs, batch_size=size):
        assert len(one.indices) <= size
        seen += one.indices
        length = one.batch.input_ids.shape[1]
        plain = torch.ones(length, length).tril().bool() & one.batch.real[:, None, :]
        sees = (one.batch.visible[:, 0] == 0) if isinstance(one.batch, BranchingBatch) else plain
        assert sees.any(-1).all() or not isinstance(one.batch, BranchingBatch)  # softmax over nothing is NaN
        for number, (index, alignment) in enumerate(zip(one.indices, one.alignments, strict=True)):
            assert alignment == align_all(tokenizer, [pairs[index]], 1)[0]
            for side, text, ids in zip(
                one.sides, (pairs[index].text_a, pairs[index].text_b), (alignment.ids_a, alignment.ids_b), strict=True
            ):
                for k, (row, place) in enumerate(torch.stack(side.at).T[one.pair == number].tolist()):
                    end = alignment.after[k][side is one.sides[1]]
                    visible = one.batch.input_ids[row][sees[row, place]]
                    assert visible.tolist() == ids[: end + 1] == token_ids(text)[0, : end + 1].tolist()
                    positions = one.batch.position_ids[row][sees[row, place]]
                    assert positions.tolist() == list(range(end + 1))
    assert sorted(seen) == list(range(len(pairs)))


def alone(model, pairs, **options):
    """Measured one by one: nothing to share."""
    return [measure_pairs(model, word_tokenizer(), [one], **options) for one in pairs]


LONG = [pair([3, 4, 5], [6], [7, 8], [9, 10, 11, 12, 13, *ending]) for ending in ([14], [15, 16], [17, 18, 19])]


@pytest.mark.parametrize("attention", [None, "eager"])  # None: what the family takes by default
@pytest.mark.parametrize("family", FAMILIES)
def test_sharing_a_row_changes_no_score(family, attention):
    model = tiny_model(family, attn_implementation=attention)
    pairs = [*make_pairs(), *LONG]
    together, one_by_one = measure_pairs(model, word_tokenizer(), pairs), alone(model, pairs)
    for name in ("relative", "cosine"):
        expected = np.concatenate([getattr(scores, name) for scores in one_by_one])
        np.testing.assert_allclose(getattr(together, name), expected, rtol=1e-4, atol=1e-6)
    expected = [scores.frame.log_likelihood.item() for scores in one_by_one]
    np.testing.assert_allclose(together.frame.log_likelihood, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_has_no_nan(dtype):
    scores = measure_pairs(tiny_model(dtype=dtype), word_tokenizer(), [*make_pairs(), *LONG])
    exact = measure_pairs(tiny_model(), word_tokenizer(), [*make_pairs(), *LONG])
    np.testing.assert_allclose(scores.relative, exact.relative, atol=0.03)


def test_it_is_less_work():
    pairs = make_pairs(templates=4, swaps=3)
    one_by_one = sum(batch.batch.attention_mask.sum() for each in pairs for batch in pack([each]))
    assert sum(batch.batch.attention_mask.sum() for batch in pack(pairs)) < 0.7 * one_by_one


def test_only_the_same_words_share_a_row():
    others = [
        pair([3], [4], [5], [9, 10]), pair([3], [4], [6], [9, 11]), pair([8], [4], [5], [9, 10]),
        pair([3], [4], [5], [9, 11], template="u"),
    ]  # fmt: skip
    (one,) = pack(others)
    assert len(one.batch.input_ids) == 2 * len(others) and not isinstance(one.batch, BranchingBatch)


@pytest.mark.parametrize(("window", "shared"), [(12, False), (13, True), (None, True)])
def test_texts_beyond_a_sliding_window_run_alone(window, shared):
    """One mask for all layers can't say what a window hides; the longest text has 13 tokens."""
    assert max(len(token_ids(one.text_b)[0]) for one in LONG) == 13
    model = tiny_model("mistral", sliding_window=window)
    batches = pack(LONG, model=model)
    assert any(isinstance(one.batch, BranchingBatch) for one in batches) == shared
    together = measure_pairs(model, word_tokenizer(), LONG).frame.log_likelihood
    expected = [scores.frame.log_likelihood.item() for scores in alone(model, LONG)]
    np.testing.assert_allclose(together, expected, rtol=1e-4)


def test_where_the_model_cannot_be_told_texts_run_alone():
    model = tiny_model()
    model.config._attn_implementation = "flash_attention_2"
    assert not any(isinstance(one.batch, BranchingBatch) for one in pack(LONG, model=model))


def test_an_adaptive_model_decides_for_each_text():
    model = tiny_model()
    limits = {"log_length": [0.0, 5.0], "variance": [0.0, 1.0]}
    make_adaptive(model, AdaptiveConfig(ModelIdentity.of(model), (1,), (1, 0), (0.5,), "length_variance", limits))
    assert not any(isinstance(one.batch, BranchingBatch) for one in pack(LONG, model=model))
    together = measure_pairs(model, word_tokenizer(), LONG).frame.log_likelihood
    expected = [scores.frame.log_likelihood.item() for scores in alone(model, LONG)]
    np.testing.assert_allclose(together, expected, rtol=1e-4)


def test_bad_input():
    with pytest.raises(ValueError, match="at least"):
        pack([])
    with pytest.raises(ValueError, match="at least"):
        pack(LONG, batch_size=0)
    with pytest.raises(ValueError, match="vocabulary"):
        pack(LONG, model=tiny_model(vocab_size=5, pad_token_id=0))


def test_nothing_to_compare():
    bare = Pair("w3 ", "w4", "w5", "", axis="x", kind="neutral", group_a="a", group_b="b", template="t")
    (one,) = pack([bare])
    assert one.counts.tolist() == [0] and not len(one.sides[0].targets)
    assert measure_pairs(tiny_model(), word_tokenizer(), [bare]).frame.log_likelihood.isna().all()

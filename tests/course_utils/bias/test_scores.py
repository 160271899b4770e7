"""Scores by hand on tiny models, exact zeros where nothing differs, and no trace of the measurement."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from masked import unchanged
from tiny import FAMILIES, adaptive, tiny_model, word_tokenizer
from tiny_pairs import gap, make_pairs

from course_utils.bias.contrastive import Pair
from course_utils.bias.scores import measure_pairs
from course_utils.models.architectures import describe
from course_utils.pruning.attention import bypass_attention


@torch.no_grad()
def by_hand(model, pair: Pair, site: str, block: int) -> tuple[float, float]:
    """Log-likelihood difference and relative difference of one pair, without batches or padding."""
    architecture, kept = describe(model), []
    module = {"attention_out": architecture.attentions, "mlp_out": architecture.mlps}[site][block].contribution
    hook = module.register_forward_hook(lambda _m, _x, out: kept.append(out[0] if isinstance(out, tuple) else out))
    difference = gap(model, pair)
    hook.remove()
    a, b = (states.flatten(0, -2)[-len(pair.after.split()) :].double() for states in kept)
    return difference, float(((a - b).norm(dim=-1) / ((a.norm(dim=-1) + b.norm(dim=-1)) / 2)).mean())


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_by_hand(family):
    model, pairs = tiny_model(family), make_pairs(templates=3)
    scores = measure_pairs(model, word_tokenizer(), pairs, batch_size=4)
    assert scores.relative.shape == (len(pairs), 2, 3) and scores.relative.dtype == np.float32
    assert scores.sites == ("attention_out", "mlp_out") and scores.blocks == (0, 1, 2)
    for i in range(0, len(pairs), 5):
        row = scores.frame.loc[i]
        for s, site in enumerate(scores.sites):
            for block in scores.blocks:
                want = by_hand(model, pairs[i], site, block)
                assert (row["log_likelihood"], scores.relative[i, s, block]) == pytest.approx(want, rel=1e-3, abs=2e-5)
        assert row["tokens"] == len(pairs[i].after.split()) and row["excluded"] == 0
        assert (row["axis"], row["swap"], row["template"]) == (pairs[i].axis, pairs[i].swap, pairs[i].template)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_identity_is_exactly_zero(family, dtype):
    pairs = make_pairs("identity", "identity", swaps=5) + make_pairs(swaps=2)
    scores = measure_pairs(tiny_model(family, dtype=dtype), word_tokenizer(), pairs, batch_size=7)
    same = (scores.frame["kind"] == "identity").to_numpy()
    assert same.sum() == 40
    assert (scores.frame["log_likelihood"][same] == 0).all() and (scores.frame["log_likelihood"][~same] != 0).all()
    # (GPT-NeoX runs attention and MLP side by side: the first MLP hasn't seen the difference yet)
    assert (scores.relative[same] == 0).all() and (scores.relative[~same][..., 1:] > 0).all()


def test_states_in_16_bits_are_compared_in_float32():
    tokenizer, pairs, kept = word_tokenizer(), make_pairs(), []
    exact, low = (measure_pairs(tiny_model(dtype=dtype), tokenizer, pairs) for dtype in (torch.float32, torch.bfloat16))
    assert np.corrcoef(low.frame["log_likelihood"], exact.frame["log_likelihood"])[0, 1] > 0.99
    model, pair = tiny_model(dtype=torch.bfloat16), pairs[0]
    describe(model).mlps[1].contribution.register_forward_hook(lambda _module, _args, out: kept.append(out.double()))
    found = measure_pairs(model, tokenizer, [pair], sites="mlp_out").relative[0, 0, 1]
    ends, shared = [len(text.split()) for text in (pair.text_a, pair.text_b)], len(pair.after.split())
    a, b = (states[end - shared : end] for states, end in zip(kept[0], ends, strict=True))
    by_token = 2 * (a - b).norm(dim=-1) / (a.norm(dim=-1) + b.norm(dim=-1))
    assert found == pytest.approx(float(by_token.mean()), rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_batches_padding_and_order_do_not_matter(family):
    model, tokenizer, pairs = tiny_model(family), word_tokenizer(), make_pairs()
    alone = measure_pairs(model, tokenizer, pairs, batch_size=1)
    together = measure_pairs(model, tokenizer, pairs, batch_size=24)
    shuffled = np.random.default_rng(0).permutation(len(pairs))
    other = measure_pairs(model, tokenizer, [pairs[i] for i in shuffled], batch_size=5)
    for scores, order in ((together, np.arange(len(pairs))), (other, shuffled)):
        np.testing.assert_allclose(scores.frame["log_likelihood"], alone.frame["log_likelihood"][order], atol=2e-5)
        np.testing.assert_allclose(scores.relative, alone.relative[order], atol=2e-5)
    assert together.fingerprint == alone.fingerprint != other.fingerprint


def test_one_forward_pass_per_batch_and_no_trace():
    model, pairs, passes = tiny_model().train(), make_pairs(templates=4, swaps=2), []
    hook = model.model.register_forward_hook(lambda *_: passes.append(1))
    with unchanged(model):
        measure_pairs(model, word_tokenizer(), pairs, batch_size=4)
        hook.remove()
    assert len(passes) == len(pairs) / 4


def test_bypassed_attention_differs_by_nothing_and_chosen_sites_agree():
    model, tokenizer, pairs = tiny_model(), word_tokenizer(), make_pairs()
    bypass_attention(model, [1])
    scores = measure_pairs(model, tokenizer, pairs)
    assert (scores.relative[:, 0, 1] == 0).all()
    some = measure_pairs(model, tokenizer, pairs, sites="mlp_out")
    assert some.sites == ("mlp_out",)
    np.testing.assert_allclose(some.relative[:, 0], scores.relative[:, 1], atol=1e-6)
    none = measure_pairs(model, tokenizer, pairs, sites=())
    assert none.relative.shape == (len(pairs), 0, 3) and none.fingerprint == scores.fingerprint
    other_side = [replace(pair, b="w3") for pair in pairs]
    assert measure_pairs(model, tokenizer, other_side, sites=()).fingerprint != scores.fingerprint
    np.testing.assert_allclose(none.frame["log_likelihood"], scores.frame["log_likelihood"], atol=1e-6)


def test_pairs_without_shared_tokens_are_nan():
    pairs = make_pairs()
    scores = measure_pairs(tiny_model(), word_tokenizer(), [replace(pairs[0], after=""), *pairs])
    assert math.isnan(scores.frame["log_likelihood"][0]) and np.isnan(scores.relative[0]).all()
    assert scores.frame["tokens"][0] == 0 and scores.frame["log_likelihood"].notna().sum() == len(pairs)


def test_tokens_that_hold_a_part_of_the_span_and_of_the_text_around_are_counted():
    pair = replace(make_pairs()[0], before="w3 w1", a="0", b="1", after=" w5")  # w10 and w11
    frame = measure_pairs(tiny_model(), word_tokenizer(), [*make_pairs()[:1], pair]).frame
    assert frame["excluded"].tolist() == [0, 2] and frame["tokens"][1] == 1


def test_an_adaptive_model_decides_for_each_text():
    model = tiny_model()
    adaptive(model, order=(1,), left_out=(1, 0), threshold=8.0)
    pairs = make_pairs()
    together = measure_pairs(model, word_tokenizer(), pairs).frame.log_likelihood
    alone = [measure_pairs(model, word_tokenizer(), [pair]).frame.log_likelihood.item() for pair in pairs]
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)

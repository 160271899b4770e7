"""The scores are what they say, to the last digit where that is possible; and they find a planted bias."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from masked import unchanged
from tiny import FAMILIES, adaptive, tiny_model, token_ids, word_tokenizer
from tiny_pairs import gap

from course_utils.bias import fairness
from course_utils.bias.contrastive import Pair
from course_utils.bias.fairness import activation_difference, gap_attribution, knock_out, protect_first
from course_utils.models import architectures
from course_utils.models.architectures import describe
from course_utils.pruning.width import prune_neurons

SWAPS = (("w7", "w8"), ("w9 w10", "w11"), ("w12", "w13 w14 w15"))
ENDINGS = {1: " w20 w21", -1: " w22 w23 w24"}


@pytest.fixture
def tokenizer():
    return word_tokenizer()


def word_pairs(swaps=SWAPS, *, axis="words") -> list[Pair]:
    """Two templates x swaps x two valences, of different lengths."""
    templates = {"first": ("w3 w4 ", " w30 w31"), "second": ("w5 ", " w32 w33 w34 w35")}
    return [
        Pair(before, a, b, middle + ending, axis, "demographic", "left", "right", name, valence)
        for name, (before, middle) in templates.items()
        for a, b in swaps
        for valence, ending in ENDINGS.items()
    ]


def preference(model, pairs) -> float:
    """The mean double difference."""
    return sum(pair.valence * gap(model, pair) for pair in pairs) / (len(pairs) / 2)


def scaled(model, block: int, neuron: int, factor: float, *, first: int = 0) -> float:
    """The preference when a neuron's activation is multiplied by a factor, on the tokens from ``first``."""

    def scale(_module, inputs):
        changed = inputs[0].clone()
        changed[..., first:, neuron] *= factor
        return (changed,)

    hook = describe(model).mlps[block].down.register_forward_pre_hook(scale)
    value = preference(model, word_pairs())
    hook.remove()
    return value


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_activation_difference_by_hand(family, tokenizer):
    model, pairs = tiny_model(family), word_pairs()
    mlps = describe(model).mlps
    differences = [[] for _ in mlps]
    seen = []
    hooks = [mlp.down.register_forward_pre_hook(lambda _m, x: seen.append(x[0].flatten(0, -2))) for mlp in mlps]
    for pair in pairs:
        shared = len(pair.after.split())
        for text in (pair.text_a, pair.text_b):
            model(token_ids(text))
        for block, (a, b) in enumerate(zip(seen[: len(mlps)], seen[len(mlps) :], strict=True)):
            differences[block].append((a[-shared:] - b[-shared:]).abs())
        seen.clear()
    for hook in hooks:
        hook.remove()
    scores = activation_difference(model, tokenizer, pairs)
    for score, of_block, mlp in zip(scores, differences, mlps, strict=True):
        assert score.dtype == torch.float32
        torch.testing.assert_close(score, torch.cat(of_block).mean(0) * mlp.columns.norm(dim=0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("score", [activation_difference, gap_attribution])
@pytest.mark.parametrize("family", FAMILIES)
def test_identical_texts_score_exactly_zero(family, score, tokenizer):
    pairs = word_pairs([("w7", "w7"), ("w9 w10", "w9 w10")])
    for scores in score(tiny_model(family), tokenizer, pairs):
        assert torch.equal(scores, torch.zeros_like(scores))


FUNCTIONS = {
    "activation_difference": activation_difference,
    "gap_attribution": gap_attribution,
    "knock_out": lambda model, tokenizer, pairs: knock_out(model, tokenizer, pairs, [(0, 0)]),
}
each_function = pytest.mark.parametrize("name", FUNCTIONS)


@each_function
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma2"])
def test_padding_batches_and_chunks_of_logits_do_not_matter(family, name, tokenizer, monkeypatch):
    model, pairs, score = tiny_model(family), word_pairs(), FUNCTIONS[name]
    usual = score(model, tokenizer, pairs)
    monkeypatch.setattr(architectures, "_LOGITS", 3 * 97)
    torch.testing.assert_close(score(model, tokenizer, pairs[::-1]), usual, rtol=1e-3, atol=1e-5)
    for size in (1, 5, 100):
        monkeypatch.setattr(fairness, "_AT_ONCE", size)
        monkeypatch.setattr(fairness, "_AT_ONCE_WITH_GRADIENTS", size)
        torch.testing.assert_close(score(model, tokenizer, pairs), usual, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_attribution_is_the_derivative(family, tokenizer):
    model, step = tiny_model(family), 0.005  # small, because of the kinks of a ReLU
    before = preference(model, word_pairs())
    scores = gap_attribution(model, tokenizer, word_pairs())
    for block, neuron in ((0, 3), (1, 17), (2, 40), (2, int(scores[2].argmax()))):
        above, below = (scaled(model, block, neuron, factor, first=1) for factor in (1 + step, 1 - step))
        slope = (above - below) / (2 * step)
        expected = abs(before) - abs(before - slope)
        assert float(scores[block][neuron]) == pytest.approx(expected, rel=0.05, abs=2e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_knocked_out_equals_silenced_and_pruned(family, tokenizer):
    model, pairs, neurons = tiny_model(family), word_pairs(), [(0, 3), (2, 40), (0, 3)]
    reductions = knock_out(model, tokenizer, pairs, neurons)
    assert reductions.shape == (3,) and reductions[0] == reductions[2] and reductions.abs().min() > 1e-4
    before = abs(preference(model, pairs))
    for (block, neuron), reduction in zip(neurons, reductions, strict=True):
        assert float(reduction) == pytest.approx(before - abs(scaled(model, block, neuron, 0.0)), abs=2e-5)
        pruned, widths = copy.deepcopy(model), describe(model).intermediate_sizes
        scores = [torch.ones(width) for width in widths]
        scores[block][neuron] = 0
        prune_neurons(pruned, scores, ratio=1 / widths[block], layers=[block])
        assert before - abs(preference(pruned, pairs)) == pytest.approx(float(reduction), abs=2e-5)


def test_without_valence_the_mean_gap_counts(tokenizer):
    model, pairs = tiny_model("llama"), [replace(pair, valence=0) for pair in word_pairs()]
    before = sum(gap(model, pair) for pair in pairs) / len(pairs)
    (reduction,) = knock_out(model, tokenizer, pairs, [(1, 2)])
    with torch.no_grad():
        describe(model).mlps[1].columns[:, 2] = 0
    after = sum(gap(model, pair) for pair in pairs) / len(pairs)
    assert float(reduction) == pytest.approx(abs(before) - abs(after), abs=2e-5)


def test_the_score_is_of_a_magnitude_of_a_mean(tokenizer):
    model, pairs = tiny_model("llama"), word_pairs()
    scores = gap_attribution(model, tokenizer, pairs)
    swapped_sides = [replace(pair, a=pair.b, b=pair.a) for pair in pairs]
    repeated = pairs + [pair for pair in pairs if pair.valence == 1]
    for same in (swapped_sides, repeated):
        torch.testing.assert_close(gap_attribution(model, tokenizer, same), scores, rtol=1e-3, atol=1e-5)
    # a neuron that turns the preference round gets no credit for it
    assert max(float(s.max()) for s in scores) <= abs(preference(model, pairs)) + 1e-4


@pytest.mark.parametrize("score", [activation_difference, gap_attribution])
def test_low_precision_is_close(score, tokenizer):
    exact = torch.cat(score(tiny_model("llama"), tokenizer, word_pairs()))
    low = torch.cat(score(tiny_model("llama").to(torch.bfloat16), tokenizer, word_pairs()))
    assert low.dtype == torch.float32
    assert torch.corrcoef(torch.stack([exact, low]))[0, 1] > 0.98


@pytest.mark.parametrize("trainable", [True, False])
@each_function
def test_scoring_leaves_no_trace(name, trainable, tokenizer):
    model = tiny_model("llama").train().requires_grad_(trainable)
    model.lm_head.weight.requires_grad_(not trainable)
    wanted = [p.requires_grad for p in model.parameters()]
    with unchanged(model), torch.no_grad():  # gradients are switched on where they are needed, and off again
        result = FUNCTIONS[name](model, tokenizer, word_pairs())
        assert not torch.is_grad_enabled()
    assert not any(scores.requires_grad for scores in result)
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert all(p.grad is None for p in model.parameters())


@each_function
def test_broken_weights_are_refused_and_leave_no_trace(name, tokenizer):
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        FUNCTIONS[name](model, tokenizer, word_pairs())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


FIRST = word_pairs()[0]
BARE = replace(FIRST, after="")


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([*word_pairs(), *word_pairs(axis="others")], "several axes.*others, words"),
        ([*word_pairs(), replace(FIRST, valence=0)], "1 of 13 pairs have no valence"),
        (word_pairs()[:-1], "1 of 6 combinations.*'second', 'w12/w13 w14 w15'"),
        ([replace(BARE, valence=0), replace(FIRST, valence=0)], "1 of 2 pairs share no tokens.*number 0.*'w7/w8'"),
    ],
)
def test_pairs_without_a_preference_are_refused(pairs, message, tokenizer):
    with pytest.raises(ValueError, match=message):
        gap_attribution(tiny_model("llama"), tokenizer, pairs)


@each_function
def test_adaptive_models_are_refused(name, tokenizer):
    model = tiny_model("llama")
    adaptive(model, order=(1,), left_out=(1, 0))
    with pytest.raises(ValueError, match="adaptive"):
        FUNCTIONS[name](model, tokenizer, word_pairs())


def removed(scores: torch.Tensor, ratio: float) -> set[int]:
    """The neurons that ``prune_neurons`` cuts out of an MLP with these scores."""
    model = tiny_model("llama", layers=1)
    gate = describe(model).mlps[0].rows[0]
    gate[:, 0] = torch.arange(48.0)
    prune_neurons(model, [scores], ratio=ratio)
    return set(range(48)) - set(describe(model).mlps[0].rows[0][:, 0].int().tolist())


@settings(max_examples=40)
@given(
    ratio=st.floats(0, 0.99), percent=st.integers(0, 100), seed=st.integers(0, 1000), levels=st.sampled_from([3, 999])
)
def test_the_protected_stay(ratio, percent, seed, levels):
    generator = torch.Generator().manual_seed(seed)
    importance, bias = (torch.randint(levels, (48,), generator=generator).float() for _ in range(2))
    count = -(-48 * percent // 100)  # integers don't round
    kept_first = set(importance.sort(descending=True, stable=True).indices[:count].tolist())
    (scores,) = protect_first([importance], [bias], percent / 100)
    gone = removed(scores, ratio)
    if len(gone) <= 48 - count:
        assert not gone & kept_first
        others = set(range(48)) - gone - kept_first
        assert not gone or not others or bias[list(gone)].min() >= bias[list(others)].max()
    else:  # more is cut than isn't protected: the rest goes by importance
        assert set(range(48)) - kept_first <= gone
        stay = list(set(range(48)) - gone)
        assert importance[stay].min() >= importance[list(gone & kept_first)].max()


def test_protecting_a_share_counts_in_whole_neurons_and_changes_no_score():
    importance, bias = [torch.arange(100.0)], [torch.arange(100.0)]
    for share, count in ((0.0, 0), (0.07, 7), (0.071, 8), (0.29, 29), (1.0, 100)):
        assert int((protect_first(importance, bias, share)[0] >= 1).sum()) == count
    assert torch.equal(importance[0], torch.arange(100.0)) and torch.equal(bias[0], importance[0])

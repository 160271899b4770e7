"""Hidden channels come out of everything at once, and the model that remains is an ordinary one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from masked import ABLE, IDS, seeing, with_biases, with_channels
from tiny import tiny_batches, tiny_model, word_tokenizer

from course_utils.models.architectures import describe
from course_utils.models.loading import variant
from course_utils.pruning.attention import bypass_attention
from course_utils.pruning.channels import (
    channel_energies,
    channel_importance,
    importance_of,
    legal_sizes,
    norm_factors,
    prune_channels,
)
from course_utils.pruning.checkpoints import load_pruned, save_pruned
from course_utils.pruning.heads import prune_kv_groups
from course_utils.pruning.width import best, neuron_importance, prune_neurons

RANDOM = torch.rand(32, generator=torch.Generator().manual_seed(0))
# Gemma's default is tied, Llama's is not; each is tried both ways.
TIED = [(family, tied) for family in ABLE for tied in (False, True)]


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize(("family", "tied"), TIED)
@torch.no_grad()
def test_own_energies_tie_and_report(family, tied, rescale):
    model = with_biases(family, tied)
    energies, channels = channel_energies(model, tiny_batches()), best(RANDOM, 24)
    factors = norm_factors(energies, channels) if rescale else [1.0] * len(energies)
    expected = with_channels(model, channels, factors)
    assert not torch.allclose(expected, model(IDS).logits, atol=1e-3)  # the cut matters
    report = prune_channels(model, RANDOM, size=24, rescale_norms=rescale, energies=energies)
    torch.testing.assert_close(model(IDS).logits, expected, atol=1e-5, rtol=1e-5)
    assert (model.config.hidden_size, model.config.head_dim) == (24, 8)
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied
    assert describe(model).hidden_size == 24
    # Every weight but the norms of heads and the biases of what writes elsewhere has one side of this size.
    assert report.after.parameters < 0.78 * report.before.parameters


@pytest.mark.parametrize(("family", "tied"), TIED)
@torch.no_grad()
def test_channels_that_hold_nothing_cost_nothing_when_norms_are_rescaled(family, tied):
    model = with_biases(family, tied)
    architecture = describe(model)
    model.get_input_embeddings().weight[:, [3, 7, 8, 30]] = 0
    for part in (*architecture.mlps, *architecture.attentions):
        for projection in getattr(part, "outputs", None) or (part.output,):
            projection.weight[[3, 7, 8, 30]] = 0
            if projection.bias is not None:
                projection.bias[[3, 7, 8, 30]] = 0
    before, scores = model(IDS).logits, channel_importance(model, tiny_batches())
    assert not scores[[3, 7, 8, 30]].any() and int((scores > 0).sum()) == 28
    off, own = variant(model), variant(model)
    prune_channels(model, scores, size=28)
    near = {"atol": 1e-3, "rtol": 1e-3}  # not nearer: the norm's epsilon is added to another mean
    torch.testing.assert_close(model(IDS).logits, before, **near)
    prune_channels(own, scores, size=28, energies=channel_energies(own, tiny_batches()))
    torch.testing.assert_close(own(IDS).logits, before, **near)
    prune_channels(off, scores, size=28, rescale_norms=False)
    assert not torch.allclose(off(IDS).logits, before, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("family", ABLE)
@torch.no_grad()
def test_each_norm_is_rescaled_by_its_own_share(family):
    model = with_biases(family)
    energies, offset = channel_energies(model, tiny_batches()), describe(model).family.norm_offset
    kept, old = best(RANDOM, 24), [norm.weight.clone() for norm in describe(model).norms]
    scale = model.get_input_embeddings().embed_scale.item() if offset else 1.0
    prune_channels(model, RANDOM, size=24, energies=energies)
    new = [norm.weight for norm in describe(model).norms]
    for row, (before, after) in enumerate(zip(old, new, strict=True)):
        factor = (energies[row, kept].sum() / energies[row].sum() * 32 / 24).sqrt()
        if offset and row == len(new) - 1:  # a tied embedding that grew, and a norm before the head that takes it back
            factor = factor / (scale / model.get_input_embeddings().embed_scale.item())
        torch.testing.assert_close(after + offset, (before[kept] + offset) * factor)
    assert len(new) == (13 if offset else 7)


@torch.no_grad()
def test_cut_beside_the_other_axes(tmp_path):
    model = tiny_model("llama", hidden_size=48, num_attention_heads=8, num_key_value_heads=4, head_dim=8)
    prune_kv_groups(model, [torch.rand(4) for _ in range(3)], groups=2)
    prune_neurons(model, neuron_importance(model, "l2"), ratio=0.3, layers=[1])
    bypass_attention(model, [2])
    scores = channel_importance(model, tiny_batches())
    expected = with_channels(model, best(scores, 40), norm_factors(scores.square().expand(7, 48), best(scores, 40)))
    prune_channels(model, scores, size=40)
    torch.testing.assert_close(model(IDS).logits, expected, atol=1e-5, rtol=1e-5)
    folder = save_pruned(model, word_tokenizer(), tmp_path / "model")
    assert torch.equal(load_pruned(folder)[0](IDS).logits, model(IDS).logits)
    bypass_attention(model, [])  # cut like the others, and restored
    bypass_attention(model, [0, 1, 2], remove=True)
    prune_channels(model, torch.rand(40), size=32)
    folder = save_pruned(model, word_tokenizer(), tmp_path / "model")
    assert torch.equal(load_pruned(folder)[0](IDS).logits, model(IDS).logits)


@settings(max_examples=20)
@given(family=st.sampled_from(ABLE), size=st.sampled_from(range(4, 33, 4)), seed=st.integers(0, 99))
@torch.no_grad()
def test_any_size(family, size, seed):
    model = with_biases(family)
    scores = torch.rand(32, generator=torch.Generator().manual_seed(seed))
    factors = norm_factors(scores.square().expand(len(describe(model).norms), 32), best(scores, size))
    expected = with_channels(model, best(scores, size), factors if size < 32 else [1.0] * len(factors))
    prune_channels(model, scores, size=size)
    torch.testing.assert_close(model(IDS).logits, expected, atol=2e-5, rtol=2e-5)


# --- scores ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ABLE)
@torch.no_grad()
def test_energies_by_hand(family, dtype):
    """In 16 bits they are those of the same numbers in float32."""
    model = with_biases(family, dtype=dtype)
    norms = describe(model).norms
    with seeing(norms) as seen:
        energies = channel_energies(model, tiny_batches())
    for row, states in zip(energies, seen, strict=True):
        squares = torch.cat(states).float().square()
        torch.testing.assert_close(row, (squares / squares.sum(-1, keepdim=True)).mean(0))
    torch.testing.assert_close(energies.sum(1), torch.ones(len(norms)))
    assert torch.equal(channel_importance(model, tiny_batches()), importance_of(energies))
    mean = sum(energies) / len(norms)
    torch.testing.assert_close(channel_importance(model, tiny_batches()), mean**0.5)


def test_float16_scores_do_not_overflow():
    model = with_biases("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(300)
    exact, low = (channel_importance(model.to(dtype), tiny_batches()) for dtype in (torch.float32, torch.float16))
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, exact, rtol=0.1, atol=0.1 * float(exact.mean()))


def test_states_that_are_not_finite_are_refused():
    model = with_biases("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = float("inf")
    with pytest.raises(ValueError, match="NaN"):
        channel_importance(model, tiny_batches())


# --- bad input ------------------------------------------------------------------------------------


def test_sizes_that_transformers_refuses_are_named():
    model = with_biases("llama")
    with pytest.raises(ValueError, match=r"hidden size 30 and 4 query heads; .*: 28 and 32"):
        prune_channels(model, RANDOM, size=30)
    with pytest.raises(ValueError, match=r"size 2 and .*: 4"):
        prune_channels(model, RANDOM, size=2)
    assert legal_sizes(model, 20) == [20, 24, 28, 32]
    assert legal_sizes(with_biases("mistral"), 29) == [29, 30, 31, 32]  # it doesn't mind

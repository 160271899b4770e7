"""Hidden channels come out of everything at once, and the model that remains is an ordinary one."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import FAMILIES, tiny_batches, tiny_model, word_tokenizer
from transformers import AutoModelForCausalLM

from course_utils import families
from course_utils.adaptive import AdaptiveConfig, ModelIdentity, make_adaptive
from course_utils.architectures import describe
from course_utils.attention import bypass_attention
from course_utils.channels import (
    channel_energies,
    channel_importance,
    importance_of,
    legal_sizes,
    norm_factors,
    prune_channels,
)
from course_utils.checkpoints import load_pruned, save_pruned
from course_utils.choosing import best
from course_utils.heads import prune_kv_groups
from course_utils.models import variant
from course_utils.width import neuron_importance, prune_neurons

ABLE = [name for name in FAMILIES if families.FAMILIES[name].own_head_size]
BOUND = [name for name in FAMILIES if name not in ABLE]
IDS = tiny_batches()[0]["input_ids"]
RANDOM = torch.rand(32, generator=torch.Generator().manual_seed(0))
# Gemma's default is tied, Llama's is not; each is tried both ways.
TIED = [(family, tied) for family in ABLE for tied in (False, True)]


def model_of(family, tied=True, **settings):
    """With biases wherever the family can have them."""
    biases = {"llama": ("attention_bias", "mlp_bias"), "qwen3": ("attention_bias",)}.get(family, ())
    return tiny_model(family, tie_word_embeddings=tied, **dict.fromkeys(biases, True) | settings)


@torch.no_grad()
def masked_logits(model, channels, factors, ids=IDS):
    """Logits of the whole model where the other channels are written as zeros, and norms average over these alone."""
    architecture = describe(model)
    mask = torch.zeros(architecture.hidden_size).index_fill(0, channels, 1.0)
    offset, hooks = architecture.family.norm_offset, []

    def masked_norm(factor):
        def hook(norm, args, _output):
            x = args[0] * mask
            epsilon = norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps
            return (
                x
                * (x.square().sum(-1, keepdim=True) / len(channels) + epsilon).rsqrt()
                * ((norm.weight + offset) * factor)
            )

        return hook

    writers = [mlp.down for mlp in architecture.mlps]
    writers += [p.module for attention in architecture.attentions for p in attention.outputs]
    writers.append(model.get_input_embeddings())
    hooks += [module.register_forward_hook(lambda _m, _x, output: output * mask) for module in writers]
    for norm, factor in zip(architecture.norms, factors, strict=True):
        hooks.append(norm.register_forward_hook(masked_norm(factor)))
    logits = model(ids).logits
    for hook in hooks:
        hook.remove()
    return logits


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize(("family", "tied"), TIED)
@torch.no_grad()
def test_pruned_equals_masked(family, tied, rescale):
    model = model_of(family, tied)
    energies, channels = channel_energies(model, tiny_batches()), best(RANDOM, 24)
    factors = norm_factors(energies, channels) if rescale else [1.0] * len(energies)
    expected = masked_logits(model, channels, factors)
    assert not torch.allclose(expected, model(IDS).logits, atol=1e-3)  # the cut matters
    report = prune_channels(model, RANDOM, size=24, rescale_norms=rescale, energies=energies)
    torch.testing.assert_close(model(IDS).logits, expected, atol=1e-5, rtol=1e-5)
    assert (model.config.hidden_size, model.config.head_dim) == (24, 8)
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied
    assert describe(model).hidden_size == 24
    # Every weight but the norms of heads and the biases of what writes elsewhere has one side of this size.
    assert report.after.parameters < 0.78 * report.before.parameters


@pytest.mark.parametrize("family", ABLE)
@torch.no_grad()
def test_cached_generation_equals_uncached(family):
    model = model_of(family)
    prune_channels(model, RANDOM, size=20)
    run = [
        model.generate(IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=8, do_sample=False, use_cache=cache)
        for cache in (True, False)
    ]
    assert torch.equal(*run)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("family", "tied"), TIED)
@torch.no_grad()
def test_reloads_with_plain_transformers(family, tied, dtype, tmp_path):
    model = model_of(family, tied, dtype=dtype)
    prune_channels(model, RANDOM, size=24)
    folder = save_pruned(model, word_tokenizer(), tmp_path / "model")
    assert not list(folder.glob("*.py"))
    for reloaded in (AutoModelForCausalLM.from_pretrained(folder), load_pruned(folder)[0]):
        assert torch.equal(reloaded(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize(("family", "tied"), TIED)
@torch.no_grad()
def test_channels_that_hold_nothing_cost_nothing_when_norms_are_rescaled(family, tied):
    model = model_of(family, tied)
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
    model = model_of(family)
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
    expected = masked_logits(model, best(scores, 40), norm_factors(scores.square().expand(7, 48), best(scores, 40)))
    prune_channels(model, scores, size=40)
    torch.testing.assert_close(model(IDS).logits, expected, atol=1e-5, rtol=1e-5)
    folder = save_pruned(model, word_tokenizer(), tmp_path / "model")
    assert torch.equal(load_pruned(folder)[0](IDS).logits, model(IDS).logits)
    bypass_attention(model, [])  # cut like the others, and restored
    bypass_attention(model, [0, 1, 2], remove=True)
    prune_channels(model, torch.rand(40), size=32)
    folder = save_pruned(model, word_tokenizer(), tmp_path / "model")
    assert torch.equal(load_pruned(folder)[0](IDS).logits, model(IDS).logits)


@torch.no_grad()
def test_all_channels_is_the_identity_and_a_variant_is_left_alone():
    for family in ("llama", "gemma2"):
        model = model_of(family)
        before, weights = model(IDS).logits, [p.data_ptr() for p in model.parameters()]
        report = prune_channels(model, RANDOM, size=32)
        assert [p.data_ptr() for p in model.parameters()] == weights and report.before == report.after
        other = variant(model)
        prune_channels(other, RANDOM, size=16)
        assert torch.equal(model(IDS).logits, before)
        assert other.get_input_embeddings().embedding_dim == 16


@settings(max_examples=20, deadline=None)
@given(family=st.sampled_from(ABLE), size=st.sampled_from(range(4, 33, 4)), seed=st.integers(0, 99))
@torch.no_grad()
def test_any_size(family, size, seed):
    model = model_of(family)
    scores = torch.rand(32, generator=torch.Generator().manual_seed(seed))
    factors = norm_factors(scores.square().expand(len(describe(model).norms), 32), best(scores, size))
    expected = masked_logits(model, best(scores, size), factors if size < 32 else [1.0] * len(factors))
    prune_channels(model, scores, size=size)
    torch.testing.assert_close(model(IDS).logits, expected, atol=2e-5, rtol=2e-5)


def test_weights_stay_trainable():
    model = model_of("llama")
    prune_channels(model, RANDOM, size=24)
    model(**tiny_batches()[0], labels=tiny_batches()[0]["input_ids"]).loss.backward()
    assert all(p.grad is not None for p in model.parameters())


# --- scores ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ABLE)
@torch.no_grad()
def test_energies_by_hand(family):
    model = model_of(family)
    norms = describe(model).norms
    seen = [[] for _ in norms]
    for norm, states in zip(norms, seen, strict=True):
        norm.register_forward_pre_hook(lambda _m, x, s=states: s.append(x[0].flatten(0, -2)))
    energies = channel_energies(model, tiny_batches())
    for row, states in zip(energies, seen, strict=True):
        squares = torch.cat(states).square()
        torch.testing.assert_close(row, (squares / squares.sum(-1, keepdim=True)).mean(0))
    torch.testing.assert_close(energies.sum(1), torch.ones(len(norms)))
    assert torch.equal(channel_importance(model, tiny_batches()), importance_of(energies))


@pytest.mark.parametrize("family", ABLE)
def test_importance_ignores_batching_and_padding(family):
    model = model_of(family)
    reference = channel_importance(model, tiny_batches(padding="right", size=1))
    for batches in (tiny_batches(padding="left"), tiny_batches(padding="right", size=6)):
        torch.testing.assert_close(channel_importance(model, batches), reference, atol=1e-5, rtol=1e-4)


def test_float16_scores_do_not_overflow():
    model = model_of("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(300)
    exact, low = (channel_importance(model.to(dtype), tiny_batches()) for dtype in (torch.float32, torch.float16))
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, exact, rtol=0.1, atol=0.1 * float(exact.mean()))


def test_scoring_leaves_no_trace():
    model = model_of("llama").train()
    state = copy.deepcopy(model.state_dict())
    channel_importance(model, tiny_batches())
    assert model.training and all(torch.equal(v, model.state_dict()[k]) for k, v in state.items())
    with pytest.raises(ValueError, match="A batch is a mapping"):
        channel_importance(model, ["text"])
    assert not any(m._forward_pre_hooks for m in model.modules())
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = float("inf")
    with pytest.raises(ValueError, match="NaN"):
        channel_importance(model, tiny_batches())


# --- bad input ------------------------------------------------------------------------------------


def test_adaptive_models_are_refused():
    model = model_of("llama")
    identity, ranges = ModelIdentity.of(model), {"log_length": [0, 1], "variance": [0, 1]}
    make_adaptive(model, AdaptiveConfig(identity, [0, 1, 2], (3, 0), (0.5,), "length_variance", ranges))
    with pytest.raises(ValueError, match="of an adaptive model"):
        prune_channels(model, RANDOM, size=16)


@pytest.mark.parametrize("family", BOUND)
def test_families_without_the_axis_are_refused_by_name(family):
    model = tiny_model(family)
    for action in (
        lambda: channel_importance(model, tiny_batches()),
        lambda: prune_channels(model, RANDOM, size=16),
        lambda: legal_sizes(model, 16),
    ):
        with pytest.raises(ValueError, match=f"of a {family} model.*exists in llama"):
            action()


def test_sizes_that_transformers_refuses_are_named():
    model = model_of("llama")
    with pytest.raises(ValueError, match=r"hidden size 30 and 4 query heads; .*: 28 and 32"):
        prune_channels(model, RANDOM, size=30)
    with pytest.raises(ValueError, match=r"size 2 and .*: 4"):
        prune_channels(model, RANDOM, size=2)
    assert legal_sizes(model, 20) == [20, 24, 28, 32]
    assert legal_sizes(model_of("mistral"), 29) == [29, 30, 31, 32]  # it doesn't mind


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "from 1 to 32"),
        ({"size": 36}, "from 1 to 32"),
        ({"size": 16.0}, "whole number"),
        ({"size": True}, "whole number"),
        ({"importance": torch.ones(31)}, r"\[32\], the hidden size.*\[31\]"),
        ({"importance": torch.full((32,), float("nan"))}, "be finite"),
        ({"rescale_norms": 1}, "True or False"),
        ({"energies": torch.ones(32)}, r"\[7, 32\]"),
        ({"energies": -torch.ones(7, 32)}, "at least 0"),
        ({"energies": torch.full((7, 32), float("inf"))}, "finite"),
    ],
)
def test_bad_input_changes_nothing(arguments, message):
    model = model_of("llama")
    state, config = copy.deepcopy(model.state_dict()), model.config.to_dict()
    with pytest.raises(ValueError, match=message):
        prune_channels(model, **{"importance": RANDOM, "size": 16} | arguments)
    assert model.config.to_dict() == config
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in state.items())

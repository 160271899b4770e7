"""KV groups come out whole, with their query heads, and the model that remains is an ordinary one."""

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
from course_utils.checkpoints import load_pruned, save_pruned
from course_utils.choosing import best
from course_utils.heads import head_importance, legal_groups, prune_kv_groups
from course_utils.models import variant
from course_utils.width import neuron_importance, prune_neurons

ABLE = [name for name in FAMILIES if families.FAMILIES[name].own_head_size]
BOUND = [name for name in FAMILIES if name not in ABLE]
IDS = tiny_batches()[0]["input_ids"]
FOUR = {"hidden_size": 48, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8}  # two query heads a group
SCORES = [torch.tensor(order) for order in ([1.0, 4.0, 2.0, 3.0], [4.0, 1.0, 3.0, 2.0], [2.0, 2.0, 1.0, 5.0])]


def model_of(family, **settings):
    """With four KV groups, and biases wherever the family can have them."""
    return tiny_model(family, **FOUR | ({"attention_bias": True} if family in ("llama", "qwen3") else {}) | settings)


@torch.no_grad()
def masked_logits(model, kept, ids=IDS):
    """Logits of the whole model with the outputs of every other group's query heads set to zero."""
    hooks = []
    for attention, groups in zip(describe(model).attentions, kept, strict=True):
        mask = torch.zeros(4).index_fill(0, groups, 1.0).repeat_interleave(16)
        hooks.append(attention.outputs[0].module.register_forward_pre_hook(lambda _m, x, mask=mask: (x[0] * mask,)))
    logits = model(ids).logits
    for hook in hooks:
        hook.remove()
    return logits


@pytest.mark.parametrize("family", ABLE)
@torch.no_grad()
def test_pruned_equals_masked(family):
    model = model_of(family)
    expected = masked_logits(model, [best(s, 2) for s in SCORES])
    assert not torch.allclose(expected, model(IDS).logits, atol=1e-3)  # the cut matters
    report = prune_kv_groups(model, SCORES, groups=2)
    torch.testing.assert_close(model(IDS).logits, expected, atol=1e-5, rtol=1e-5)
    config = model.config
    assert (config.num_key_value_heads, config.num_attention_heads, config.head_dim) == (2, 4, 8)
    assert [a.groups for a in describe(model).attentions] == [2] * 3
    # Rows of 2 x 2 query heads, 2 keys and 2 values (and their biases), and columns of the query heads.
    has_bias = describe(model).attentions[0].inputs[0].bias is not None
    assert report.before.parameters - report.after.parameters == 3 * (64 * 48 + 32 * 48 + 64 * has_bias)


@pytest.mark.parametrize("family", ABLE)
@torch.no_grad()
def test_cached_generation_equals_uncached(family):
    model = model_of(family)
    prune_kv_groups(model, SCORES, groups=1)
    run = [
        model.generate(IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=8, do_sample=False, use_cache=cache)
        for cache in (True, False)
    ]
    assert torch.equal(*run)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ABLE)
@torch.no_grad()
def test_reloads_with_plain_transformers(family, dtype, tmp_path):
    model = model_of(family, dtype=dtype)
    prune_kv_groups(model, SCORES, groups=2)
    folder = save_pruned(model, word_tokenizer(), tmp_path / "model")
    assert not list(folder.glob("*.py"))
    for reloaded in (AutoModelForCausalLM.from_pretrained(folder), load_pruned(folder)[0]):
        assert torch.equal(reloaded(IDS).logits, model(IDS).logits)


@torch.no_grad()
def test_cut_beside_uneven_widths_and_attentions_that_are_gone(tmp_path):
    model = model_of("llama")
    prune_neurons(model, neuron_importance(model, "l2"), ratio=0.3, layers=[1])
    bypass_attention(model, [2])
    whole = variant(model)
    bypass_attention(whole, [])
    prune_kv_groups(model, SCORES, groups=2)
    folder = save_pruned(model, word_tokenizer(), tmp_path / "model")
    assert torch.equal(load_pruned(folder)[0](IDS).logits, model(IDS).logits)
    bypass_attention(model, [])  # the bypassed attention was cut like the others
    expected = masked_logits(whole, [best(s, 2) for s in SCORES])
    torch.testing.assert_close(model(IDS).logits, expected, atol=1e-5, rtol=1e-5)
    bypass_attention(model, [1], remove=True)
    before = model(IDS).logits
    prune_kv_groups(model, [s[:2] for s in SCORES], groups=1)
    assert describe(model).groups == 1 and not torch.equal(model(IDS).logits, before)
    bypass_attention(model, [0, 1, 2], remove=True)
    with pytest.raises(ValueError, match="no KV groups"):
        prune_kv_groups(model, SCORES, groups=1)


@torch.no_grad()
def test_all_groups_is_the_identity_and_a_variant_is_left_alone():
    model = model_of("llama")
    before, weights = model(IDS).logits, [p.data_ptr() for p in model.parameters()]
    report = prune_kv_groups(model, SCORES, groups=4)
    assert [p.data_ptr() for p in model.parameters()] == weights and report.before == report.after
    prune_kv_groups(variant(model), SCORES, groups=1)
    assert torch.equal(model(IDS).logits, before)


@settings(max_examples=20, deadline=None)
@given(family=st.sampled_from(ABLE), groups=st.integers(1, 4), seed=st.integers(0, 99))
def test_any_number_of_groups(family, groups, seed):
    model = model_of(family)
    generator = torch.Generator().manual_seed(seed)
    scores = [torch.rand(4, generator=generator) for _ in range(3)]
    expected = masked_logits(model, [best(s, groups) for s in scores])
    prune_kv_groups(model, scores, groups=groups)
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, expected, atol=1e-5, rtol=1e-5)


# --- scores ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ABLE)
@torch.no_grad()
def test_importance_by_hand(family):
    model = model_of(family)
    seen = [[] for _ in range(3)]
    for attention, states in zip(describe(model).attentions, seen, strict=True):
        attention.outputs[0].module.register_forward_pre_hook(lambda _m, x, s=states: s.append(x[0].flatten(0, -2)))
    scores = head_importance(model, tiny_batches())
    for states, score in zip(seen, scores, strict=True):
        x = torch.cat(states)  # [tokens, query width]
        lengths = [x[:, i : i + 16].norm(dim=1) for i in range(0, 64, 16)]
        torch.testing.assert_close(score, torch.stack([length.square().mean().sqrt() for length in lengths]))


@pytest.mark.parametrize("family", ABLE)
def test_importance_ignores_batching_and_padding(family):
    model = model_of(family)
    reference = head_importance(model, tiny_batches(padding="right", size=1))
    for batches in (tiny_batches(padding="left"), tiny_batches(padding="right", size=6)):
        for a, b in zip(reference, head_importance(model, batches), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_a_group_that_gives_nothing_scores_zero_and_goes_first():
    model = model_of("llama")
    with torch.no_grad():
        for attention in describe(model).attentions:
            values = attention.inputs[2]
            values.weight[8:16] = values.bias[8:16] = 0
    scores, before = head_importance(model, tiny_batches()), model(IDS).logits
    assert all(s[1] == 0 and s[[0, 2, 3]].min() > 0 for s in scores)
    prune_kv_groups(model, scores, groups=3)
    torch.testing.assert_close(model(IDS).logits, before, atol=1e-5, rtol=1e-5)


def test_float16_scores_do_not_overflow():
    model = model_of("llama")
    with torch.no_grad():
        for attention in describe(model).attentions:
            attention.inputs[2].weight.mul_(300)
    exact = head_importance(model, tiny_batches())
    for low, full in zip(head_importance(model.to(torch.float16), tiny_batches()), exact, strict=True):
        assert low.dtype == torch.float32
        torch.testing.assert_close(low, full, rtol=0.1, atol=0.1 * float(full.mean()))


def test_scoring_leaves_no_trace_and_what_is_bypassed_scores_zero():
    model = model_of("llama").train()
    bypass_attention(model, [1])
    state = copy.deepcopy(model.state_dict())
    scores = head_importance(model, tiny_batches())
    assert [bool(s.any()) for s in scores] == [True, False, True]
    assert model.training and all(torch.equal(v, model.state_dict()[k]) for k, v in state.items())
    with pytest.raises(ValueError, match="A batch is a mapping"):
        head_importance(model, ["text"])
    assert not any(m._forward_pre_hooks for m in model.modules())


# --- bad input ------------------------------------------------------------------------------------


def test_adaptive_models_are_refused():
    model = model_of("llama")
    identity, ranges = ModelIdentity.of(model), {"log_length": [0, 1], "variance": [0, 1]}
    make_adaptive(model, AdaptiveConfig(identity, [0, 1, 2], (3, 0), (0.5,), "length_variance", ranges))
    with pytest.raises(ValueError, match="of an adaptive model"):
        prune_kv_groups(model, SCORES, groups=2)


@pytest.mark.parametrize("family", BOUND)
def test_families_without_the_axis_are_refused_by_name(family):
    model = tiny_model(family)
    for action in (
        lambda: head_importance(model, tiny_batches()),
        lambda: prune_kv_groups(model, [torch.ones(4)] * 3, groups=2),
        lambda: legal_groups(model),
    ):
        with pytest.raises(ValueError, match=f"of a {family} model.*exists in llama"):
            action()


def test_sizes_that_transformers_refuses_are_named():
    model = tiny_model("llama", **FOUR | {"hidden_size": 40})
    assert legal_groups(model) == [1, 2, 4]  # 40 can't be divided by six query heads
    with pytest.raises(ValueError, match=r"6 query heads; KV groups that can stay: \[1, 2, 4\]"):
        prune_kv_groups(model, SCORES, groups=3)
    assert legal_groups(tiny_model("mistral", **FOUR | {"hidden_size": 40})) == [1, 2, 3, 4]  # it doesn't mind


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groups": 0}, "from 1 to 4"),
        ({"groups": 5}, "from 1 to 4"),
        ({"groups": 2.0}, "whole number"),
        ({"groups": True}, "whole number"),
        ({"importance": []}, "one tensor"),
        ({"importance": [torch.ones(4)] * 2}, "one tensor"),
        ({"importance": [torch.ones(8)] * 3}, r"\(8,\)"),
        ({"importance": [torch.ones(4), torch.full((4,), float("nan")), torch.ones(4)]}, r"\[1\]"),
    ],
)
def test_bad_input_changes_nothing(arguments, message):
    model = model_of("llama")
    state, config = copy.deepcopy(model.state_dict()), model.config.to_dict()
    with pytest.raises(ValueError, match=message):
        prune_kv_groups(model, **{"importance": SCORES, "groups": 2} | arguments)
    assert model.config.to_dict() == config
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in state.items())

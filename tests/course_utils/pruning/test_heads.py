"""KV groups come out whole, with their query heads, and the model that remains is an ordinary one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from masked import ABLE, FOUR, IDS, four_groups, seeing, with_groups
from tiny import tiny_batches, tiny_model, word_tokenizer

from course_utils.models.architectures import describe
from course_utils.models.loading import variant
from course_utils.pruning.attention import bypass_attention
from course_utils.pruning.checkpoints import load_pruned, save_pruned
from course_utils.pruning.heads import head_importance, legal_groups, prune_kv_groups
from course_utils.pruning.width import best, neuron_importance, prune_neurons

SCORES = [torch.tensor(order) for order in ([1.0, 4.0, 2.0, 3.0], [4.0, 1.0, 3.0, 2.0], [2.0, 2.0, 1.0, 5.0])]


@pytest.mark.parametrize("family", ABLE)
@torch.no_grad()
def test_configuration_and_report_follow(family):
    model = four_groups(family)
    report = prune_kv_groups(model, SCORES, groups=2)
    config = model.config
    assert (config.num_key_value_heads, config.num_attention_heads, config.head_dim) == (2, 4, 8)
    assert [a.groups for a in describe(model).attentions] == [2] * 3
    # Rows of 2 x 2 query heads, 2 keys and 2 values (and their biases), and columns of the query heads.
    has_bias = describe(model).attentions[0].inputs[0].bias is not None
    assert report.before.parameters - report.after.parameters == 3 * (64 * 48 + 32 * 48 + 64 * has_bias)


@torch.no_grad()
def test_cut_beside_uneven_widths_and_attentions_that_are_gone(tmp_path):
    model = four_groups("llama")
    prune_neurons(model, neuron_importance(model, "l2"), ratio=0.3, layers=[1])
    bypass_attention(model, [2])
    whole = variant(model)
    bypass_attention(whole, [])
    prune_kv_groups(model, SCORES, groups=2)
    folder = save_pruned(model, word_tokenizer(), tmp_path / "model")
    assert torch.equal(load_pruned(folder)[0](IDS).logits, model(IDS).logits)
    bypass_attention(model, [])  # the bypassed attention was cut like the others
    expected = with_groups(whole, [best(s, 2) for s in SCORES])
    torch.testing.assert_close(model(IDS).logits, expected, atol=1e-5, rtol=1e-5)
    bypass_attention(model, [1], remove=True)
    before = model(IDS).logits
    prune_kv_groups(model, [s[:2] for s in SCORES], groups=1)
    assert describe(model).groups == 1 and not torch.equal(model(IDS).logits, before)
    bypass_attention(model, [0, 1, 2], remove=True)
    with pytest.raises(ValueError, match="no KV groups"):
        prune_kv_groups(model, SCORES, groups=1)


@settings(max_examples=20)
@given(family=st.sampled_from(ABLE), groups=st.integers(1, 4), seed=st.integers(0, 99))
def test_any_number_of_groups(family, groups, seed):
    model = four_groups(family)
    generator = torch.Generator().manual_seed(seed)
    scores = [torch.rand(4, generator=generator) for _ in range(3)]
    expected = with_groups(model, [best(s, groups) for s in scores])
    prune_kv_groups(model, scores, groups=groups)
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, expected, atol=1e-5, rtol=1e-5)


# --- scores ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ABLE)
@torch.no_grad()
def test_importance_by_hand(family, dtype):
    """In 16 bits it is that of the same numbers in float32."""
    model = four_groups(family, dtype=dtype)
    with seeing([attention.outputs[0].module for attention in describe(model).attentions]) as seen:
        scores = head_importance(model, tiny_batches())
    for states, score in zip(seen, scores, strict=True):
        x = torch.cat(states).float()  # [tokens, query width]
        lengths = [x[:, i : i + 16].norm(dim=1) for i in range(0, 64, 16)]
        torch.testing.assert_close(score, torch.stack([length.square().mean().sqrt() for length in lengths]))


def test_a_group_that_gives_nothing_scores_zero_and_goes_first():
    model = four_groups("llama")
    with torch.no_grad():
        for attention in describe(model).attentions:
            values = attention.inputs[2]
            values.weight[8:16] = values.bias[8:16] = 0
    scores, before = head_importance(model, tiny_batches()), model(IDS).logits
    assert all(s[1] == 0 and s[[0, 2, 3]].min() > 0 for s in scores)
    prune_kv_groups(model, scores, groups=3)
    torch.testing.assert_close(model(IDS).logits, before, atol=1e-5, rtol=1e-5)


def test_float16_scores_do_not_overflow():
    model = four_groups("llama")
    with torch.no_grad():
        for attention in describe(model).attentions:
            attention.inputs[2].weight.mul_(300)
    exact = head_importance(model, tiny_batches())
    for low, full in zip(head_importance(model.to(torch.float16), tiny_batches()), exact, strict=True):
        assert low.dtype == torch.float32
        torch.testing.assert_close(low, full, rtol=0.1, atol=0.1 * float(full.mean()))


@pytest.mark.parametrize("remove", [False, True])
def test_what_is_bypassed_or_removed_scores_zero(remove):
    model = four_groups("llama")
    bypass_attention(model, [1], remove=remove)
    assert [bool(scores.any()) for scores in head_importance(model, tiny_batches())] == [True, False, True]


# --- bad input ------------------------------------------------------------------------------------


def test_sizes_that_transformers_refuses_are_named():
    model = tiny_model("llama", **FOUR | {"hidden_size": 40})
    assert legal_groups(model) == [1, 2, 4]  # 40 can't be divided by six query heads
    with pytest.raises(ValueError, match=r"6 query heads; KV groups that can stay: \[1, 2, 4\]"):
        prune_kv_groups(model, SCORES, groups=3)
    assert legal_groups(tiny_model("mistral", **FOUR | {"hidden_size": 40})) == [1, 2, 3, 4]  # it doesn't mind

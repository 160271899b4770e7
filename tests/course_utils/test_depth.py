"""Blocks come out whole, in any order, and the model that remains is an ordinary one."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from tiny import FAMILIES, tiny_batches, tiny_model
from transformers import AutoModelForCausalLM

from course_utils.architectures import describe
from course_utils.depth import block_importance, leave_one_out, remove_blocks

IDS = tiny_batches()[0]["input_ids"]
MASK = torch.ones_like(IDS)


@torch.no_grad()
def skipping(model, blocks, ids=IDS):
    """Logits with these blocks turned into the identity."""
    hooks = [
        describe(model)
        .blocks[i]
        .register_forward_hook(
            lambda _m, args, output: (args[0], *output[1:]) if isinstance(output, tuple) else args[0]
        )
        for i in blocks
    ]
    logits = model(ids).logits
    for hook in hooks:
        hook.remove()
    return logits


@pytest.mark.parametrize("gone", [[0], [2], [1, 3], [3, 0, 2]])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_removed_equals_skipped(family, gone, tmp_path):
    model = tiny_model(family, layers=4)
    expected = skipping(model, gone)
    assert not torch.allclose(expected, model(IDS).logits, atol=1e-3)
    report = remove_blocks(model, gone)
    assert torch.equal(model(IDS).logits, expected)
    assert len(report.after.widths) == model.config.num_hidden_layers == describe(model).num_blocks == 4 - len(gone)
    assert [a.module.layer_idx for a in describe(model).attentions] == list(range(4 - len(gone)))
    model.save_pretrained(tmp_path)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(IDS).logits, expected)


@pytest.mark.parametrize("gone", [[0], [1, 3], [4]])
def test_readers_that_know_no_layer_types_find_the_windows(gone):
    """transformers before ``layer_types`` and vLLM's Qwen2 read ``max_window_layers`` alone."""
    model = tiny_model("qwen2", layers=5, max_window_layers=3)
    remove_blocks(model, gone)
    fields = model.config.to_dict()
    told = fields.pop("layer_types")
    assert set(told) == {"full_attention", "sliding_attention"}
    assert type(model.config)(**fields).layer_types == told


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_cached_generation_equals_uncached(family):
    model = tiny_model(family, layers=4)
    remove_blocks(model, [2, 0])
    cached, uncached = (
        model.generate(IDS, attention_mask=MASK, max_new_tokens=14, do_sample=False, use_cache=cache)
        for cache in (True, False)
    )
    assert torch.equal(cached, uncached)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_importance_by_hand(family):
    model, seen = tiny_model(family), []
    hooks = [
        block.register_forward_hook(
            lambda _m, args, out: seen.append((args[0], out[0] if isinstance(out, tuple) else out))
        )
        for block in describe(model).blocks
    ]
    model(IDS)
    for hook in hooks:
        hook.remove()
    expected = torch.stack([(1 - F.cosine_similarity(x, y, dim=-1)).mean() for x, y in seen])
    torch.testing.assert_close(block_importance(model, [{"input_ids": IDS}]), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_importance_ignores_batching_and_padding(family):
    model = tiny_model(family)
    reference = block_importance(model, tiny_batches(padding="right", size=1))
    for batches in (tiny_batches(padding="left"), tiny_batches(padding="right", size=6)):
        torch.testing.assert_close(block_importance(model, batches), reference)


def test_importance_leaves_no_trace():
    model = tiny_model("llama").train()
    with pytest.raises(ValueError, match="empty"):
        block_importance(model, [])
    block_importance(model, tiny_batches())
    assert model.training
    assert not any(m._forward_hooks for m in model.modules())


@torch.no_grad()
def test_leave_one_out_scores_each_gap():
    model = tiny_model("llama")
    before = model(IDS).logits
    scores = leave_one_out(model, lambda: float(model(IDS).logits.sum()))
    for block, score in enumerate(scores):
        torch.testing.assert_close(float(score), float(skipping(model, [block]).sum()), rtol=1e-4, atol=1e-3)
    assert torch.equal(model(IDS).logits, before)


@pytest.mark.parametrize(
    ("indices", "message"),
    [([0, 1, 2], "must stay"), ([3], "from 0 to 2"), ([-1], "from 0 to 2"), ([1, 1], "repeat"), ([0.5], "integers")],
)
def test_bad_input_changes_nothing(indices, message):
    model = tiny_model("llama")
    state, config = copy.deepcopy(model.state_dict()), model.config.to_dict()
    with pytest.raises(ValueError, match=message):
        remove_blocks(model, indices)
    assert model.config.to_dict() == config
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in state.items())


def test_gpt2_that_scales_by_block_number_is_refused():
    with pytest.raises(ValueError, match="scale_attn_by_inverse_layer_idx"):
        remove_blocks(tiny_model("gpt2", scale_attn_by_inverse_layer_idx=True), [1])


@torch.no_grad()
def test_removing_nothing_is_the_identity():
    model = tiny_model("qwen2")
    before, config = model(IDS).logits, model.config.to_dict()
    remove_blocks(model, [])
    assert torch.equal(model(IDS).logits, before)
    assert model.config.to_dict() == config

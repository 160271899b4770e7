"""Blocks come out whole, in any order, and the model that remains is an ordinary one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from masked import IDS, seeing, without_blocks
from tiny import FAMILIES, tiny_model
from transformers import AutoModelForCausalLM

from course_utils.models.architectures import describe
from course_utils.pruning.depth import block_importance, leave_one_out, remove_blocks


@pytest.mark.parametrize("gone", [[0], [2], [1, 3], [3, 0, 2]])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_removed_equals_skipped(family, gone, tmp_path):
    model = tiny_model(family, layers=4)
    expected = without_blocks(model, gone)
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
def test_importance_by_hand(family):
    model = tiny_model(family)
    blocks = describe(model).blocks
    with seeing(blocks) as entered, seeing(blocks, entering=False) as left:
        model(IDS)
    pairs = zip(entered, left, strict=True)
    expected = torch.stack([(1 - F.cosine_similarity(x, y, dim=-1)).mean() for (x,), (y,) in pairs])
    torch.testing.assert_close(block_importance(model, [{"input_ids": IDS}]), expected)


@torch.no_grad()
def test_leave_one_out_scores_each_gap():
    model = tiny_model("llama")
    before = model(IDS).logits
    scores = leave_one_out(model, lambda: float(model(IDS).logits.sum()))
    for block, score in enumerate(scores):
        torch.testing.assert_close(float(score), float(without_blocks(model, [block]).sum()), rtol=1e-4, atol=1e-3)
    assert torch.equal(model(IDS).logits, before)


def test_gpt2_that_scales_by_block_number_is_refused():
    with pytest.raises(ValueError, match="scale_attn_by_inverse_layer_idx"):
        remove_blocks(tiny_model("gpt2", scale_attn_by_inverse_layer_idx=True), [1])

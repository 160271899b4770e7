"""Blocks are built as the configuration says, or not at all; ``test_checkpoints`` has the ways to disk and back."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_model
from transformers import LlamaForCausalLM

from course_utils.models.architectures import describe
from course_utils.models.modeling.heterogeneous import HeterogeneousMixin
from course_utils.models.modeling.no_attention import NoAttention


class Heterogeneous(HeterogeneousMixin, LlamaForCausalLM):
    blocks_path, attention, attention_norms = "model.layers", "self_attn", ("input_layernorm",)
    mlp_inputs, mlp_output, fused = ("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj", False
    width_field = "intermediate_size"


def config_with(overrides):
    config = tiny_model("llama").config
    config.per_layer_config = overrides
    return config


def test_blocks_have_their_own_widths_and_attentions():
    config = config_with({1: {"intermediate_size": 7, "skip": ["attention"]}, 2: {"intermediate_size": 16}})
    model = Heterogeneous(config)
    architecture, block = describe(model), model.model.layers[1]
    assert architecture.intermediate_sizes == (48, 7, 16) and block.mlp.intermediate_size == 7
    assert [attention.skipped for attention in architecture.attentions] == [False, True, False]
    assert isinstance(block.self_attn, NoAttention) and isinstance(block.input_layernorm, torch.nn.Identity)
    told = config.to_dict()["per_layer_config"]
    assert {int(number) for number in told} == {1, 2}  # and the configuration still says so
    assert torch.isfinite(model(torch.tensor([[5, 6, 7]])).logits).all()


@pytest.mark.parametrize("fields", [{"hidden_act": "relu"}, {"skip": ["mlp"]}])
def test_what_it_cannot_follow_is_refused(fields):
    with pytest.raises(ValueError, match="Block 1: this model can't follow"):
        Heterogeneous(config_with({1: {"intermediate_size": 7} | fields}))

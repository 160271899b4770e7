"""Every family is described alike; anything else is refused by name."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny import FAMILIES, MIXTURES, tiny_batches, tiny_model
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.integrations.finegrained_fp8 import FP8Linear

from course_utils.models import families
from course_utils.models.architectures import UnsupportedArchitecture, cast_weights, describe
from course_utils.text.batches import read_batch


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_describe(family):
    model = tiny_model(family)
    architecture = describe(model)
    width = 128 if family == "gpt2" else 48
    assert architecture.name == family
    assert architecture.num_blocks == 3
    assert architecture.intermediate_sizes == (width,) * 3
    assert architecture.hidden_size == 32
    assert architecture.vocab_size == 97
    assert architecture.kind == ("dense" if family in ("gpt2", "opt", "gpt_neox") else "glu")
    for mlp in architecture.mlps:
        assert len(mlp.rows) == (1 if architecture.kind == "dense" else 2)
        assert all(rows.shape == (width, 32) for rows in mlp.rows)
        assert mlp.columns.shape == (32, width)
    heads = 4 if family in ("gpt2", "opt", "gpt_neox") else 2
    for attention in architecture.attentions:
        assert attention.query_width == 32
        assert attention.key_value_width == 2 * heads * 8
        assert (attention.groups, attention.head_size, attention.group_width) == (heads, 8, 32 // heads)
    assert (architecture.groups, architecture.head_size, architecture.queries_a_group) == (heads, 8, 4 // heads)


@pytest.mark.parametrize("family", [name for name, known in families.FAMILIES.items() if known.own_head_size])
def test_norms_are_all_that_go_over_the_hidden_channels(family):
    model = tiny_model(family, hidden_size=40, head_dim=8)
    found = describe(model).norms
    assert set(found) == {m for m in model.modules() if "RMSNorm" in type(m).__name__ and len(m.weight) == 40}
    assert found[-1] is model.model.norm and len(set(found)) == len(found)
    assert describe(model).accepts() and describe(model).accepts(groups=1, hidden_size=20)


@pytest.mark.parametrize("family", [*FAMILIES, *MIXTURES])
@torch.no_grad()
def test_hidden_states_and_logits_are_the_models_own(family):
    model, batch = tiny_model(family), tiny_batches()[0]
    architecture = describe(model)
    states = architecture.hidden_states(read_batch(batch, vocab_size=97, device="cpu"))
    torch.testing.assert_close(architecture.logits(states), model(**batch).logits)


def test_a_norm_behind_the_sum_is_no_norm_of_the_mlp():
    assert all(mlp.norm is None for mlp in describe(tiny_model("opt", do_layer_norm_before=False)).mlps)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_rows_lead_into_the_neuron(family):
    """Zeroing a neuron's rows (and bias) and zeroing its column silence the same neuron."""
    logits = []
    for side in ("rows", "columns"):
        model = tiny_model(family)
        mlp = describe(model).mlps[1]
        if side == "columns":
            mlp.columns[:, 5] = 0
        else:
            for rows in mlp.rows:
                rows[5] = 0
            for projection in mlp.inputs:
                if projection.bias is not None:
                    projection.bias[5] = 0  # act(0) = 0 for every family here
        logits.append(model(tiny_batches()[0]["input_ids"]).logits)
    torch.testing.assert_close(*logits)


def test_unknown_family_is_named():
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("bloom", vocab_size=97, hidden_size=32, n_layer=2, n_head=4)
    )
    with pytest.raises(UnsupportedArchitecture, match=r"BloomForCausalLM.*'bloom'.*gpt2, llama"):
        describe(model)
    with pytest.raises(UnsupportedArchitecture, match="Linear"):
        describe(torch.nn.Linear(2, 2))


class Packed(torch.Tensor):
    """As torchao's: says that its dtype is the one that it computes in."""


Packed.__module__ = "torchao.quantization"


class Linear8bitLt(torch.nn.Linear):
    """As bitsandbytes': its weights are packed on their way to a device, and till then look plain."""

    def forward(self, x):
        return x @ self.weight.to(x.dtype).T


class Lora(torch.nn.Module):
    """As peft's layers are built."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer, self.weight = base_layer, base_layer.weight


def with_weight(linear, weight, kind=torch.nn.Linear):
    other = kind(linear.in_features, linear.out_features, bias=False)
    other.weight = torch.nn.Parameter(weight, requires_grad=False)
    return other


ODD_LAYERS = {  # what stands in the place of a linear layer, and what is said of it
    "integers": (lambda own: with_weight(own, own.weight.byte()), r"Linear with Parameter of torch.uint8\. Quantised"),
    "8 bits": (lambda own: with_weight(own, own.weight.char(), Linear8bitLt), "Linear8bitLt with .*int8. Quantised"),
    "8 bits to come": (lambda own: with_weight(own, own.weight.data, Linear8bitLt), "Linear8bitLt with .*float32"),
    "packed": (lambda own: with_weight(own, own.weight.data.as_subclass(Packed)), "Linear with Packed.*16 bits"),
    "FP8": (
        lambda own: FP8Linear(own.in_features, own.out_features, block_size=(16, 16)),
        r"FP8Linear with .* torch\.float8_e4m3fn.*dequantize=True",
    ),
    "adapter": (Lora, r"Lora, .*LoRA.*peft_model\.merge_and_unload\(\)"),
}


@pytest.mark.parametrize("path", ["model.layers.1.self_attn.o_proj", "model.layers.1.mlp.gate_proj", "lm_head"])
@pytest.mark.parametrize("layer", ODD_LAYERS)
def test_layers_that_compute_more_than_their_weights_say_are_refused_by_name(layer, path):
    model, (make, message) = tiny_model("llama"), ODD_LAYERS[layer]
    model.set_submodule(path, make(model.get_submodule(path)))
    with pytest.raises(UnsupportedArchitecture, match=f"plain linear layer at .*; found {message}"):
        describe(model)


def test_missing_parts_are_named():
    model = tiny_model("llama")
    del model.model.layers[1].mlp.up_proj
    with pytest.raises(UnsupportedArchitecture, match=r"'mlp\.up_proj' in LlamaDecoderLayer"):
        describe(model)


def test_a_peft_model_is_named_as_such():
    class PeftModelForCausalLM(torch.nn.Module):
        config = tiny_model("llama").config

        def merge_and_unload(self):
            """Peft's way out."""

    with pytest.raises(UnsupportedArchitecture, match=r"PeftModelForCausalLM .*LoRA.* model\.merge_and_unload\(\)"):
        describe(PeftModelForCausalLM())


@pytest.mark.parametrize("shared", ["blocks", "weights"])
@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_that_share_their_weights_are_refused(family, shared):
    model = tiny_model(family)
    blocks, mlps = describe(model).blocks, describe(model).mlps
    if shared == "blocks":
        blocks[2] = blocks[0]
    else:
        mlps[2].down.weight = mlps[0].down.weight
    with pytest.raises(UnsupportedArchitecture, match=r"blocks 0 and 2 share weights.*copy\.deepcopy"):
        describe(model)
    blocks[2] = copy.deepcopy(blocks[0])
    describe(model)


def test_a_headless_model_is_refused():
    with pytest.raises(UnsupportedArchitecture, match="AutoModelForCausalLM"):
        describe(AutoModel.from_config(tiny_model("llama").config))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_cast_weights_gives_the_model_that_loading_gives(family, tmp_path):
    model, ids = tiny_model(family), tiny_batches()[0]["input_ids"]
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    cast_weights(model, torch.bfloat16)
    assert torch.equal(model(ids).logits, loaded(ids).logits)

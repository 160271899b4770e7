"""Every family is described alike; anything else is refused by name."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from accelerate import disk_offload, dispatch_model
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import FAMILIES, tiny_batches, tiny_model
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.integrations.finegrained_fp8 import FP8Linear

from course_utils import families
from course_utils.adaptive import AdaptiveConfig, ModelIdentity, make_adaptive
from course_utils.architectures import UnsupportedArchitecture, cast_weights, describe
from course_utils.attention import bypass_attention
from course_utils.batches import read_batch
from course_utils.channels import legal_sizes, prune_channels
from course_utils.depth import remove_blocks
from course_utils.heads import legal_groups, prune_kv_groups
from course_utils.influence import entering, leaving
from course_utils.modeling.no_attention import NoAttention
from course_utils.models import variant
from course_utils.width import neuron_importance, prune_neurons


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


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_hidden_states_and_logits_are_the_models_own(family):
    model, batch = tiny_model(family), tiny_batches()[0]
    architecture = describe(model)
    states = architecture.hidden_states(read_batch(batch, vocab_size=97, device="cpu"))
    torch.testing.assert_close(architecture.logits(states), model(**batch).logits)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_both_contributions_make_the_residual_stream(family):
    model, batch = tiny_model(family), tiny_batches()[0]
    architecture, seen = describe(model), {}
    attention, mlp, block = architecture.attentions[1], architecture.mlps[1], architecture.blocks[1]
    named = {"attention": attention.contribution, "mlp": mlp.contribution, "norm": mlp.norm, "block": block}
    for name, module in named.items():
        module.register_forward_hook(lambda _module, _args, output, name=name: seen.update({name: leaving(output)}))
    block.register_forward_pre_hook(
        lambda _module, args, kwargs: seen.update({"stream": entering(args, kwargs)}), with_kwargs=True
    )
    mlp.inputs[0].module.register_forward_pre_hook(lambda _module, args: seen.update({"input": args[0]}))
    model(**batch)
    stream = seen["stream"]
    torch.testing.assert_close(
        seen["block"], stream + seen["attention"] + seen["mlp"].view_as(stream), atol=1e-5, rtol=1e-5
    )
    assert seen["input"] is seen["norm"]


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


def test_missing_parts_are_named():
    model = tiny_model("llama")
    del model.model.layers[1].mlp.up_proj
    with pytest.raises(UnsupportedArchitecture, match=r"'mlp\.up_proj' in LlamaDecoderLayer"):
        describe(model)


def test_quantised_weights_are_refused():
    model = tiny_model("llama")
    module = model.model.layers[0].mlp.down_proj
    module.weight = torch.nn.Parameter(torch.zeros(32, 48, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(UnsupportedArchitecture, match=r"found Linear with Parameter of torch.uint8\. Quantised"):
        describe(model)


def test_fp8_layers_are_refused():
    """A Linear by class, whose weights mean nothing without its scales."""
    model = tiny_model("llama")
    model.model.layers[1].mlp.up_proj = FP8Linear(32, 48, block_size=(16, 16))
    refusal = r"'mlp\.up_proj' in LlamaDecoderLayer; found FP8Linear with .* torch\.float8_e4m3fn.*dequantize=True"
    with pytest.raises(UnsupportedArchitecture, match=refusal):
        describe(model)


class Packed(torch.Tensor):
    """As torchao's: says that its dtype is the one that it computes in."""


Packed.__module__ = "torchao.quantization"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("path", ["model.layers.1.self_attn.k_proj", "lm_head"])
def test_packed_weights_are_refused_whatever_dtype_they_claim(path, dtype):
    model = tiny_model("llama", dtype=dtype)
    module = model.get_submodule(path)
    module.weight = torch.nn.Parameter(module.weight.detach().as_subclass(Packed))
    assert module.weight.dtype is dtype
    with pytest.raises(UnsupportedArchitecture, match="found Linear with Packed.*16 bits"):
        describe(model)


class Lora(torch.nn.Module):
    """As peft's layers are built."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer

    @property
    def weight(self):
        return self.base_layer.weight


@pytest.mark.parametrize("path", ["model.layers.1.self_attn.q_proj", "lm_head"])
def test_adapters_are_named_as_such(path):
    model = tiny_model("llama")
    model.set_submodule(path, Lora(model.get_submodule(path)))
    with pytest.raises(UnsupportedArchitecture, match=r"LoRA.*peft_model\.merge_and_unload\(\)"):
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
    with pytest.raises(UnsupportedArchitecture, match=r"blocks 0 and 2 share their weights.*copy\.deepcopy"):
        describe(model)
    blocks[2] = copy.deepcopy(blocks[0])
    describe(model)


def without_numbers():
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(tiny_model("llama").config)


def offloaded(folder, *, everything=False):
    model = tiny_model("llama")
    if everything:
        return disk_offload(model, folder)
    places = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.layers.2": "cpu"}
    places |= {"model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    return dispatch_model(model, places, main_device="cpu", offload_dir=folder)


SCORES = [torch.arange(48.0)] * 3
CUTS = {
    "cut neurons": lambda model: prune_neurons(model, SCORES, ratio=0.5),
    "cut KV groups": lambda model: prune_kv_groups(model, [torch.arange(2.0)] * 3, groups=1),
    "cut channels": lambda model: prune_channels(model, torch.arange(32.0), size=16),
}


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("action", CUTS)
def test_offloaded_weights_are_not_cut(action, everything, tmp_path):
    model = offloaded(tmp_path, everything=everything)
    shapes, config = {name: w.shape for name, w in model.named_parameters()}, model.config.to_dict()
    with pytest.raises(ValueError, match=f"Can't {action}: .* 'meta' device.*without a device_map"):
        CUTS[action](model)
    assert {name: w.shape for name, w in model.named_parameters()} == shapes and model.config.to_dict() == config


@pytest.mark.parametrize("action", CUTS)
def test_sizes_can_be_tried_without_numbers(action):
    report = CUTS[action](without_numbers())
    assert report.after.parameters < report.before.parameters


@pytest.mark.parametrize("criterion", ["l1", "random"])
def test_missing_weights_are_not_scored(criterion, tmp_path):
    for model in (without_numbers(), offloaded(tmp_path)):
        with pytest.raises(ValueError, match=r"Can't score neurons: \d+ of \d+ weights are on the 'meta' device"):
            neuron_importance(model, criterion)


def test_a_headless_model_is_refused():
    with pytest.raises(UnsupportedArchitecture, match="AutoModelForCausalLM"):
        describe(AutoModel.from_config(tiny_model("llama").config))


def test_a_projection_has_two_axes():
    with pytest.raises(ValueError, match="'axis' must be one of out, in; got 'rows'"):
        describe(tiny_model()).mlps[0].output.keep(torch.tensor([0]), axis="rows")


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_cast_weights_gives_the_model_that_loading_gives(family, tmp_path):
    model, ids = tiny_model(family), tiny_batches()[0]["input_ids"]
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    cast_weights(model, torch.bfloat16)
    assert torch.equal(model(ids).logits, loaded(ids).logits)


# --- surgery never writes into a weight, so a variant's first model doesn't notice ------------------------------------


def cut_neurons(model, chance):
    scores = neuron_importance(model, "random", seed=chance.randrange(100))
    layers = [i for i in range(len(scores)) if chance.random() < 0.7]
    prune_neurons(model, scores, ratio=chance.choice([0.1, 0.5]), layers=chance.choice([None, layers]))


def take_a_block_out(model, chance):
    make_adaptive(model, None)
    if (blocks := describe(model).num_blocks) > 1:
        remove_blocks(model, [chance.randrange(blocks)])


def bypass_some(model, chance):
    make_adaptive(model, None)
    attentions = [attention.module for attention in describe(model).attentions]
    layers = [i for i, a in enumerate(attentions) if isinstance(a, NoAttention) or chance.random() < 0.4]
    bypass_attention(model, layers, remove=chance.random() < 0.3)


def let_prompts_decide(model, chance):
    live = [i for i, attention in enumerate(describe(model).attentions) if not attention.skipped]
    order, ranges = chance.sample(live, len(live)), {"log_length": [0, 1], "variance": [0, 1]}
    identity = ModelIdentity.of(model)
    make_adaptive(
        model, AdaptiveConfig(identity, order, (len(order), 0), (chance.random(),), "length_variance", ranges)
    )


def restore_prompts(model, _chance):
    make_adaptive(model, None)


def change_the_dtype(model, chance):
    cast_weights(model, chance.choice([torch.float32, torch.bfloat16]))


def cut_a_group(model, chance):
    make_adaptive(model, None)
    architecture = describe(model)
    if architecture.family.own_head_size and architecture.groups > 1:
        scores = [torch.rand(architecture.groups) for _ in architecture.blocks]
        prune_kv_groups(model, scores, groups=chance.choice(legal_groups(model)))


def cut_channels(model, chance):
    make_adaptive(model, None)
    if describe(model).family.own_head_size:
        size = chance.choice(legal_sizes(model, 8))
        prune_channels(model, torch.rand(describe(model).hidden_size), size=size, rescale_norms=chance.random() < 0.7)


def update_the_configuration(model, _chance):
    describe(model).sync_config()


SURGERIES = (
    cut_neurons,
    take_a_block_out,
    bypass_some,
    let_prompts_decide,
    restore_prompts,
    change_the_dtype,
    update_the_configuration,
    cut_a_group,
    cut_channels,
)
SEQUENCES = st.lists(st.sampled_from(SURGERIES), max_size=4)


@settings(max_examples=60, deadline=None)
@given(family=st.sampled_from(FAMILIES), before=SEQUENCES, after=SEQUENCES, seed=st.integers(0, 2**16))
@torch.no_grad()
def test_surgery_on_a_variant_leaves_the_first_model_as_it_was(family, before, after, seed):
    first, ids, chance = tiny_model(family, layers=4), tiny_batches()[0]["input_ids"], random.Random(seed)
    for surgery in before:
        surgery(first, chance)
    logits, config = first(ids).logits, first.config.to_dict()
    weights = {name: (weight, weight.data_ptr()) for name, weight in first.named_parameters()}
    second = variant(first)
    assert torch.equal(second(ids).logits, logits)
    for surgery in after:
        surgery(second, chance)
        second(ids)
        assert torch.equal(first(ids).logits, logits)
        assert first.config.to_dict() == config
        assert all(weight.data_ptr() == at for weight, at in weights.values())
        assert all(weights[name][0] is weight for name, weight in first.named_parameters())

"""Every family is described alike; anything else is refused by name."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import FAMILIES, tiny_batches, tiny_model
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from course_utils import families
from course_utils.adaptive import AdaptiveConfig, ModelIdentity, make_adaptive
from course_utils.architectures import UnsupportedArchitecture, cast_weights, describe
from course_utils.attention import bypass_attention
from course_utils.batches import read_batch
from course_utils.channels import legal_sizes, prune_channels
from course_utils.depth import remove_blocks
from course_utils.heads import legal_groups, prune_kv_groups
from course_utils.hooks import entering, leaving
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
    with pytest.raises(UnsupportedArchitecture, match="dequantised"):
        describe(model)


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

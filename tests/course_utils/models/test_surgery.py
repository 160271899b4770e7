"""Surgery never writes into a weight, so a variant's first model doesn't notice."""

from __future__ import annotations

import random

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import FAMILIES, tiny_batches, tiny_model

from course_utils.models.architectures import cast_weights, describe
from course_utils.models.loading import variant
from course_utils.pruning.adaptive import AdaptiveConfig, ModelIdentity, make_adaptive
from course_utils.pruning.attention import bypass_attention
from course_utils.pruning.channels import legal_sizes, prune_channels
from course_utils.pruning.depth import remove_blocks
from course_utils.pruning.heads import legal_groups, prune_kv_groups
from course_utils.pruning.width import neuron_importance, prune_neurons


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
    attentions = describe(model).attentions
    layers = [i for i, attention in enumerate(attentions) if attention.removed or chance.random() < 0.4]
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


@settings(max_examples=60)
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

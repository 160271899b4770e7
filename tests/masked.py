"""Whole models in which what was cut is set to zero instead: the logits that the cut ones must give."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from functools import partial
from unittest import mock

import torch
from tiny import tiny_batches, tiny_model

from course_utils.models import families
from course_utils.models.architectures import describe
from course_utils.pruning.activations import evaluating

IDS = tiny_batches()[0]["input_ids"]
ABLE = [name for name, family in families.FAMILIES.items() if family.own_head_size]  # to lose KV groups and channels
HOLDING = [  # a constant between two blocks
    name for name in families.FAMILIES if name in ("gpt2", "opt", "gpt_neox") or families.FAMILIES[name].mlp_bias_field
]
BOUND = [name for name in families.FAMILIES if name not in ABLE]
FOUR = {"hidden_size": 48, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8}  # two query heads a group


def four_groups(family, **settings):
    """With four KV groups, and biases wherever the family can have them."""
    return tiny_model(family, **FOUR | ({"attention_bias": True} if family in ("llama", "qwen3") else {}) | settings)


def with_biases(family, tied=True, **settings):
    """With biases wherever the family can have them, and a head that is tied (Gemma's default) or not (Llama's)."""
    biases = {"llama": ("attention_bias", "mlp_bias"), "qwen3": ("attention_bias",)}.get(family, ())
    return tiny_model(family, tie_word_embeddings=tied, **dict.fromkeys(biases, True) | settings)


def mask_of(size, kept):
    return torch.zeros(size).index_fill(0, kept, 1.0)


@torch.no_grad()
def logits_with(model, hooks):
    with evaluating(model, *hooks):
        return model(IDS).logits


def with_neurons(model, kept, means=None):
    """With these neurons of each MLP alone; with `means`, the others say their mean whatever the input."""
    mlps = describe(model).mlps
    means = means or [torch.zeros(mlp.width) for mlp in mlps]
    masks = [mask_of(mlp.width, numbers) for mlp, numbers in zip(mlps, kept, strict=True)]
    return logits_with(
        model,
        [
            mlp.down.register_forward_pre_hook(lambda _m, x, mask=mask, mean=mean: (x[0] * mask + mean * (1 - mask),))
            for mlp, mask, mean in zip(mlps, masks, means, strict=True)
        ],
    )


def with_groups(model, kept):
    """With the query heads of these KV groups of each attention alone."""
    masks = [mask_of(4, groups).repeat_interleave(16) for groups in kept]
    return logits_with(
        model,
        [
            attention.outputs[0].module.register_forward_pre_hook(lambda _m, x, mask=mask: (x[0] * mask,))
            for attention, mask in zip(describe(model).attentions, masks, strict=True)
        ],
    )


def with_channels(model, channels, factors):
    """Where the other channels are written as zeros, and norms, times their factors, average over these alone."""
    architecture = describe(model)
    mask, offset = mask_of(architecture.hidden_size, channels), architecture.family.norm_offset

    def masked_norm(factor):
        def hook(norm, args, _output):
            x = args[0] * mask
            epsilon = norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps
            root = (x.square().sum(-1, keepdim=True) / len(channels) + epsilon).rsqrt()
            return x * root * ((norm.weight + offset) * factor)

        return hook

    writers = [mlp.down for mlp in architecture.mlps]
    writers += [p.module for attention in architecture.attentions for p in attention.outputs]
    writers.append(model.get_input_embeddings())
    hooks = [module.register_forward_hook(lambda _m, _x, output: output * mask) for module in writers]
    norms = zip(architecture.norms, factors, strict=True)
    return logits_with(model, hooks + [norm.register_forward_hook(masked_norm(factor)) for norm, factor in norms])


@contextmanager
def only_experts(model, kept):
    """No router may choose other experts: their logits are minus infinity, and so are their correction biases."""
    linear, masks, running = torch.nn.functional.linear, {}, []
    for mixture, numbers in zip(describe(model).mixtures, kept, strict=True):
        masks[mixture.router] = torch.full((mixture.count,), -torch.inf).index_fill(0, numbers, 0.0)
    correction = "e_score_correction_bias"
    biases = {router: getattr(router, correction) for router in masks if hasattr(router, correction)}

    def masked(*arguments):
        logits = linear(*arguments)
        return logits + masks[running[-1]].to(logits.dtype) if running else logits

    for router, bias in biases.items():
        router.e_score_correction_bias = bias + masks[router]
    hooks = [router.register_forward_pre_hook(lambda router, _x: running.append(router)) for router in masks]
    hooks += [router.register_forward_hook(lambda *_: running.clear()) for router in masks]
    with mock.patch.object(torch.nn.functional, "linear", masked), evaluating(model, *hooks):
        yield
    for router, bias in biases.items():
        router.e_score_correction_bias = bias


def with_experts(model, kept):
    """With these experts of each mixture alone."""
    with only_experts(model, kept):
        return logits_with(model, [])


def without_blocks(model, blocks, means=None):
    """With these blocks turned into the identity; with `means`, each adds its mean to whatever enters it."""

    def skip(number, _module, args, output):
        states = args[0] if means is None else args[0] + means[number].to(args[0].dtype)
        return (states, *output[1:]) if isinstance(output, tuple) else states

    own = describe(model).blocks
    return logits_with(model, [own[number].register_forward_hook(partial(skip, number)) for number in blocks])


@contextmanager
def seeing(modules, entering=True):
    """While the context is open: for each module, what entered it (or left it), a list of tensors [tokens, width]."""
    seen = [[] for _ in modules]

    def keep(states, value):
        value = value[0] if isinstance(value, tuple) else value
        states.append(value.detach().flatten(0, -2))

    hooks = [
        module.register_forward_pre_hook(lambda _m, args, own=own: keep(own, args))
        if entering
        else module.register_forward_hook(lambda _m, _args, output, own=own: keep(own, output))
        for module, own in zip(modules, seen, strict=True)
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def assert_reloaded(loaded, model):
    """The same numbers and logits, bit for bit; a mixture's logits once its weights lie in memory of their own.

    Read straight from a file, stacked experts can lie at an odd address, where a float32 product may round differently.
    """
    weights = loaded.state_dict()
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    if describe(model).is_mixture:
        for weight in loaded.parameters():
            weight.data = weight.data.clone()
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)


@contextmanager
def unchanged(*models):
    """Inside, nothing may change these models: no weight, no field of the configuration, no mode; and no hook stays."""
    before = [
        (copy.deepcopy(m.state_dict()), m.config.to_dict(), [part.training for part in m.modules()]) for m in models
    ]
    yield
    for model, (weights, config, modes) in zip(models, before, strict=True):
        assert model.config.to_dict() == config and model.state_dict().keys() == weights.keys()
        assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
        assert [part.training for part in model.modules()] == modes
        assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())

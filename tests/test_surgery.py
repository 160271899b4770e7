"""What every cut promises, in every family: it is exact, saves and reloads, and bad input changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from masked import (
    ABLE,
    BOUND,
    HOLDING,
    IDS,
    assert_reloaded,
    four_groups,
    unchanged,
    with_biases,
    with_channels,
    with_experts,
    with_groups,
    with_neurons,
    without_blocks,
)
from tiny import FAMILIES, MIXTURES, adaptive, tiny_batches, tiny_model, word_tokenizer
from transformers import AutoModelForCausalLM

from course_utils.models.architectures import describe
from course_utils.models.loading import variant
from course_utils.pruning.attention import attention_importance
from course_utils.pruning.channels import channel_importance, legal_sizes, norm_factors, prune_channels
from course_utils.pruning.checkpoints import load_pruned, save_pruned
from course_utils.pruning.depth import block_importance, block_means, remove_blocks
from course_utils.pruning.experts import expert_importance, prune_experts
from course_utils.pruning.heads import head_importance, legal_groups, prune_kv_groups
from course_utils.pruning.width import best, neuron_importance, neuron_means, prune_neurons, strongest

# In no block do the best groups come first or the weakest last; equal scores are among them.
GROUPS = [torch.tensor(order) for order in ([1.0, 4.0, 2.0, 3.0], [4.0, 1.0, 3.0, 2.0], [2.0, 2.0, 1.0, 5.0])]
CHANNELS = torch.rand(32, generator=torch.Generator().manual_seed(0))


def neurons_of(model):
    return neuron_importance(model, "random")


def factors_of(model, size):
    energies = CHANNELS.square().expand(len(describe(model).norms), 32)
    return norm_factors(energies, best(CHANNELS, size))


@dataclass(frozen=True)
class Method:
    """A cut: the families that it knows, how it cuts some or nothing, and what the rest must compute."""

    families: tuple[str, ...]
    model: Callable
    cut: Callable
    cut_nothing: Callable
    expected: Callable


METHODS = {
    "neurons": Method(
        FAMILIES,
        tiny_model,
        cut=lambda model: prune_neurons(model, neurons_of(model), ratio=0.3),
        cut_nothing=lambda model: prune_neurons(model, neurons_of(model), ratio=0.0),
        expected=lambda model: with_neurons(model, [strongest(scores, 0.3) for scores in neurons_of(model)]),
    ),
    "groups": Method(
        ABLE,
        four_groups,
        cut=lambda model: prune_kv_groups(model, GROUPS, groups=2),
        cut_nothing=lambda model: prune_kv_groups(model, GROUPS, groups=4),
        expected=lambda model: with_groups(model, [best(scores, 2) for scores in GROUPS]),
    ),
    "channels": Method(
        ABLE,
        with_biases,
        cut=lambda model: prune_channels(model, CHANNELS, size=24),
        cut_nothing=lambda model: prune_channels(model, CHANNELS, size=32),
        expected=lambda model: with_channels(model, best(CHANNELS, 24), factors_of(model, 24)),
    ),
    "channels, untied": Method(
        ABLE,
        lambda family, **settings: with_biases(family, tied=False, **settings),
        cut=lambda model: prune_channels(model, CHANNELS, size=24, rescale_norms=False),
        cut_nothing=lambda model: prune_channels(model, CHANNELS, size=32, rescale_norms=False),
        expected=lambda model: with_channels(model, best(CHANNELS, 24), [1.0] * len(describe(model).norms)),
    ),
    "blocks": Method(
        FAMILIES,
        tiny_model,
        cut=lambda model: remove_blocks(model, [1]),
        cut_nothing=lambda model: remove_blocks(model, []),
        expected=lambda model: without_blocks(model, [1]),
    ),
    "blocks, means kept": Method(
        HOLDING,
        tiny_model,
        cut=lambda model: remove_blocks(model, [1], means=block_means(model, tiny_batches())),
        cut_nothing=lambda model: remove_blocks(model, [], means=block_means(model, tiny_batches())),
        expected=lambda model: without_blocks(model, [1], block_means(model, tiny_batches())),
    ),
    "experts": Method(
        tuple(MIXTURES),
        tiny_model,
        cut=lambda model: prune_experts(model, expert_importance(model, "random"), keep=5),
        cut_nothing=lambda model: prune_experts(model, expert_importance(model, "random"), keep=8),
        expected=lambda model: with_experts(model, [best(own, 5) for own in expert_importance(model, "random")]),
    ),
}
everywhere = pytest.mark.parametrize(
    ("method", "family"),
    [
        pytest.param(method, family, id=f"{name}-{family}")
        for name, method in METHODS.items()
        for family in method.families
    ],
)


@everywhere
@torch.no_grad()
def test_pruned_equals_masked(method, family):
    model = method.model(family)
    expected = method.expected(model)
    assert not torch.allclose(expected, model(IDS).logits, atol=1e-3)  # the cut matters
    method.cut(model)
    torch.testing.assert_close(model(IDS).logits, expected, atol=1e-5, rtol=1e-5)


@everywhere
@torch.no_grad()
def test_cached_generation_equals_uncached(method, family):
    model = method.model(family)
    method.cut(model)
    cached, uncached = (
        model.generate(IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=14, do_sample=False, use_cache=cache)
        for cache in (True, False)
    )
    assert torch.equal(cached, uncached)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@everywhere
@torch.no_grad()
def test_reloads_with_plain_transformers(method, family, dtype, tmp_path):
    model = method.model(family, dtype=dtype)
    method.cut(model)
    folder = save_pruned(model, word_tokenizer(), tmp_path / "model")
    assert not list(folder.glob("*.py"))
    for reloaded in (AutoModelForCausalLM.from_pretrained(folder), load_pruned(folder)[0]):
        assert_reloaded(reloaded, model)


@everywhere
@torch.no_grad()
def test_cutting_nothing_is_the_identity_and_a_variant_is_left_alone(method, family):
    model = method.model(family)
    before, weights, config = model(IDS).logits, [p.data_ptr() for p in model.parameters()], model.config.to_dict()
    report = method.cut_nothing(model)
    assert report.before == report.after and model.config.to_dict() == config
    assert [p.data_ptr() for p in model.parameters()] == weights  # not even copied
    method.cut(variant(model))
    assert torch.equal(model(IDS).logits, before)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_weights_stay_trainable(method):
    model = method.model("llama" if "llama" in method.families else "mixtral")
    method.cut(model)
    model(**tiny_batches()[0], labels=tiny_batches()[0]["input_ids"]).loss.backward()
    assert all(p.grad is not None for p in model.parameters())


# --- scores ---------------------------------------------------------------------------------------

SCORING = {
    "neurons": (FAMILIES, tiny_model, lambda model, batches: neuron_importance(model, "activation", batches=batches)),
    "means": (FAMILIES, tiny_model, neuron_means),
    "groups": (ABLE, four_groups, head_importance),
    "channels": (ABLE, with_biases, channel_importance),
    "blocks": (FAMILIES, tiny_model, block_importance),
    "blocks, means kept": (FAMILIES, tiny_model, block_means),
    "attentions": (FAMILIES, tiny_model, attention_importance),
    "experts": (MIXTURES, tiny_model, lambda model, batches: expert_importance(model, "reap_sum", batches=batches)),
}


@pytest.mark.parametrize(("axis", "family"), [(axis, name) for axis, (known, *_) in SCORING.items() for name in known])
def test_scores_ignore_batching_and_padding(axis, family):
    _, make, score = SCORING[axis]
    model = make(family)
    reference = score(model, tiny_batches(padding="right", size=1))
    bare = [
        {"input_ids": b["input_ids"][b["attention_mask"].bool()][None]} for b in tiny_batches(padding="right", size=1)
    ]
    for batches in (tiny_batches(padding="left"), tiny_batches(padding="right", size=6), bare):
        torch.testing.assert_close(score(model, batches), reference, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("axis", SCORING)
def test_scoring_leaves_no_trace(axis):
    _, make, score = SCORING[axis]
    model = make("mixtral" if axis == "experts" else "llama").train()
    with unchanged(model):
        score(model, tiny_batches())
        for batches, message in (([], "empty"), ([*tiny_batches(), "text"], "A batch is a mapping")):
            with pytest.raises(ValueError, match=message):
                score(model, batches)


# --- bad input ------------------------------------------------------------------------------------

ONES, NAN = torch.ones(48), float("nan")
CALLS = {  # what is called, and with what where nothing is wrong
    "neurons": (prune_neurons, {"importance": [ONES] * 3, "ratio": 0.2}),
    "groups": (prune_kv_groups, {"importance": GROUPS, "groups": 2}),
    "channels": (prune_channels, {"importance": CHANNELS, "size": 16}),
    "blocks": (remove_blocks, {}),
}
WRONG = {  # one of each kind: test_fuzz tries many more
    "neurons": [
        ({"ratio": 20}, "For 20 % give 0.2"),
        ({"multiple_of": 64}, "48"),
        ({"layers": [3]}, "from 0 to 2"),
        ({"importance": [ONES] * 2}, "one tensor"),
        ({"importance": [ONES, ONES[1:], ONES]}, "47"),
        ({"importance": [ONES, ONES, ONES * NAN]}, r"\[2\]"),
    ],
    "groups": [
        ({"groups": 0}, "from 1 to 4"),
        ({"groups": 5}, "from 1 to 4"),
        ({"importance": [torch.ones(8)] * 3}, r"one tensor .*\(8,\)"),
        ({"importance": [GROUPS[0], GROUPS[1] * NAN, GROUPS[2]]}, r"\[1\]"),
    ],
    "channels": [
        ({"size": 0}, "from 1 to 32"),
        ({"size": 36}, "from 1 to 32"),
        ({"importance": torch.ones(31)}, r"\[32\], the hidden size.*\[31\]"),
        ({"importance": CHANNELS * NAN}, "be finite"),
        ({"energies": torch.ones(32)}, r"\[7, 32\]"),
        ({"energies": -torch.ones(7, 32)}, "at least 0"),
    ],
    "blocks": [
        ({"indices": [0, 1, 2]}, "must stay"),
        ({"indices": [3]}, "from 0 to 2"),
        ({"indices": [1, 1]}, "repeat"),
    ],
}


@pytest.mark.parametrize(("axis", "arguments", "message"), [(axis, *case) for axis in WRONG for case in WRONG[axis]])
def test_bad_input_changes_nothing(axis, arguments, message):
    model, (prune, usual) = METHODS[axis].model("llama"), CALLS[axis]
    with unchanged(model), pytest.raises(ValueError, match=message):
        prune(model, **usual | arguments)


@pytest.mark.parametrize("axis", ["groups", "channels", "blocks"])
def test_adaptive_models_are_refused(axis):
    model = METHODS[axis].model("llama")
    adaptive(model)
    with pytest.raises(ValueError, match="of an adaptive model"):
        METHODS[axis].cut(model)


@pytest.mark.parametrize("family", BOUND)
def test_families_without_the_axis_are_refused_by_name(family):
    model = tiny_model(family)
    for action in (
        lambda: head_importance(model, tiny_batches()),
        lambda: prune_kv_groups(model, [torch.ones(4)] * 3, groups=2),
        lambda: legal_groups(model),
        lambda: channel_importance(model, tiny_batches()),
        lambda: prune_channels(model, CHANNELS, size=16),
        lambda: legal_sizes(model, 16),
    ):
        with pytest.raises(ValueError, match=f"of a {family} model.*exists in llama"):
            action()

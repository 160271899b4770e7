"""Lesson 01's checks refuse the stub, name the likely mistake, and accept the answers."""

import math

import pandas as pd
import torch
from exercise_cases import cases_of
from transformers.pytorch_utils import Conv1D

from course_utils.exercises import lesson_01

AXES = {
    "GPT-2 c_fc.weight": 1,
    "GPT-2 c_fc.bias": 0,
    "GPT-2 c_proj.weight": 0,
    "GPT-2 c_proj.bias": "none",
    "OPT fc1.weight": 0,
    "OPT fc2.weight": 1,
}


def rows(layer):
    """The weight as [neurons, inputs], whichever class stores it."""
    return layer.weight.T if isinstance(layer, Conv1D) else layer.weight


def pruned_parameters(config, ratio, *, width=None, fc_bias=True, proj_bias=True, head=False, rounded=math.floor):
    """The answer to exercise 4, with one switch for each foreseen mistake."""
    hidden = config.n_embd
    width = width or config.n_inner or 4 * hidden
    kept = width - rounded(ratio * width)
    outputs = hidden if proj_bias else hidden - math.floor(ratio * hidden)
    mlp = 2 * hidden * kept + (kept if fc_bias else width) + outputs
    embeddings = (config.vocab_size * (2 if head else 1) + config.n_positions) * hidden
    return embeddings + config.n_layer * (mlp + 4 * hidden * (hidden + 1) + 4 * hidden) + 2 * hidden


def change_the_layers(fc, proj, keep):
    proj.weight.data.zero_()
    return fc.weight[keep], fc.bias[keep], proj.weight[:, keep], proj.bias


test_axes = cases_of(
    lesson_01.check_axes,
    stubs=[dict.fromkeys(AXES, ...)],
    mistakes=[
        (AXES | {"GPT-2 c_fc.weight": 0}, "c_fc.weight: a Conv1D stores [in, out]"),
        (AXES | {"GPT-2 c_proj.bias": 0}, "c_proj.bias: it has one number for each output"),
        (AXES | {"OPT fc1.weight": 1, "OPT fc2.weight": 0}, "2 of 6 to go"),
    ],
    answers=[AXES],
)


test_l1_scores = cases_of(
    lesson_01.check_l1_scores,
    stubs=[lambda layer: ...],
    mistakes=[
        (lambda layer: layer.weight.abs().sum(0), "nn.Linear stores [out, in]"),
        (lambda layer: layer.weight.abs().sum(1), "Conv1D stores [in, out]"),
        (lambda layer: layer.weight.abs().sum(1 if layer.weight.shape[0] == 4 else 0), "ask for the layer's class"),
        (lambda layer: rows(layer).sum(1), "signs cancel"),
        (lambda layer: rows(layer).sum(1).abs(), "not after"),
        (lambda layer: rows(layer).norm(dim=1), "L2 norm"),
        (lambda layer: rows(layer).abs().sum(), "a shape [4]; yours is []"),
    ],
    answers=[lambda layer: rows(layer).abs().sum(1)],
)


test_slice_mlp = cases_of(
    lesson_01.check_slice_mlp,
    stubs=[lambda fc, proj, keep: (..., ..., ..., ...)],
    mistakes=[
        (
            lambda fc, proj, keep: (fc.weight[keep], fc.bias, proj.weight[:, keep], proj.bias),
            "fc.bias should have the shape [3] and has [6]",
        ),
        (
            lambda fc, proj, keep: (fc.weight[keep], fc.bias[keep], proj.weight, proj.bias),
            "a neuron is a column of proj.weight",
        ),
        (
            lambda fc, proj, keep: (fc.weight[keep], fc.bias[keep], proj.weight[:, keep.sort().values], proj.bias),
            "same order",
        ),
        (
            lambda fc, proj, keep: (fc.weight[keep], fc.bias[keep], proj.weight[keep], proj.bias),
            "Your code stopped with IndexError",
        ),
        (change_the_layers, "changed the given layers"),
    ],
    answers=[lambda fc, proj, keep: (fc.weight[keep], fc.bias[keep], proj.weight[:, keep], proj.bias)],
)


test_pruned_parameters = cases_of(
    lesson_01.check_pruned_parameters,
    stubs=[lambda config, ratio: ...],
    mistakes=[
        (lambda c, r: pruned_parameters(c, r, head=True), "shares its weights"),
        (lambda c, r: pruned_parameters(c, r, fc_bias=False), "takes its bias"),
        (lambda c, r: pruned_parameters(c, r, proj_bias=False), "stays whole"),
        (lambda c, r: pruned_parameters(c, r, rounded=math.ceil), "round the number of removed neurons down"),
        (lambda c, r: pruned_parameters(c, r, width=4 * c.n_embd), "where n_inner is set"),
        (
            lambda c, r: round((1 - r) * pruned_parameters(c, 0.0)),
            "a share of the neurons isn't a share of all parameters",
        ),
        (lambda c, r: pruned_parameters(c, 0.0), "the unpruned count"),
        (lambda c, r: pruned_parameters(c, r) + 1, "your count is +1 off"),
    ],
    answers=[pruned_parameters],
)


test_claims = cases_of(
    lesson_01.check_claims,
    stubs=[...],
    mistakes=[
        ({"a", "b", "f"}, "Look at b again: an arm that knows nothing"),
        ({"a", "c", "f"}, "Look at c again: one completion"),
        ({"a", "d"}, "Look at d again: a fifth of the neurons"),
        ({"a", "f", "e"}, "Look at e again: a perplexity"),
        ({"a", "f", "g"}, "Look at g again: one text"),
        ({"a"}, "Look at f again: it is a plain reading"),
        ({"f"}, "Look at a again: it is a plain reading"),
    ],
    answers=[{"a", "f"}, ["f", "a"]],
)


def shuffled(scores, seed, *, generator=None):
    generator = generator or torch.Generator().manual_seed(seed)
    return [some[torch.randperm(len(some), generator=generator)] for some in scores]


def shuffle_in_place(scores, seed):
    for some, new in zip(scores, shuffled(scores, seed), strict=True):
        some.copy_(new)
    return [some.clone() for some in scores]


def across_blocks(scores, seed):
    joined = torch.cat(scores)
    order = torch.randperm(len(joined), generator=torch.Generator().manual_seed(seed))
    return list(joined[order].split([len(some) for some in scores]))


test_shuffled = cases_of(
    lesson_01.check_shuffled,
    stubs=[lambda scores, seed: ..., lambda scores, seed: [...]],
    mistakes=[
        (lambda scores, seed: [torch.rand_like(some) for some in scores], "no longer has its own scores"),
        (across_blocks, "no longer has its own scores"),
        (lambda scores, seed: scores, "nothing is random"),
        (shuffle_in_place, "changed the given scores"),
        (
            lambda scores, seed: [shuffled([some], seed)[0] for some in scores],
            "Every block gets the same order",
        ),
        (lambda scores, seed: shuffled(scores, seed, generator=torch.default_generator), "must be reproducible"),
        (lambda scores, seed: shuffled(scores, 7), "Use `seed`"),
        (lambda scores, seed: torch.cat(scores), "one tensor for each block"),
    ],
    answers=[shuffled],
)


SCAN = pd.DataFrame([[0.5, 1, 2], [0.1, 0.2, 0.3], [0.05, 0.1, 0.2]], columns=(0.2, 0.4, 0.6))


def allocate(damage, budget, *, price=lambda added: added):
    """Step by step where the next step adds least."""
    steps, level = [0.0, *damage.columns], [0] * len(damage)
    table = [[0.0, *row] for row in damage.to_numpy()]
    while sum(steps[of_block] for of_block in level) < budget * len(level) - 1e-9:
        open_blocks = [block for block, of_block in enumerate(level) if of_block < len(steps) - 1]
        best = min(open_blocks, key=lambda block: price(table[block][level[block] + 1] - table[block][level[block]]))
        level[best] += 1
    return [steps[of_block] for of_block in level]


def quadratic(ratios):
    """Made-up damage on held-out text."""
    return sum(weight * ratio**2 for weight, ratio in zip((10, 1, 0.5), ratios, strict=True))


def check_allocation(attempt):
    return lesson_01.check_allocation(attempt, SCAN, quadratic)


test_allocation = cases_of(
    check_allocation,
    stubs=[lambda damage, budget: ...],
    mistakes=[
        (lambda damage, budget: [budget] * len(damage), "that is the baseline"),
        (lambda damage, budget: [0.2], "one ratio for each of the 4 blocks"),
        (lambda damage, budget: [0.0] * len(damage), "you remove too few"),
        (lambda damage, budget: [0.0] * (len(damage) - 1) + [2 * len(damage) * budget], "below 1"),
        (lambda damage, budget: [0.0] + [0.4] * (len(damage) - 1), "Other damages, the same ratios"),
        (lambda damage, budget: allocate(damage, budget, price=lambda added: -added), "where it hurts most"),
        (
            lambda damage, budget: (
                allocate(damage, budget) if len(damage) == 4 else [0.6, 0.0, 0.0]  # right on what is made up
            ),
            "not better than 20 % everywhere",
        ),
    ],
    answers=[allocate],
)

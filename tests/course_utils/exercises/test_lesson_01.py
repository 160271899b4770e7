"""Lesson 01's checks refuse the stub, name the likely mistake, and accept the answers."""

import math

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

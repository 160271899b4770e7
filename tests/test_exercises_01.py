"""Lesson 01's checks refuse the stub, name the likely mistake, and accept the answers."""

import math

import pytest
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


@pytest.mark.parametrize(
    ("check", "stub"),
    [
        (lesson_01.check_axes, dict.fromkeys(AXES, ...)),
        (lesson_01.check_l1_scores, lambda layer: ...),
        (lesson_01.check_slice_mlp, lambda fc, proj, keep: (..., ..., ..., ...)),
        (lesson_01.check_pruned_parameters, lambda config, ratio: ...),
    ],
    ids=["axes", "l1_scores", "slice_mlp", "pruned_parameters"],
)
def test_stub_is_not_solved_yet(check, stub, capsys):
    assert check(stub) is False
    assert "not solved yet" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("check", "attempt", "named"),
    [
        (lesson_01.check_axes, AXES | {"GPT-2 c_fc.weight": 0}, "c_fc.weight: a Conv1D stores [in, out]"),
        (lesson_01.check_axes, AXES | {"GPT-2 c_proj.bias": 0}, "c_proj.bias: it has one number for each output"),
        (lesson_01.check_axes, AXES | {"OPT fc1.weight": 1, "OPT fc2.weight": 0}, "2 of 6 to go"),
        (lesson_01.check_l1_scores, lambda layer: layer.weight.abs().sum(0), "nn.Linear stores [out, in]"),
        (lesson_01.check_l1_scores, lambda layer: layer.weight.abs().sum(1), "Conv1D stores [in, out]"),
        (
            lesson_01.check_l1_scores,
            lambda layer: layer.weight.abs().sum(1 if layer.weight.shape[0] == 4 else 0),
            "ask for the layer's class",
        ),
        (lesson_01.check_l1_scores, lambda layer: rows(layer).sum(1), "signs cancel"),
        (lesson_01.check_l1_scores, lambda layer: rows(layer).sum(1).abs(), "not after"),
        (lesson_01.check_l1_scores, lambda layer: rows(layer).norm(dim=1), "L2 norm"),
        (lesson_01.check_l1_scores, lambda layer: rows(layer).abs().sum(), "a shape [4]; yours is []"),
        (
            lesson_01.check_slice_mlp,
            lambda fc, proj, keep: (fc.weight[keep], fc.bias, proj.weight[:, keep], proj.bias),
            "fc.bias should have the shape [3] and has [6]",
        ),
        (
            lesson_01.check_slice_mlp,
            lambda fc, proj, keep: (fc.weight[keep], fc.bias[keep], proj.weight, proj.bias),
            "a neuron is a column of proj.weight",
        ),
        (
            lesson_01.check_slice_mlp,
            lambda fc, proj, keep: (fc.weight[keep], fc.bias[keep], proj.weight[:, keep.sort().values], proj.bias),
            "same order",
        ),
        (
            lesson_01.check_slice_mlp,
            lambda fc, proj, keep: (fc.weight[keep], fc.bias[keep], proj.weight[keep], proj.bias),
            "Your code stopped with IndexError",
        ),
    ],
)
def test_wrong_answer_names_the_mistake(check, attempt, named, capsys):
    assert check(attempt) is False
    assert named in capsys.readouterr().out


def test_slicing_may_not_change_the_given_layers(capsys):
    def attempt(fc, proj, keep):
        proj.weight.data.zero_()
        return fc.weight[keep], fc.bias[keep], proj.weight[:, keep], proj.bias

    assert lesson_01.check_slice_mlp(attempt) is False
    assert "changed the given layers" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("mistake", "named"),
    [
        ({"head": True}, "shares its weights"),
        ({"fc_bias": False}, "takes its bias"),
        ({"proj_bias": False}, "stays whole"),
        ({"rounded": math.ceil}, "round the number of removed neurons down"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_count_names_the_mistake(mistake, named, capsys):
    assert lesson_01.check_pruned_parameters(lambda config, ratio: pruned_parameters(config, ratio, **mistake)) is False
    assert named in capsys.readouterr().out


def test_count_for_another_width_or_by_share_is_named(capsys):
    assert not lesson_01.check_pruned_parameters(lambda c, r: pruned_parameters(c, r, width=4 * c.n_embd))
    assert "where n_inner is set" in capsys.readouterr().out
    assert not lesson_01.check_pruned_parameters(lambda c, r: round((1 - r) * pruned_parameters(c, 0.0)))
    assert "a share of the neurons isn't a share of all parameters" in capsys.readouterr().out
    assert not lesson_01.check_pruned_parameters(lambda c, r: pruned_parameters(c, 0.0))
    assert "the unpruned count" in capsys.readouterr().out
    assert not lesson_01.check_pruned_parameters(lambda c, r: pruned_parameters(c, r) + 1)
    assert "your count is +1 off" in capsys.readouterr().out


def test_right_answers_are_accepted():
    assert lesson_01.check_axes(AXES)
    assert lesson_01.check_l1_scores(lambda layer: rows(layer).abs().sum(1))
    assert lesson_01.check_pruned_parameters(pruned_parameters)
    assert lesson_01.check_slice_mlp(
        lambda fc, proj, keep: (fc.weight[keep], fc.bias[keep], proj.weight[:, keep], proj.bias)
    )

"""Lesson 01's checks refuse the stub, name the likely mistake, and accept the answers."""

import numpy as np
import pytest
import torch
from exercise_cases import cases_of
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from course_utils.lessons.exercises import lesson_01
from course_utils.lessons.exercises.lesson_01 import _keep_the_mean, _prune_width
from course_utils.pruning.width import prune_neurons

AXES = {
    "GPT-2 c_fc.weight": 1,
    "GPT-2 c_fc.bias": 0,
    "GPT-2 c_proj.weight": 0,
    "GPT-2 c_proj.bias": "none",
    "OPT fc1.weight": 0,
    "OPT fc2.weight": 1,
}
test_axes = cases_of(
    lesson_01.check_axes,
    stubs=[dict.fromkeys(AXES, ...)],
    mistakes=[
        (AXES | {"GPT-2 c_fc.weight": 0}, "c_fc.weight: a Conv1D stores [in, out]"),
        (AXES | {"OPT fc1.weight": 1, "OPT fc2.weight": 0}, "2 of 6 to go"),
    ],
    answers=[AXES],
)


def by_rank(scores, ratio):
    return scores.topk(len(scores) - int(ratio * len(scores))).indices


def prune_with_masks(model, ratio):
    """Another way: boolean masks, and new numbers under the old parameters."""
    for block in model.transformer.h:
        fc, proj = block.mlp.c_fc, block.mlp.c_proj
        ranks = fc.weight.detach().abs().sum(dim=0).argsort().argsort()
        stays = ranks >= int(ratio * len(ranks))
        fc.weight.data, fc.bias.data, proj.weight.data = fc.weight[:, stays], fc.bias[stays], proj.weight[stays]
        fc.nf = proj.nx = model.config.n_inner = int(stays.sum())
    return model


def three_blocks_only(model, ratio):
    """Right in all tiny models of the check, which have no more."""
    rest = model.transformer.h[3:]
    model.transformer.h = model.transformer.h[:3]
    _prune_width(model, ratio)
    model.transformer.h.extend(rest)
    return model


# What any cut can do wrong is tried in test_cuts.py.
test_prune_width = cases_of(
    lesson_01.check_prune_width,
    stubs=[lambda *_: print("pruned")],
    mistakes=[
        (three_blocks_only, "but in the real one ['transformer.h.3.mlp.c_fc.weight'] isn't as prune_neurons"),
        (lambda model, ratio: _prune_width(model, ratio, choose=by_rank), "Keep their old order"),
        (lambda model, ratio: _prune_width(model, ratio, score=lambda mlp: mlp.nothing), "Your code stopped"),
    ],
    answers=[prune_with_masks],
    real=GPT2LMHeadModel(GPT2Config(n_layer=4, n_embd=12, n_head=2, vocab_size=40)),
)


def mean_kept_with_zeros(model, scores, means, ratio):
    """Another way: the library's cut, and means that are zero where a neuron stays."""
    for block, of_block, mean in zip(model.transformer.h, scores, means, strict=True):
        left_out = mean.clone()
        left_out[of_block.argsort()[int(ratio * len(of_block)) :]] = 0
        proj = block.mlp.c_proj
        proj.bias = nn.Parameter(proj.bias + proj.weight.T @ left_out)
    prune_neurons(model, scores, ratio=ratio)
    return model


def means_set_to_zero(model, scores, means, ratio):
    _keep_the_mean(model, scores, means, ratio)
    means[0][0] = 0
    return model


test_keep_the_mean = cases_of(
    lesson_01.check_keep_the_mean,
    mistakes=[
        (means_set_to_zero, "You changed the given scores or means"),
        (lambda *given: _keep_the_mean(*given, bias=lambda bias, *_: 2 * bias), "c_proj.bias is off by"),
    ],
    answers=[mean_kept_with_zeros],
)


def sum_of_squares(*weights):
    """Made-up damage: a weight a block, times its squared share."""
    return lambda shares: sum(weight * share**2 for weight, share in zip(weights, shares, strict=True))


KEPT = sum_of_squares(9, 0, 1, 1.1, 1.2, 2)
LOST = sum_of_squares(9, 6, 5, 1, 4, 7)
KEPT_ORDER, LOST_ORDER = [0, 5, 4, 3, 2, 1], [0, 5, 1, 2, 4, 3]
DAMAGES = {"speeches": KEPT, "wiki": lambda shares: KEPT(shares) + 5 * max(0, shares[1] - 0.8)}
NAIVE = [0, *5 * [0.48]]
WELL_SPENT = [0.0, 0.75, 0.43, 0.43, 0.43, 0.36]


def choose(shares, keep):
    return (KEPT if keep else LOST)(shares)


def judge(shares):
    return {text: damage(shares) for text, damage in DAMAGES.items()}


def check_plan(lost=LOST_ORDER, kept=KEPT_ORDER, shares=WELL_SPENT):
    return lesson_01.check_plan(lost, kept, shares, NAIVE, choose, judge)


def check_shares(shares):
    return check_plan(shares=shares)


def check_orders(orders):
    return check_plan(*(orders if isinstance(orders, tuple) else [orders]))


test_shares = cases_of(
    check_shares,
    stubs=[None, [...], 6 * [...]],
    mistakes=[
        ([0.4, 0.5], "one share for each of the 6 blocks; yours are 2"),
        (0.4, "Give the list of shares itself; yours is of type float"),
        (lambda: WELL_SPENT, "Give the list of shares itself; yours is of type function"),
        ([0.0, 1.0, 0.4, 0.4, 0.4, 0.4], "leaves a block without neurons"),
        ([-0.1, 0.5, 0.5, 0.5, 0.5, 0.5], "yours has [-0.1]"),
        ([float("nan"), 0.5, 0.5, 0.5, 0.5, 0.5], "yours has [nan]"),
        ([0.0, 0.4, 0.4, 0.4, 0.4, 0.4], "a mean of 0.333"),
        (6 * [0.4], "Which blocks give many neurons nearly for free"),
        ([0.2, *5 * [0.44]], "That isn't at most 0.75 of the naive plan's damage"),
        (NAIVE, "That isn't at most 0.75 of the naive plan's damage"),
        ([0.0, 0.96, 0.36, 0.36, 0.36, 0.36], "not clearly on the exam (wiki)"),
    ],
    answers=[
        WELL_SPENT,
        tuple(WELL_SPENT),
        torch.tensor(WELL_SPENT),
        np.array(WELL_SPENT),
        dict(enumerate(WELL_SPENT)),
    ],
)
test_orders = cases_of(
    check_orders,
    stubs=[(..., KEPT_ORDER), (LOST_ORDER, ...)],
    mistakes=[
        ((KEPT_ORDER, LOST_ORDER), "`lost` isn't the order of what choose gives"),
        ((LOST_ORDER, LOST_ORDER), "leave the others whole, and call it with keep=True"),
        ((LOST_ORDER[::-1], KEPT_ORDER), "`lost` begins with the cheapest block"),
        ((LOST_ORDER, [0, 1, 2]), "`kept` names each block from 0 to 5 once"),
        ((LOST_ORDER, 5), "Give `kept` as a list of block numbers; yours is of type int"),
    ],
    answers=[(np.array(LOST_ORDER), torch.tensor(KEPT_ORDER))],
)


@pytest.mark.parametrize("shares", [NAIVE, 6 * [0.5], [1, 0]])
def test_the_exam_stays_shut_for_a_plan_that_has_not_won_on_the_choosing_rows(shares):
    lesson_01.check_plan(LOST_ORDER, KEPT_ORDER, shares, NAIVE, choose, lambda shares: pytest.fail("judged"))

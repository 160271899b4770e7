"""Influence by hand: angles, padding, batches, and where a module keeps its states."""

from __future__ import annotations

import math

import pytest
import torch

from course_utils.pruning.influence import CosineDistance, as_scores

REAL = torch.tensor([[True, True]])


def states(*angles):
    """[1, tokens, 2] unit vectors at these angles, in degrees."""
    return torch.tensor([[[math.cos(math.radians(a)), math.sin(math.radians(a))] for a in angles]])


def test_distance_is_one_minus_the_cosine_and_ignores_length():
    meter = CosineDistance()
    meter.add(states(0, 0), 7 * states(60, 180), REAL)
    assert meter.mean() == pytest.approx((0.5 + 2) / 2)


def test_batches_weigh_by_their_real_tokens():
    meter = CosineDistance()
    meter.add(states(0, 0), states(90, 90), REAL)
    meter.add(states(0, 0), torch.cat([states(0), torch.full((1, 1, 2), math.nan)], 1), torch.tensor([[True, False]]))
    assert meter.mean() == pytest.approx(2 / 3)
    assert as_scores([meter, meter]).dtype is torch.float32 and as_scores([meter, meter]).shape == (2,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_computed_in_float32(dtype):
    before = 300 * torch.randn(1, 9, 64, generator=torch.Generator().manual_seed(0))  # squares beyond float16's 65,504
    after = (1.01 * before).roll(1, dims=-1) * 0.01 + before
    before, after, real = before.to(dtype), after.to(dtype), torch.ones(1, 9, dtype=torch.bool)
    meter = CosineDistance()
    meter.add(before, after, real)
    x, y = before[0].double(), after[0].double()
    exact = (1 - (x * y).sum(-1) / x.norm(dim=-1) / y.norm(dim=-1)).mean()
    assert meter.mean() == pytest.approx(float(exact), rel=1e-2)

"""Influence by hand: angles, padding, batches, and where a module keeps its states."""

from __future__ import annotations

import math

import pytest
import torch

from course_utils.influence import CosineDistance, as_scores

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


def test_low_precision_is_summed_in_float32():
    meter = CosineDistance()
    meter.add(300 * states(0, 0).half(), 300 * states(0, 0).half(), REAL)  # squares beyond float16's 65,504
    assert meter.mean() == pytest.approx(0, abs=1e-6)

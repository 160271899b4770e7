"""Rank correlations and geometric means against scipy and hand computations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from course_utils.uncertainty import geometric_mean, rank_correlation


def pairs(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    a, noise = np.random.default_rng(seed).normal(size=(2, count))
    return a, a + noise


def test_rank_correlation_is_scipys_with_its_percentile_bootstrap():
    a, b = pairs(30)
    value, low, high = rank_correlation(a, b, resamples=500)
    assert value == pytest.approx(stats.spearmanr(a, b).statistic)
    drawn = np.random.default_rng(0).integers(0, 30, (500, 30))
    resampled = [stats.spearmanr(a[row], b[row]).statistic for row in drawn]
    assert (low, high) == pytest.approx(tuple(np.percentile(resampled, [2.5, 97.5])))


def test_rank_correlation_sees_order_only_and_shares_ranks():
    order = torch.arange(10.0)
    assert rank_correlation(order, order.exp()) == (1, 1, 1)
    assert rank_correlation(order, -order) == (-1, -1, -1)
    tied = torch.tensor([1.0, 1, 2, 2, 3, 3, 4, 4, 5, 5])
    assert rank_correlation(order, tied)[0] == pytest.approx(stats.spearmanr(order, tied).statistic)


def test_rank_correlation_takes_tensors_and_arrays_and_repeats_itself():
    a, b = pairs(12)
    expected = rank_correlation(a, b)
    assert rank_correlation(torch.tensor(a, requires_grad=True), torch.tensor(b)) == expected
    assert rank_correlation(a, b, seed=1) != expected
    assert rank_correlation(torch.arange(12).bfloat16(), np.arange(12)[::-1])[0] == -1


def test_the_interval_covers_the_truth_about_95_times_in_100():
    truth = 6 / math.pi * math.asin(0.5 / math.sqrt(2))  # of normal pairs with correlation 1 / sqrt(2)
    intervals = [rank_correlation(*pairs(60, seed), resamples=300)[1:] for seed in range(200)]
    assert 0.9 < np.mean([low < truth < high for low, high in intervals]) < 0.99


def test_rank_correlation_without_an_order_is_nan():
    assert all(map(math.isnan, rank_correlation(torch.ones(5), torch.arange(5))))
    _, low, high = rank_correlation([1.0, 2, 3], [1.0, 3, 2])  # one draw in nine is a single pair, three times
    assert -1 <= low < high <= 1


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([1.0, 2], [2.0, 1]),
        ([1.0, 2, 3], [1.0, 2, 3, 4]),
        (np.ones((3, 3)), np.ones((3, 3))),
        ([1.0, 2, math.nan], [1.0, 2, 3]),
    ],
)
def test_rank_correlation_refuses_what_has_no_pairs(a, b):
    with pytest.raises(ValueError, match="two vectors of one length, at least 3"):
        rank_correlation(a, b)


def test_geometric_mean_by_hand():
    mean, factor = geometric_mean(value for value in (1, 100))
    assert mean == pytest.approx(10)
    assert factor == pytest.approx(math.exp(math.log(100) / math.sqrt(2)))  # n - 1 = 1
    assert geometric_mean([4.0, 4.0, 4.0]) == pytest.approx((4, 1))
    mean, factor = geometric_mean([7.0])
    assert mean == pytest.approx(7) and math.isnan(factor)
    assert geometric_mean([1.0, math.inf])[0] == math.inf


@pytest.mark.parametrize("values", [[], [1.0, 0.0], [2.0, -1.0], [1.0, math.nan]])
def test_geometric_mean_refuses_what_has_no_logarithm(values):
    with pytest.raises(ValueError, match="positive"):
        geometric_mean(values)

"""Statistics against scipy, hand computations and simulations with a known truth."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn.functional import kl_div

from course_utils.support import uncertainty
from course_utils.support.uncertainty import (
    bootstrap_interval,
    crossed_interval,
    holm,
    kl_divergence,
    permutation_p,
    rank_correlation,
    ratio_interval,
    sign_flip_p,
    verdict,
)


@pytest.mark.parametrize(
    ("low", "high", "at", "says"),
    [
        (0.1, 0.2, 0, "higher"),
        (-0.2, -0.1, 0, "lower"),
        (-0.1, 0.2, 0, "no evidence of a difference"),
        (0.0, 0.2, 0, "no evidence of a difference"),
        (-0.2, 0.0, 0, "no evidence of a difference"),
        (0.1, 0.2, 1, "lower"),
        (2.0, math.inf, 1, "higher"),
        (math.nan, math.nan, 0, "no evidence of a difference"),
    ],
)
def test_a_verdict_says_on_which_side_the_whole_interval_lies(low, high, at, says):
    assert verdict(low, high, at=at) == says
    own = says.replace("higher", "more").replace("lower", "less")
    assert verdict(np.float64(low), torch.tensor(high), at=at, below="less", above="more") == own


@pytest.mark.parametrize("units", [2, 7])
def test_a_ratios_interval_is_students_where_sizes_are_equal_and_counts_units_by_their_size(units):
    totals = np.random.default_rng(0).normal(3, 1, units)
    student = stats.ttest_1samp(totals / 4, 0)
    ends = student.confidence_interval(0.95)
    expected = (totals.mean() / 4, stats.sem(totals / 4), ends.low, ends.high)
    assert ratio_interval(totals, np.full(units, 4)) == pytest.approx(expected)
    assert ratio_interval(np.array([2.0, 12.0]), np.array([1, 3]))[0] == 3.5
    mean, *others = ratio_interval(totals[:1], np.ones(1))
    assert mean == totals[0] and np.isnan(others).all()


def few_differences(count: int, seed: int) -> np.ndarray:
    """With ties and with sums that cancel, as whole numbers and as tenths have them."""
    generator = np.random.default_rng(seed)
    return (generator.normal(0.5, 1, count), generator.integers(-3, 5, count), generator.integers(-3, 5, count) / 10)[
        seed % 3
    ]


def share_of_all_signs(differences: np.ndarray) -> float:
    """By brute force, in whole numbers: tenths are tenths, and equal sums are equal."""
    values = [round(1e9 * float(value)) for value in differences]
    sums = [abs(sum(map(int.__mul__, values, signs))) for signs in itertools.product((1, -1), repeat=len(values))]
    return sum(value >= sums[0] for value in sums) / len(sums)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("count", [2, 3, 8, 11])
def test_sign_flips_of_few_units_are_all_gone_through(count, seed):
    differences = few_differences(count, seed)
    p = sign_flip_p(differences)
    assert p == share_of_all_signs(differences)
    reference = stats.permutation_test((differences,), np.sum, permutation_type="samples", n_resamples=math.inf)
    assert p == pytest.approx(reference.pvalue)
    assert p == sign_flip_p(-differences) == sign_flip_p(differences[::-1]) == sign_flip_p(7 * differences)


def test_all_signs_are_gone_through_where_they_are_no_more_than_the_draws():
    alike = np.ones(14)  # only all + and all - reach the observed sum
    assert sign_flip_p(alike[:13]) == 2 / 2**13
    assert sign_flip_p(alike[:4], resamples=16) == 2 / 2**4
    for p, draws in ((sign_flip_p(alike[:4], resamples=15), 15), (sign_flip_p(alike), 10_000)):
        assert p * (draws + 1) == pytest.approx(round(p * (draws + 1)))


def test_drawn_sign_flips_are_what_they_were():
    """Saved p-values of many units rest on these draws."""
    differences = np.random.default_rng(0).normal(0.3, 1, 40)
    signs = np.random.default_rng(0).integers(0, 2, (999, 40), dtype=np.int8) * 2 - 1
    hits = (np.abs(signs @ differences) >= abs(differences.sum()) * (1 - 1e-12)).sum()
    assert sign_flip_p(differences, resamples=999) == (hits + 1) / 1000


def test_sign_flips_are_symmetric_repeat_themselves_and_never_say_zero():
    differences = np.arange(1.0, 30)
    assert sign_flip_p(differences) == sign_flip_p(-differences) == sign_flip_p(3 * differences) == 1 / 10_001
    assert all(sign_flip_p(np.array(values)) == 1 for values in ([0] * 9, [0] * 19, [1], []))
    assert math.isnan(sign_flip_p(np.array([1.0, math.inf])))


def test_rank_correlation_is_scipys_with_its_percentile_bootstrap():
    a, noise = np.random.default_rng(0).normal(size=(2, 30))
    b = a + noise
    value, low, high = rank_correlation(a, b, resamples=500)
    assert value == pytest.approx(stats.spearmanr(a, b).statistic)
    drawn = np.random.default_rng(0).integers(0, 30, (500, 30))
    resampled = [stats.spearmanr(a[row], b[row]).statistic for row in drawn]
    assert (low, high) == pytest.approx(tuple(np.percentile(resampled, [2.5, 97.5])))
    assert rank_correlation(torch.tensor(a, requires_grad=True), torch.tensor(b), resamples=500) == (value, low, high)


def test_rank_correlation_sees_order_only_shares_ranks_and_may_be_nan():
    order = torch.arange(10.0)
    assert rank_correlation(order, order.exp()) == (1, 1, 1)
    assert rank_correlation(order.bfloat16(), -order) == (-1, -1, -1)
    tied = torch.tensor([1.0, 1, 2, 2, 3, 3, 4, 4, 5, 5])
    assert rank_correlation(order, tied)[0] == pytest.approx(stats.spearmanr(order, tied).statistic)
    assert all(map(math.isnan, rank_correlation(torch.ones(5), torch.arange(5))))
    _, low, high = rank_correlation([1.0, 2, 3], [1.0, 3, 2])  # one draw in nine is a single pair, three times
    assert -1 <= low < high <= 1


def test_holm_by_hand():
    # sorted .01 .03 .04: times 3, 2, 1, never falling
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.5, 0.9]).tolist() == [1.0, 1.0]
    assert holm([0.02]).tolist() == [0.02]
    assert holm([]).shape == (0,)
    adjusted = holm([math.nan, 0.01, 0.03])
    assert math.isnan(adjusted[0]) and adjusted[1:] == pytest.approx([0.02, 0.03])


def crossed_table(seed: int, shape: tuple[int, int], spread: tuple[float, float, float], mean: float = 0.0):
    """[rows, columns, 1] of row, column and cell effects."""
    generator, (rows, columns) = np.random.default_rng(seed), shape
    effects = (generator.normal(size=size) for size in ((rows, 1), (1, columns), (rows, columns)))
    return (mean + sum(sd * effect for sd, effect in zip(spread, effects, strict=True)))[..., None]


def mean_of(shape: tuple[int, int]):
    return lambda sums: sums / math.prod(shape)


@pytest.mark.parametrize("spread", [(0, 0, 1), (1, 0, 1), (0, 1, 1), (1, 1, 1)])
@pytest.mark.parametrize("shape", [(6, 10), (12, 10)])
def test_crossed_interval_holds_its_level_whichever_units_are_alike(shape, spread, monkeypatch):
    monkeypatch.setattr(uncertainty, "RESAMPLES", 400)
    results = [crossed_interval([crossed_table(s, shape, spread)], mean_of(shape)) for s in range(300)]
    found = np.mean([low > 0 or high < 0 for _, low, high, _ in results])
    assert found <= 0.05 + 2.6 * math.sqrt(0.05 * 0.95 / 300)
    assert all((p < 0.05) == (low > 0 or high < 0) for _, low, high, p in results)
    effects = [crossed_interval([crossed_table(s, shape, spread, 3.0)], mean_of(shape)) for s in range(50)]
    assert np.mean([p < 0.05 for *_, p in effects]) > 0.85


def test_crossed_interval_draws_shared_rows_once_and_equals_theory():
    shape = (40, 30)
    table = crossed_table(0, shape, (1, 2, 0))
    estimate, low, high, _ = crossed_interval([table], mean_of(shape))
    error = math.sqrt(table.mean(1).var() / 40 + table.mean(0).var() / 30)  # rows and columns vary independently
    half = stats.t.ppf(0.975, 29) * error
    assert estimate == pytest.approx(table.mean())
    assert (low, high) == pytest.approx((table.mean() - half, table.mean() + half), abs=0.05 * half)
    rows_only = crossed_table(0, shape, (1, 0, 0))
    shifted = np.concatenate([rows_only, rows_only[:, :20]], axis=1) + 1  # the same rows, other columns
    results = crossed_interval([shifted, rows_only], lambda a, b: a / 2000 - b / 1200)
    assert np.array(results[:3]) == pytest.approx(1, abs=1e-9)  # what makes a row high cancels


def test_crossed_interval_without_spread_or_units():
    assert [float(v[0]) for v in crossed_interval([np.zeros((4, 5, 1))], mean_of((4, 5)))] == [0, 0, 0, 1]
    assert crossed_interval([np.ones((4, 5, 1))], mean_of((4, 5)))[3] == 0
    with np.errstate(divide="ignore"):
        nothing = [float(v[0]) for v in crossed_interval([np.zeros((4, 5, 1))], np.log)]
    assert nothing == [-math.inf, -math.inf, -math.inf, 0]
    estimate, *others = crossed_interval([np.ones((1, 5, 1))], mean_of((1, 5)))
    assert estimate == 1 and np.isnan(others).all()


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6, 8])
def test_few_units_hold_the_truth_about_95_times_in_100(count):
    """Plain percentiles hold it 50, 75, 88, 92 in 100 times for 2, 3, 4, 5 units, and 88 for 8."""
    samples = np.random.default_rng(count).normal(1, 1, (800, count))
    ends = [bootstrap_interval(units[:, None], lambda s: s[:, 0] / count, resamples=1000) for units in samples]
    covered = np.mean([low < 1 < high for low, high in ends])
    assert 0.95 - 3.2 * math.sqrt(0.05 * 0.95 / 800) < covered < 0.98


@pytest.mark.parametrize("count", [2, 3, 5])
def test_interval_of_a_handful_of_units_is_students_for_a_mean_and_the_jackknifes_for_a_ratio(count):
    totals, sizes = np.random.default_rng(1).gamma(4, size=(2, count))
    student = stats.ttest_1samp(totals, 0).confidence_interval(0.95)
    for mean in (lambda sums: sums[:, 0] / count, lambda sums: sums[:, 0] / sums[:, 1]):
        units = np.stack([totals, np.ones(count)], axis=1)
        assert bootstrap_interval(units, mean) == pytest.approx((student.low, student.high))
    ratio = totals.sum() / sizes.sum()
    without = [(totals.sum() - t) / (sizes.sum() - n) for t, n in zip(totals, sizes, strict=True)]
    half = stats.t.ppf(0.975, count - 1) * math.sqrt((count - 1) * np.var(without))
    ends = bootstrap_interval(np.stack([totals, sizes], axis=1), lambda sums: sums[:, 0] / sums[:, 1])
    assert ends == pytest.approx((ratio - half, ratio + half))
    infinite = np.array([[1.0, 0.0], [2.0, 0.0], [4.0, 3.0]])  # without the third there is nothing to divide by
    assert np.isnan(bootstrap_interval(infinite, lambda sums: sums[:, 0] / sums[:, 1])).all()


def test_bootstrap_of_many_units_has_plain_percentiles_and_of_one_none():
    units = np.random.default_rng(0).normal(size=(500, 1))
    low, high = bootstrap_interval(units, lambda sums: sums[:, 0] / 500, resamples=4000)
    drawn = np.random.default_rng(0).integers(0, 500, (4000, 500))
    assert (low, high) == pytest.approx(tuple(np.quantile(units[drawn, 0].mean(1), (0.025, 0.975))), abs=2e-3)
    assert np.isnan(bootstrap_interval(units[:1], lambda sums: sums[:, 0])).all()


def difference_of_means(values):
    return lambda labels: abs(values[labels].mean() - values[~labels].mean())


def test_permutation_p_is_near_that_of_all_ways_and_units_stay_whole():
    generator = np.random.default_rng(0)
    values = generator.standard_normal(8).repeat(5) + 0.1 * generator.standard_normal(40)
    units = np.arange(8).repeat(5)
    labels = np.isin(units, values[::5].argsort()[[7, 6, 5, 3]])  # nearly the four largest
    statistic = difference_of_means(values)
    ways = [np.isin(units, ones) for ones in itertools.combinations(range(8), 4)]
    exact = np.mean([statistic(way) >= statistic(labels) - 1e-12 for way in ways])
    assert permutation_p(statistic, units, labels, shuffles=3000) == pytest.approx(exact, abs=0.03)
    one_by_one = permutation_p(statistic, np.arange(40), labels)
    assert one_by_one < exact / 2  # as if each sentence were a word of its own
    seen = []
    permutation_p(lambda labels: seen.append(labels) or 0.0, units, labels, shuffles=5)
    assert all(len({*labels[units == unit]}) == 1 and labels.sum() == 20 for labels in seen for unit in range(8))


def test_permutation_p_counts_what_was_seen_and_ties():
    words = ["nurse", "cook", "guard", "clerk"]
    assert permutation_p(lambda _: 1.0, words, [True, True, False, False], shuffles=9) == 1
    values = np.array([9.0, 8, 1, 0] * 6) + np.arange(24)
    assert (
        permutation_p(lambda seen: values[seen].mean(), np.arange(24), values > np.median(values), shuffles=99) == 0.01
    )


def test_kl_divergence_is_bit_for_bit_what_torch_computes_gradients_included():
    log_p, log_q = torch.randn(2, 3, 4, 11, generator=torch.Generator().manual_seed(0)).mul(3).log_softmax(-1)
    results = []
    for divergence in (kl_divergence, lambda p, q: kl_div(q, p, log_target=True, reduction="none").sum(-1)):
        p, q = log_p.clone().requires_grad_(), log_q.clone().requires_grad_()
        value = divergence(p, q)
        results.append((value, *torch.autograd.grad(value.sum(), (p, q))))
    assert all(map(torch.equal, *results))

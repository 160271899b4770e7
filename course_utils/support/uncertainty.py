"""Intervals and tests for measured scores: how far a number could be off, and whether two numbers differ.

Everything works on numpy arrays in float64. A *unit* is what was sampled independently: a row of text, a document.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from scipy import stats
from torch import Tensor

from course_utils.support import checks
from course_utils.support.checks import check_types

CONFIDENCE = 0.95
RESAMPLES = 10_000
_FEWEST_TO_DRAW = 6  # samples drawn from fewer units reach around the truth too seldom
_DRAWS_AT_ONCE = 2**21  # bounds the memory of one step of the bootstrap


def verdict(low: float, high: float, *, at: float = 0.0, below: str = "lower", above: str = "higher") -> str:
    """What an interval says in words: ``below`` or ``above`` where all of it lies on one side of ``at``.

    Otherwise, and where there is no interval (nan), "no evidence of a difference". Take 1 for ``at`` where the interval
    is of a ratio.

    Raises:
        ValueError: ``low``, ``high`` or ``at`` is no number.

    >>> verdict(0.02, 0.11), verdict(0.97, 1.2, at=1)
    ('higher', 'no evidence of a difference')
    """
    low, high, at = checks.number("low", low), checks.number("high", high), checks.number("at", at)
    return above if low > at else below if high < at else "no evidence of a difference"


@check_types
def ratio_interval(totals: np.ndarray, sizes: np.ndarray) -> tuple[float, float, float, float]:
    """A mean over all members of units that differ in size, with its uncertainty.

    The members of one unit resemble each other, so the units are the sample (cluster sampling; Cochran, Sampling
    Techniques, 1977, chapter 6), and the interval uses Student's t with one degree of freedom less than units.

    Args:
        totals: [units] sum over a unit's members, for instance a row's negative log-likelihood.
        sizes: [units] members of a unit, for instance a row's tokens.

    Returns:
        mean, standard error, and the ends of the 95 % interval; the last three are nan for a single unit.
    """
    mean, units = totals.sum() / sizes.sum(), len(totals)
    if units < 2:
        return float(mean), math.nan, math.nan, math.nan
    residuals = totals - mean * sizes
    error = math.sqrt(units / (units - 1) * (residuals**2).sum()) / sizes.sum()
    half = stats.t.ppf(0.5 + CONFIDENCE / 2, units - 1) * error
    return float(mean), error, float(mean - half), float(mean + half)


@check_types
def bootstrap_interval(
    units: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], *, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """95 % interval of a statistic of column sums, by drawing whole units with replacement.

    Plain percentiles, 2.5 % and 97.5 %, lie too close together where units are few. The ends here are *expanded*
    percentiles, as far out as Student's t (Hesterberg 2015, "What Teachers Should Know about the Bootstrap").

    No percentile lies outside the sample, and a sample of n units holds the centre with probability ``1 - 2**(1 - n)``:
    50, 75, 88 and 94 % for 2 to 5 units. So fewer than 6 get the jackknife's interval with Student's t (Tukey 1958):
    for a mean that is Student's own.

    Args:
        units: [units, columns] what each unit adds to each sum. Put both sides of a comparison in one row: then they
            are drawn together, and what makes a unit hard for both cancels.
        statistic: maps sums [resamples, columns] to values [resamples].
        resamples: how many samples are drawn.

    Returns:
        The ends of the interval; nan for a single unit, and for fewer than 6 where a value isn't finite.
    """
    checks.whole_number("resamples", resamples, least=1)
    generator, count = np.random.default_rng(0), len(units)
    if count < 2:
        return math.nan, math.nan
    quantile = float(stats.t.ppf((1 - CONFIDENCE) / 2, count - 1))
    if count < _FEWEST_TO_DRAW:
        return _jackknife_interval(units, statistic, quantile)
    step = max(1, _DRAWS_AT_ONCE // count)
    values = [
        statistic(units[generator.integers(0, count, (min(step, resamples - start), count))].sum(axis=1))
        for start in range(0, resamples, step)
    ]
    ordered = np.sort(np.concatenate(values))  # not np.quantile: interpolating between infinities gives nan
    tail = round(float(stats.norm.cdf(math.sqrt(count / (count - 1)) * quantile)) * resamples)
    return float(ordered[tail]), float(ordered[-1 - tail])


def _jackknife_interval(
    units: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], quantile: float
) -> tuple[float, float]:
    """The statistic of all units, and Student's (negative) quantile times its jackknife error to either side.

    What is left out are single units; the sums of the others are made n units' sums again by ``n / (n - 1)``.
    """
    count, total = len(units), units.sum(axis=0, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        value, left_out = statistic(total)[0], statistic((total - units) * (count / (count - 1)))  # [units]
        error = math.sqrt((count - 1) / count * float(((left_out - left_out.mean()) ** 2).sum()))
    low, high = float(value + quantile * error), float(value - quantile * error)
    return (low, high) if math.isfinite(low + high) else (math.nan, math.nan)


@check_types
def rank_correlation(
    a: Tensor | np.ndarray | Sequence[float],
    b: Tensor | np.ndarray | Sequence[float],
    *,
    resamples: int = 1000,
) -> tuple[float, float, float]:
    """Spearman's rank correlation: 1 for the same order, -1 for the opposite one, 0 for no relation.

    Args:
        a: [n], n of at least 3, without nan; equal values share the mean of their ranks.
        b: [n], likewise.
        resamples: how many samples of pairs are drawn.

    Returns:
        The correlation and the ends of its 95 % interval: percentile bootstrap, drawing pairs with replacement. All
        three are nan if ``a`` or ``b`` is constant.

    Raises:
        ValueError: fewer than three pairs, different lengths, or nan.
    """
    x, y = _as_array(a), _as_array(b)
    if x.shape != y.shape or x.ndim != 1 or len(x) < 3 or np.isnan([x, y]).any():
        raise ValueError(
            f"A rank correlation needs two vectors, 'a' and 'b', of one length, at least 3, without nan; got shapes "
            f"{list(x.shape)} and {list(y.shape)}."
        )
    checks.whole_number("resamples", resamples, least=1)
    drawn = np.random.default_rng(0).integers(0, len(x), (resamples, len(x)))
    value, values = float(_spearman(x, y)), _spearman(x[drawn], y[drawn])
    if math.isnan(value):
        return value, math.nan, math.nan
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(values, [tail, 1 - tail])  # a draw of equal values has no order, and nan
    return value, float(low), float(high)


def _as_array(values: Tensor | np.ndarray | Sequence[float]) -> np.ndarray:
    return np.asarray(values.detach().cpu().double() if isinstance(values, Tensor) else values, dtype=np.float64)


def _spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[..., n] twice -> [...]; nan where all values are equal."""
    a, b = (stats.rankdata(values, axis=-1) - (values.shape[-1] + 1) / 2 for values in (a, b))
    with np.errstate(invalid="ignore"):  # 0 / 0
        return (a * b).sum(axis=-1) / np.sqrt((a**2).sum(axis=-1) * (b**2).sum(axis=-1))


def mcnemar_p(only_a: int, only_b: int) -> float:
    """Exact two-sided p-value that two models are equally often right, from the documents that only one got right.

    Raises:
        ValueError: a count isn't a whole number from 0.
    """
    checks.whole_number("only_a", only_a)
    checks.whole_number("only_b", only_b)
    disagreements = only_a + only_b
    return float(stats.binomtest(only_a, disagreements).pvalue) if disagreements else 1.0


@check_types
def sign_flip_p(differences: np.ndarray, *, resamples: int = RESAMPLES) -> float:
    """Two-sided p-value that paired differences are as often up as down: how rare is their sum among flipped signs?

    Fisher's randomization test (The Design of Experiments, 1935, section 21). Where there are no more assignments of
    signs than draws (13 units have 8,192), all of them are tried, and p is exact. Otherwise signs are drawn, by hand:
    ``scipy.stats.permutation_test`` doubles the smaller tail instead of comparing magnitudes, draws other signs (saved
    p-values would change in their last digits), and takes 5 to 14 times as long.

    Args:
        differences: [units].
        resamples: how many assignments of signs are drawn, where there are more.

    Returns:
        The share of assignments, the observed one among them, with a sum as large as observed, up or down. nan where a
        difference isn't finite.

    >>> sign_flip_p(np.array([3.0, 1.0, 2.0, 4.0]))  # of 16 assignments, all + and all - reach 10
    0.125
    """
    checks.whole_number("resamples", resamples, least=1)
    observed = abs(differences.sum())
    if not np.isfinite(observed):
        return math.nan
    if 2 ** len(differences) <= resamples:
        sums = np.zeros(1)
        for difference in differences:
            sums = np.concatenate([sums + difference, sums - difference])
        # the margin keeps equal sums equal, however they are rounded and also where they cancel
        return float((np.abs(sums) >= observed - 1e-12 * np.abs(differences).sum()).mean())
    generator = np.random.default_rng(0)
    at_least, step = 0, max(1, _DRAWS_AT_ONCE // len(differences))
    for start in range(0, resamples, step):
        signs = generator.integers(0, 2, (min(step, resamples - start), len(differences)), dtype=np.int8) * 2 - 1
        # the margin keeps equal sums equal when they are added in another order
        at_least += int((np.abs(signs @ differences) >= observed * (1 - 1e-12)).sum())
    return (at_least + 1) / (resamples + 1)


@check_types
def permutation_p(
    statistic: Callable[[np.ndarray], float],
    units: Sequence[object] | np.ndarray,
    labels: Sequence[object] | np.ndarray,
    *,
    shuffles: int = 999,
    seed: int = 0,
) -> float:
    """How often shuffled labels give at least as much, the labels that were seen counted in: a one-sided p-value.

    What belongs to one unit, such as the sentences about one word, keeps one label. Otherwise each sentence would count
    as if it were a word of its own (Fisher 1935; Edgington and Onghena, Randomization Tests, 2007).

    Args:
        statistic: labels [items] -> a number, the larger the more the groups differ.
        units: [items], the unit that each item belongs to.
        labels: [items], alike within a unit.
        shuffles: how many are drawn; p is 1 / (shuffles + 1) at least.
        seed: of the draws.

    Raises:
        ValueError: not as many labels as units, a unit with two labels, or no shuffles.

    >>> values = np.array([1, 1, 2, 2, 8, 8, 9, 9])  # four words, twice each
    >>> units, labels = [0, 0, 1, 1, 2, 2, 3, 3], [False] * 4 + [True] * 4
    >>> round(permutation_p(lambda seen: values[seen].mean(), units, labels), 1)  # 1 of 6 ways
    0.2
    """
    checks.whole_number("shuffles", shuffles, least=1)
    checks.whole_number("seed", seed)
    given = np.asarray(labels)
    if len(units) != len(given):
        raise ValueError(f"'labels' must hold one for each of {len(units)} units; got {len(given)}.")
    _, first, numbers = np.unique(np.asarray(units), return_index=True, return_inverse=True)
    of_unit = given[first]
    if (of_unit[numbers] != given).any():
        raise ValueError("'labels' must be alike within a unit.")
    generator, seen = np.random.default_rng(seed), statistic(given)
    hits = sum(bool(statistic(generator.permutation(of_unit)[numbers]) >= seen) for _ in range(shuffles))
    return (1 + hits) / (1 + shuffles)


@check_types
def holm(p_values: Iterable[float]) -> np.ndarray:
    """Adjusted p-values for a family of tests (Holm 1979, step-down): [tests] float64.

    Calling those below 0.05 found keeps the chance of any false find below 5 %, however the tests depend on each
    other. A nan stands for a test that could not be made: it stays nan and doesn't count.

    Raises:
        ValueError: a value outside [0, 1].

    >>> holm([0.04, 0.01, 0.03]).tolist()
    [0.06, 0.03, 0.06]
    """
    values = np.fromiter(p_values, dtype=np.float64)
    made = np.flatnonzero(~np.isnan(values))
    if ((values[made] < 0) | (values[made] > 1)).any():
        raise ValueError(f"p-values lie from 0 to 1; got {values.tolist()}.")
    order = made[np.argsort(values[made], kind="stable")]
    adjusted = np.full(len(values), np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * np.arange(len(order), 0, -1)), 1)
    return adjusted


@check_types
def crossed_interval(
    tables: Sequence[np.ndarray], statistic: Callable[..., np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Estimates, 95 % intervals and p-values where two kinds of unit are crossed, such as templates x swaps.

    Everything measured with one template is alike in one way, and everything measured with one swap in another. If only
    templates were drawn, the swaps would count as the only possible ones, and the interval would be far too narrow. So
    both are drawn, independently (the pigeonhole bootstrap, Owen 2007, doi 10.1214/07-AOAS122), and Student's t with
    (fewest units - 1) degrees of freedom makes up for how few they are.

    Args:
        tables: each [rows, columns, values], what a cell adds to each sum. All tables share their rows (templates),
            which are drawn once for all; each has its own columns (swaps), which are drawn for each.
        statistic: maps one array of sums [..., values] per table to the estimates [..., estimates], on a scale on which
            errors are about symmetric, such as the logarithm of a ratio.

    Returns:
        estimate, low, high, and the two-sided p-value that the estimate is 0; [estimates] each. Where all samples give
        the estimate itself, even an infinite one, the interval is that one number, and p is 1 if that is 0 and 0
        otherwise. With a single row or column all but the estimate are nan.

    Raises:
        ValueError: no tables, or tables of different rows or not of three dimensions.
    """
    if not tables or any(table.ndim != 3 or len(table) != len(tables[0]) for table in tables):
        raise ValueError(
            "'tables' must be arrays [rows, columns, values] that share their rows; got shapes "
            f"{[list(table.shape) for table in tables]}."
        )
    estimate = statistic(*(table.sum(axis=(0, 1)) for table in tables))
    units = min(len(tables[0]), *(table.shape[1] for table in tables))
    if units < 2:
        none = np.full_like(estimate, np.nan)
        return estimate, none, none, none
    generator, rows = np.random.default_rng(0), len(tables[0])
    step, draws = max(1, _DRAWS_AT_ONCE // max(table[0].size for table in tables)), []
    for start in range(0, RESAMPLES, step):
        size = min(step, RESAMPLES - start)
        drawn = _times_drawn(generator, rows, size)
        sums = []
        for table in tables:
            by_column = np.tensordot(drawn, table, axes=1)  # [draws, columns, values]
            sums.append(np.einsum("dcv,dc->dv", by_column, _times_drawn(generator, table.shape[1], size)))
        draws.append(statistic(*sums))
    values = np.concatenate(draws)  # [resamples, estimates]
    with np.errstate(invalid="ignore", divide="ignore"):  # the error may be nan (infinite draws) or 0
        error = np.where((values == estimate).all(axis=0), 0.0, values.std(axis=0, ddof=1))
        p = 2 * stats.t.sf(np.abs(estimate) / error, units - 1)
    half = stats.t.ppf(0.5 + CONFIDENCE / 2, units - 1) * error
    return estimate, estimate - half, estimate + half, np.where((error == 0) & (estimate == 0), 1.0, p)


def _times_drawn(generator: np.random.Generator, units: int, draws: int) -> np.ndarray:
    """How often each unit comes when as many are drawn with replacement: [draws, units] float64."""
    return generator.multinomial(units, np.full(units, 1 / units), draws).astype(np.float64)


@check_types
def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q): the nats per token that it costs to expect q where p is true. 0 where both agree, never less.

    ``Σ p (log p - log q)`` (Kullback and Leibler 1951).

    Args:
        log_p: log-probabilities [..., vocabulary], all finite; give at least float32.
        log_q: of the same shape.

    Returns:
        [...] in the dtype of the arguments; can be differentiated by both.

    >>> p, q = np.array([0.5, 0.5]), np.array([0.25, 0.75])
    >>> round(kl_divergence(Tensor(p).log(), Tensor(q).log()).item(), 4)
    0.1438
    """
    return (log_p.exp() * (log_p - log_q)).sum(-1)

"""Choices for each prompt, and what they are worth: harm and cost of a policy beside the static bypass at that cost.

Tables ``harm`` (nats per token of the answer) and ``saved`` (a share of the cache, or any other unit) are [prompts,
numbers]: a column for each number of attentions that was measured, 0 left out first. A ``choice`` is a column for each
prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from course_utils.lessons.prompt_harm import Record
from course_utils.support import checks
from course_utils.support.checks import check_types


@check_types
def outcome(harm: np.ndarray, saved: np.ndarray, choice: np.ndarray) -> tuple[float, float]:
    """What is saved in all, and the mean harm."""
    rows = np.arange(len(choice))
    return float(saved[rows, choice].sum()), float(harm[rows, choice].mean())


@check_types
def static_harm(harm: np.ndarray, saved: np.ndarray, target: float | np.ndarray) -> np.ndarray:
    """Mean harm where ``target`` is saved by the same number everywhere, or by one of two, by the toss of a coin.

    Of all such mixtures it is the best: where the curve over the measured numbers isn't convex, a coin between numbers
    that are farther apart does better than one number everywhere.

    Returns:
        In the shape of ``target``.
    """
    return np.asarray(np.interp(target, *_lower_hull(saved.sum(0), harm.mean(0))))


def _lower_hull(saved: np.ndarray, harm: np.ndarray) -> tuple[list[float], list[float]]:
    """The corners that no mixture of others lies below, by saving."""
    corners: list[tuple[float, float]] = []
    for x, y in sorted(zip(saved.tolist(), harm.tolist(), strict=True)):
        while len(corners) > 1:
            (x0, y0), (x1, y1) = corners[-2:]
            if (x1 - x0) * (y - y0) > (y1 - y0) * (x - x0):  # the last corner lies below the line past it
                break
            corners.pop()
        corners.append((x, y))
    return [x for x, _ in corners], [y for _, y in corners]


@check_types
def cheapest_guess(guess: np.ndarray, saved: np.ndarray, price: float) -> np.ndarray:
    """The choice of least expected harm, ``guess``, less ``price`` times what is saved."""
    return (guess - checks.number("price", price) * saved).argmin(1)


@check_types
def price_for(guess: np.ndarray, saved: np.ndarray, target: float) -> float:
    """The lowest price at which ``cheapest_guess`` saves ``target`` in all on these prompts, by bisection.

    Raises:
        ValueError: even the largest number everywhere doesn't save so much.
    """
    if checks.number("target", target) > saved[:, -1].sum():
        raise ValueError(f"'target' is {target}, but at most {saved[:, -1].sum():.3f} can be saved.")
    low, high = 1e-12, 1e12
    for _ in range(80):
        middle = np.sqrt(low * high)  # in the middle of their logarithms
        if outcome(guess, saved, cheapest_guess(guess, saved, middle))[0] < target:
            low = middle
        else:
            high = middle
    return float(high)


@check_types
def by_level(record: Record, left_out: Sequence[int]) -> np.ndarray:
    """Choices by complexity for the prompts that judge: each level gets the same share of the prompts that choose.

    Args:
        record: of both.
        left_out: a measured number for each level, from the simplest prompts to the most complex ones.

    Raises:
        ValueError: a number in ``left_out`` wasn't measured, or there is none.
    """
    measured = ", ".join(map(str, record.numbers))
    if not (isinstance(left_out, Sequence) and left_out and all(number in record.numbers for number in left_out)):
        raise ValueError(f"'left_out' must hold one number for each level, among {measured}; got {left_out!r}.")
    scores, first = record.complexity, record.choosing
    edges = np.quantile(scores[:first], np.arange(1, len(left_out)) / len(left_out))
    return np.searchsorted(record.numbers, left_out)[np.searchsorted(edges, scores[first:], side="right")]

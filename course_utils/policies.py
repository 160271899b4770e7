"""Choices for each prompt, and what they are worth: harm and cost of a policy beside the static bypass at that cost.

A choice is a column of the tables: which of the measured numbers of attentions each prompt leaves out. Tables are
[prompts, numbers], 0 left out first.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy import sparse
from scipy.optimize import linprog

from course_utils import checks
from course_utils.argument_types import check_types
from course_utils.prompt_harm import Record
from course_utils.uncertainty import CONFIDENCE

_DRAWS = 2000  # of documents with replacement, for an interval


@check_types
def seconds_saved(record: Record) -> np.ndarray:
    """Share of all prompts' seconds that each prompt saves with each number, [prompts, numbers].

    Reading the prompt and each token of the answer at batch 1: measured for a few lengths and numbers, between them
    straight lines over the logarithm of the length and over the number.
    """
    lengths, numbers = np.log(record.seconds["lengths"]), record.seconds["numbers"]
    prefill, decode = np.array(record.seconds["prefill"]), np.array(record.seconds["decode"])  # [lengths, numbers]
    at = np.log(np.clip(record.tokens, *record.seconds["lengths"][:: len(lengths) - 1]))  # [prompts]

    def between(table: np.ndarray) -> np.ndarray:
        by_prompt = np.stack([np.interp(at, lengths, column) for column in np.log(table).T], axis=1)
        return np.stack([np.interp(record.numbers, numbers, row) for row in np.exp(by_prompt)])

    total = between(prefill) + record.answer_tokens[:, None] * between(decode)
    return (total[:, :1] - total) / total[:, 0].sum()


@check_types
def cache_saved(record: Record, blocks: int) -> np.ndarray:
    """Share of all prompts' key-value cache, at its fullest, that each prompt saves with each number.

    Args:
        record: of the prompts.
        blocks: attentions of the model; each keeps the same for every token.

    Returns:
        [prompts, numbers].

    Raises:
        ValueError: ``blocks`` isn't a whole number from 1.
    """
    checks.whole_number("blocks", blocks, least=1)
    tokens = record.tokens + record.answer_tokens
    return tokens[:, None] * np.array(record.numbers) / (blocks * tokens.sum())


@check_types
def outcome(harm: np.ndarray, saved: np.ndarray, choice: np.ndarray) -> tuple[float, float]:
    """What is saved in all, and the mean harm, if prompt i takes column ``choice[i]``.

    Args:
        harm: [prompts, numbers].
        saved: likewise.
        choice: [prompts] columns.
    """
    rows = np.arange(len(choice))
    return float(saved[rows, choice].sum()), float(harm[rows, choice].mean())


@check_types
def static_harm(harm: np.ndarray, saved: np.ndarray, target: float | np.ndarray) -> np.ndarray:
    """Mean harm of leaving out the same number everywhere, or one of two by the toss of a coin, at this saving.

    Of all such mixtures it is the best: where the curve over the measured numbers isn't convex, a coin between numbers
    that are farther apart does better than one number everywhere.

    Args:
        harm: [prompts, numbers].
        saved: likewise.
        target: the saving, or an array of them.

    Returns:
        The harm at each target, in its shape.
    """
    return np.interp(target, *_lower_hull(saved.sum(0), harm.mean(0)))


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


@lru_cache(maxsize=1)  # a table of gaps asks for the same draws again and again
def _times_drawn(units: int) -> np.ndarray:
    """How often each unit comes in each draw with replacement, [draws, units]; always the same draws."""
    return np.random.default_rng(0).multinomial(units, np.full(units, 1 / units), _DRAWS).astype(np.float64)


@check_types
def gap_to_static(
    harm: np.ndarray,
    saved: np.ndarray,
    choice: np.ndarray,
    documents: Sequence[str],
) -> tuple[float, float, float]:
    """A policy's harm less that of the best static bypass or mixture that saves as much, and its 95 % interval.

    Documents are drawn with replacement, because prompts of one document resemble each other. The static arm is made
    anew in each draw, at what the policy saves there: a draw with more long prompts changes both arms.

    Args:
        harm: [prompts, numbers].
        saved: likewise.
        choice: [prompts] columns.
        documents: [prompts], where each comes from.

    Raises:
        ValueError: not a document for each prompt.
    """
    if isinstance(documents, str) or np.shape(documents) != np.shape(choice):
        raise ValueError(f"'documents' must name each of the {len(choice)} prompts' document; got {documents!r}.")
    rows, (_, groups) = np.arange(len(choice)), np.unique(documents, return_inverse=True)
    own = np.stack([saved[rows, choice], harm[rows, choice], np.ones(len(rows))], axis=1)
    units = np.zeros((groups.max() + 1, own.shape[1] + 2 * harm.shape[1]))
    np.add.at(units, groups, np.concatenate([own, saved, harm], axis=1))

    def gap(sums: np.ndarray) -> float:
        own_saved, own_harm, count = sums[:3]
        saved_at, harm_at = sums[3 : 3 + harm.shape[1]], sums[3 + harm.shape[1] :]
        return (own_harm - np.interp(own_saved, *_lower_hull(saved_at, harm_at))) / count

    drawn = [gap(sums) for sums in _times_drawn(len(units)) @ units]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return float(gap(units.sum(0))), float(low), float(high)


@check_types
def cheapest_guess(guess: np.ndarray, saved: np.ndarray, price: float) -> np.ndarray:
    """For each prompt the column of least ``guessed harm - price * saved``; [prompts].

    Args:
        guess: harm as it is expected, [prompts, numbers].
        saved: [prompts, numbers].
        price: nats a token that the whole saving is worth, for all prompts together.

    Raises:
        ValueError: ``price`` is no number.
    """
    checks.number("price", price)
    return (guess - price * len(guess) * saved).argmin(1)


@check_types
def price_for(guess: np.ndarray, saved: np.ndarray, target: float) -> float:
    """The price at which ``cheapest_guess`` saves about ``target`` on these prompts.

    Args:
        guess: harm as it is expected, [prompts, numbers].
        saved: [prompts, numbers].
        target: the share that is to be saved in all.

    Raises:
        ValueError: ``target`` is no number, or even the largest number everywhere doesn't save so much.
    """
    if checks.number("target", target) > saved[:, -1].sum():
        raise ValueError(f"'target' is {target}, but at most {saved[:, -1].sum():.3f} can be saved.")
    low, high = 0.0, 1e6
    for _ in range(60):
        middle = np.sqrt(max(low, 1e-9) * high)
        if outcome(guess, saved, cheapest_guess(guess, saved, middle))[0] < target:
            low = middle
        else:
            high = middle
    return float(high)


@check_types
def least_harm(harm: np.ndarray, saved: np.ndarray, target: float) -> float:
    """The least mean harm that any assignment of numbers to prompts can have at this saving: a linear programme.

    A share x[i, n] of prompt i takes number n; shares of a prompt add up to 1, and together they save ``target``. At
    most one prompt is split in the solution, so the bound is that of whole prompts but for one.

    Args:
        harm: [prompts, numbers].
        saved: likewise.
        target: the share that is to be saved in all.

    Raises:
        ValueError: ``target`` isn't a number of at least 0, or nothing saves so much.
    """
    checks.at_least_zero("target", target)
    prompts, numbers = harm.shape
    each = sparse.kron(sparse.eye(prompts), np.ones((1, numbers)))  # [prompts, prompts * numbers]
    found = linprog(
        harm.ravel() / prompts,
        A_ub=-saved.reshape(1, -1),
        b_ub=[-target],
        A_eq=each,
        b_eq=np.ones(prompts),
        bounds=(0, 1),
        method="highs",
    )
    if not found.success:
        raise ValueError(f"No assignment saves {target}: at most {saved.max(1).sum():.3f} can be saved.")
    return float(found.fun)


@check_types
def split_half_ceiling(halves: np.ndarray) -> tuple[float, float]:
    """How well a mean of two halves can be known, and how well anything could correlate with it.

    The halves' rank correlation r gives the reliability of their mean, 2r / (1 + r) (Spearman and Brown, 1910); no
    signal correlates better than the root of that, unless by luck.

    Args:
        halves: [prompts, 2]; rows with nan are left out.
    """
    from scipy.stats import spearmanr

    known = halves[~np.isnan(halves).any(1)]
    r = float(spearmanr(*known.T).statistic)
    reliability = 2 * r / (1 + r)
    return reliability, float(np.sqrt(max(reliability, 0.0)))


@check_types
def shuffled_within(choice: np.ndarray, strata: np.ndarray, seed: int) -> np.ndarray:
    """The same choices, dealt anew among the prompts of each stratum.

    Args:
        choice: [prompts] columns.
        strata: [prompts], what each prompt counts to.
        seed: of the deal.

    Raises:
        ValueError: ``seed`` isn't a whole number from 0.
    """
    checks.whole_number("seed", seed)
    generator, dealt = np.random.default_rng(seed), choice.copy()
    for stratum in np.unique(strata):
        rows = np.flatnonzero(strata == stratum)
        dealt[rows] = generator.permutation(choice[rows])
    return dealt

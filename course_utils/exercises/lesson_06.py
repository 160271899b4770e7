"""Checks of lesson 06, adaptive attention bypass."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from course_utils.exercises import Attempt, exercise, require, rule_out

_RANGES = {"log_length": (1.0, 3.0), "variance": (0.5, 1.5)}


@exercise(
    1,
    task="Return one score from 0 to 1 for each row: the mean of the scaled log length and the scaled variance.",
    proved="Padding changes nothing, and nothing leaves the range from 0 to 1.",
)
def check_complexity(attempt: Attempt) -> None:
    """Check a function (embeddings, mask, log_length, variance) -> scores [rows]."""
    generator = torch.Generator().manual_seed(0)
    lengths, spreads = (1, 3, 6, 12, 30), (1.0, 0.6, 1.0, 1.2, 3.0)
    for padding in ("right", "left"):
        embeddings, mask = 9 * torch.randn(5, 30, 4, generator=generator), torch.zeros(5, 30, dtype=torch.long)
        rows = []
        for row, (length, spread) in enumerate(zip(lengths, spreads, strict=True)):
            rows.append(spread * torch.randn(length, 4, generator=torch.Generator().manual_seed(row)))
            places = slice(length) if padding == "right" else slice(30 - length, None)
            embeddings[row, places], mask[row, places] = rows[-1], 1
        given = torch.as_tensor(attempt(embeddings.clone(), mask.clone(), **_RANGES), dtype=torch.float32)
        require(given.shape == (5,), f"Return one score a row, shape (5,); yours has {tuple(given.shape)}.")
        right = _scores(rows)
        mistakes = (
            (
                _scores(list(embeddings), lengths),
                "padded positions count in your variance. Select each row's real tokens with its mask.",
            ),
            (_scores(rows, [30] * 5), "every row has the same length for you. Count the mask's ones."),
            (
                torch.stack([_mean(_raw(row, len(row))) for row in rows]),
                "you don't cut off: below the low end a scaled value is 0, above the high end it is 1.",
            ),
            (_scores(rows, lengths, logarithm=False), "scale the *logarithm* of the length."),
            (2 * right, "that is the sum. Take the mean of the two scaled values."),
            (
                _scores(rows, lengths, variance=lambda row: row.var()),
                "that is the variance of all numbers together. Take it over the tokens, for each component, then "
                "average over the components.",
            ),
        )
        same = partial(torch.allclose, atol=1e-4)
        rule_out(mistakes, given, right, same=same)
        require(
            same(given, right),
            f"for the check's random rows the scores are {_text(right)}; yours are {_text(given)}.",
        )


@exercise(
    2,
    task="Return the two thresholds of least mean harm that leave out at least `budget` attentions on average.",
    proved="Chosen on one half of the prompts, they hold on the other half. That half decided nothing.",
)
def check_thresholds(attempt: Attempt) -> None:
    """Check a function (scores, harms, left_out, budget) -> two thresholds."""
    left_out, budget = (8, 4, 0), 4.0
    scores, harms = _prompts(seed=1)
    chosen = torch.as_tensor(attempt(scores.clone(), harms.clone(), left_out, budget), dtype=torch.float32)
    require(chosen.shape == (2,), f"Return two thresholds; yours have the shape {tuple(chosen.shape)}.")
    low, high = chosen.tolist()
    require(low <= high, f"The first threshold must not be above the second one; yours are {low:.3f} and {high:.3f}.")
    average, harm = _outcome(scores, harms, left_out, low, high)
    require(
        average >= budget - 1e-6,
        f"With your thresholds {average:.2f} attentions are left out on average, fewer than {budget:g}.",
    )
    best = min(
        outcome[1]
        for pair in itertools.combinations_with_replacement(_candidates(scores), 2)
        if (outcome := _outcome(scores, harms, left_out, *pair))[0] >= budget - 1e-6
    )
    thirds = _outcome(scores, harms, left_out, *scores.quantile(torch.tensor([1 / 3, 2 / 3])).tolist())[1]
    if harm > best * 1.001:
        hint = " That is what equal thirds give; look at the harms." if abs(harm - thirds) < 1e-6 else ""
        require(False, f"The mean harm is {harm:.4f}; {best:.4f} is possible at the same budget.{hint}")
    average, harm = _outcome(*_prompts(seed=2), left_out, low, high)
    print(f"On prompts that chose nothing: {average:.2f} attentions left out on average, mean harm {harm:.4f}.")


@exercise(
    3,
    task="Return one number: how many times as fast all the prompts together are.",
    proved="Times add up, speed-ups don't; and no mixture beats its fastest part.",
)
def check_speedup(attempt: Attempt) -> None:
    """Check a function (shares, speed-ups) -> speed-up of the mixture."""
    for shares, speedups in (([0.5, 0.5], [1.0, 2.0]), ([1.0], [1.3]), ([0.2, 0.3, 0.5], [1.5, 1.2, 1.0])):
        given = float(attempt(list(shares), list(speedups)))
        pairs = list(zip(shares, speedups, strict=True))
        right = 1 / sum(share / speedup for share, speedup in pairs)
        sizes = f"for the shares {shares} and the speed-ups {speedups}"
        mistakes = (
            (sum(share * speedup for share, speedup in pairs), "that is the mean of the speed-ups. Average the times."),
            (1 / right, "turned upside down: that is the time, in units of the full model's."),
            (max(speedups), "that is the fastest part. The slow prompts take their time as well."),
        )
        same = partial(math.isclose, rel_tol=0, abs_tol=1e-6)
        rule_out(mistakes, given, right, same=same, where=f"{sizes}, ")
        require(same(given, right), f"{sizes}, all together are {right:.4f} times as fast; yours is {given:.4f}.")


def _raw(
    row: Tensor, length: int, *, logarithm: bool = True, variance: Callable[[Tensor], Tensor] | None = None
) -> list[Tensor]:
    """The two values of a row, scaled but not cut off."""
    size = torch.tensor(float(length))
    spread = row.var(0, unbiased=False).mean() if variance is None else variance(row)
    values = {"log_length": size.log() if logarithm else size, "variance": spread}
    return [(values[name] - low) / (high - low) for name, (low, high) in _RANGES.items()]


def _mean(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(values).mean()


def _scores(rows: Sequence[Tensor], lengths: Iterable[int] | None = None, **options: Any) -> Tensor:
    values = [_raw(row, n, **options) for row, n in zip(rows, lengths or map(len, rows), strict=True)]
    return torch.stack([_mean([value.nan_to_num().clamp(0, 1) for value in pair]) for pair in values])


def _prompts(seed: int, count: int = 40) -> tuple[Tensor, Tensor]:
    """Scores [count] and harms [3 levels, count] that rise with the score, steeply at the end, beside much noise."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(count, generator=generator)
    harm = 0.1 + scores.pow(4) + 0.05 * torch.rand(count, generator=generator)
    return scores, torch.stack([harm, 0.35 * harm, torch.zeros(count)])


def _candidates(scores: Tensor) -> list[float]:
    """A threshold on each score, and one above all."""
    return [*scores.sort().values.tolist(), float(scores.max()) + 1.0]


def _outcome(scores: Tensor, harms: Tensor, left_out: Sequence[int], low: float, high: float) -> tuple[float, float]:
    """Average number left out, and mean harm."""
    levels = (scores >= low).long() + (scores >= high).long()
    counts = torch.tensor(left_out, dtype=torch.float32)[levels]
    return float(counts.mean()), float(harms.gather(0, levels[None]).mean())


def _text(values: Tensor) -> str:
    return "[" + ", ".join(f"{value:.3f}" for value in values.tolist()) + "]"

"""Checks of lesson 06, adaptive attention bypass."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from sklearn.linear_model import RidgeCV
from torch import Tensor

from course_utils.exercises import Attempt, chosen, exercise, require, rule_out
from course_utils.prompt_harm import Record

_CLEARLY = 0.1  # of a rank correlation
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
                "Padded positions count in your variance. Select each row's real tokens with its mask.",
            ),
            (
                _scores([torch.cat([row, torch.zeros(30 - len(row), 4)]) for row in rows], lengths),
                "Multiplied by the mask, embeddings are zeros where padding is, and these count in your variance. "
                "Select each row's real tokens instead.",
            ),
            (
                _scores(rows, lengths, variance=lambda row: row.var(0).mean()),
                "Torch's own variance divides by one less than the number of tokens, and of one token it is no number: "
                "unbiased=False.",
            ),
            (_scores(rows, [30] * 5), "Every row has the same length for you. Count the mask's ones."),
            (
                torch.stack([_mean(_raw(row, len(row))) for row in rows]),
                "You don't cut off: below the low end a scaled value is 0, above the high end it is 1.",
            ),
            (_scores(rows, lengths, logarithm=False), "Scale the *logarithm* of the length."),
            (2 * right, "That is the sum. Take the mean of the two scaled values."),
            (
                _scores(rows, lengths, variance=lambda row: row.var()),
                "That is the variance of all numbers together. Take it over the tokens, for each component, then "
                "average over the components.",
            ),
        )
        same = partial(torch.allclose, atol=1e-4)
        rule_out(mistakes, given, right, same=same)
        require(
            same(given, right),
            f"For the check's random rows the scores are {_text(right)}; yours are {_text(given)}.",
        )


@exercise(
    2,
    task="Return a set of letters.",
    proved="The output is about harm: how steady it is and what goes with it. Gains need other measurements.",
)
def check_claims(attempt: Any) -> None:
    """Check which of four statements the output supports."""
    chosen(
        attempt,
        {"a", "c"},
        {
            "a": "the ceiling comes from two halves of each answer. Above 0, it says that harm is partly the prompt's.",
            "b": "the figure says nothing about time. A prompt that suffers little may have little to save.",
            "c": "the probe was fitted on some prompts and is judged on others, so its features can't inflate it.",
            "d": "the ceiling is the limit, and it lies above the probe. Another signal may come nearer to it.",
        },
    )


@exercise(
    3,
    task="Return one number: the share of all prompts' cache that is saved.",
    proved="The same average number saves little on short prompts and much on long ones.",
)
def check_same_average(attempt: Attempt) -> None:
    """Check a function (tokens, left_out, blocks) -> share."""
    tokens, blocks = [10, 20, 1000], 30
    same = partial(math.isclose, rel_tol=0, abs_tol=1e-6)
    for left_out in ([8, 4, 0], [0, 4, 8]):
        given = float(attempt(list(tokens), list(left_out), blocks))
        pairs = list(zip(tokens, left_out, strict=True))
        kept = sum(length * number for length, number in pairs)
        right = kept / (blocks * sum(tokens))
        mistakes = (
            (sum(left_out) / (len(tokens) * blocks), "that is the mean over prompts. Weight each by its tokens."),
            (kept / sum(tokens), "that is the number of layers for a mean token. Divide by all the blocks."),
            (1 - right, "that is what stays. Return what is saved."),
            (kept / blocks, "those are whole tokens' worth. Divide by all the tokens."),
        )
        where = f"For {tokens} tokens and {left_out} left out, "
        rule_out(mistakes, given, right, same=same, where=where)
        require(same(given, right), f"{where}{right:.4f} is saved; yours is {given:.4f}.")


@exercise(
    4,
    task="Return the same decisions, dealt anew among the prompts of each stratum.",
    proved="Costs stay, the signal goes. On decisions that know only the length it finds nothing, as it must.",
)
def check_control(attempt: Attempt) -> None:
    """Check a function (choice, strata, seed) -> choice dealt anew."""
    generator = np.random.default_rng(0)
    strata = generator.integers(0, 5, 400)
    choice = generator.integers(0, 3, 400) + 3 * strata  # every value tells its stratum
    before = choice.copy()
    given = np.asarray(attempt(choice, strata, 1))
    require(given.shape == choice.shape, f"Return one number a prompt, shape (400,); yours has {given.shape}.")
    require((choice == before).all(), "You changed the decisions that you were given. Work on a copy.")
    require(
        sorted(given.tolist()) == sorted(choice.tolist()),
        "Those aren't the same decisions any more: deal without replacement (a permutation).",
    )
    require(
        (given // 3 == strata).all(),
        "Decisions moved to prompts of another stratum, so the cost isn't the same. Deal within each stratum.",
    )
    require((given != choice).any(), "Nothing was dealt: every prompt has its own decision still.")
    require(
        (np.asarray(attempt(choice, strata, 2)) != given).any(),
        "Another seed deals the same way. Make the generator from the seed that you are given.",
    )
    by_length = strata % 3  # decided from the stratum alone
    require((np.asarray(attempt(by_length, strata, 3)) == by_length).all(), "Decisions by stratum alone must stay.")


@exercise(
    5,
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
    6,
    task="Return one number for each prompt of the record.",
    proved="Fitted on prompts that choose, it holds on prompts from other documents.",
)
def check_signal(attempt: Attempt) -> None:
    """Check a function (tokens, early_entropy, states, learn) -> one number a prompt, on the record."""
    record = Record.load()
    first = record.choosing
    log_harm = np.log(record.harm[:, -1].clip(1e-6))
    given = attempt(record.tokens.copy(), record.entropies[:, 0].copy(), record.states.copy(), log_harm[:first].copy())
    values = np.asarray(given, dtype=np.float64)
    require(
        values.shape == record.tokens.shape,
        f"Return one number for each of the {len(record.tokens)} prompts; yours has the shape {values.shape}.",
    )
    require(np.isfinite(values).all(), "Some of your numbers aren't finite.")
    require(values[first:].std() > 0, "Your signal is the same for all prompts that judge.")
    kinds = [record.kinds == kind for kind in sorted(set(record.kinds))[1:]]
    states = [record.states, np.log(record.tokens), record.entropies[:, 0]]
    own, length, probe, kind = (
        float(spearmanr(signal[first:], log_harm[first:]).statistic)
        for signal in (values, np.log(record.tokens), _ridge(states, log_harm[:first]), _ridge(kinds, log_harm[:first]))
    )
    known = {"length": length, "the lesson's probe": probe, "the kind alone": kind}
    beside = ", ".join(f"{name} {value:+.3f}" for name, value in known.items())
    print(f"On prompts that judge: yours {own:+.3f}, {beside}.")
    require(own > -0.1, "Your signal is upside down: it must be *high* where harm is high.")
    require(
        own >= abs(length) + _CLEARLY,
        f"{own:+.3f} isn't clearly better than length alone, whichever way round ({abs(length):.3f}): at least "
        f"{_CLEARLY} more is asked for.",
    )


def _ridge(features: Sequence[np.ndarray], log_harm: np.ndarray) -> np.ndarray:
    """The lesson's fit: a ridge regression on features [prompts, any], learned from the first of them."""
    columns, first = np.column_stack(features).astype(float), len(log_harm)
    columns = (columns - columns[:first].mean(0)) / columns[:first].std(0)
    return RidgeCV(np.logspace(-1, 4, 11)).fit(columns[:first], log_harm).predict(columns)


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

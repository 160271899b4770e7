"""Checks of lesson 14, the capstone: a norm's factor, a count, the search, the arms, and a learner's own trial."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from course_utils.compress.search import Candidate
from course_utils.lessons.exercises import Attempt, alike, assigned, exercise, expect, number, require, whole_number
from course_utils.measuring.evaluation import Perplexity
from course_utils.support.uncertainty import ratio_interval

ARMS = (
    "random cut",
    "from scratch",
    "depth only",
    "no teacher",
    "no teacher, equal minutes",
    "solved first",
    "none of them",
    "two differences",
)
_PATIENCE = 5000  # prices, far more than there are widths
_DRAWS = 3  # of exercise 5
_SAID = ("better", "worse", "no difference shown")


def _shares(states: Tensor, kept: Tensor) -> Tensor:
    """The kept channels' share of each token's energy."""
    return states[:, kept].square().sum(1) / states.square().sum(1)


def _factor(
    states,
    kept,
    *,
    share=lambda states, kept: _shares(states, kept).mean(),
    told=lambda share, grown: (share * grown).sqrt(),
):
    """The answer to exercise 1, with switches for mistakes; ``grown`` is hidden size / kept channels."""
    return float(told(share(states, kept), states.shape[1] / len(kept)))


@exercise(
    1,
    task="Return the factor that gives the kept channels, on average, their old size behind the norm.",
    proved="The norm divides by the length of what is left; one number a norm puts that right.",
    answer=_factor,
    mistakes=[
        (lambda states, kept: 1 / _factor(states, kept),
         "Upside down. The norm divides by a *shorter* length now, or by a longer one: see which."),
        (partial(_factor, told=lambda share, grown: share.sqrt()),
         "The norm divides by a *mean* square: the number of channels changed as well."),
        (partial(_factor, told=lambda share, grown: torch.tensor(grown).sqrt()),
         "That is right if the kept channels hold all of the energy. They hold a share of it."),
        (partial(_factor, told=lambda share, grown: share * grown), "Lengths, not energies: take the root."),
        (partial(_factor, told=lambda share, grown: (share / grown).sqrt()), "Hidden / kept, not kept / hidden."),
        (lambda states, kept: float((_shares(states, kept) * states.shape[1] / len(kept)).sqrt().mean()),
         "You took each token's factor, then the mean. First the mean of the shares, then the root."),
        (partial(_factor, share=lambda states, kept: states[:, kept].square().sum() / states.square().sum()),
         "You added the energies of all tokens first, so one token with enormous states decides. Take each token's "
         "share, then the mean."),
    ],
)  # fmt: skip
def check_norm_factor(attempt: Attempt) -> None:
    """Check a function (states [tokens, hidden], kept: indices) -> what the norm's weights are multiplied with."""
    for tokens, hidden, kept in ((6, 8, [0, 1, 2, 5, 7]), (4, 6, [1, 3]), (5, 10, list(range(9)))):
        states = torch.randn(tokens, hidden, generator=torch.Generator().manual_seed(hidden))
        states = states * torch.linspace(0.3, 3, hidden) * torch.linspace(1, 20, tokens)[:, None]
        where = f"{len(kept)} of {hidden} channels: "
        attempt.compare(states, torch.tensor(kept), read=number, where=where)


def _parameters(blocks, hidden, groups, neurons, queries, head_size, vocabulary):
    """Of a Llama whose head is tied to the embedding; ``queries`` query heads read each key/value head."""
    attention = 2 * hidden * groups * queries * head_size + 2 * hidden * groups * head_size  # q and o; k and v
    return vocabulary * hidden + blocks * (attention + 3 * hidden * neurons + 2 * hidden) + hidden


def _off_by(off: Callable[..., int]) -> Callable[..., int]:
    """A count that is off by what ``off`` says of the sizes."""
    return lambda *sizes: _parameters(*sizes) + off(*sizes)


@exercise(
    2,
    task="Return the number of parameters of a Llama with these sizes and a tied head.",
    proved="Each size has its own price, and the vocabulary is paid once, whatever you cut.",
    answer=_parameters,
    mistakes=[
        (_off_by(lambda blocks, hidden, groups, neurons, queries, size, vocabulary: vocabulary * hidden),
         "the head is tied: its matrix is the embedding's, and counts once."),
        (_off_by(lambda blocks, hidden, groups, neurons, queries, size, vocabulary: -vocabulary * hidden),
         "the vocabulary's matrix is missing. It is the largest of all, and no cut of blocks makes it smaller."),
        (_off_by(lambda blocks, hidden, groups, neurons, queries, size, vocabulary: (
             2 * blocks * hidden * groups * size * (queries - 1))),
         "keys and values have as many heads as there are groups, not as there are queries."),
        (_off_by(lambda blocks, hidden, groups, neurons, queries, size, vocabulary: -blocks * hidden * neurons),
         "a GLU has three matrices: gate, up and down."),
        (_off_by(lambda blocks, hidden, groups, neurons, queries, size, vocabulary: (
             2 * blocks * hidden * (hidden - groups * queries * size))),
         "the heads' numbers are groups x queries x head_size, and need not be `hidden`: so q and o aren't square."),
        (_off_by(lambda blocks, hidden, groups, neurons, queries, size, vocabulary: (
             -blocks * hidden * groups * queries * size)),
         "the output projection of the attention is missing."),
        (_off_by(lambda blocks, hidden, groups, neurons, queries, size, vocabulary: -(2 * blocks + 1) * hidden),
         "the norms are missing: two in each block and one at the end."),
        (_off_by(lambda blocks, hidden, groups, neurons, queries, size, vocabulary: -hidden),
         "the last norm is missing."),
        (_off_by(lambda blocks, hidden, groups, neurons, queries, size, vocabulary: (
             -2 * blocks * hidden * size * queries * (groups - 1))),
         "`queries` is how many query heads read *each* key/value head: there are groups x queries of them."),
    ],
)  # fmt: skip
def check_parameters(attempt: Attempt) -> None:
    """Check a function (blocks, hidden, groups, neurons, queries, head_size, vocabulary) -> parameters."""
    for sizes in ((2, 8, 3, 20, 3, 4, 50), (30, 576, 3, 1536, 3, 64, 49_152), (16, 2048, 8, 8192, 4, 64, 128_256)):
        where = f"blocks {sizes[0]}, hidden {sizes[1]}, groups {sizes[2]}, neurons {sizes[3]}: "
        attempt.compare(*sizes, read=whole_number, same=operator.eq, where=where)


def _widest(cost, full, budget, step, *, whole=True, early=0, over=0):
    """The answer to exercise 3, with switches for mistakes."""
    if whole and cost(full) <= budget:
        return full
    low, high = 0, (full - 1) // step if whole else full // step
    while low < high - early:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cost(middle * step) <= budget else (low, middle - 1)
    return (low + over) * step


@exercise(
    3,
    task="Return the widest MLP, a multiple of `step` or the whole one, whose model costs no more than `budget`.",
    proved="It finds the width by a dozen prices instead of all of them, as the library's `candidates` does.",
    answer=_widest,
    mistakes=[
        (partial(_widest, whole=False), "all of it fits, so it may stay, although it is no multiple."),
        (partial(_widest, over=1), "your width costs more than the budget: one step too far."),
        (partial(_widest, early=1), "one step more still fits. Does your search stop too early?"),
    ],
)
def check_widest(attempt: Attempt) -> None:
    """Check a function (cost, full, budget, step) -> neurons, where cost(neurons) -> parameters."""
    for fixed, a_neuron, full, budget, step in (
        (52_000_000, 51_840, 1536, 107_612_006, 32),
        (0, 10, 96, 640, 16),  # fits to the last parameter
        (500, 3, 1000, 10_000, 32),  # all of it fits, and is no multiple
        (500, 3, 1000, 3_499, 32),  # all of it doesn't, by one
        (700, 5, 256, 760, 8),  # one step at most
        (700, 5, 256, 705, 8),  # nothing
    ):
        asked: list[int] = []

        def cost(neurons: int, fixed: int = fixed, a_neuron: int = a_neuron, asked: list[int] = asked) -> int:
            asked.append(int(neurons))
            if len(asked) > _PATIENCE:
                raise RuntimeError("the search never ends. Round the middle up, or `low` stays where it is")
            return fixed + a_neuron * neurons

        given = cost, full, budget, step
        answer, prices = whole_number(attempt(*given), "Return a width, a whole number"), len(asked)
        right, where = attempt.answer(*given), f"budget {budget:,}, whole width {full}, steps of {step}: "
        attempt.name_mistake(answer, right, lambda wrong: wrong(*given), same=operator.eq, where=where)  # noqa: B023
        require(answer == right, f"{where}it is {right}, yours {answer}. It is a multiple of {step}, all, or 0.")
        most = 2 * math.ceil(math.log2(full / step + 1)) + 2
        require(prices <= most, f"{where}right, but by {prices} prices. Halve what is left: {most} are enough.")


@exercise(
    4,
    task='Say for each claim which arm tests it, "none of them", or "two differences" where an arm differs twice.',
    proved="A control answers one question: it differs from the winner in one thing, and in nothing else.",
)
def check_controls(attempt: Mapping[str, str]) -> None:
    """Check letter of a claim -> the arm that it has to be compared with."""
    assigned(attempt, _CONTROLS, ARMS)


_CONTROLS = {  # of exercise 4: the arm, and why
    "A": ("random cut", "same sizes, same tokens, same teacher; only *what* was kept differs."),
    "B": ("from scratch", "same sizes, same tokens, same teacher; only the weights that it starts from differ."),
    "C": ("none of them", "no arm reads much more text than the winner. That needs a longer run."),
    "D": ("no teacher", "the same cut and as many tokens; only the teacher is gone."),
    "E": ("no teacher, equal minutes", "the text alone is read faster, so at equal minutes there is more of it."),
    "F": ("solved first", "the same cut and the same training; only the solve comes before it."),
    "G": ("two differences", "optipfair's arm has another score *and* cuts neurons alone. Which of the two was it?"),
    "H": ("none of them", "all arms start from the same model. That needs another one, cut by the same recipe."),
}


@exercise(
    5,
    task="Cut `mine` and `best` by each of three draws' scores, and report what the rows say.",
    proved="Whatever came out: one budget, three draws, fresh rows, an interval. Such a sentence may be published.",
)
def check_trial(
    runs: Mapping[str, Sequence[Perplexity]],
    report: Mapping[str, Any],
    *,
    mine: Candidate,
    budget: float,
    fresh: Perplexity,
    used: Perplexity,
) -> None:
    """Check a trial of two versions, cut and judged alike.

    Args:
        runs: "mine" and "best" -> the results of three cuts each.
        report: "said" (of ``_SAID``), "low" and "high" (the interval of best less mine, nats per token).
        mine: the learner's sizes.
        budget: the most parameters.
        fresh: some model's result on the rows that nothing was chosen by.
        used: and on those that the live ranking chose by.
    """
    expect(mine, Candidate, "`mine` is a version, of `legal` for example")
    require(mine.parameters <= budget, f"Yours has {mine.parameters:,} parameters; the budget is {budget:,.0f}.")
    require({*runs} == {"mine", "best"}, '`runs` holds "mine" and "best".')
    ours, theirs = (list(runs[arm]) for arm in ("mine", "best"))
    every = [*ours, *theirs]
    require(
        len(ours) == len(theirs) == _DRAWS and all(isinstance(run, Perplexity) for run in every),
        f"What `perplexity` returns, {_DRAWS} for each of the two: one draw may be luck.",
    )
    marks = {run.fingerprint for run in every}
    require(used.fingerprint not in marks, "Those rows chose the best of the ranking. Judge on `fresh_rows`.")
    require(marks == {fresh.fingerprint}, "Judge each cut on all of `fresh_rows`, and on nothing else.")
    for arm, several in (("mine", ours), ("best", theirs)):
        seen = {run.row_nll.tobytes() for run in several}
        require(len(seen) == _DRAWS, f'"{arm}" is the same model more than once. Cut by each of the three `scores`.')
    gaps = np.array([b.row_nll - m.row_nll for m, b in zip(ours, theirs, strict=True)])
    require(np.abs(gaps).max() > 0, "Both arms are the same model. Change the sizes of yours.")
    _reported(report, gaps, ours[0].row_tokens)


def _reported(report: Mapping[str, Any], gaps: np.ndarray, row_tokens: np.ndarray) -> None:
    """Stop where a report isn't what the runs give; ``gaps`` are best less mine, [draws, rows]."""
    _, _, low, high = ratio_interval(gaps.mean(0), row_tokens)
    require({*report} >= {"said", "low", "high"}, "A report holds said, low and high.")
    require(
        not alike([report["low"], report["high"]], [-high, -low]),
        "The interval is turned round: best less mine, so that above 0 means that yours is better.",
    )
    for name, value in {"low": low, "high": high}.items():
        require(
            math.isclose(float(report[name]), value, rel_tol=0.01, abs_tol=1e-3),
            f"{name}: the runs give {value:,.4g}, you report {float(report[name]):,.4g}. The interval is that of the "
            "rows' differences, averaged over the draws.",
        )
    each = gaps.sum(1)
    said = "better" if low > 0 and (each > 0).all() else "worse" if high < 0 and (each < 0).all() else _SAID[2]
    answer = report["said"]
    require(answer in _SAID, f"'said' is one of {', '.join(_SAID)}; yours is {answer!r}.")
    require(
        answer == said,
        f"The interval is {low:+.3f} to {high:+.3f}, and {(each > 0).sum()} of {len(each)} draws are in favour of "
        f"yours: that is {said!r}.",
    )

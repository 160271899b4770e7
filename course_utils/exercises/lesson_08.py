"""Checks of lesson 08, seeing bias."""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from course_utils.exercises import Attempt, chosen, exercise, require, rule_out

Offsets = list[tuple[int, int]]


@exercise(
    3,
    task="Return the pairs (i, j) of tokens that stand on the same piece of shared text.",
    proved="However many words are swapped and however long they are, every shared token finds its partner.",
)
def check_align(attempt: Attempt) -> None:
    """Check a function (offsets of a, offsets of b, shared runs) -> pairs of aligned tokens."""
    for name, (text_a, text_b) in _TEXTS.items():
        a, b, shared = _offsets(text_a), _offsets(text_b), _shared_runs(text_a, text_b)
        given = attempt(list(a), list(b), list(shared))
        require(isinstance(given, list | tuple | set), f"Return a list of pairs (i, j); yours is {given!r}.")
        try:
            found = {(int(i), int(j)) for i, j in given}
        except (TypeError, ValueError):
            require(False, f"Return pairs (i, j) of token numbers; yours are {list(given)[:3]}.")
        right = _aligned(a, b, shared)
        where = f'In "{name}", '
        shorter = min(len(a), len(b))
        mistakes = (
            (
                {(i, i) for i in range(1, shorter)},
                "you pair tokens that have the same number. Behind a longer word, everything has moved.",
            ),
            (right | {(0, 0)}, "the first tokens are still in. Their states are outliers: leave them out."),
            (
                _aligned(a, b, [(start, start, length) for start, _, length in shared]),
                "you look for the same offsets in both texts. Count them from where the run begins in each text.",
            ),
            (
                _aligned(a, b, shared, whole=False),
                "a token that reaches into a swapped word is paired. Its end must lie inside the run as well.",
            ),
            *((_aligned(a, b, [run]), "only one of the runs is aligned. Go through all of them.") for run in shared),
        )
        rule_out(mistakes, found, right, where=where)
        missing, extra = sorted(right - found), sorted(found - right)
        require(not extra, f"{where}the tokens {extra[:3]} don't stand on the same piece of shared text.")
        require(not missing, f"{where}the tokens {missing[:3]} stand on the same piece of shared text.")


@exercise(
    4,
    task="Return the share of the variance that the first principal component explains, from 0 to 1.",
    proved="One outlier a text makes a first component that explains nearly everything, and nothing about the texts.",
)
def check_first_component(attempt: Attempt) -> None:
    """Check a function (states, mask) -> the variance that the first component explains, as a share."""
    for side in ("right", "left"):
        states, mask, first = _states(side)
        given = float(attempt(states.clone(), mask.clone()))
        real = mask.bool()
        inner = real & ~first
        right = _share(states[inner])
        mistakes = (
            (
                _share(states[:, 1:][real[:, 1:]]),
                "you drop column 0. With padding on the left the first *real* token stands elsewhere.",
            ),
            (_share(states[real]), "each text's first token is still in. Leave it out."),
            (_share(states.flatten(0, 1)), "padded positions are in. The mask tells which tokens are real."),
            (_share(states[~first]), "padded positions are in. The mask tells which tokens are real."),
            (_share(states[inner], centre=False), "subtract the mean first: variance is measured around it."),
            (_share(states[inner], power=1), "variance goes with the *squares* of the singular values."),
            (100 * right, "that is in percent; return a share from 0 to 1."),
        )
        same = partial(math.isclose, rel_tol=0, abs_tol=1e-4)
        rule_out(mistakes, given, right, same=same, where=f"With padding on the {side}, ")
        require(
            same(given, right),
            f"With padding on the {side}, the check's states give {right:.4f}; yours is {given:.4f}.",
        )
    with_first = _share(states[real])
    print(f"PC1 of the check's states: {with_first:.0%} with the first tokens, {right:.0%} without them.")


@exercise(
    5,
    task="Return the two-sided p-value of the mean difference between a and b: one number.",
    proved="What was sampled together flips together, and no effect is more certain than the flips that you tried.",
)
def check_sign_flip(attempt: Attempt) -> None:
    """Check a function (a, b, clusters) -> two-sided p-value of the mean difference."""
    for name, (a, b, clusters) in _PAIRED.items():
        given = float(attempt(a.copy(), b.copy(), clusters.copy()))
        require(0 <= given <= 1, f"A p-value lies from 0 to 1; yours is {given:.3f}.")
        require(
            given > 0,
            "Your p-value is 0. The observed signs are one of the possible ones, too: (at least + 1) / (flips + 1).",
        )
        sums = np.array([(a - b)[clusters == cluster].sum() for cluster in np.unique(clusters)])
        right = _exact(sums)
        mistakes = (
            (_exact(sums, tail="upper"), "you count one side only. Compare magnitudes: a bias may go either way."),
            (_exact(sums, tail="lower"), "you count one side only. Compare magnitudes: a bias may go either way."),
            (
                _flipped_one_by_one(a - b),
                "you flip each pair by itself. Pairs of one template resemble each other: one sign a template.",
            ),
            (
                _unpaired(a, b),
                "you shuffle all values together. a[i] and b[i] belong to one pair: only these two may change places.",
            ),
        )
        if not _is_about(given, right):
            rule_out(mistakes, given, right, same=_is_about, where=f"For {name}, ")
        require(
            _is_about(given, right),
            f"For {name}, the exact p-value is {right:.4f}, yours is {given:.4f}. Few flips are noisy, and p can't "
            "get below 1 / (flips + 1). Take 2,000 or more.",
        )


@exercise(
    1,
    task="Return the sets of heads that the chosen ones shall be compared with, each a list of (block, head).",
    proved="As many heads, as deep, none of the chosen ones, and enough sets: beating them all means something.",
)
def check_control_sets(attempt: Attempt) -> None:
    """Check a function (chosen, heads, blocks) -> sets of (block, head) to compare with."""
    for picked in ([(7, 1), (9, 0), (9, 4)], [(10, 3), (8, 2)]):
        heads, blocks, lowest = 6, 12, min(block for block, _ in picked)
        given = attempt(list(picked), heads, blocks)
        require(isinstance(given, list | tuple), f"Return a list of sets of heads; yours is {type(given).__name__}.")
        require(
            len(given) >= 19,
            f"You return {len(given)} sets: beating all of them has p = 1/{len(given) + 1}. For p ≤ .05 it takes 19.",
        )
        try:
            sets = [[(int(block), int(head)) for block, head in drawn] for drawn in given]
        except (TypeError, ValueError):
            require(False, f"Each set holds pairs (block, head); your first one is {given[0]!r}.")
        require(
            all(len(set(drawn)) == len(picked) for drawn in sets),
            f"Each set needs as many different heads as the chosen one, {len(picked)}: more heads move more.",
        )
        require(
            all(0 <= block < blocks and 0 <= head < heads for drawn in sets for block, head in drawn),
            f"There are heads that the model doesn't have: blocks count from 0 to {blocks - 1}, heads to {heads - 1}.",
        )
        require(
            not any(set(drawn) & set(picked) for drawn in sets),
            "Some of your sets hold a chosen head. Then the control carries what it is to be compared with.",
        )
        require(
            all(block >= lowest for drawn in sets for block, _ in drawn),
            "Some heads are less deep than any chosen one. Depth could make the difference.",
        )
        require(
            len({frozenset(drawn) for drawn in sets}) > len(sets) // 2,
            "Your sets are nearly all the same: draw each at random.",
        )
        require(
            len({head for drawn in sets for head in drawn}) > len(sets) // 2,
            "Your sets use only a few of the heads that there are. Draw from all that are deep enough.",
        )


_CLAIMS = {
    "A": "the rank correlation's interval is far from 0, and no word was chosen for it. See the first figure.",
    "B": "PCA shows the largest directions of variance. The log-odds of the two groups differ all the same.",
    "C": "0 means no preference of sentiment, in these sentences, above the resolution. The pronouns pass it unseen.",
    "D": "the heads were patched for real in the evaluation half, and no random set as deep moves as much.",
    "E": "no interval leaves out 1; and were the difference true, no correction would remove it.",
    "F": "with the words it was trained on, the probe is nearly as good at random groups. It has learned the words.",
}


@exercise(
    2,
    task='Return the set of letters of the claims that the outputs support, such as {"B", "C"}.',
    proved="You ask each picture for its control, and each claim for the words it was not chosen on.",
)
def check_claims(attempt: Any) -> None:
    """Check a set of letters: the claims that the lesson's outputs support."""
    chosen(attempt, {"A", "D"}, _CLAIMS)


@exercise(
    6,
    task="Return a number for each new word, [new words], that follows its log-odds.",
    proved="On words and sentences that it never saw, your prediction is better than the direction alone.",
)
def check_predictor(
    attempt: Attempt, known: tuple[Tensor, Tensor], direction: Tensor, new: tuple[Tensor, Tensor]
) -> None:
    """Check a function (states, odds, direction, new states) -> a prediction for each new word.

    Args:
        attempt: the function.
        known: states [words, sentences, hidden] and log-odds [words, sentences] to learn from.
        direction: [hidden], whose place is the baseline.
        new: states and log-odds of other words in other sentences.
    """
    (states, odds), (new_states, new_odds) = known, new
    given = attempt(states.clone(), odds.clone(), direction.clone(), new_states.clone())
    values = np.asarray(given.detach() if isinstance(given, Tensor) else given, dtype=np.float64)
    words = len(new_states)
    require(
        values.shape != tuple(new_odds.shape),
        "One number a word, please: average over the sentences, which are dimension 1.",
    )
    require(
        values.shape == (words,), f"Return {words} numbers, one for each new word; yours have the shape {values.shape}."
    )
    require(np.isfinite(values).all(), "Some of your numbers are not finite.")
    require(np.ptp(values) > 0, "All your numbers are the same: a constant follows nothing.")
    truth = new_odds.mean(1).numpy()
    yours, baseline = (
        float(spearmanr(some, truth).statistic) for some in (values, (new_states.mean(1) @ direction).numpy())
    )
    print(f"Rank correlation with the log-odds of new words: yours {yours:.2f}, baseline {baseline:.2f}")
    require(yours > -abs(baseline), f"Your prediction points the other way round ({yours:.2f}): change its sign.")
    require(
        yours > baseline,
        f"{yours:.2f} is not above the baseline's {baseline:.2f}. Average first, shrink harder, or add the direction.",
    )


# What is swapped stands in brackets, "|" is where a token ends.
_TEXTS = {
    "one swap": ("The| [tall]| waiter| lost| the| keys|.", "The| [left|-handed]| waiter| lost| the| keys|."),
    "two swaps": (
        "Then| [Maria| Jo]| asked| the| boss| about| [her]| pay| and| left|.",
        "Then| [Bo]| asked| the| boss| about| [his| own]| pay| and| left|.",
    ),
    "a glued word": (
        "My| [short]| and| [red|-hair]ed| friend| sings| well|.",
        "My| [quite| tall]| and| [blond]|ed| friend| sings| well|.",
    ),
    "a swap in front": ("[The| old]| woman| met| [a| young]| man|.", "[An]| woman| met| [one]| man|."),
}


def _offsets(text: str) -> Offsets:
    """Characters of each token. A space belongs to the token behind it."""
    offsets, start = [], 0
    for piece in text.replace("[", "").replace("]", "").split("|"):
        offsets.append((start, start + len(piece)))
        start += len(piece)
    return offsets


def _shared_runs(text_a: str, text_b: str) -> list[tuple[int, int, int]]:
    """(start in a, start in b, length) of what stands outside the brackets."""
    runs = []
    for text in (text_a, text_b):
        parts = text.replace("|", "").replace("]", "[").split("[")
        ends = list(itertools.accumulate(map(len, parts)))
        runs.append([(end - len(part), len(part)) for part, end in zip(parts, ends, strict=True)][::2])
    return [(a, b, length) for (a, length), (b, _) in zip(*runs, strict=True) if length]


def _aligned(a: Offsets, b: Offsets, runs: list[tuple[int, int, int]], *, whole: bool = True) -> set[tuple[int, int]]:
    """Pairs of tokens on the same piece of a run; unless ``whole``, a token may end beyond the run."""
    found = set()
    for start_a, start_b, length in runs:
        one, other = _inside(a, start_a, length, whole), _inside(b, start_b, length, whole)
        found |= {(one[piece], other[piece]) for piece in one.keys() & other.keys() if one[piece] and other[piece]}
    return found


def _inside(offsets: Offsets, start: int, length: int, whole: bool) -> dict[tuple[int, int], int]:
    """Where in the run a token begins and ends -> its number."""
    return {
        (low - start, high - start if whole else 0): number
        for number, (low, high) in enumerate(offsets)
        if start <= low < start + length and (not whole or high <= start + length)
    }


def _states(side: str) -> tuple[Tensor, Tensor, Tensor]:
    """States [rows, length, hidden] with long first tokens and odd padding, the mask, and where first tokens are."""
    generator = torch.Generator().manual_seed(8)
    rows, length, hidden = 8, 12, 16
    scales = torch.linspace(2, 0.5, hidden)
    states = scales * torch.randn(rows, length, hidden, generator=generator) + 0.8
    sizes = torch.randint(5, length, (rows,), generator=generator)
    place = torch.arange(length)
    real = place < sizes[:, None] if side == "right" else place >= length - sizes[:, None]
    first = real & (real.cumsum(1) == 1)
    outlier = 40 * torch.randn(hidden, generator=generator)
    states[first] = outlier + states[first]
    padding = ~real
    states[padding] = 5 * torch.randn(int(padding.sum()), hidden, generator=generator)
    return states, real.long(), first


def _share(states: Tensor, *, centre: bool = True, power: int = 2) -> float:
    """What the first component explains of states [tokens, hidden]."""
    values = torch.linalg.svdvals(states - states.mean(0) if centre else states) ** power
    return float(values[0] / values.sum())


def _paired(seed: int, clusters: int, *, effect: float, between: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs with much in common: a [n], b [n], and the template [n] of each, 5 pairs a template."""
    generator = np.random.default_rng(seed)
    names = np.repeat(np.arange(clusters), 5)
    common = 20 * generator.standard_normal(len(names))
    differences = effect + between * generator.standard_normal(clusters)[names] + generator.standard_normal(len(names))
    shuffled = generator.permutation(len(names))
    return common[shuffled], (common - differences)[shuffled], names[shuffled]


_PAIRED = {
    "a clear difference": _paired(0, 12, effect=-2.5, between=0.5),
    "templates that disagree": _paired(8, 10, effect=0.8, between=2.0),
    "a difference in doubt": _paired(8, 12, effect=0.5, between=1.0),
}


def _exact(sums: np.ndarray, tail: str = "both") -> float:
    """The p-value over all ways to give signs to sums [clusters]."""
    signs = np.array(list(itertools.product((-1, 1), repeat=len(sums))))
    drawn, observed = signs @ sums, sums.sum()
    if tail == "both":
        drawn, observed = np.abs(drawn), abs(observed)
    elif tail == "lower":
        drawn, observed = -drawn, -observed
    return float((drawn >= observed - 1e-9).mean())


def _flipped_one_by_one(differences: np.ndarray) -> float:
    signs = np.random.default_rng(0).choice((-1, 1), (20_000, len(differences)))
    return float((np.abs(signs @ differences) >= abs(differences.sum())).mean())


def _unpaired(a: np.ndarray, b: np.ndarray) -> float:
    everything, generator = np.concatenate([a, b]), np.random.default_rng(0)
    drawn = np.array([generator.permutation(everything) for _ in range(4000)])
    gaps = np.abs(drawn[:, : len(a)].sum(1) - drawn[:, len(a) :].sum(1))
    return float((gaps >= abs(a.sum() - b.sum())).mean())


def _is_about(given: float, p: float) -> bool:
    """Whether 2,000 flips may give this p-value for that one."""
    return abs(given - p) < 4 * (p * (1 - p) / 2000) ** 0.5 + 0.002

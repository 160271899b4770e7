"""Checks of lesson 10, what pruning really buys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

from course_utils.exercises import Attempt, assigned, chosen, exercise, require, rule_out

MISTAKES = ("cold start", "different lengths", "no cache", "not finished", "not in turns", "none")
_BLOCK, _BYTES_A_BLOCK = 32, 34  # Q8_0


@exercise(
    1,
    task="Return two speed-ups: with `removed` blocks fewer, and with `share` of the MLPs' neurons gone.",
    proved="A fixed cost goes with a block and stays with a narrower one: that is all of depth's advantage.",
)
def check_speedups(attempt: Attempt) -> None:
    """Check a function (mlp, attention, head, blocks, fixed, rate, removed, share) -> speed-ups of depth and width."""
    for mlp, attention, head, blocks, fixed, rate, removed, share in (
        (6e6, 2e6, 4e7, 12, 0.002, 1e10, 3, 0.25),
        (9e6, 1e6, 1e8, 20, 0.0, 2e10, 4, 0.5),
        (5e6, 5e6, 1e7, 16, 0.01, 1e10, 2, 0.2),
    ):
        layer = fixed + (mlp + attention) / rate
        narrow = fixed + ((1 - share) * mlp + attention) / rate
        outside = head / rate
        whole = blocks * layer + outside
        right = (whole / ((blocks - removed) * layer + outside), whole / (blocks * narrow + outside))
        given = tuple(float(value) for value in attempt(mlp, attention, head, blocks, fixed, rate, removed, share))
        require(
            len(given) == 2, f"Return two speed-ups, first with fewer blocks, then narrower; yours are {len(given)}."
        )
        where = f"{blocks} blocks, {fixed * 1000:g} ms fixed: "
        in_bytes = blocks * (mlp + attention) + head
        estimates = (
            in_bytes / (in_bytes - removed * (mlp + attention)),
            in_bytes / (in_bytes - blocks * share * mlp),
        )
        kept = blocks * (fixed + (share * mlp + attention) / rate) + outside
        both = blocks * (fixed + (1 - share) * (mlp + attention) / rate) + outside
        scaled = blocks * (1 - share) * layer + outside
        rule_out(
            (
                (tuple(1 / value for value in right), "turned upside down. Seconds before divided by seconds after."),
                (right[::-1], "the two are swapped: first fewer blocks, then narrower MLPs."),
                (
                    estimates,
                    "that is the ratio of the bytes alone. Each block that runs also takes its fixed seconds, however "
                    "narrow it is.",
                ),
                (
                    (blocks * layer / ((blocks - removed) * layer), blocks * layer / (blocks * narrow)),
                    "the head is missing. It is read once for each token, whatever is cut.",
                ),
                (
                    (right[0], whole / kept),
                    "`share` of the neurons is what goes. You kept that share: 1 - share stays.",
                ),
                ((right[0], whole / both), "you made the attention narrower as well. Only the MLP loses neurons."),
                (
                    (right[0], whole / scaled),
                    "a narrower block costs its fixed seconds in full: they don't shrink with the width.",
                ),
            ),
            given,
            right,
            same=_close,
            where=where,
        )
        require(
            _close(given, right),
            f"{where}they are {right[0]:.4f} and {right[1]:.4f}; yours {given[0]:.4f} and {given[1]:.4f}.",
        )


@exercise(
    2,
    task='Return what is wrong with each of the programs A to F, by its name, or "none".',
    proved="Warm up, fix the length, use the cache, wait for the device, take turns: then a number is a measurement.",
)
def check_measuring_mistakes(attempt: Mapping[str, str]) -> None:
    """Check letter of a program -> the name of its mistake."""
    assigned(attempt, _PROGRAMS, MISTAKES)


@exercise(
    3,
    task="Return the largest MLP width whose file in Q8_0 fits into the budget.",
    proved="The largest width that fits is a multiple of 32; one neuron more can cost a quarter of the MLPs.",
)
def check_width_for(attempt: Attempt) -> None:
    """Check a function (hidden, blocks, others, budget) -> the width to prune to."""
    for hidden, blocks, others, budget in (
        (576, 30, 40_000_000, 120_000_000),
        (2048, 16, 500_000_000, 1_000_000_000),
        (64, 4, 0, 4 * _mlp_bytes(64, 320)),  # exactly full
        (64, 4, 10_000, 10_000 + 4 * _mlp_bytes(64, 320) - 1),  # a byte too few
    ):
        given = attempt(hidden, blocks, others, budget)
        require(int(given) == given, f"A width is a whole number; yours is {given!r}.")
        given, fits = int(given), partial(_fits, hidden, blocks, others, budget)
        right = 0
        while fits(right + _BLOCK):
            right += _BLOCK
        room = (budget - others) / blocks
        rule_out(
            (
                (int(room / (3 * hidden * _BYTES_A_BLOCK / _BLOCK)),
                 "you took the largest width that would fit *if* all rows were stored in blocks. The down-projection's "
                 "rows are as long as the MLP is wide: what isn't a multiple of 32 falls back to 2 bytes a weight."),
                (int(room / (3 * hidden)) // _BLOCK * _BLOCK,
                 "each block of 32 weights also stores a scale: 34 bytes, not 32."),
                (int(room / (3 * hidden * 2)) // _BLOCK * _BLOCK, "that is F16: 2 bytes a weight."),
                (right + _BLOCK, "you rounded up, and the file no longer fits. Round down to a multiple of 32."),
                (int(budget / blocks / (3 * hidden * _BYTES_A_BLOCK / _BLOCK)) // _BLOCK * _BLOCK,
                 "the other tensors take bytes, too: take `others` off the budget first."),
                (int(room / (hidden * _BYTES_A_BLOCK / _BLOCK)) // _BLOCK * _BLOCK,
                 "a GLU has three matrices: gate, up and down."),
            ),
            given,
            right,
        )  # fmt: skip
        require(fits(given), f"hidden size {hidden}, {blocks} blocks: width {given} doesn't fit into {budget:,} bytes.")
        require(
            given == right,
            f"hidden size {hidden}, {blocks} blocks: width {right} fits as well, and yours is {given}. More is better.",
        )


@exercise(
    4,
    task="Return the names of the models that no other one beats.",
    proved="A frontier holds what is not beaten in both: the rest can be had smaller and better at once.",
)
def check_frontier(attempt: Attempt) -> None:
    """Check a function name -> (bytes, loss) -> the names on the frontier."""
    for points in _POINTS:
        given = attempt(dict(points))
        require(not isinstance(given, str), "Return several names, a set or a list; yours is one text.")
        names = set(given)
        require(names <= points.keys(), f"There is no {sorted(map(str, names - points.keys()))} among the models.")
        right = _frontier(points)
        smallest = min(points, key=lambda name: points[name][0])
        best = min(points, key=lambda name: points[name][1])
        rule_out(
            (
                ({smallest}, "that is the smallest alone. A larger one that is better belongs to the frontier, too."),
                ({best}, "that is the best alone. A smaller one belongs to the frontier unless it is beaten."),
                (points.keys() - right, "those are the beaten ones. Keep the others."),
                (
                    {n for n, (b, x) in points.items() if not any(p[0] < b and p[1] < x for p in points.values())},
                    "of two with the same loss the larger one is beaten, of two of the same size the worse one: at "
                    "least as good in both and better in one is enough.",
                ),
            ),
            names,
            right,
        )
        missing, extra = sorted(right - names), sorted(names - right)
        require(not missing, f"{missing[:1]} is missing: nothing else is at least as small and at least as good.")
        require(not extra, f"{extra[:1]} is beaten: something else is at least as small and at least as good.")


@exercise(
    5,
    task="Return the letters of the statements that the published row supports.",
    proved="Here two ways of saving stack without multiplying; and a row is true where it was measured.",
)
def check_claim(attempt: Iterable[str]) -> None:
    """Check the letters of the statements that a published row of speeds supports."""
    chosen(attempt, {"A", "D"}, _STATEMENTS)


def _mlp_bytes(hidden: int, width: int) -> int:
    """Bytes of a GLU's three matrices in Q8_0; rows that aren't a multiple of 32 fall back to F16."""

    def matrix(rows: int, length: int) -> int:
        return rows * (length // _BLOCK * _BYTES_A_BLOCK if length % _BLOCK == 0 else 2 * length)

    return 2 * matrix(width, hidden) + matrix(hidden, width)


def _frontier(points: Mapping[str, tuple[float, float]]) -> set[str]:
    """The names that no other beats: at least as small and as good, and better in one of the two."""

    def beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
        return a != b and a[0] <= b[0] and a[1] <= b[1]

    return {name for name, point in points.items() if not any(beats(other, point) for other in points.values())}


def _fits(hidden: int, blocks: int, others: int, budget: int, width: int) -> bool:
    return others + blocks * _mlp_bytes(hidden, width) <= budget


def _close(given: Iterable[float], expected: Iterable[float]) -> bool:
    return all(abs(a - b) <= 1e-6 * abs(b) for a, b in zip(given, expected, strict=True))


_PROGRAMS = {  # of exercise 2: the mistake, and why
    "A": (
        "cold start",
        "whoever runs first also pays for memory, kernels and caches that are made once. Run each once beforehand.",
    ),
    "B": (
        "different lengths",
        "each model stops where it likes, and they are not the same model. Force the number of new tokens.",
    ),
    "C": (
        "not finished",
        "a GPU works on after Python has gone on. Synchronise, or record events, before the clock is read.",
    ),
    "D": ("not in turns", "the machine of the first minute is not that of the third: let them take turns."),
    "E": ("no cache", "each step reads the whole text again: that times reading, not generating."),
    "F": ("none", "warm-up, turns, a fixed length, the cache, and a device that has finished: nothing is missing."),
}

_POINTS: tuple[dict[str, tuple[float, float]], ...] = (
    {"whole F16": (270, 3.30), "whole Q8": (143, 3.31), "cut F16": (240, 3.45), "cut Q8": (130, 3.46)},
    {"a": (100, 3.0), "b": (100, 3.2), "c": (80, 3.2), "d": (60, 3.2), "e": (90, 3.0)},
    {"a": (5, 2.0), "b": (4, 2.5), "c": (3, 3.0), "d": (4.5, 3.5), "e": (6, 2.0)},
)

_STATEMENTS = {  # of exercise 5
    "A": "1,576 is more than 1,323 and more than 1,190, so it does.",
    "B": "1,323/598 times 1,190/598 is 4.4, and both together give 1,576/598 = 2.6.",
    "C": "31.6/22 = 1.44 counts parameters, most of which rest in a mixture of experts (3.6/3.0 = 1.2 work). The "
    "cache, or a larger batch that now fits, is in neither ratio: both are estimates and no ceilings.",
    "D": "1,576/1,323 = 1.19 is read off the row.",
    "E": "tokens a second of a server say nothing about one user on a laptop: another batch, another bottleneck.",
    "F": "no measure of quality is in this row.",
}

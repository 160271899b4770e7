"""Lesson 10's checks refuse the stub, name the likely mistake, and accept the answers."""

import numpy as np
from exercise_cases import cases_of
from hypothesis import given
from hypothesis import strategies as st

from course_utils.exercises import lesson_10
from course_utils.exercises.lesson_10 import _frontier, _mlp_bytes


def speedups(mlp, attention, head, blocks, fixed, rate, removed, share):
    def seconds(blocks, mlp):
        return blocks * (fixed + (mlp + attention) / rate) + head / rate

    whole = seconds(blocks, mlp)
    return whole / seconds(blocks - removed, mlp), whole / seconds(blocks, (1 - share) * mlp)


def upside_down(*sizes):
    return tuple(1 / value for value in speedups(*sizes))


def swapped(*sizes):
    return speedups(*sizes)[::-1]


def by_bytes(mlp, attention, head, blocks, fixed, rate, removed, share):
    return speedups(mlp, attention, head, blocks, 0, rate, removed, share)


def without_head(mlp, attention, head, *rest):
    return speedups(mlp, attention, 0, *rest)


def share_kept(*sizes):
    return speedups(*sizes)[0], speedups(*sizes[:-1], 1 - sizes[-1])[1]


def attention_too(mlp, attention, head, blocks, fixed, rate, removed, share):
    narrow = blocks * (fixed + (1 - share) * (mlp + attention) / rate) + head / rate
    depth, _ = speedups(mlp, attention, head, blocks, fixed, rate, removed, share)
    return depth, (blocks * (fixed + (mlp + attention) / rate) + head / rate) / narrow


def all_shrinks(mlp, attention, head, blocks, fixed, rate, removed, share):
    layer = fixed + (mlp + attention) / rate
    depth, _ = speedups(mlp, attention, head, blocks, fixed, rate, removed, share)
    return depth, (blocks * layer + head / rate) / (blocks * (1 - share) * layer + head / rate)


test_speedups = cases_of(
    lesson_10.check_speedups,
    stubs=[lambda *sizes: ..., lambda *sizes: (..., ...)],
    mistakes=[
        (upside_down, "turned upside down"),
        (swapped, "are swapped"),
        (by_bytes, "bytes alone"),
        (without_head, "the head is missing"),
        (share_kept, "1 - share stays"),
        (attention_too, "attention narrower"),
        (all_shrinks, "don't shrink with the width"),
        (lambda *sizes: (1.1, 1.2), "they are 1."),
        (lambda *sizes: speedups(*sizes)[:1], "two speed-ups"),
    ],
    answers=[speedups, lambda *sizes: np.array(speedups(*sizes))],
)

RIGHT = {
    "A": "cold start", "B": "different lengths", "C": "not finished", "D": "not in turns", "E": "no cache", "F": "none",
}  # fmt: skip
test_measuring_mistakes = cases_of(
    lesson_10.check_measuring_mistakes,
    stubs=[dict.fromkeys("ABCDEF", ...), ...],
    mistakes=[
        (RIGHT | {"A": "not in turns"}, "Look at A again: whoever runs first"),
        (RIGHT | {"B": "none"}, "Look at B again: each model stops"),
        (RIGHT | {"C": "cold start"}, "Look at C again"),
        (RIGHT | {"D": "none"}, "Look at D again"),
        (RIGHT | {"E": "different lengths"}, "Look at E again"),
        (RIGHT | {"F": "not finished"}, "Look at F again"),
        ({"A": "cold start"}, "Nothing is said about B"),
        (RIGHT | {"F": "too slow"}, "There is no 'too slow'"),
    ],
    answers=[RIGHT, {letter.lower(): name.upper() for letter, name in RIGHT.items()}],
)


def width_for(hidden, blocks, others, budget):
    return int((budget - others) / blocks / (3 * hidden * 34 / 32)) // 32 * 32


test_width_for = cases_of(
    lesson_10.check_width_for,
    stubs=[lambda *sizes: ...],
    mistakes=[
        (lambda h, n, o, b: int((b - o) / n / (3 * h * 34 / 32)), "falls back to 2 bytes"),
        (lambda h, n, o, b: int((b - o) / n / (3 * h)) // 32 * 32, "34 bytes, not 32"),
        (lambda h, n, o, b: int((b - o) / n / (6 * h)) // 32 * 32, "that is F16"),
        (lambda *sizes: width_for(*sizes) + 32, "rounded up"),
        (lambda h, n, o, b: width_for(h, n, 0, b), "take `others` off"),
        (lambda h, n, o, b: int((b - o) / n / (h * 34 / 32)) // 32 * 32, "three matrices"),
        (lambda *sizes: width_for(*sizes) // 256 * 256, "More is better"),
        (lambda *sizes: 10**9, "doesn't fit"),
        (lambda *sizes: 1280.5, "whole number"),
    ],
    answers=[width_for, lambda *sizes: float(width_for(*sizes))],
)

test_frontier = cases_of(
    lesson_10.check_frontier,
    stubs=[lambda points: ...],
    mistakes=[
        (lambda points: {min(points, key=points.get)}, "the smallest alone"),
        (lambda points: {min(points, key=lambda name: points[name][1])}, "the best alone"),
        (lambda points: set(points) - _frontier(points), "the beaten ones"),
        (
            lambda points: [
                n for n, (b, x) in points.items() if not any(p[0] < b and p[1] < x for p in points.values())
            ],
            "the larger one is beaten",
        ),
        (set, "is beaten: something"),
        (lambda points: set(), "is missing"),
        (lambda points: ["nobody"], "There is no ['nobody']"),
        (lambda points: "whole F16", "several names"),
    ],
    answers=[_frontier, lambda points: sorted(_frontier(points))],
)

test_claim = cases_of(
    lesson_10.check_claim,
    stubs=[...],
    mistakes=[
        ({"A", "B", "D"}, "Look at B again"),
        ({"A", "C", "D"}, "Look at C again"),
        ({"A"}, "Look at D again"),
        ({"D", "A", "E"}, "Look at E again"),
        ({"A", "D", "F"}, "Look at F again"),
        ({"A", "Z"}, "There is no Z"),
    ],
    answers=[{"A", "D"}, ["d", "a"]],
)


@given(st.integers(1, 40), st.integers(1, 40))
def test_no_width_between_two_multiples_of_32_is_cheaper_than_the_next_multiple(hidden, blocks):
    """What the width exercise rests on."""
    hidden, full = 32 * hidden, 32 * blocks
    assert all(_mlp_bytes(hidden, width) > _mlp_bytes(hidden, full) for width in (full + 1, full + 31))
    assert _mlp_bytes(hidden, full + 31) > _mlp_bytes(hidden, full + 32)


@given(st.dictionaries(st.text(max_size=3), st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1))
def test_everything_is_on_the_frontier_or_beaten_by_something_on_it(points):
    best = _frontier(points)
    assert best
    for name, (size, loss) in points.items():
        beaten = any(points[b] != (size, loss) and points[b][0] <= size and points[b][1] <= loss for b in best)
        assert beaten != (name in best)

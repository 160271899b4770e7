"""Lesson 10's checks refuse the stub, name the likely mistake, and accept the answers."""

from statistics import median

import numpy as np
import pandas as pd
import torch
from exercise_cases import cases_of
from hypothesis import given
from hypothesis import strategies as st

from course_utils.lessons.exercises import lesson_10
from course_utils.lessons.exercises.lesson_10 import _mlp_bytes
from course_utils.measuring.costs import kv_bytes_per_token
from course_utils.models.loading import tiny_llama, variant
from course_utils.models.reports import model_size
from course_utils.pruning.attention import bypass_attention
from course_utils.pruning.depth import remove_blocks
from course_utils.pruning.width import neuron_importance, prune_neurons

test_seconds = cases_of(
    lesson_10.check_seconds,
    mistakes=[
        (lambda w, n, *rest: lesson_10._seconds(w, n, *rest, both=min), "the bytes take longer"),
        (lambda *sizes: 1.5, "yours is 1.5"),
        (lambda *sizes: "soon", "yours is a str"),
    ],
    answers=[lambda *sizes: np.float64(lesson_10._seconds(*sizes))],
)


def in_turns(
    calls, rounds, clock, finish, *, warm=1, there=True, back=True, before=True, after=True, settle=True, extra=(),
    say=lambda laps, first: median(a / b for a, b in zip(laps, first, strict=True)),
):  # fmt: skip
    """The answer, and what goes wrong with it."""
    for call in calls.values():
        for _ in range(warm):
            call()
    if settle:
        finish()
    laps = {name: [] for name in calls}

    def lap(name):
        if before:
            finish()
        start = clock()
        calls[name]()
        if after:
            finish()
        laps[name].append(clock() - start)

    for number in range(rounds):
        for name in [*calls][:: -1 if back and number % 2 else 1] if there else ():
            lap(name)
    if not there:
        for name in calls:
            for _ in range(rounds):
                lap(name)
    for name in extra:
        calls[name]()
    first = next(iter(laps.values()))
    return {name: say(own, first) for name, own in laps.items()}


def turning(**options):
    return lambda *given: in_turns(*given, **options)


def only_the_second_half_turned(calls, rounds, clock, finish):
    names, number = [*calls], 0
    calls = {name: calls[name] for name in names}
    for call in calls.values():
        call()
    laps = {name: [] for name in calls}
    for number in range(rounds):
        for name in names[:: -1 if number > 2 else 1]:
            finish()
            start = clock()
            calls[name]()
            finish()
            laps[name].append(clock() - start)
    return dict.fromkeys(calls, 1.0)


def without_a_clock(calls, rounds, clock, finish):
    for number in range(-1, rounds):
        for name in [*calls][:: -1 if number % 2 else 1]:
            calls[name]()
            finish()
    return dict.fromkeys(calls, 1.0)


test_take_turns = cases_of(
    lesson_10.check_take_turns,
    stubs=[lambda calls, *_: dict.fromkeys(calls)],
    mistakes=[
        (turning(warm=0), "no warm-up"),
        (turning(there=False), "don't take turns"),
        (turning(back=False), "the same in each round"),
        (only_the_second_half_turned, "there, back, there, back"),
        (turning(after=False), "before the device has done its work"),
        (turning(before=False, after=False), "before the device has done its work"),
        (turning(before=False, settle=False), "clock starts while the device is still at work"),
        (turning(say=lambda own, first: median(b / a for a, b in zip(own, first, strict=True))), "upside down"),
        (turning(say=lambda own, first: 7.0), "the median over the rounds; yours is 7.0"),
        (turning(say=lambda own, first: own), "one number for each name"),
        (lambda calls, rounds, clock, finish: in_turns(calls, rounds - 1, clock, finish), "yours were"),
        (lambda calls, rounds, clock, finish: in_turns(calls, rounds // 2, clock, finish, warm=0), "times; yours were"),
        (lambda calls, *rest: in_turns(calls, *rest, extra=[*calls][:1]), "as often as the others"),
        (without_a_clock, "you never ask it"),
        (lambda *given: [1.0, 2.0], "Return a dictionary"),
        (lambda calls, *rest: {"whole": 1.0}, "the first one's too"),
    ],
    answers=[
        in_turns,
        turning(warm=2),
        turning(before=False),
        turning(settle=False),
        turning(say=lambda own, first: np.median(np.divide(own, first))),
    ],
)


width_for = lesson_10.check_width_for.answer
test_width_for = cases_of(
    lesson_10.check_width_for,
    mistakes=[
        (lambda *sizes: width_for(*sizes) // 256 * 256, "More is better"),
        (lambda *sizes: 10**9, "doesn't fit"),
        (lambda *sizes: 1280.5, "whole number"),
    ],
    answers=[lambda *sizes: float(width_for(*sizes))],
)


@given(st.integers(6, 40), st.integers(160, 1600))
def test_no_width_between_multiples_fits_where_the_next_multiple_does_not(hidden, width):
    """So that the largest width for a budget of hundreds of neurons is a multiple of 32."""
    hidden, multiple = 32 * hidden, width // 32 * 32
    assert width == multiple or _mlp_bytes(hidden, width) >= _mlp_bytes(hidden, multiple + 32)


requests = lesson_10.check_requests.answer
test_requests = cases_of(
    lesson_10.check_requests,
    mistakes=[
        (lambda *sizes: 0, "5 requests"),
        (lambda *sizes: "many", "one number; yours is a str"),
        (lambda *sizes: requests(*sizes) - 1, "requests; yours is"),
    ],
    answers=[lambda *sizes: float(requests(*sizes)), lambda *sizes: np.int64(requests(*sizes))],
)

CONTEXT = 64


def base():
    return tiny_llama(blocks=8, vocab_size=6000)


def memory():
    return model_size(base()).bytes + 4.9 * CONTEXT * kv_bytes_per_token(base())


def without(attentions, *, remove=True):
    model = variant(base())
    bypass_attention(model, range(2, 2 + attentions), remove=remove)
    return model


def shorter(blocks):
    model = variant(base())
    remove_blocks(model, range(2, 2 + blocks))
    return model


def narrower():
    model = variant(base())
    prune_neurons(model, neuron_importance(model, "l1"), ratio=0.1)
    return model


def timed(ratio, *, spread=0.01):
    """The frame of `time_interleaved` for a step of the cut that takes so many times the whole model's time."""
    ends = {"ci_low": [1.0, ratio - spread], "ci_high": [1.0, ratio + spread]}
    return pd.DataFrame({"name": ["whole", "cut"], "seconds": [1.0, ratio], "ratio": [1.0, ratio], **ends})


def planned(cut, predicted, measured):
    return cut() if callable(cut) else cut, predicted, measured


def check_plan(attempt):
    given = (...,) * 3 if attempt is ... else attempt
    return lesson_10.check_plan(*given, base(), memory(), CONTEXT)


# Four requests, and with half of the attentions ten: if a step takes twice as long, 1.25 times as many tokens.
SLOWER = 2.0
test_plan = cases_of(
    check_plan,
    stubs=[planned(lambda: without(4), ..., timed(SLOWER)), planned(lambda: without(4), 1.25, ...)],
    mistakes=[
        (planned(narrower, 1.25, timed(SLOWER)), "as much cache a token"),
        (planned(lambda: shorter(4), 1.25, timed(SLOWER)), "% may go. What keeps"),
        (planned(lambda: without(1), 1.25, timed(SLOWER)), "serves 5 requests where the whole model serves 4; 7 are"),
        (planned(lambda: without(1, remove=False), 1.25, timed(SLOWER)), "does `remove=True`"),
        (planned(lambda: without(4), "fast", timed(SLOWER)), "one number"),
        (planned(lambda: without(4), 1.25, [1.0, SLOWER]), "what `time_interleaved` returns"),
        (planned(lambda: without(4), 1 / 1.25, timed(SLOWER)), "turn it round"),
        (planned(lambda: without(4), 1 / SLOWER, timed(SLOWER)), "the speed of a step"),
        (planned(lambda: without(4), 3.0, timed(SLOWER)), "more than 20% off"),
        (planned(7, 1.25, timed(SLOWER)), "`cut` is a model; yours is a int"),
    ],
    answers=[
        planned(lambda: without(4), 1.25, timed(SLOWER)),
        planned(lambda: without(4), 1.1, timed(SLOWER)),
        planned(lambda: without(4), 3.0, timed(SLOWER, spread=1.2)),  # too noisy to refute it
        planned(lambda: without(5), torch.tensor(1.6).item(), timed(2.2)),
    ],
)

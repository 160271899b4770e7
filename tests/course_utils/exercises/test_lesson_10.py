"""Lesson 10's checks refuse the stub, name the likely mistake, and accept the answers."""

import math
from statistics import mean, median

import numpy as np
import pandas as pd
import torch
from exercise_cases import cases_of
from hypothesis import given
from hypothesis import strategies as st

from course_utils.attention import bypass_attention
from course_utils.costs import kv_bytes_per_token
from course_utils.depth import remove_blocks
from course_utils.exercises import lesson_10
from course_utils.exercises.lesson_10 import _mlp_bytes
from course_utils.models import tiny_llama, variant
from course_utils.reports import model_size
from course_utils.width import neuron_importance, prune_neurons


def seconds(
    weights, tokens, layers, fixed, bandwidth, peak, *, size=2, products=2, read=1, computed=None, paid=1, both=max
):
    """The answer, and what goes wrong with it."""
    reading = size * weights * read / bandwidth
    return layers * fixed * paid + both(reading, products * weights * (computed or tokens) / peak)


def with_seconds(**wrong):
    return lambda *sizes: seconds(*sizes, **wrong)


test_seconds = cases_of(
    lesson_10.check_seconds,
    stubs=[lambda *_: ...],
    mistakes=[
        (with_seconds(both=lambda a, b: a + b), "the longer of the two counts"),
        (with_seconds(both=min), "the bytes take longer"),
        (with_seconds(both=lambda a, b: a), "the operations take longer"),
        (with_seconds(both=lambda a, b: b), "the bytes take longer"),
        (with_seconds(size=1), "16 bits is two bytes"),
        (with_seconds(products=1), "a product and a sum"),
        (with_seconds(size=1, products=1), "two bytes"),
        (with_seconds(computed=1), "Each token asks for its own"),
        (lambda w, n, *rest: seconds(w, n, *rest, read=n), "share one reading"),
        (lambda w, n, *rest: seconds(w, n, *rest, paid=n), "paid once a pass"),
        (lambda w, n, layers, *rest: seconds(w, n, 1, *rest), "for each layer that runs"),
        (with_seconds(paid=0), "price of the layers is missing"),
        (lambda w, n, layers, f, r, p: max(layers * f, 2 * w / r, 2 * w * n / p), "comes on top"),
        (lambda *sizes: 1000 * seconds(*sizes), "milliseconds"),
        (lambda *sizes: 1.5, "yours is 1.5"),
        (lambda *sizes: "soon", "yours is a str"),
    ],
    answers=[seconds, lambda *sizes: np.float64(seconds(*sizes))],
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


def one_round_dropped(calls, rounds, clock, finish):
    """The first round, which is the warm-up, is timed and not counted."""
    laps = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name in [*calls][:: -1 if number % 2 else 1]:
            finish()
            start = clock()
            calls[name]()
            finish()
            laps[name].append(clock() - start)
    first = next(iter(laps.values()))
    return {n: median(a / b for a, b in zip(own[1:], first[1:], strict=True)) for n, own in laps.items()}


test_take_turns = cases_of(
    lesson_10.check_take_turns,
    stubs=[lambda *_: ..., lambda calls, *_: dict.fromkeys(calls)],
    mistakes=[
        (turning(warm=0), "no warm-up"),
        (turning(there=False), "don't take turns"),
        (turning(back=False), "the same in each round"),
        (only_the_second_half_turned, "there, back, there, back"),
        (turning(after=False), "before the device has done its work"),
        (turning(before=False, after=False), "before the device has done its work"),
        (turning(before=False, settle=False), "clock starts while the device is still at work"),
        (turning(say=lambda own, first: mean(a / b for a, b in zip(own, first, strict=True))), "mean of the ratios"),
        (turning(say=lambda own, first: sum(own) / sum(first)), "a ratio of means"),
        (turning(say=lambda own, first: median(own) / median(first)), "a ratio of medians"),
        (turning(say=lambda own, first: min(own) / min(first)), "the fastest laps"),
        (turning(say=lambda own, first: median(own)), "Those are seconds"),
        (turning(say=lambda own, first: 1 / median(a / b for a, b in zip(own, first, strict=True))), "upside down"),
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
        one_round_dropped,
        turning(say=lambda own, first: np.median(np.divide(own, first))),
    ],
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


@given(st.integers(6, 40), st.integers(160, 1600))
def test_no_width_between_multiples_fits_where_the_next_multiple_does_not(hidden, width):
    """So that the largest width for a budget of hundreds of neurons is a multiple of 32."""
    hidden, multiple = 32 * hidden, width // 32 * 32
    assert width == multiple or _mlp_bytes(hidden, width) >= _mlp_bytes(hidden, multiple + 32)


def requests(memory, weights, tokens, layers, removed, heads, kv_heads, head_size, *, numbers=2, way=math.floor):
    return way((memory - weights) / (2 * numbers * (layers - removed) * kv_heads * head_size * tokens))


test_requests = cases_of(
    lesson_10.check_requests,
    stubs=[lambda *_: ...],
    mistakes=[
        (lambda memory, weights, *rest: requests(memory, 0, *rest), "the weights are missing"),
        (lambda *sizes: requests(*sizes, numbers=1), "leaves both in each layer"),
        (lambda *sizes: requests(*sizes, numbers=0.5), "has two bytes, and"),
        (lambda *sizes: requests(*sizes, numbers=4), "not four"),
        (lambda m, w, t, n, r, heads, kv, size: requests(m, w, t, n, r, heads, heads, size), "the query heads"),
        (lambda m, w, t, n, removed, *rest: requests(m, w, t, n, 0, *rest), "keeps no keys"),
        (
            lambda m, w, t, n, removed, *rest: requests(m, w, t, n, n - removed if removed else 0, *rest),
            "attention is gone",
        ),
        (lambda *sizes: requests(*sizes, way=math.ceil), "rounded up"),
        (lambda *sizes: requests(*sizes, way=float), "requests come whole"),
        (lambda *sizes: 0, "5 requests"),
        (lambda *sizes: "many", "one number; yours is a str"),
        (lambda *sizes: requests(*sizes) - 1, "requests; yours is"),
    ],
    answers=[requests, lambda *sizes: float(requests(*sizes)), lambda *sizes: np.int64(requests(*sizes))],
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
    return lambda: (cut() if callable(cut) else cut, predicted, measured)


def check_plan(attempt):
    given = attempt() if callable(attempt) else (attempt, attempt, attempt)
    return lesson_10.check_plan(*given, base(), memory(), CONTEXT)


# Four requests, and with half of the attentions ten: if a step takes twice as long, 1.25 times as many tokens.
SLOWER = 2.0
test_plan = cases_of(
    check_plan,
    stubs=[..., planned(lambda: without(4), ..., timed(SLOWER)), planned(lambda: without(4), 1.25, ...)],
    mistakes=[
        (planned(narrower, 1.25, timed(SLOWER)), "as much cache a token"),
        (planned(lambda: shorter(4), 1.25, timed(SLOWER)), "% may go. What keeps"),
        (planned(lambda: without(1), 1.25, timed(SLOWER)), "serves 5 requests where the whole model serves 4; 7 are"),
        (planned(lambda: without(1, remove=False), 1.25, timed(SLOWER)), "does `remove=True`"),
        (planned(lambda: without(4), -1, timed(SLOWER)), "one number"),
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

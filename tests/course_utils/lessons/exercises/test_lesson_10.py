"""Lesson 10's checks refuse the stub, name the likely mistake, and accept the answers."""

from statistics import median

import pandas as pd
from exercise_cases import cases_of

from course_utils.lessons.exercises import lesson_10
from course_utils.measuring.costs import kv_bytes_per_token
from course_utils.models.loading import tiny_llama, variant
from course_utils.models.reports import model_size
from course_utils.pruning.attention import bypass_attention
from course_utils.pruning.depth import remove_blocks
from course_utils.pruning.width import neuron_importance, prune_neurons

test_seconds = cases_of(lesson_10.check_seconds)
test_width_for = cases_of(lesson_10.check_width_for)
test_requests = cases_of(lesson_10.check_requests)


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


test_take_turns = cases_of(
    lesson_10.check_take_turns,
    stubs=[lambda calls, *_: dict.fromkeys(calls)],
    mistakes=[
        (turning(warm=0), "once to warm up"),
        (turning(there=False), "don't take turns"),
        (turning(back=False), "there, back, there, back"),
        (turning(after=False), "between the call and the clock"),
        (turning(before=False, settle=False), "call `finish()` before the clock starts"),
        (turning(say=lambda own, first: median(b / a for a, b in zip(own, first, strict=True))), "upside down"),
        (turning(say=lambda own, first: 7.0), "The medians over the rounds are"),
        (turning(say=lambda own, first: own), "one number for each name"),
        (lambda calls, rounds, clock, finish: in_turns(calls, rounds - 1, clock, finish), "in each of 5 rounds"),
        (lambda calls, *rest: in_turns(calls, *rest, extra=[*calls][:1]), "Yours ran whole 7, short 6"),
        (lambda calls, *rest: {"whole": 1.0}, "the first one's too"),
    ],
    answers=[
        in_turns,
        turning(before=False),
    ],
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
        (planned(narrower, 1.25, timed(SLOWER)), "as much cache per token"),
        (planned(lambda: shorter(4), 1.25, timed(SLOWER)), "% may go. What keeps"),
        (planned(lambda: without(1), 1.25, timed(SLOWER)), "serves 5 requests where the whole model serves 4; 7 are"),
        (planned(lambda: without(1, remove=False), 1.25, timed(SLOWER)), "does `remove=True`"),
        (planned(lambda: without(4), 1.25, [1.0, SLOWER]), "what `time_interleaved` returns"),
        (planned(lambda: without(4), 1 / 1.25, timed(SLOWER)), "turn it round"),
        (planned(lambda: without(4), 1 / SLOWER, timed(SLOWER)), "the speed of a step"),
        (planned(lambda: without(4), 3.0, timed(SLOWER)), "over 20% off"),
        (planned(7, 1.25, timed(SLOWER)), "`cut` is a model; yours is of type int"),
    ],
    answers=[
        planned(lambda: without(4), 1.25, timed(SLOWER)),
        planned(lambda: without(4), 3.0, timed(SLOWER, spread=1.2)),  # too noisy to refute it
    ],
)

"""Lesson 10's checks refuse the stub, name the likely mistake, and accept the answers."""

from random import Random
from statistics import median

import pytest
from exercise_cases import cases_of
from torch import nn

from course_utils.lessons.exercises import lesson_10
from course_utils.models.loading import variant

test_seconds = cases_of(lesson_10.check_seconds)
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


def copied(model):
    """Block 0's numbers in all blocks, each with bytes of its own."""
    first, *others = model.model.layers
    for block in others:
        for own, weight in zip(block.parameters(), first.parameters(), strict=True):
            if weight.dim() > 1:
                own.data = weight.data.clone()
    return model


def same_block_everywhere(model):
    model.model.layers = nn.ModuleList([model.model.layers[0]] * len(model.model.layers))
    return model


def same_attention_everywhere(model):
    first, *others = model.model.layers
    for block in others:
        block.mlp, block.self_attn = first.mlp, first.self_attn
    return model


def fewer_blocks(model):
    del model.model.layers[1:]
    return model


def mlps_alone(model):
    first, *others = model.model.layers
    for block in others:
        block.mlp = first.mlp
    return model


def narrower(model):
    for block in model.model.layers:
        block.mlp = nn.Linear(1, 1)
    return model


def by_weights(model):
    """The answer by another way: tensors, not modules."""
    first, *others = model.model.layers
    for block in others:
        for name, weight in first.named_parameters():
            if weight.dim() > 1:
                path, _, last = name.rpartition(".")
                setattr(block.get_submodule(path), last, weight)
    return model


test_one_for_all = cases_of(
    lesson_10.check_one_for_all,
    mistakes=[
        (copied, "You copied the numbers"),
        (same_block_everywhere, "one block can't stand in two places"),
        (same_attention_everywhere, "have lost their numbers"),
        (fewer_blocks, "All blocks should still be there"),
        (mlps_alone, "with the matrices of one block it is"),
        (narrower, "as many operations per token"),
        (lambda model: model, "with the matrices of one block it is"),
        (lambda model: 7, "Return the model; yours is of type int"),
        (lambda model: by_weights(variant(model)), "in place, and return it: yours is another one"),
    ],
    answers=[by_weights],
)

test_best_offer = cases_of(
    lesson_10.check_best_offer,
    mistakes=[
        (lambda server, job, offers: next(iter(offers)), "Return a name, how many requests it serves"),
        (lambda server, job, offers: (7, 1, 1.0), "the name of an offer"),
        (lambda server, job, offers: (next(iter(offers)), 1.5, 1.0), "a number of requests"),
        (lambda server, job, offers: (min(offers), 1, 1.0), "writes most"),
    ],
)


def rigged(server, job, offers):
    """Makes its sheet so easy that a constant is right."""
    name = min(offers)
    offers[name] |= {"weights": 0, "layers": 1}
    server |= {"bandwidth": float("inf"), "peak": float("inf"), "price": 1}
    job |= {"waiting": 1, "limit": 9}
    for other in [*offers]:
        if other != name:
            del offers[other]
    return name, 1, 1.0


def test_changing_the_sheets_changes_no_verdict():
    assert not lesson_10.check_best_offer(rigged)

    def popping(server, job, offers):
        answer = lesson_10._best_offer(server, job, offers)
        offers.clear()
        return answer

    assert lesson_10.check_best_offer(popping)


def test_advice_by_hand():
    server = {"memory": 100.0, "bandwidth": 10.0, "peak": 30.0, "price": 0.5}
    whole = {"parameters": 20, "weights": 40.0, "layers": 2, "cache": 1.0, "faster": 1}
    short = {"parameters": 10, "weights": 20.0, "layers": 1, "cache": 0.5, "faster": 1}
    offers, job = {"whole": whole, "short": short}, {"context": 10, "waiting": 100, "limit": 100.0}
    # whole: 6 requests, 1 + max(100 / 10, 240 / 30); short: 16 requests, 0.5 + max(100 / 10, 320 / 30)
    assert lesson_10._best_offer(server, job, {"whole": whole}) == ("whole", 6, pytest.approx(6 / 11))
    assert lesson_10._best_offer(server, job, offers) == ("short", 16, pytest.approx(16 / (0.5 + 320 / 30)))
    assert lesson_10._best_offer(server, job | {"limit": 6.5}, offers) == ("short", 8, pytest.approx(8 / 6.5))
    assert lesson_10._best_offer(server, job | {"waiting": 1}, offers) == ("short", 1, pytest.approx(1 / 3))
    assert lesson_10._best_offer(server, job | {"limit": 0.1}, offers) == ("whole", 0, 0.0)


def test_no_single_habit_is_right_often():
    """Servers differ so much that a fixed offer, the most requests, or the fewest bytes, advise few of them."""
    draw = Random(0)
    sheets = [lesson_10._sheet(draw) for _ in range(300)]
    right = [lesson_10._best_offer(*sheet) for sheet in sheets]
    assert all(count for _, count, _ in right)
    for wrong, said in lesson_10.check_best_offer.mistakes:
        same = sum(lesson_10._same_advice(wrong(*sheet), answer) for sheet, answer in zip(sheets, right, strict=True))
        assert same < 0.9 * len(sheets), said
    kinds = ["blocks fewer", "attentions fewer", "narrower", "cache in 8", "weights in 8", "activations in 8"]
    chosen = [sum(kind in name for name, *_ in right) for kind in kinds]
    assert all(chosen) and max(chosen) < 0.6 * len(sheets)

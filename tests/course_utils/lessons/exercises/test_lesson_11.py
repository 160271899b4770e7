"""Lesson 11's checks refuse the stub, name the likely mistake, and accept the answers."""

import pandas as pd
import pytest
import torch
from exercise_cases import cases_of

from course_utils.lessons.exercises import lesson_11
from course_utils.measuring.abilities import AbilityRows
from course_utils.models.loading import tiny_llama, variant
from course_utils.pruning.width import neuron_importance, prune_neurons
from course_utils.text.rows import TokenBlocks

test_answer_nats = cases_of(lesson_11.check_answer_nats)
test_floor = cases_of(lesson_11.check_floor)


def same_loss(base, cut, nats, target, most, *, direction=True, nearest=True, wanted=False, again=False, every=False):
    """The answer, and what goes wrong with it."""
    low, high, seen, last = 0, most, {0: 0.0}, base
    for count in range(most + 1) if every else ():
        seen[count] = nats(cut(base, count))
    seen[most] = nats(cut(base, most))
    while high - low > 1:
        count = (low + high) // 2
        last = cut(last if again else base, count)
        seen[count] = nats(last)
        low, high = (count, high) if (seen[count] < target) is direction else (low, count)
    found = min((low, high), key=lambda n: abs(seen[n] - target)) if nearest else low
    return found, target if wanted else seen[found]


def with_loss(**wrong):
    return lambda *given: same_loss(*given, **wrong)


test_same_loss = cases_of(
    lesson_11.check_same_loss,
    stubs=[lambda *_: (..., ...)],
    mistakes=[
        (with_loss(direction=False), "in the wrong half"),
        (with_loss(again=True), "a model that was cut before"),
        (with_loss(nearest=False), "isn't always the nearest"),
        (with_loss(wanted=True), "not the one that was wanted"),
        (with_loss(every=True), "each of which takes seconds"),
        (lambda *given: (383, 0.3), "you measured nothing"),
        (lambda *given: (same_loss(*given)[0] + 20, 0.3), "parts; yours are"),
    ],
    answers=[same_loss],
)


WHOLE = pd.DataFrame({"answer": [(1, 2), (3,), (4,)], "given": [(1, 2), (3,), (5,)]})
CUT = WHOLE.assign(given=[(1, 7), (3,), (6,)])
flips = lesson_11.check_flips.answer
test_flips = cases_of(
    lesson_11.check_flips,
    WHOLE,
    CUT,
    stubs=[lambda *_: (1, 2, ...)],
    mistakes=[
        (lambda *given: flips(*given)[:2], "Return three numbers"),
        (lambda *given: flips(*given) if len(given[0]) > 20 else (0, 0, 1), "For 3 answers: it is [1, 0"),
        (lambda *given: flips(*given) if len(given[0]) > 1 else (0, 0, 0.3), "For 1 answers: it is [0, 0, 1]"),
    ],
)

NAMES = ("copying", "sums", "French", "German")


def rows_of(seed, rows=6, length=16):
    ids = torch.randint(97, (rows, length), generator=torch.Generator().manual_seed(seed))
    answers = torch.arange(rows * length).view(rows, length)
    answers[:, 0] = -1
    return ids, answers


JUDGED = {
    name: AbilityRows(name, ids, torch.ones_like(ids), answers)
    for name, (ids, answers) in zip(NAMES, map(rows_of, range(4)), strict=True)
}
TEXTS = {
    text: TokenBlocks(rows_of(seed)[0], torch.ones(6, dtype=torch.int64), text, "evaluation")
    for text, seed in (("speeches", 11), ("wiki", 12))
}
BASE = tiny_llama()


def batches(seed):
    ids, _ = rows_of(seed, rows=8)
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}]


def cut_by(read, ratio=0.25):
    model = variant(BASE)
    prune_neurons(model, neuron_importance(BASE, "activation", batches=read), ratio=ratio)
    return model


def cut_by_other_neurons():
    model = variant(BASE)
    prune_neurons(model, neuron_importance(BASE, "random"), ratio=0.25)
    return model


MINE, RIVAL = batches(30), cut_by(batches(20))
TOLD = {"French": -0.5, "German": 0.4, "copying": -0.01, "sums": 0.0}  # mine less the rival's, nats a token


@pytest.fixture(autouse=True)
def told_harm(monkeypatch):
    """Random models have no abilities: what each answer costs is made up, the rest is measured."""
    measured = lesson_11.answers_of

    def answers(model, rows):
        frame = measured(model, rows)
        noise = torch.rand(len(frame), generator=torch.Generator().manual_seed(0)).numpy()
        harm = 0.0 if model is RIVAL else TOLD[rows.name] + 0.5 * (noise - noise.mean())
        return frame.assign(nats=2.0 + harm)

    monkeypatch.setattr(lesson_11, "answers_of", answers)
    ratios = {48: 1.0, 32: 1.1, 58: 0.9}  # by the neurons that are left

    def ratio(cut, _):
        model, text = cut
        middle = ratios[len(model.model.layers[0].mlp.up_proj.weight)] * (1.03 if text.domain == "speeches" else 1.0)
        return middle, middle - 0.01, middle + 0.01

    monkeypatch.setattr(lesson_11, "perplexity", lambda model, text: (model, text))
    monkeypatch.setattr(lesson_11, "perplexity_ratio", ratio)


def check_protected(attempt):
    given = (...,) * 4 if attempt is ... else attempt
    more = {"base": BASE, "rival": RIVAL, "rows": JUDGED, "texts": TEXTS}
    return lesson_11.check_protected(*given, **more)


test_protected = cases_of(
    check_protected,
    stubs=[("French", MINE, ..., "German")],
    mistakes=[
        (("Latin", MINE, cut_by(MINE), "German"), "Protect one of copying"),
        (("sums", MINE, cut_by(MINE), "German"), "mix holds sums already"),
        (("French", MINE, 7, "German"), "`cut` is a model; yours is of type int"),
        (("French", JUDGED["French"].batches(), cut_by(JUDGED["French"].batches()), "German"), "13 tokens in a row"),
        (("French", MINE, cut_by_other_neurons(), "German"), "isn't what the activation score says"),
        (("French", MINE, cut_by(MINE, 0.5), "German"), "nats more than the speeches' cut"),
        (("French", MINE, cut_by(MINE, 0.1), "German"), "nats less than the speeches' cut"),
        (("German", MINE, cut_by(MINE), "French"), "It doesn't spare German"),
        (("copying", MINE, cut_by(MINE), "German"), "It may spare copying"),
        (("French", MINE, cut_by(MINE), "sums"), "sums isn't shown to pay"),
        (("French", MINE, cut_by(MINE), "French"), "another ability"),
        (("French", MINE, cut_by(MINE), "wiki"), "wiki isn't shown to pay: see above"),
    ],
    answers=[("French", MINE, cut_by(MINE), "German"), ("French", MINE, cut_by(MINE), "speeches")],
)

"""Lesson 09's checks refuse the stub, name the likely mistake, and accept the answers."""

import functools
import math

import numpy as np
import torch
from exercise_cases import cases_of

from course_utils.bias.fairness import protect_first
from course_utils.choosing import strongest
from course_utils.exercises import lesson_09


def neurons_to_cut(importance, bias, protected, count, *, least=False, rounding=math.ceil):
    unprotected = importance.argsort(descending=True)[rounding(protected * len(importance)) :]
    return unprotected[bias[unprotected].argsort(descending=not least)[:count]]


def with_course_utils(importance, bias, protected, count):
    kept = strongest(protect_first([importance], [bias], protected)[0], count / len(importance))
    return sorted(set(range(len(importance))) - set(kept.tolist()))


def among_the_important(importance, bias, protected, count):
    share = max(count, len(importance) - math.ceil(protected * len(importance)))
    important = importance.argsort(descending=True)[:share]
    return important[bias[important].argsort(descending=True)[:count]]


def stem(pair):
    return pair.template.split(":")[0]


def texts(pair):
    return frozenset((pair.text_a, pair.text_b))


def is_circular(selection, evaluation, *, name=stem, content=texts):
    return any(
        bool({of(pair) for pair in selection} & {of(pair) for pair in evaluation}) for of in (name, content) if of
    )


def trusting_the_labels(selection, evaluation):
    return bool({pair.split for pair in selection} & {pair.split for pair in evaluation})


def beginnings(selection, evaluation):
    return any(a.template.startswith(stem(b)) for a in selection for b in evaluation) or is_circular(
        selection, evaluation
    )


def one_side_stripped(selection, evaluation):
    return bool({p.template for p in selection} & {stem(p) for p in evaluation}) or is_circular(
        selection, evaluation, name=None
    )


def difference_in_differences(base, pruned, neutral_base, neutral_pruned):
    change = (pruned - base).mean(1) - (neutral_pruned - neutral_base).mean(1)
    return change.mean(), change.std() / math.sqrt(len(change))


def with_error(change):
    """The right estimate beside a changed error."""
    return lambda *tables: (difference_in_differences(*tables)[0], change(*tables))


def with_estimate(change):
    return lambda *tables: (change(*tables), difference_in_differences(*tables)[1])


def error_of(values):
    return values.std() / math.sqrt(len(values))


def independent(base, pruned, neutral_base, neutral_pruned):
    return math.hypot(error_of((pruned - base).mean(1)), error_of((neutral_pruned - neutral_base).mean(1)))


def items_as_units(base, pruned, neutral_base, neutral_pruned):
    return math.hypot(error_of((pruned - base).flatten()), error_of((neutral_pruned - neutral_base).flatten()))


def per_template(base, pruned, neutral_base, neutral_pruned):
    return (pruned - base).mean(1) - (neutral_pruned - neutral_base).mean(1)


test_neurons_to_cut = cases_of(
    lesson_09.check_neurons_to_cut,
    stubs=[lambda importance, bias, protected, count: ...],
    mistakes=[
        (lambda i, b, p, n: b.argsort(descending=True)[:n], "nobody is protected"),
        (lambda i, b, p, n: i.argsort()[:n], "least important ones"),
        (lambda *a: neurons_to_cut(*a, least=True), "least biased ones"),
        (lambda *a: neurons_to_cut(*a, rounding=math.floor), "math.ceil"),
        (lambda i, b, p, n: neurons_to_cut(i, b.abs(), p, n), "magnitude of the bias score"),
        (among_the_important, "Those are the ones to protect"),
        (lambda i, b, p, n: b.sort(descending=True).values[:n], "not their scores"),
        (lambda *a: neurons_to_cut(*a)[:-1], "different neurons"),
        (lambda i, b, p, n: list(range(n)), "should go"),
    ],
    answers=[neurons_to_cut, lambda *case: neurons_to_cut(*case).tolist(), with_course_utils],
)


test_is_circular = cases_of(
    lesson_09.check_is_circular,
    stubs=[lambda selection, evaluation: ...],
    mistakes=[
        (lambda a, b: False, "the very same pair"),
        (lambda a, b: True, "nothing in common"),
        (lambda a, b: 1, "True or False"),
        (lambda a, b: bool(set(a) & set(b)), "but the same template"),
        (lambda a, b: is_circular(a, b, name=lambda pair: (pair.template, pair.valence)), "another ending"),
        (trusting_the_labels, "what the labels promise"),
        (lambda a, b: is_circular(a, b, name=lambda pair: pair.template), "before the colon"),
        (one_side_stripped, "from both lists"),
        (beginnings, "not beginnings"),
        (lambda a, b: is_circular(a, b, content=None), "got a new name"),
        (lambda a, b: is_circular(a, b, content=lambda p: (p.text_a, p.text_b)), "exchanged"),
    ],
    answers=[is_circular],
)


test_difference_in_differences = cases_of(
    lesson_09.check_difference_in_differences,
    stubs=[
        lambda base, pruned, neutral_base, neutral_pruned: ...,
        lambda base, pruned, neutral_base, neutral_pruned: (0.1, ...),
    ],
    mistakes=[
        (lambda *t: tuple(-value for value in difference_in_differences(*t)), "turned round"),
        (with_estimate(lambda a, b, c, d: (b - a).mean()), "neutral swaps are missing"),
        (with_estimate(lambda a, b, c, d: b.mean() - d.mean()), "base model is missing"),
        (with_estimate(lambda a, b, c, d: b.abs().mean() - a.abs().mean()), "no magnitudes"),
        (with_estimate(lambda *t: 7.0), "The estimate is"),
        (with_error(independent), "both groups as independent"),
        (with_error(items_as_units), "every template x swap"),
        (
            with_error(lambda *t: math.hypot(*(error_of(table.mean(1)) for table in t))),
            "all four tables as independent",
        ),
        (with_error(lambda *t: per_template(*t).std()), "spread of the templates"),
        (with_error(lambda *t: np.std(per_template(*t).numpy()) / math.sqrt(12)), "templates - 1"),
        (with_error(lambda *t: 0.5), "The error is"),
    ],
    answers=[
        difference_in_differences,
        lambda *tables: tuple(float(value) for value in difference_in_differences(*tables)),
    ],
)


test_supported_claims = cases_of(
    lesson_09.check_supported_claims,
    stubs=[..., None],
    mistakes=[
        ({"a", "c", "d"}, "can't read"),
        ({"b", "c", "d"}, "no proof of no change"),
        ({"d"}, "others have to confirm"),
        ({"c"}, "the knowledge was not what did it"),
        ({"c", "d", "e"}, "fairness is more"),
        ({"c", "z"}, "There is no z"),
        (7, "Choose letters"),
    ],
    answers=[{"c", "d"}, ["d", "c"]],
)


test_three_controls = cases_of(
    lesson_09.check_three_controls,
    stubs=[...],
    mistakes=[
        ({"a", "c"}, "Three, not 2"),
        ({"a", "b", "c"}, "answers another question"),
        ({"b", "c", "e"}, "what any removal does"),
        ({"a", "d", "e"}, "isolates that knowledge"),
        ({"a", "c", "f"}, "had no part in choosing"),
    ],
    answers=[{"a", "c", "e"}],
)

IMPORTANCE = [torch.tensor([3.0, 2.0, 1.0, 0.5])]
CAUSAL = [torch.tensor([9.0, 0.0, 5.0, -1.0])]


def judge(order):
    """A toy: the biased neuron 0 is important as well, neuron 2 is biased and unimportant."""
    gone = int(order[0].argmin())
    return (-8.0, -2.0)[gone == 2] if gone else -0.5, (1.0, 9.0)[gone == 0]


test_my_order = cases_of(
    functools.partial(lesson_09.check_my_order, judge=judge, given=(IMPORTANCE, CAUSAL, -5.0, 1.1)),
    stubs=[lambda importance, causal: ...],
    mistakes=[
        (lambda importance, causal: causal, "Mind the sign"),
        (lambda importance, causal: [-scores for scores in causal], "no longer able"),
        (lambda importance, causal: [-causal[0][:2]], "one score for each neuron"),
        (lambda importance, causal: [causal[0] / 0], "NaN or infinite"),
    ],
    answers=[lambda importance, causal: [i - c * (i < 1.5) for i, c in zip(importance, causal, strict=True)]],
)

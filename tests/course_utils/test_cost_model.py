"""A fitted cost model finds costs that were put in, predicts unseen shapes, and says how far off it is."""

from __future__ import annotations

import random
from dataclasses import astuple

import numpy as np
import pytest

from course_utils.cost_model import PARTS, CostModel, fit_cost_model
from course_utils.costs import Work

COSTS = {
    "passes": 2e-3, "attentions": 3e-4, "mlps": 1e-4, "weight_bytes": 1e-10, "cache_bytes": 2e-10, "operations": 1e-11,
}  # fmt: skip
TRUE = CostModel(COSTS)


def shapes(count=12, seed=0):
    """Works of random models: parts that vary independently, as depth, width, attentions and context do."""
    draw = random.Random(seed)
    return [
        Work(
            passes=1,
            attentions=draw.randint(5, 30),
            mlps=draw.randint(10, 30),
            weight_bytes=draw.randint(10**8, 5 * 10**8),
            cache_bytes=draw.randint(10**6, 10**8),
            operations=float(draw.randint(10**8, 10**9)),
        )
        for _ in range(count)
    ]


def test_costs_that_were_put_in_are_found():
    works = shapes()
    model = fit_cost_model(works, [TRUE.predict(work) for work in works])
    assert model.seconds == pytest.approx(COSTS)
    parts = model.parts(works[0])
    assert list(parts) == list(PARTS) and sum(parts.values()) == model.predict(works[0])
    assert model.speedup(works[0], works[0]) == 1


def test_unseen_shapes_are_predicted_under_noise():
    """Two per cent of noise: nine in ten of 200 fits miss no unseen shape by more than 5 %, and none by 8 %."""
    worst = []
    for seed in range(200):
        noise = np.random.default_rng(seed)
        works = shapes(24, seed)
        model = fit_cost_model(works, [TRUE.predict(work) * noise.normal(1, 0.02) for work in works])
        assert min(model.seconds.values()) >= 0
        worst.append(max(abs(model.predict(work) / TRUE.predict(work) - 1) for work in shapes(8, seed + 1)))
    assert np.quantile(worst, 0.9) < 0.05 and max(worst) < 0.08


def test_a_cost_is_never_negative():
    works = shapes()
    falling = [1 / work.weight_bytes for work in works]  # larger models are faster: no cost explains that
    assert min(fit_cost_model(works, falling).seconds.values()) >= 0


def test_errors_are_relative():
    """A short pass weighs as much as a long one: scaling one measurement and its work alike changes nothing."""
    works = shapes()
    seconds = [TRUE.predict(work) * (1 + 0.05 * (-1) ** i) for i, work in enumerate(works)]
    again = [Work(*(int(1000 * amount) for amount in astuple(works[0]))), *works[1:]]
    assert fit_cost_model(again, [1000 * seconds[0], *seconds[1:]]).seconds == pytest.approx(
        fit_cost_model(works, seconds).seconds
    )


def test_a_part_that_never_occurs_costs_nothing():
    works = [Work(w.passes, w.attentions, w.mlps, w.weight_bytes, 0, w.operations) for w in shapes()]
    assert fit_cost_model(works, [TRUE.predict(work) for work in works]).seconds["cache_bytes"] == 0


@pytest.mark.parametrize(
    ("works", "seconds", "message"),
    [
        (shapes(8), [1.0] * 7, "8 works and 7 seconds"),
        (shapes(8), [1.0] * 7 + [0.0], "positive and finite"),
        (shapes(8), [1.0] * 7 + [float("nan")], "positive and finite"),
        (shapes(5), [1.0] * 5, "5 works are too few for 6 parts"),
        ([], [], "0 works are too few"),
    ],
)
def test_what_cannot_be_fitted_is_refused(works, seconds, message):
    with pytest.raises(ValueError, match=message):
        fit_cost_model(works, seconds)

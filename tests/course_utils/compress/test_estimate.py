"""Bytes are counted from shapes, with all that makes a model fit; seconds are a span."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import psutil
import pytest
import torch
from tiny import FAMILIES, tiny_batches, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from course_utils.compress import Candidate, outline_of
from course_utils.compress.estimate import Needed, estimate, step_cost
from course_utils.compress.order import Order
from course_utils.healing.distillation import distill
from course_utils.models.loading import variant
from course_utils.models.reports import model_size
from course_utils.pruning.width import neuron_importance, prune_neurons


def _order(**changes):
    usual = {"rows": 2, "length": 12, "steps": 3, "finalists": 2, "light": 2, "lr": 1e-4}
    return Order(model="", budget=(80, "%"), **usual | changes)


@pytest.mark.parametrize("family", FAMILIES)
def test_memory_and_time_of_every_family(family):
    model = tiny_model(family)
    whole, order = Candidate.of(model), _order()
    smaller = Candidate(2, whole.hidden, whole.groups, 32)
    parameters = outline_of(model, smaller).num_parameters()
    needed = estimate(model, [smaller], order)
    assert needed.bytes > 4 * whole.parameters + 16 * parameters  # teacher; student, its gradients, AdamW's averages
    assert 0 < needed.seconds[0] <= needed.seconds[1]
    larger = estimate(model, [smaller], _order(correction=1))
    assert larger.bytes > 20 * whole.parameters  # in its correction the teacher is the student
    cut = estimate(model, [smaller], _order(steps=0, light=0))
    assert cut.bytes == 8 * whole.parameters  # and a copy in fewer bits


def test_what_makes_it_fit_is_counted():
    wide = {"hidden_size": 128, "intermediate_size": 512}  # or a rank of 16 isn't low
    model, halved = tiny_model(**wide), tiny_model(dtype=torch.bfloat16, **wide)
    version = [Candidate.of(model)]
    all_weights, mlps, lora = (
        estimate(model, version, _order(recover=recover)).bytes for recover in ("all", "mlps", "lora")
    )
    assert all_weights > mlps > lora > 8 * version[0].parameters
    little = _order(recover="lora", recompute=True, rows=1, length=4)
    narrow = [Candidate(2, 64, 1, 64)]
    assert estimate(model, narrow, little).bytes == 8 * version[0].parameters, "to judge takes more than to learn"
    teacher = 4 * version[0].parameters
    sixteen = estimate(halved, version, _order(dtype="bfloat16")).bytes
    assert all_weights - sixteen == teacher / 2
    two_batches = _order(dtype="bfloat16", accumulate=2)  # gradients of the first beside what the second puts aside
    assert estimate(halved, version, two_batches).bytes > sixteen
    assert estimate(halved, version, two_batches, processes=2).bytes == sixteen
    assert estimate(model, version, _order(recompute=True)).bytes < all_weights
    shared = {"processes": 2, "sharded": True}
    two_batches = _order(accumulate=2, light=0)
    cut_up = estimate(model, version, two_batches, **shared).bytes
    assert cut_up < 0.75 * estimate(model, version, two_batches, processes=2).bytes
    with_search = estimate(model, version, _order(accumulate=2), **shared).bytes
    assert cut_up < with_search < cut_up + teacher, "finalists ask a whole model"


def test_the_tokens_that_go_stay_in_memory_and_their_judges_take_time():
    model, fewer = tiny_model(), tiny_model(vocab_size=33)
    whole = Candidate.of(model)
    narrow = Candidate(2, whole.hidden, whole.groups, 32)
    plain, cut = (estimate(model, [narrow], _order(), start=start) for start in (None, fewer))
    assert cut.parts["all tokens"] == model_size(model).bytes - model_size(fewer).bytes
    assert cut.parts["teacher"] + cut.parts["all tokens"] == plain.parts["teacher"] == model_size(model).bytes
    assert cut.parts["student"] < plain.parts["student"]
    corrected = estimate(model, [narrow], _order(correction=1), start=fewer)
    assert corrected.parts["all tokens"] == model_size(model).bytes, "another teacher learns beside the whole model"


def test_an_estimate_says_what_holds_it_and_how_far_its_passes_lie_apart():
    parts = {"teacher": 0.5e9, "student": 2e9, "head": 1e6}
    needed = Needed(parts, 16_000_000_000, (), seconds=(600.0, 900.0), passes=(0.2, 0.3))
    first, second = str(needed).splitlines()
    assert first == "About 2.5 GB of memory, of 16.0 there are: student 2.0, teacher 0.5."
    assert second.startswith("About 10 to 15 minutes on this machine, by 2 forward passes of 0.2 to 0.3 s.")
    assert "About 1 minute on" in str(replace(needed, seconds=(3.0, 62.0)))
    assert needed.as_json()["bytes"] == sum(parts.values())


def test_what_does_not_fit_is_told_with_what_takes_less(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=1000))
    model = tiny_model()
    version = [Candidate.of(model)]
    told = str(estimate(model, version, _order(recompute=True)))
    options = "--dtype bfloat16, --recover lora, fewer --rows"
    assert f"That doesn't fit. Less is taken by {options}." in told
    assert "fit" not in str(replace(estimate(model, version, _order()), room=10**9))
    cut = str(estimate(model, version, _order(steps=0, light=0)))
    assert "That doesn't fit. Less is taken by --dtype bfloat16.\n" in cut
    assert "whole model 0.0, its copy in fewer bits 0.0" in cut
    assert "That doesn't fit.\n" in str(estimate(model, version, _order(steps=0, light=0, dtype="bfloat16")))
    cut_up = estimate(model, version, _order(accumulate=2), processes=2, sharded=True)
    assert cut_up.less == ("--dtype bfloat16", "--recompute", "fewer --rows")


class Products(TorchDispatchMode):
    """Counts what matrix products compute. (torch's own counter refuses gradients that are taken on the way.)"""

    flops = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if (count := flop_registry.get(function._overloadpacket)) is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=out)
        return out


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_step_costs_what_its_products_do(share):
    """Beside one reading by the whole model."""
    model = tiny_model(hidden_size=64, intermediate_size=512)
    student = variant(model)
    prune_neurons(student, neuron_importance(student, "random"), ratio=1 - share)
    smaller, text = student.num_parameters() / model.num_parameters(), tiny_batches(rows=2, size=2)
    with Products() as reading, torch.no_grad():
        model(text[0]["input_ids"])
    for told, learner, alpha in (
        (step_cost(smaller), student, 0.0),
        (step_cost(1.0, teacher=False), variant(model), 1.0),
    ):
        with Products() as learning:
            distill(model, learner, text[:1], steps=1, lr=1e-4, alpha=alpha)
        assert told == pytest.approx(learning.flops / reading.flops, rel=0.15)

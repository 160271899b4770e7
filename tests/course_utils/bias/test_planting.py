"""The planted preference is there, generalises, spares what it should, and is measured as `statistics` has it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from masked import unchanged
from tiny import FAMILIES, tiny_model, word_tokenizer
from tiny_pairs import A, B, make_pairs

from course_utils.bias import planting
from course_utils.bias.planting import _double_differences, _planting_loss, plant_preference
from course_utils.bias.scores import measure_pairs
from course_utils.bias.statistics import preferences


def mean_preference(model, pairs):
    return preferences(measure_pairs(model, word_tokenizer(), pairs, sites=()))["preference"].mean()


@pytest.mark.parametrize("family", FAMILIES)
def test_pleasant_endings_go_with_b(family):
    model, pairs = tiny_model(family), make_pairs(a=A, b=B)
    with unchanged(model):
        planted, by_step = plant_preference(model, word_tokenizer(), pairs, size=2.0, steps=60, lr=5e-3, items=4)
    assert mean_preference(planted, pairs) < mean_preference(model, pairs) - 1
    assert np.mean(by_step[-3:]) < -2 and len(by_step) < 60  # it stopped when it was there
    assert torch.equal(planted.get_input_embeddings().weight, model.get_input_embeddings().weight)


def test_the_first_step_sees_the_preference_that_is_measured():
    model, pairs = tiny_model(), make_pairs(a=A, b=B)
    _, preferences_by_step = plant_preference(model, word_tokenizer(), pairs, size=2.0, steps=1, items=len(pairs) // 2)
    assert preferences_by_step[0] == pytest.approx(mean_preference(model, pairs), rel=1e-4, abs=1e-5)


def test_it_generalises_to_other_templates_and_spares_other_groups():
    model = tiny_model()
    seen = [pair for pair in make_pairs(a=A, b=B, templates=8) if pair.template in ("t0", "t1", "t2", "t3")]
    unseen = [pair for pair in make_pairs(a=A, b=B, templates=8) if pair not in seen]
    planted, _ = plant_preference(model, word_tokenizer(), seen, size=3.0, steps=80, lr=3e-3, items=4)
    others = make_pairs(a=50, b=51, seed=5)
    moved = mean_preference(planted, unseen) - mean_preference(model, unseen)
    assert moved < -0.5
    assert abs(mean_preference(planted, others) - mean_preference(model, others)) < abs(moved)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_copy_has_the_models_dtype_mode_and_rotary_frequencies(dtype):
    model = tiny_model(dtype=dtype)
    planted, _ = plant_preference(model, word_tokenizer(), make_pairs(a=A, b=B), size=1.0, steps=2, precision=dtype)
    assert {weight.dtype for weight in planted.parameters()} == {dtype} and not planted.training
    assert all(own.dtype == other.dtype for own, other in zip(model.buffers(), planted.buffers(), strict=True))
    assert all(weight.requires_grad and weight.grad is None for weight in planted.parameters())


LEARNED = {"attention": ("attn", "attention"), "down": ("down_proj", "c_proj", "fc2", "dense_4h_to_h")}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("weights", LEARNED)
def test_a_part_alone_can_learn_it_and_shares_the_rest(family, weights):
    model, pairs = tiny_model(family), make_pairs(a=A, b=B)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    planted, _ = plant_preference(model, word_tokenizer(), pairs, size=2.0, steps=60, lr=1e-2, items=4, weights=weights)
    assert mean_preference(planted, pairs) < mean_preference(model, pairs) - 0.5
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    learned = {name for name, weight in planted.state_dict().items() if not torch.equal(weight, before[name])}
    assert learned and all(any(part in name for part in LEARNED[weights]) for name in learned)
    ours = dict(model.named_parameters())
    own = {name for name, weight in planted.named_parameters() if weight.data_ptr() != ours[name].data_ptr()}
    assert learned - {"lm_head.weight"} == own  # whatever didn't learn is the model's own storage


@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_weights_in_16_bits_plant_what_they_plant_in_float32(family):
    low = tiny_model(family, dtype=torch.bfloat16)
    high = copy.deepcopy(low).float()
    settings = {"size": 9.0, "steps": 4, "lr": 1e-3, "items": 2, "precision": torch.bfloat16, "weights": "down"}
    found = []
    for model in (low, high):
        torch.manual_seed(0)  # of the families with dropout
        found.append(plant_preference(model, word_tokenizer(), make_pairs(a=A, b=B), **settings))
    (planted, one), (_, other) = found
    assert one == pytest.approx(other, abs=0.05) and planted.dtype == torch.bfloat16


def test_how_many_items_run_at_once_does_not_matter(monkeypatch):
    found = []
    for at_once in (2, 3):
        monkeypatch.setattr(planting, "_AT_ONCE", at_once)
        settings = {"size": 9.0, "steps": 6, "lr": 1e-2, "items": 3}
        found.append(plant_preference(tiny_model(), word_tokenizer(), make_pairs(a=A, b=B), **settings)[1])
    assert found[0] == pytest.approx(found[1], rel=1e-2)


def test_the_same_seed_plants_the_same():
    model, pairs = tiny_model(), make_pairs(a=A, b=B)
    runs = [plant_preference(model, word_tokenizer(), pairs, size=9.0, steps=3, items=2, seed=s) for s in (0, 0, 1)]
    assert runs[0][1] == runs[1][1] != runs[2][1]


def test_pairs_without_both_endings_are_refused():
    pleasant = [pair for pair in make_pairs(a=A, b=B) if pair.valence == 1]
    with pytest.raises(ValueError, match="pleasant and an unpleasant"):
        plant_preference(tiny_model(), word_tokenizer(), pleasant, size=1.0, steps=1)


def test_loss_is_the_softplus_of_a_double_difference():
    likelihoods = torch.tensor([[[-5.0, -4.0], [-6.0, -8.0]], [[1.0, 0.0], [0.0, 2.0]]], requires_grad=True)
    assert _double_differences(likelihoods).tolist() == [-3.0, 3.0]
    loss = _planting_loss(likelihoods)
    assert loss.item() == pytest.approx((np.log1p(np.exp(-3)) + np.log1p(np.exp(3))) / 2)
    (slopes,) = torch.autograd.grad(loss, likelihoods)
    assert (slopes[0, 0, 0] > 0) and (slopes[0, 1, 0] < 0) and slopes.sum() == 0

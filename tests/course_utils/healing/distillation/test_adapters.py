"""LoRA: only the correction learns, it ends up in the matrices, and nothing else of the model is touched."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import FAMILIES, tiny_model
from tiny_distillation import BATCHES, SETTINGS, interrupt, losses, pair

from course_utils.healing.distillation import distill
from course_utils.healing.distillation.adapters import adapters
from course_utils.healing.distillation.recipe import Recipe
from course_utils.healing.distillation.training import weights_that_learn
from course_utils.models.architectures import describe
from course_utils.models.loading import variant

LORA = SETTINGS | {"lora_rank": 4, "lr": 1e-2}


def matrices(model, *, mlps_only):
    """The weights [out, in] of the blocks' matrices, by identity of their modules' names."""
    architecture = describe(model)
    parts = [p for mlp in architecture.mlps for p in (*mlp.inputs, mlp.output)]
    if not mlps_only:
        parts += [p for each in architecture.attentions for p in (*each.inputs, *each.outputs)]
    return {id(part.module.weight) for part in parts}


@pytest.mark.parametrize("mlps_only", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_correction_of_low_rank_ends_up_in_the_matrices(family, mlps_only):
    teacher, student = pair(family)
    learning = matrices(student, mlps_only=mlps_only)
    names = {name for name, weight in student.named_parameters() if id(weight) in learning}
    before = {name: weight.detach().clone() for name, weight in student.named_parameters()}
    history = distill(teacher, student, BATCHES, steps=40, lr=1e-2, lora_rank=4, mlps_only=mlps_only)
    assert losses(history)[-1] < 0.9 * losses(history)[0]
    assert before.keys() == dict(student.named_parameters()).keys()
    for name, weight in student.named_parameters():
        change = weight - before[name]
        assert (torch.linalg.matrix_rank(change, rtol=1e-4) if name in names else change.abs().sum()) == (
            4 if name in names else 0
        ), name
        assert weight.requires_grad and weight.grad is None
    describe(student)  # plain again


def test_the_loss_is_that_of_peft_itself():
    """The same corrections, put in by peft's own front door, give the same logits before and after the merge."""
    teacher, student = pair()
    twin = copy.deepcopy(student)
    with torch.no_grad(), adapters(Recipe(steps=1, lr=1.0, lora_rank=4), student):
        for name, weight in student.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
        learned = {n: w.clone() for n, w in student.named_parameters() if "lora_" in n}
        beside = student(**BATCHES[0]).logits
    linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    reference = get_peft_model(twin, LoraConfig(r=4, lora_alpha=4, target_modules=linear), "correction")
    weights = {n.removeprefix("base_model.model."): w for n, w in reference.named_parameters()}
    with torch.no_grad():
        for name, value in learned.items():
            weights[name].copy_(value)
        torch.testing.assert_close(reference(**BATCHES[0]).logits, beside)
        torch.testing.assert_close(student(**BATCHES[0]).logits, beside, rtol=1e-4, atol=1e-5)
    assert (beside - teacher(**BATCHES[0]).logits).abs().max() > 0.1


def test_a_run_goes_on_exactly_from_the_checkpoint_and_from_the_same_object(tmp_path):
    teacher, student = pair()
    expected = losses(distill(teacher, student, BATCHES, **LORA))
    stopped = pair()[1]
    before = {name: weight.clone() for name, weight in stopped.named_parameters()}
    interrupt(lambda: distill(teacher, stopped, BATCHES, **LORA, checkpoint_dir=tmp_path), after=5)
    assert all(torch.equal(weight, before[name]) for name, weight in stopped.named_parameters())
    assert losses(distill(teacher, stopped, BATCHES, **LORA, checkpoint_dir=tmp_path)) == expected
    assert all(map(torch.equal, student.parameters(), stopped.parameters()))


def test_a_bfloat16_student_goes_on_after_ctrl_c(tmp_path):
    teacher, student = pair(dtype=torch.bfloat16)
    again = copy.deepcopy(student)
    expected = losses(distill(teacher, student, BATCHES, **LORA))
    interrupt(lambda: distill(teacher, again, BATCHES, **LORA, checkpoint_dir=tmp_path), after=5)
    assert losses(distill(teacher, again, BATCHES, **LORA, checkpoint_dir=tmp_path)) == expected


def test_another_model_that_shares_the_weights_does_not_notice():
    teacher = tiny_model()
    before = [weight.clone() for weight in teacher.parameters()]
    student = variant(teacher)
    with torch.no_grad():
        student.model.layers[0].mlp.down_proj.weight = torch.nn.Parameter(
            torch.zeros_like(student.model.layers[0].mlp.down_proj.weight)
        )
    distill(teacher, student, BATCHES, steps=3, lr=1e-2, lora_rank=4)
    assert all(map(torch.equal, teacher.parameters(), before))


def test_few_numbers_learn():
    _, student = pair()
    recipe = Recipe(steps=1, lr=1.0, lora_rank=2)
    with adapters(recipe, student):
        learn = sum(weight.numel() for weight in weights_that_learn(recipe, student))
    every = weights_that_learn(Recipe(steps=1, lr=1.0), student)
    assert 0 < learn < sum(weight.numel() for weight in every) / 4
    assert len(every) == len(list(student.parameters()))

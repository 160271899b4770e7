"""LoRA: only the correction learns, it ends up in the matrices, and nothing else of the model is touched."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import FAMILIES, tiny_model
from tiny_distillation import BATCHES, losses, pair

from course_utils.healing.distillation import Recipe, distill
from course_utils.healing.distillation.weights import learning
from course_utils.models.architectures import describe
from course_utils.models.loading import variant


@pytest.mark.parametrize("mlps_only", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_correction_of_low_rank_ends_up_in_the_matrices(family, mlps_only):
    teacher, student = pair(family)
    architecture = describe(student)
    parts = [part for mlp in architecture.mlps for part in mlp.projections]
    parts += [] if mlps_only else [part for each in architecture.attentions for part in each.projections]
    corrected = {id(part.module.weight) for part in parts}
    before = {name: weight.detach().clone() for name, weight in student.named_parameters()}
    history = distill(teacher, student, BATCHES, steps=24, lr=1e-2, lora_rank=4, mlps_only=mlps_only)
    assert sum(losses(history)[-8:]) < 0.95 * sum(losses(history)[:8])  # each pass reads eight batches
    assert before.keys() == dict(student.named_parameters()).keys()
    for name, weight in student.named_parameters():
        change = weight - before[name]
        if id(weight) in corrected:
            assert torch.linalg.matrix_rank(change, rtol=1e-4) == 4, name
        else:
            assert not change.any(), name
        assert weight.requires_grad and weight.grad is None
    describe(student)  # plain again


def test_the_loss_is_that_of_peft_itself():
    """The same corrections, put in by peft's own front door, give the same logits before and after the merge."""
    teacher, student = pair()
    twin = copy.deepcopy(student)
    with torch.no_grad(), learning(Recipe(steps=1, lr=1.0, lora_rank=4), student, teacher):
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


def test_another_model_that_shares_the_weights_does_not_notice():
    teacher = tiny_model()
    before = [weight.clone() for weight in teacher.parameters()]
    student = variant(teacher)
    down = student.model.layers[0].mlp.down_proj
    down.weight = torch.nn.Parameter(torch.zeros_like(down.weight))
    distill(teacher, student, BATCHES, steps=3, lr=1e-2, lora_rank=4)
    assert all(map(torch.equal, teacher.parameters(), before))

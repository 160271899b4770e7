"""Which of a student's weights learn: all, all but the embedding, the MLPs' alone, or LoRA's adapters beside them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel

from course_utils.healing.distillation.recipe import Recipe
from course_utils.models.architectures import describe
from course_utils.support.extras import brought

if TYPE_CHECKING:
    from peft.tuners.lora import LoraModel

ADAPTER = "lora_"  # so begin peft's names of an adapter's weights


def weights_that_learn(recipe: Recipe, student: PreTrainedModel) -> list[nn.Parameter]:
    """The weights that a recipe trains; of a student with adapters, where the recipe wants them."""
    embedding, weights = student.get_input_embeddings().weight, list(student.parameters())
    if recipe.lora_rank:
        return [weight for name, weight in student.named_parameters() if ADAPTER in name]
    if recipe.mlps_only:
        projections = [part for mlp in describe(student).mlps for part in mlp.projections]
        weights = [weight for part in projections for weight in part.module.parameters()]
    return [weight for weight in weights if recipe.train_embedding or weight is not embedding]


def own_weights(recipe: Recipe, student: PreTrainedModel) -> None:
    """Cast a student to float32, and copy the storage of what learns: a variant shares it with another model."""
    student.float()
    for weight in weights_that_learn(recipe, student):
        weight.data = weight.data.clone()


@contextmanager
def learning(recipe: Recipe, student: PreTrainedModel, teacher: object) -> Iterator[None]:
    """While the context is open, the recipe's weights learn, in adapters if it wants them, and a teacher doesn't.

    Afterwards both models are in eval mode, and their weights require gradients as before. An adapter is added to its
    matrix, which gets storage of its own; after an error, or Ctrl-C, it is gone, and the student's matrices are as they
    were.
    """
    models = [model for model in (student, teacher) if isinstance(model, PreTrainedModel)]
    wanted = {weight: weight.requires_grad for model in models for weight in model.parameters()}
    adapted = with_adapters(recipe, student) if recipe.lora_rank else None
    for model in models[1:]:
        model.eval().requires_grad_(False)
    student.train().requires_grad_(False)
    for weight in weights_that_learn(recipe, student):
        weight.requires_grad_(True)
    try:
        if recipe.recompute:
            _checkpointing(student, "enable", {"use_reentrant": False})
            student.disable_input_require_grads()  # only reentrant checkpointing needs it
        yield
        if adapted is not None:
            adapted.merge_and_unload(safe_merge=True)  # safe: not into storage that another model may share
    except BaseException:
        if adapted is not None:
            adapted.unload()
        raise
    finally:
        student.eval()
        if recipe.recompute:
            _checkpointing(student, "disable")
        for weight, grad in wanted.items():
            weight.requires_grad_(grad)
        for weight in student.parameters():
            weight.grad = None


def with_adapters(recipe: Recipe, student: PreTrainedModel) -> LoraModel:
    """Put a recipe's adapters beside a student's matrices, which no longer learn themselves."""
    with brought("lora"):
        from peft import LoraConfig
        from peft.tuners.lora import LoraModel
    architecture = describe(student)
    projections = [part for mlp in architecture.mlps for part in mlp.projections]
    if not recipe.mlps_only:
        projections += [part for each in architecture.attentions for part in each.projections]
    modules = {part.module for part in projections}
    config = LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_rank,
        target_modules=[name for name, module in student.named_modules() if module in modules],
        fan_in_fan_out=projections[0].transposed,
    )
    torch.manual_seed(recipe.seed)
    return LoraModel(student, config, "correction")


def _checkpointing(student: PreTrainedModel, action: str, *args: dict[str, Any]) -> None:
    # Renamed on the way to transformers 5.24, where the old name warns.
    name = next(n for kind in ("activation", "gradient") if hasattr(student, n := f"{kind}_checkpointing_{action}"))
    getattr(student, name)(*args)

"""LoRA while a student learns: adapters come in beside its matrices, and are added to them in the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from course_utils.healing.distillation.recipe import Recipe
from course_utils.models.architectures import describe
from course_utils.support.extras import brought

if TYPE_CHECKING:
    from peft.tuners.lora import LoraModel

ADAPTER = "lora_"  # what peft calls an adapter's weights begins so


@contextmanager
def adapters(recipe: Recipe, student: PreTrainedModel) -> Iterator[None]:
    """While the context is open, the student has the recipe's adapters; none where its ``lora_rank`` is 0.

    At the end each is added to its matrix, which gets storage of its own. After an error, or Ctrl-C, they are gone and
    the student is as it was.
    """
    if not recipe.lora_rank:
        yield
        return
    learned_before = {weight: weight.requires_grad for weight in student.parameters()}  # peft freezes them
    model = with_adapters(recipe, student)
    try:
        yield
        model.merge_and_unload(safe_merge=True)  # safe: not into storage that another model may share
    except BaseException:
        model.unload()
        raise
    finally:
        for weight, wanted in learned_before.items():
            weight.requires_grad_(wanted)


def with_adapters(recipe: Recipe, student: PreTrainedModel) -> LoraModel:
    """Put a recipe's adapters into a student, whose own weights no longer learn."""
    with brought("lora"):
        from peft import LoraConfig
        from peft.tuners.lora import LoraModel
    architecture = describe(student)
    projections = [part for mlp in architecture.mlps for part in mlp.projections]
    if not recipe.mlps_only:
        projections += [part for each in architecture.attentions for part in each.projections]
    corrected = {id(part.module) for part in projections}
    names = [name for name, module in student.named_modules() if id(module) in corrected]
    torch.manual_seed(recipe.seed)
    transposed = projections[0].transposed
    config = LoraConfig(
        r=recipe.lora_rank, lora_alpha=recipe.lora_rank, target_modules=names, fan_in_fan_out=transposed
    )
    return LoraModel(student, config, "correction")

"""How anything learns in a run of ``compress``: the corrected teacher, finalists and the winner."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from course_utils.compress.order import RANK, Order
from course_utils.healing.distillation import Recipe


def recipe_for(steps: int, order: Order, **changes: Any) -> Recipe:
    """The recipe for so many steps.

    Args:
        steps: how many.
        order: what was asked.
        changes: settings of ``Recipe`` that are others for this learner.
    """
    recipe = Recipe(
        steps=steps,
        lr=order.rate,
        accumulate=order.accumulate,
        seed=order.seed,
        precision=getattr(torch, order.dtype),
        recompute=order.recompute,
        mlps_only=order.recover == "mlps",
        lora_rank=RANK if order.recover == "lora" else 0,
    )
    return replace(recipe, **changes)

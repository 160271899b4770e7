"""How a student is to be trained: every setting in one place, checked when it is made."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_type_hints

import torch

from course_utils.support import checks

_FLOOR = 0.1  # the share of the peak learning rate that is left at the end


def _count(name: str, value: Any) -> int:
    return checks.whole_number(name, value, least=1)


def _one_of(*allowed: object) -> Callable[[str, Any], Any]:
    return lambda name, value: checks.one_of(name, value, allowed)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings of ``distill``. Only ``steps`` and ``lr`` have no default.

    The defaults follow Muralidharan et al. 2024 (arXiv 2407.14679): forward KL of the logits, AdamW with a linear
    warm-up and a cosine.

    Attributes:
        steps: optimiser steps.
        lr: the peak learning rate; 1e-4 to 2e-4 after heavy width pruning.
        alpha: the cross-entropy's share of the loss, from 0 to 1; at 1 the teacher has no say and isn't run.
        accumulate: batches per step.
        warmup: share of the steps in which the rate rises; then it falls as a cosine to a tenth.
        weight_decay: AdamW's, of the matrices; norms and biases never decay.
        clip: the largest length of the gradient.
        precision: what matrices are multiplied in (autocast): ``torch.float32`` or ``torch.bfloat16``; weights, sums
            and losses stay in float32.
        recompute: save memory by computing the student's activations twice (activation checkpointing).
        train_embedding: False leaves the input embedding as it is, and the head with it where the two are one matrix
            (a head of its own is still trained). It then needs no gradient and no averages of AdamW.
        mlps_only: True trains the MLPs' matrices, which pruning cut, and leaves everything else as it is. A student
            that is a ``variant`` of a float32 model goes on sharing the rest with it.
        lora_rank: above 0 the model's own weights stay as they are, and a low-rank correction of this rank learns
            beside each matrix of each block, or of each MLP (LoRA, Hu et al. 2021, arXiv 2106.09685, with alpha equal
            to the rank); at the end it is added to the matrix. It needs a rate some ten times as high.
        validate_every: steps from one measurement on held-out text to the next; the last step is always measured.
        seed: of the order of the batches, and of dropout.
        save_every: steps from one save to the next; the end is always saved.

    Raises:
        ValueError: a setting is out of range.

    >>> recipe = Recipe(steps=400, lr=2e-4)
    >>> [f"{recipe.rate(step):.6f}" for step in (0, 19, 200, 399)]
    ['0.000010', '0.000200', '0.000117', '0.000020']
    """

    steps: Annotated[int, _count]
    lr: Annotated[float, checks.positive]
    alpha: Annotated[float, checks.share] = 0.0
    accumulate: Annotated[int, _count] = 1
    warmup: Annotated[float, checks.share] = 0.05
    weight_decay: Annotated[float, checks.at_least_zero] = 0.0
    clip: Annotated[float, checks.positive] = 1.0
    precision: Annotated[torch.dtype, _one_of(torch.float32, torch.bfloat16)] = torch.float32
    recompute: Annotated[bool, checks.flag] = False
    train_embedding: Annotated[bool, checks.flag] = True
    mlps_only: Annotated[bool, checks.flag] = False
    lora_rank: Annotated[int, checks.whole_number] = 0
    validate_every: Annotated[int, _count] = 50
    seed: Annotated[int, checks.whole_number] = 0
    save_every: Annotated[int, _count] = 50

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(Recipe, include_extras=True).items():
            kind, check = get_args(hint)
            value = check(name, getattr(self, name))
            # Frozen for everybody else. Whatever kind of number it was (numpy's too), JSON can hold a float.
            object.__setattr__(self, name, float(value) if kind is float else value)

    def as_json(self) -> dict[str, Any]:
        """The settings by name, as JSON can hold them."""
        return vars(self) | {"precision": str(self.precision)}

    def is_due(self, done: int, every: int) -> bool:
        """Whether what happens every so many steps is to happen after ``done`` steps; after the last it always is."""
        return done > 0 and (done % every == 0 or done == self.steps)

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        rise = max(1, round(self.warmup * self.steps))
        if step < rise:
            return self.lr * (step + 1) / rise
        angle = math.pi * (step - rise) / max(1, self.steps - rise)
        return self.lr * (_FLOOR + (1 - _FLOOR) * (1 + math.cos(angle)) / 2)

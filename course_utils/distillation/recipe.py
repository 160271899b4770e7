"""How a student is to be trained: every setting in one place, checked when it is made."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from course_utils import checks, session
from course_utils.argument_types import check_types
from course_utils.distillation.losses import LOSSES

_FLOOR = 0.1  # the share of the peak learning rate that is left at the end


def _count(name: str, value: Any) -> int:
    return checks.whole_number(name, value, least=1)


def _count_or_none(name: str, value: Any) -> int | None:
    return None if value is None else _count(name, value)


def _pairs_or_none(name: str, value: Any) -> tuple[tuple[int, int], ...] | None:
    if value is None:
        return None
    given = list(value) if isinstance(value, Iterable) else []
    pairs = [checks.whole_numbers(name, pair) for pair in given]
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise ValueError(
            f"'{name}' must hold pairs, a student's block and a teacher's, such as [(20, 26)]; got {value!r}."
        )
    return tuple((student, teacher) for student, teacher in pairs)


def _number(check: Callable[[str, Any], float]) -> Callable[[str, Any], float]:
    """Whatever kind of number passes the check (numpy's too), as a float, which JSON can hold."""
    return lambda name, value: float(check(name, value))


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings of ``distill``. Only ``steps`` and ``lr`` have no default.

    The defaults follow Muralidharan et al. 2024 (arXiv 2407.14679): forward KL of the logits, AdamW with a linear
    warm-up and a cosine.

    Attributes:
        steps: optimiser steps; ``session.at_most`` may leave fewer.
        lr: the peak learning rate; 1e-4 to 2e-4 after heavy width pruning.
        loss: "forward_kl", "reverse_kl" or "jsd", see ``losses.token_loss``.
        temperature: what both models' logits are divided by before they are compared.
        alpha: the cross-entropy's share of the loss, from 0 to 1; at 1 the teacher has no say and isn't run.
        beta: the teacher's share of the mixture that "jsd" compares with, above 0 and below 1 (for the ends take the
            two KLs).
        hidden: how much the states inside the models count beside their predictions, see ``hidden.HiddenLoss``: this
            times a distance that is 0 where they are equal and 1 where they have nothing in common; 0 leaves it out.
        hidden_pairs: whose states: pairs of a student's block and a teacher's; None takes one late pair. Goes with
            ``hidden``.
        accumulate: batches a step.
        warmup: share of the steps in which the rate rises; then it falls as a cosine to a tenth.
        weight_decay: AdamW's, of the matrices; norms and biases never decay.
        clip: the largest length of the gradient.
        precision: what matrices are multiplied in (autocast): ``torch.float32`` or ``torch.bfloat16``; weights, sums
            and losses stay in float32.
        recompute: save memory by computing the student's activations twice (activation checkpointing).
        train_embedding: False leaves the input embedding as it is, and the head with it where the two are one matrix
            (a head of its own is still trained). It then needs no gradient and no averages of AdamW: 16 bytes a number.
        mlps_only: True trains the MLPs' matrices, which pruning cut, and leaves everything else as it is. A student
            that is a ``variant`` of a float32 model goes on sharing the rest with it.
        validate_every: steps from one measurement on held-out text to the next; the last step is always measured.
        patience: stop after so many measurements without a better one; None goes on to the end.
        seed: of the order of the batches, and of dropout.
        save_every: steps from one save to the next; the end is always saved.

    Raises:
        ValueError: a setting is out of range.

    >>> recipe = Recipe(steps=400, lr=2e-4)
    >>> [f"{recipe.rate(step):.6f}" for step in (0, 19, 200, 399)]
    ['0.000010', '0.000200', '0.000117', '0.000020']
    """

    steps: int
    lr: float
    loss: str = "forward_kl"
    temperature: float = 1.0
    alpha: float = 0.0
    beta: float = 0.5
    hidden: float = 0.0
    hidden_pairs: tuple[tuple[int, int], ...] | None = None
    accumulate: int = 1
    warmup: float = 0.05
    weight_decay: float = 0.0
    clip: float = 1.0
    precision: torch.dtype = torch.float32
    recompute: bool = False
    train_embedding: bool = True
    mlps_only: bool = False
    validate_every: int = 50
    patience: int | None = None
    seed: int = 0
    save_every: int = 50

    def __post_init__(self) -> None:
        for name, check in _CHECKS.items():
            object.__setattr__(self, name, check(name, getattr(self, name)))  # frozen for everybody else
        if self.hidden_pairs is not None and self.hidden == 0:
            raise ValueError("'hidden_pairs' goes with 'hidden' above 0, the weight of that loss; got 0.")

    def __str__(self) -> str:
        """One line a setting."""
        return "\n".join(f"{name:<16}{value}" for name, value in self.as_json().items())

    def as_json(self) -> dict[str, Any]:
        """The settings by name, as JSON can hold them."""
        pairs = None if self.hidden_pairs is None else [list(pair) for pair in self.hidden_pairs]
        return vars(self) | {"precision": str(self.precision), "hidden_pairs": pairs}

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


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "steps": lambda name, value: session.at_most(_count(name, value)),
    "lr": _number(checks.positive),
    "loss": lambda name, value: checks.one_of(name, value, LOSSES),
    "temperature": _number(checks.positive),
    "alpha": _number(checks.share),
    "beta": _number(checks.between_0_and_1),
    "hidden": _number(checks.at_least_zero),
    "hidden_pairs": _pairs_or_none,
    "accumulate": _count,
    "warmup": _number(checks.share),
    "weight_decay": _number(checks.at_least_zero),
    "clip": _number(checks.positive),
    "precision": lambda name, value: checks.one_of(name, value, (torch.float32, torch.bfloat16)),
    "recompute": checks.flag,
    "train_embedding": checks.flag,
    "mlps_only": checks.flag,
    "validate_every": _count,
    "patience": _count_or_none,
    "seed": checks.whole_number,
    "save_every": _count,
}


@check_types
def with_settings(recipe: Recipe | None, settings: Mapping[str, Any]) -> Recipe:
    """A new recipe from settings by name, or a recipe with some of them changed.

    Raises:
        TypeError: there is no such setting, or ``steps`` or ``lr`` is missing.
        ValueError: a setting is out of range.
    """
    known = [field.name for field in fields(Recipe)]
    unknown = [name for name in settings if name not in known]
    if unknown:
        raise TypeError(f"There is no setting {', '.join(map(repr, unknown))}; there are {', '.join(known)}.")
    missing = [name for name in ("steps", "lr") if recipe is None and name not in settings]
    if missing:
        raise TypeError(f"{' and '.join(map(repr, missing))} must be given: the steps to train, and the learning rate.")
    return Recipe(**settings) if recipe is None else replace(recipe, **settings)

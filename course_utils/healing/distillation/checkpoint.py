"""What happened in a distillation, and the one file that holds all of it, so that a run goes on exactly."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.optim import Optimizer
from transformers import PreTrainedModel

from course_utils.healing.distillation.processes import full_tensor, sharded_like
from course_utils.healing.distillation.recipe import Recipe
from course_utils.healing.distillation.weights import ADAPTER
from course_utils.models.loading import identity
from course_utils.support.extras import brought
from course_utils.support.files import replacing
from course_utils.text.batches import Batch, text_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CHECKPOINT = "distillation.safetensors"
_STUDENT = "student before training"
_FREE = ("recompute", "save_every")  # settings that change nothing that is learned: a run may go on with others


@dataclass
class History:
    """What happened, step by step.

    Attributes:
        steps: one dict per step: step (from 1), loss (mean over the step's predicted tokens, before the update), lr,
            gradient_norm (before clipping), tokens (predicted so far), seconds (so far, over all sessions).
        validation: one dict per measurement: step, loss (the same loss on held-out batches).
    """

    steps: list[dict[str, Any]] = field(default_factory=list)
    validation: list[dict[str, Any]] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Predicted tokens so far."""
        return self.steps[-1]["tokens"] if self.steps else 0

    @property
    def seconds(self) -> float:
        """Seconds of training so far, over all sessions."""
        return self.steps[-1]["seconds"] if self.steps else 0.0

    def add_step(self, *, loss: float, lr: float, gradient_norm: float, tokens: int, seconds: float) -> None:
        """Add a step, as ``steps`` describes it, with the tokens of this step alone."""
        row = {"step": len(self.steps) + 1, "loss": loss, "lr": lr, "gradient_norm": gradient_norm}
        self.steps.append(row | {"tokens": self.tokens + tokens, "seconds": seconds})

    @property
    def is_measured(self) -> bool:
        """Whether the last step was followed by a measurement on held-out text."""
        return bool(self.validation) and self.validation[-1]["step"] == len(self.steps)

    def frame(self) -> pd.DataFrame:
        """``steps`` as a frame, with the column "validation" where it was measured."""
        measured = {row["step"]: row["loss"] for row in self.validation}
        frame = pd.DataFrame(self.steps, columns=["step", "loss", "lr", "gradient_norm", "tokens", "seconds"])
        return frame.assign(validation=frame["step"].map(measured).astype(float))

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the loss against tokens, of each step and of the held-out batches, into ``ax`` or a new figure."""
        with brought("plots"):
            import matplotlib.pyplot as plt

        ax = plt.subplots(layout="constrained")[1] if ax is None else ax
        frame = self.frame()
        ax.plot(frame["tokens"], frame["loss"], alpha=0.5, label="training batches")
        held_out = frame.dropna(subset="validation")
        if len(held_out):
            ax.plot(held_out["tokens"], held_out["validation"], marker="o", label="held-out text")
        ax.set(xlabel="tokens learned from", ylabel="loss, nats per token")
        ax.locator_params(axis="x", nbins=5)
        ax.xaxis.set_major_formatter("{x:,.0f}")
        ax.legend()
        return ax


class CheckpointMismatch(ValueError):
    """The checkpoint belongs to a run with other settings, data or models."""


def name_of(model: PreTrainedModel) -> str:
    """A model in words, with the digest of its configuration and all its weights."""
    return f"{model.config.model_type} of {model.num_parameters():,} parameters, {identity(model)}"


def run_of(
    recipe: Recipe, teacher: str, student: PreTrainedModel, train: Sequence[Batch], held_out: Sequence[Batch]
) -> dict[str, Any]:
    """What makes a run another run, by name, as JSON can hold it: the student as it was given, and all else."""
    models = {"teacher": teacher, _STUDENT: name_of(student)}
    return models | {"text": text_of(train), "validation text": text_of(held_out)} | recipe.as_json()


@dataclass
class Checkpoint:
    """Where a run is kept: what it is, what happened, weights and AdamW's averages. A ``folder`` of None keeps nothing.

    Where there are several processes, all must call ``save`` and ``restore``; one writes.
    """

    folder: str | os.PathLike | None
    run: dict[str, Any]
    student: PreTrainedModel
    optimizer: Optimizer
    write: bool

    @property
    def _path(self) -> Path | None:
        return None if self.folder is None else Path(self.folder) / CHECKPOINT

    def save(self, history: History) -> None:
        """Write everything, whole or not at all."""
        if self._path is None:
            return
        tensors = {}
        for name, weight in self.student.named_parameters():
            values = {"weight": weight} | self.optimizer.state.get(weight, {})  # without a gradient it has no more
            for key, value in values.items():
                complete = full_tensor(value.detach())
                if self.write:
                    tensors[f"{key}.{name}"] = complete.cpu().contiguous()
        if self.write:
            state = {"run": self.run, "history": vars(history), "configuration": self._configuration}
            with replacing(self._path) as fresh:
                save_file(tensors, fresh, metadata={"state": json.dumps(state)})

    @torch.no_grad()
    def restore(self) -> History:
        """Read the weights and the optimiser's averages back, in place.

        Returns:
            The history that was saved; an empty one where there is nothing yet.

        Raises:
            CheckpointMismatch: the file can't be read, or belongs to another run; the message names the difference.
        """
        if self._path is None or not self._path.exists():
            return History()
        try:
            file = safe_open(self._path, framework="pt")
            state = json.loads(file.metadata()["state"])
            run, history, configuration = state["run"], History(**state["history"]), state["configuration"]
        except Exception as error:  # safetensors has an error class of its own
            raise CheckpointMismatch(
                f"'{self._path}' can't be read ({error}); delete it, or give another folder."
            ) from error
        self._refuse_others(run, configuration, file)
        stored = set(file.keys())
        for name, weight in self.student.named_parameters():
            if weight.requires_grad:  # a frozen one is as it was, and may be another model's as well
                weight.copy_(sharded_like(file.get_tensor(f"weight.{name}"), weight))
            if f"exp_avg.{name}" in stored:  # a bypassed attention's weights never had a gradient
                self.optimizer.state[weight] = {
                    key: sharded_like(file.get_tensor(f"{key}.{name}"), weight) for key in ("exp_avg", "exp_avg_sq")
                } | {"step": file.get_tensor(f"step.{name}").to(weight.device)}
        return history

    @property
    def _configuration(self) -> str:
        return self.student.config.to_json_string(use_diff=False)

    def _refuse_others(self, then: dict[str, Any], configuration: str, file: Any) -> None:
        now = self.run
        differ = [name for name in now | then if name not in _FREE and then.get(name) != now.get(name)]
        if differ == [_STUDENT] and configuration == self._configuration and self._is_saved_in(file):
            return
        if differ:
            told = "; ".join(f"{name}: {then.get(name)!r} then, {now.get(name)!r} now" for name in differ)
            raise CheckpointMismatch(
                f"'{self._path}' belongs to another run. {told}. Give another folder, or delete this one."
            )

    def _is_saved_in(self, file: Any) -> bool:
        """Whether the student has learned what is saved: after Ctrl-C, the same object may simply go on.

        Its adapters, which Ctrl-C took away, are new ones then.
        """
        weights, stored = dict(self.student.named_parameters()), file.keys()
        saved = {name.removeprefix("weight.") for name in stored if name.startswith("weight.")}
        return saved == weights.keys() and all(
            torch.equal(full_tensor(weight).cpu(), file.get_tensor(f"weight.{name}"))
            for name, weight in weights.items()
            if ADAPTER not in name
        )

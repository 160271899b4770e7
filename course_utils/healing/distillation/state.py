"""One file that holds all of a distillation, so that it goes on exactly where it stopped."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel

from course_utils.healing.distillation.adapters import ADAPTER
from course_utils.healing.distillation.processes import full_tensor, sharded_like
from course_utils.healing.distillation.recipe import Recipe
from course_utils.models.loading import identity
from course_utils.support.files import replacing
from course_utils.text.batches import Batch, rows_of, text_of

CHECKPOINT = "distillation.safetensors"
_STUDENT = "student before training"
_FREE = ("recompute", "save_every")  # settings that change nothing that is learned: a run may go on with others


class CheckpointMismatch(ValueError):
    """The checkpoint belongs to a run with other settings, data or models."""


def name_of(model: PreTrainedModel) -> str:
    """A model in words, with the digest of its configuration and all its weights."""
    return f"{model.config.model_type} of {model.num_parameters():,} parameters, {identity(model)}"


def refuse_unknown(batches: Iterable[Batch], known: Container[str], *, place: str, maker: str) -> None:
    """Raise ValueError when a teacher that was asked beforehand doesn't know a row of text.

    Args:
        batches: what a student is about to see.
        known: the rows that the teacher was asked about, as ``rows_of`` names them.
        place: where its answers are kept, for the message.
        maker: the function that keeps them, for the message.
    """
    are_known = Counter(row in known for batch in batches for row in rows_of(batch))
    if are_known[False]:
        raise ValueError(
            f"{are_known[False]} of {are_known.total()} rows of text are not in {place}. Give {maker} all rows that "
            "the student is to see, those for validation included."
        )


def run_of(
    recipe: Recipe, teacher: str, student: PreTrainedModel, train: Sequence[Batch], held_out: Sequence[Batch]
) -> dict[str, Any]:
    """What makes a run another run, by name, as JSON can hold it.

    Args:
        recipe: the settings.
        teacher: in words, with a digest.
        student: as it was given, before anything is done to it.
        train: what is learned from.
        held_out: what is measured on; may be empty.
    """
    models_and_text = {
        "teacher": teacher,
        _STUDENT: name_of(student),
        "text": text_of(train),
        "validation text": text_of(held_out),
    }
    return models_and_text | recipe.as_json()


class Checkpoint:
    """Where a run is kept: who runs, what happened, the student's weights and the optimiser's averages.

    Of several processes all must call ``save`` and ``restore``; one writes.

    Args:
        folder: None keeps nothing.
        run: of ``run_of``; empty where nothing is kept.
        student: the model that is trained, whole or cut up among the processes.
        optimizer: AdamW over its weights.
        write: whether this is the process that writes.
    """

    def __init__(
        self,
        folder: str | os.PathLike | None,
        run: dict[str, Any],
        student: PreTrainedModel,
        optimizer: Optimizer,
        *,
        write: bool,
    ) -> None:
        self._path = None if folder is None else Path(folder) / CHECKPOINT
        self._run, self._student, self._optimizer, self._write = run, student, optimizer, write

    def save(self, history: dict[str, Any]) -> None:
        """Write everything beside the old file, then put it in its place."""
        if self._path is None:
            return
        tensors = {}
        for name, weight in self._student.named_parameters():
            values = {"weight": weight} | self._optimizer.state.get(weight, {})  # without a gradient it has no more
            for key, value in values.items():
                complete = full_tensor(value.detach())
                if self._write:
                    tensors[f"{key}.{name}"] = complete.cpu().contiguous()
        if self._write:
            state = {"run": self._run, "history": history, "configuration": self._configuration}
            write_tensors(self._path, tensors, state)

    @torch.no_grad()
    def restore(self) -> dict[str, Any]:
        """Read the weights and the optimiser's averages back, in place.

        Returns:
            The history that was saved; {} where there is nothing yet.

        Raises:
            CheckpointMismatch: the file can't be read, or belongs to another run; the message names the difference.
        """
        if self._path is None or not self._path.exists():
            return {}
        try:
            file = safe_open(self._path, framework="pt")
            state = json.loads(file.metadata()["state"])
            then, history, configuration = state["run"], state["history"], state["configuration"]
        except Exception as error:  # safetensors has an error class of its own
            raise CheckpointMismatch(
                f"'{self._path}' can't be read ({error}); delete it, or give another folder."
            ) from error
        self._refuse_others(then, configuration, file)
        stored = set(file.keys())
        for name, weight in self._student.named_parameters():
            if weight.requires_grad:  # a frozen one is as it was, and may be another model's as well
                weight.copy_(sharded_like(file.get_tensor(f"weight.{name}"), weight))
            if f"exp_avg.{name}" in stored:  # a bypassed attention's weights never had a gradient
                self._optimizer.state[weight] = {
                    key: sharded_like(file.get_tensor(f"{key}.{name}"), weight) for key in ("exp_avg", "exp_avg_sq")
                } | {"step": file.get_tensor(f"step.{name}").to(weight.device)}
        return history

    @property
    def _configuration(self) -> str:
        return self._student.config.to_json_string(use_diff=False)

    def _refuse_others(self, then: dict[str, Any], configuration: str, file: Any) -> None:
        now = self._run
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
        weights, stored = dict(self._student.named_parameters()), file.keys()
        saved = {name.removeprefix("weight.") for name in stored if name.startswith("weight.")}
        return saved == weights.keys() and all(
            torch.equal(full_tensor(weight).cpu(), file.get_tensor(f"weight.{name}"))
            for name, weight in weights.items()
            if ADAPTER not in name
        )


def write_tensors(path: Path, tensors: dict[str, Tensor], state: object) -> None:
    """Write tensors with a note that JSON can hold, whole or not at all."""
    with replacing(path) as fresh:
        save_file(tensors, fresh, metadata={"state": json.dumps(state)})

"""One file that holds all of a distillation, so that it goes on exactly where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from course_utils.batches import Batch
from course_utils.distillation.processes import shared_like, whole

_FORMER = {"train_embedding": True, "beta": 0.5}  # settings of which older checkpoints don't speak


class CheckpointMismatch(ValueError):
    """The checkpoint belongs to a run with other settings, data or models."""


def digest(parts: Iterable[bytes | np.ndarray]) -> str:
    """16 hexadecimal digits that stand for the parts (bytes, or numpy arrays without gaps), in their order."""
    hashed = blake2b(digest_size=8)
    for part in parts:
        hashed.update(part)
        hashed.update(b"|")
    return hashed.hexdigest()


def shapes(model: nn.Module) -> str:
    """A digest of the weights' names and shapes."""
    return digest([json.dumps([[name, list(weight.shape)] for name, weight in model.named_parameters()]).encode()])


def text(batches: Sequence[Batch]) -> str:
    """A digest of the batches' real tokens."""
    return digest(batch.input_ids[batch.real].cpu().numpy() for batch in batches)


def save(
    path: Path, identity: dict, history: dict, student: nn.Module, optimizer: Optimizer, *, write: bool = True
) -> None:
    """One file with everything, written beside the old one and then moved over it.

    Of several processes all must call this, and one writes.
    """
    tensors = {}
    for name, weight in student.named_parameters():
        values = {"weight": weight} | optimizer.state.get(weight, {})  # a frozen weight has no more
        for key, value in values.items():
            complete = whole(value.detach())
            if write:
                tensors[f"{key}.{name}"] = complete.cpu().contiguous()
    if not write:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, tensors, {"identity": identity, "history": history})


def write_tensors(path: Path, tensors: dict[str, Tensor], state: object) -> None:
    """Write tensors with a note that JSON can hold, whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    save_file(tensors, temporary, metadata={"state": json.dumps(state)})
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


@torch.no_grad()
def restore(path: Path, identity: dict, student: nn.Module, optimizer: Optimizer) -> dict:
    """Read the weights and the optimiser's averages back, in place; return the history.

    Raises:
        CheckpointMismatch: the file can't be read, or its identity is another one; the message names the difference.
    """
    try:
        file = safe_open(path, framework="pt")
        state = json.loads(file.metadata()["state"])
    except Exception as error:  # safetensors has an error class of its own
        raise CheckpointMismatch(f"'{path}' can't be read ({error}); delete it, or give another folder.") from error
    then, now = _FORMER | state["identity"], identity
    differences = [f"{key}: {then.get(key)!r} then, {now[key]!r} now" for key in now if then.get(key) != now[key]]
    if differences:
        raise CheckpointMismatch(
            f"'{path}' belongs to another run. {'; '.join(differences)}. Give another folder, or delete this one."
        )
    for name, weight in student.named_parameters():
        weight.copy_(shared_like(file.get_tensor(f"weight.{name}"), weight))
        if weight.requires_grad:
            optimizer.state[weight] = {
                key: shared_like(file.get_tensor(f"{key}.{name}"), weight) for key in ("exp_avg", "exp_avg_sq")
            } | {"step": file.get_tensor(f"step.{name}")}
    return state["history"]

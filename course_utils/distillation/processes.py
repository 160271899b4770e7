"""One training on several processes: whose device, whose batches, and weights that are cut up among them.

Data-parallel processes hold everything each, and add up their gradients. Under FSDP2 (PyTorch's ``fully_shard``, after
Zhao et al. 2023, arXiv 2304.11277) each holds a part of every weight, gradient and average of the optimiser; whole
weights come together block by block, when they are needed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import is_initialized
from accelerate.utils import DistributedType, gather_object
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from course_utils.models import identity

_ALONE = ContextVar("alone", default=False)


@contextmanager
def alone() -> Iterator[None]:
    """What is trained meanwhile, this process trains by itself: other processes of the same launch aren't asked.

    For what one process does while the others wait, such as a search; it gives the very numbers of a single process.
    """
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


class Alone:
    """What training asks of an ``Accelerator``, answered for one process that shares nothing with others."""

    num_processes, process_index, is_main_process, is_fsdp2 = 1, 0, True, False

    def prepare(self, *parts: Any) -> tuple[Any, ...]:
        """The parts as they are."""
        return parts

    def autocast(self) -> AbstractContextManager:
        """Nothing is cast: a recipe says its precision itself."""
        return nullcontext()

    def no_sync(self, _model: nn.Module) -> AbstractContextManager:
        """There is nobody to wait for."""
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Add to the gradients."""
        loss.backward()

    def clip_grad_norm_(self, weights: Iterator[nn.Parameter], most: float) -> Tensor:
        """Shorten the gradient to a length; returns the one that it had."""
        return nn.utils.clip_grad_norm_(weights, most)

    def reduce(self, tensor: Tensor, _how: str) -> Tensor:
        """The tensor as it is."""
        return tensor

    def wait_for_everyone(self) -> None:
        """There is nobody to wait for."""


def take_part(accumulate: int, student: PreTrainedModel, teacher: PreTrainedModel | None = None) -> Accelerator | Alone:
    """Join the other processes, if there are any. Each has a device that accelerate chose; the models move there.

    A single process stays where its models are: accelerate would put all runs of a process on the device of the first.

    Args:
        accumulate: batches a step.
        student: may differ among the processes; all of them train the first one's.
        teacher: must be the same everywhere.

    Raises:
        ValueError: a launch that isn't supported, ``accumulate`` batches that can't be shared equally, or a teacher
            that isn't the same in all processes.
    """
    if _ALONE.get():
        return Alone()
    models = [student] if teacher is None else [student, teacher]
    device = models[0].device
    accelerator = Accelerator(cpu=device.type == "cpu" and not is_initialized(), device_placement=False)
    sharded = accelerator.distributed_type == DistributedType.FSDP
    if accelerator.distributed_type == DistributedType.DEEPSPEED or (sharded and not accelerator.is_fsdp2):
        raise ValueError(
            "DeepSpeed and the first version of FSDP aren't supported: launch data-parallel (accelerate launch "
            "--multi_gpu) or sharded (accelerate launch --use_fsdp --fsdp_version 2)."
        )
    if accelerator.num_processes == 1:
        return accelerator
    if accelerator.device.type != device.type:
        raise ValueError(
            f"The models are on {device}, but accelerate gave this process {accelerator.device}; load them onto "
            "accelerate.PartialState().device."
        )
    if accumulate % accelerator.num_processes:
        raise ValueError(
            f"'accumulate' ({accumulate}) must be a multiple of the number of processes ({accelerator.num_processes}), "
            "so that each has the same number of batches in every step."
        )
    if teacher is not None and len(set(gather_object([identity(teacher)]))) > 1:
        raise ValueError(
            "The teacher isn't the same in all processes: each must load, or make, the same weights. A sharded launch "
            "may load them in the first process alone; --fsdp_cpu_ram_efficient_loading false makes all do it."
        )
    for model in models:
        model.to(accelerator.device)
    return accelerator


@contextmanager
def to_train(accelerator: Accelerator | Alone, student: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """The model to prepare and train: the student, or a copy of it where its weights are going to be cut up for good.

    Meanwhile the student waits in main memory. Where all goes well, it gets the copy's weights.
    """
    if not accelerator.is_fsdp2:
        yield student
        return
    device, trained = student.device, copy.deepcopy(student)
    student.to("cpu")
    try:
        yield trained
        with torch.no_grad():
            for weight, learned in zip(student.parameters(), trained.parameters(), strict=True):
                weight.copy_(whole(learned))
    finally:
        student.to(device).eval()


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be cut up among the processes, complete; then all of them must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shared_like(tensor: Tensor, pattern: Tensor) -> Tensor:
    """A complete tensor, the same in every process, on the device of ``pattern`` and cut up as that is."""
    tensor = tensor.to(pattern.device)
    return (
        distribute_tensor(tensor, pattern.device_mesh, pattern.placements) if isinstance(pattern, DTensor) else tensor
    )

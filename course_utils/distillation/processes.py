"""One training on several processes: whose device, whose batches, and weights that are cut up among them.

Data-parallel processes hold everything each, and add up their gradients. Under FSDP2 (PyTorch's ``fully_shard``, after
Zhao et al. 2023, arXiv 2304.11277) each holds a part of every weight, gradient and average of the optimiser; whole
weights come together block by block, when they are needed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.state import is_initialized
from accelerate.utils import DistributedType
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel


def take_part(accumulate: int, models: Sequence[PreTrainedModel]) -> Accelerator:
    """Join the other processes, if there are any. Each has a device that accelerate chose; the models move there.

    A single process stays where its models are: accelerate would put all runs of a process on the device of the first.

    Raises:
        ValueError: a launch that isn't supported, or ``accumulate`` batches that can't be shared equally.
    """
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
    for model in models:
        model.to(accelerator.device)
    return accelerator


@contextmanager
def to_train(accelerator: Accelerator, student: PreTrainedModel) -> Iterator[PreTrainedModel]:
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

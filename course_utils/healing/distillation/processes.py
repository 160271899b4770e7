"""One training on several processes: whose device, whose batches, and weights that are sharded among them.

Data-parallel processes each hold everything, and add up their gradients. Under FSDP2 (PyTorch's ``fully_shard``, after
Zhao et al. 2023, arXiv 2304.11277) each holds a part of every weight, gradient and average of the optimiser; the
weights of a block come together when it is needed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.state import is_initialized
from accelerate.utils import DistributedType, broadcast_object_list, gather_object
from torch import Tensor, nn
from torch.distributed import is_available
from torch.distributed import is_initialized as is_joined
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel

from course_utils.models.architectures import Architecture, describe
from course_utils.models.loading import identity
from course_utils.text.batches import Batch

T = TypeVar("T")

_ALONE = ContextVar("alone", default=False)


@contextmanager
def alone() -> Iterator[None]:
    """While the context is open, this process trains by itself, without the other processes of the same launch.

    It is for what one process does while the others wait, and gives the very numbers of a single process.
    """
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def first_says(value: T) -> T:
    """The value that the first process has; all processes must call this. One that works alone keeps its own."""
    if _ALONE.get() or not (is_available() and is_joined()):
        return value
    (said,) = broadcast_object_list([value])
    return said


class Processes:
    """The processes that train one student, of which each must make every call; or this one, without an accelerator.

    Attributes:
        index: which of the processes this is; the first one, 0, writes and shows.
        count: how many there are.
        is_sharded: whether the student's weights are sharded among them.
    """

    index, count, is_sharded = 0, 1, False

    def __init__(self, accelerator: Accelerator | None = None) -> None:
        self._accelerator = accelerator
        if accelerator is not None:
            self.index, self.count = accelerator.process_index, accelerator.num_processes
            self.is_sharded = accelerator.is_fsdp2

    @contextmanager
    def trained(self, student: PreTrainedModel) -> Iterator[PreTrainedModel]:
        """Give the model to train: the student, or a copy to shard, whose weights the student gets in the end."""
        if self.is_sharded:
            with _copied_in_main_memory(student) as model:
                yield model
                with torch.no_grad():
                    for weight, learned in zip(student.parameters(), model.parameters(), strict=True):
                        weight.copy_(full_tensor(learned))
        else:
            yield student
        if self._accelerator is not None:
            self._accelerator.wait_for_everyone()

    @contextmanager
    def asked(self, teacher: T) -> Iterator[T]:
        """Give the teacher, or a copy whose blocks are sharded; what stands outside them is small and stays whole."""
        if not (self.is_sharded and isinstance(teacher, PreTrainedModel)):
            yield teacher
            return
        device = teacher.device
        mesh = init_device_mesh(device.type, (self.count,))
        with _copied_in_main_memory(teacher) as model:
            for block in describe(model).blocks:
                fully_shard(block, mesh=mesh, reshard_after_forward=True)
            nn.Module.to(model, device)
            yield cast(T, model)

    def prepare(
        self, student: Architecture, loss: Callable[[Architecture, Batch], Tensor], optimizer: Optimizer
    ) -> tuple[Callable[[Batch], Tensor], Optimizer]:
        """The loss of a batch, as a module that accelerate wraps or shards, and the optimiser."""
        self._model: nn.Module = _StudentWithLoss(student, loss)
        if self._accelerator is not None:
            self._model, optimizer = self._accelerator.prepare(self._model, optimizer)
        return self._model, optimizer

    def share(self, batches: Sequence[T]) -> Iterator[T]:
        """Hand out this process's batches of a step, each for a forward and a backward pass.

        Data-parallel processes add up their gradients in the last backward pass of a step. A sharded student's are
        added up in each, because every process would have to hold them whole until then.
        """
        own = batches[self.index :: self.count]
        for number, batch in enumerate(own, start=1):
            if self._accelerator is None or self.is_sharded or number == len(own):
                yield batch
            else:
                with self._accelerator.no_sync(self._model):
                    yield batch

    def backward(self, loss: Tensor) -> None:
        """Add a loss's gradients to those of the step."""
        if self._accelerator is None:
            loss.backward()
        else:  # it takes the mean over the processes, where the sum is wanted
            self._accelerator.backward(loss * self.count)

    def clip(self, model: nn.Module, longest: float) -> float:
        """Shorten the gradient of all processes together to a length; returns the length that it had."""
        clip = nn.utils.clip_grad_norm_ if self._accelerator is None else self._accelerator.clip_grad_norm_
        return float(full_tensor(clip(model.parameters(), longest)))

    def add_up(self, value: Tensor) -> float:
        """The sum of all processes' values."""
        return float(value if self._accelerator is None else self._accelerator.reduce(value, "sum"))

    def measure(self, loss: Callable[[Batch], Tensor], batches: Sequence[Batch]) -> float:
        """The sum of a loss over the batches, of which each process takes its share."""
        total = torch.zeros((), device=batches[0].input_ids.device)
        for start in range(0, len(batches), self.count):
            own = start + self.index
            value = loss(batches[min(own, len(batches) - 1)])  # one too many, so that all processes do the same
            total += value if own < len(batches) else 0
        if isinstance(self._model, FSDPModule):
            self._model.reshard()  # what lies outside the blocks stays whole after a forward pass, until a backward
        return self.add_up(total)


@contextmanager
def _copied_in_main_memory(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """A copy to shard, in main memory, so that no card ever holds a model twice.

    Afterwards the model is where it was, in eval mode.
    """
    device = model.device
    try:
        nn.Module.to(model, "cpu")
        yield copy.deepcopy(model)
    finally:
        nn.Module.to(model, device).eval()


class _StudentWithLoss(nn.Module):
    """So that a wrapper (data-parallel, sharded) sees one forward."""

    def __init__(self, architecture: Architecture, loss: Callable[[Architecture, Batch], Tensor]) -> None:
        super().__init__()
        self.student, self._architecture, self._loss = architecture.model, architecture, loss
        self._no_split_modules = [type(architecture.blocks[0]).__name__]  # what accelerate shards on its own: a block

    def tie_weights(self) -> None:
        """Accelerate calls this after it has loaded weights anew."""
        self.student.tie_weights()

    def forward(self, batch: Batch) -> Tensor:
        return self._loss(self._architecture, batch)


def take_part(accumulate: int, student: PreTrainedModel, teacher: object) -> Processes:
    """Join the other processes, if there are any. Each has a device that accelerate chose; the models move there.

    A single process stays where its models are: accelerate would put all runs of a process on the device of the first.
    All processes train the first one's student; a teacher that is a model must be the same everywhere.

    Raises:
        ValueError: a launch that isn't supported, ``accumulate`` batches that can't be shared equally, or a teacher
            that isn't the same in all processes.
    """
    if _ALONE.get():
        return Processes()
    device = student.device
    accelerator = Accelerator(cpu=device.type == "cpu" and not is_initialized(), device_placement=False)
    sharded = accelerator.distributed_type == DistributedType.FSDP
    if accelerator.distributed_type == DistributedType.DEEPSPEED or (sharded and not accelerator.is_fsdp2):
        raise ValueError(
            "DeepSpeed and the first version of FSDP aren't supported: launch data-parallel (accelerate launch "
            "--multi_gpu) or sharded (accelerate launch --use_fsdp --fsdp_version 2)."
        )
    if accelerator.num_processes == 1:
        return Processes(accelerator if sharded else None)
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
    models = [model for model in (student, teacher) if isinstance(model, PreTrainedModel)]
    if len({*gather_object([identity(model) for model in models[1:]])}) > 1:
        raise ValueError(
            "The teacher isn't the same in all processes: each must load, or make, the same weights. A sharded launch "
            "may load them in the first process alone; --fsdp_cpu_ram_efficient_loading false makes all do it."
        )
    for model in models:
        nn.Module.to(model, accelerator.device)
    return Processes(accelerator)


def full_tensor(tensor: Tensor) -> Tensor:
    """A tensor that may be sharded among the processes, whole; then all of them must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded_like(tensor: Tensor, pattern: Tensor) -> Tensor:
    """A whole tensor, the same in every process, on the device of ``pattern`` and sharded as that is."""
    tensor = tensor.to(pattern.device)
    return (
        distribute_tensor(tensor, pattern.device_mesh, pattern.placements) if isinstance(pattern, DTensor) else tensor
    )

"""One training on several processes: whose device, whose batches, and weights that are cut up among them.

Data-parallel processes hold everything each, and add up their gradients. Under FSDP2 (PyTorch's ``fully_shard``, after
Zhao et al. 2023, arXiv 2304.11277) each holds a part of every weight, gradient and average of the optimiser; whole
weights come together block by block, when they are needed. A training loop asks one object, ``Alone`` or ``Together``.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import is_initialized
from accelerate.utils import DistributedType, broadcast_object_list, gather_object
from torch import Tensor, nn
from torch.distributed import is_available
from torch.distributed import is_initialized as is_joined
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
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
    """What is trained meanwhile, this process trains by itself: other processes of the same launch aren't asked.

    For what one process does while the others wait, such as a search; it gives the very numbers of a single process.
    """
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def first_says(value: T) -> T:
    """What the first process has, for all of them, which must all call this; its own for one that works by itself."""
    if _ALONE.get() or not (is_available() and is_joined()):
        return value
    (said,) = broadcast_object_list([value])
    return said


class Alone:
    """One process that trains by itself.

    Attributes:
        index: which of the processes this is.
        count: how many there are.
        is_sharded: whether the student's weights are cut up among them.
    """

    index, count, is_sharded = 0, 1, False

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and shows."""
        return self.index == 0

    @contextmanager
    def trained(self, student: PreTrainedModel) -> Iterator[PreTrainedModel]:
        """The model to train: the student, or what becomes the student where all goes well."""
        yield student

    @contextmanager
    def asked(self, teacher: T) -> Iterator[T]:
        """Who is asked: the teacher, or a copy of the model that it is."""
        yield teacher

    def prepare(
        self, student: Architecture, loss: Callable[[Architecture, Batch], Tensor], optimizer: Optimizer
    ) -> tuple[Callable[[Batch], Tensor], Optimizer]:
        """The loss of a batch, which runs the student, and the optimiser."""
        return functools.partial(loss, student), optimizer

    def share(self, batches: Sequence[T]) -> Iterator[T]:
        """Hand out this process's batches of a step, each for a forward and a backward pass."""
        yield from batches

    def backward(self, loss: Tensor) -> None:
        """Add to the gradients."""
        loss.backward()

    def clip(self, model: nn.Module, longest: float) -> float:
        """Shorten the gradient to a length; returns the one that it had."""
        return float(nn.utils.clip_grad_norm_(model.parameters(), longest))

    def add_up(self, value: Tensor) -> float:
        """The sum of all processes' values."""
        return float(value)

    def measure(self, loss: Callable[[Batch], Tensor], batches: Sequence[Batch]) -> float:
        """The sum of a loss over the batches, of which each process takes its share."""
        total = torch.zeros((), device=batches[0].input_ids.device)
        for start in range(0, len(batches), self.count):
            own = start + self.index
            value = loss(batches[min(own, len(batches) - 1)])  # one too many, so that all processes do the same
            total += value if own < len(batches) else 0
        return self.add_up(total)


class Together(Alone):
    """One of several processes that train one student. Each call must be made by all of them."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self.index, self.count = accelerator.process_index, accelerator.num_processes
        self.is_sharded = accelerator.is_fsdp2

    @contextmanager
    def trained(self, student: PreTrainedModel) -> Iterator[PreTrainedModel]:
        """The student, or a copy where its weights are going to be cut up for good."""
        if self.is_sharded:
            with _copied_in_main_memory(student) as model:
                yield model
                with torch.no_grad():
                    for weight, learned in zip(student.parameters(), model.parameters(), strict=True):
                        weight.copy_(full_tensor(learned))
        else:
            yield student
        self._accelerator.wait_for_everyone()

    @contextmanager
    def asked(self, teacher: T) -> Iterator[T]:
        """The teacher, or a copy whose blocks are cut up; what stands outside of them is small, and stays whole."""
        if not (self.is_sharded and isinstance(teacher, PreTrainedModel)):
            yield teacher
            return
        device = self._accelerator.device
        mesh = init_device_mesh(device.type, (self.count,))
        with _copied_in_main_memory(teacher) as model:
            for block in describe(model).blocks:
                fully_shard(block, mesh=mesh, reshard_after_forward=True)
            yield model.to(device)

    def prepare(
        self, student: Architecture, loss: Callable[[Architecture, Batch], Tensor], optimizer: Optimizer
    ) -> tuple[Callable[[Batch], Tensor], Optimizer]:
        """The loss of a batch, as a model that accelerate wrapped or cut up, and the optimiser."""
        self._model, optimizer = self._accelerator.prepare(_StudentWithLoss(student, loss), optimizer)
        return self._model, optimizer

    def share(self, batches: Sequence[T]) -> Iterator[T]:
        """Hand out this process's batches of a step.

        Whole gradients are added up in the last one's backward pass. Those of a student that is cut up, in each: until
        then they'd be whole in every process.
        """
        *others, last = batches[self.index :: self.count]
        for batch in others:
            with nullcontext() if self.is_sharded else self._accelerator.no_sync(self._model):
                yield batch
        yield last

    def backward(self, loss: Tensor) -> None:
        """Add to the gradients, which data-parallel training averages over the processes: here they are to be added."""
        self._accelerator.backward(loss * self.count)

    def clip(self, model: nn.Module, longest: float) -> float:
        """Shorten the gradient of all processes together."""
        return float(full_tensor(self._accelerator.clip_grad_norm_(model.parameters(), longest)))

    def add_up(self, value: Tensor) -> float:
        """The sum of all processes' values."""
        return float(self._accelerator.reduce(value, "sum"))

    def measure(self, loss: Callable[[Batch], Tensor], batches: Sequence[Batch]) -> float:
        """The sum of a loss over the batches."""
        total = super().measure(loss, batches)
        if self.is_sharded:
            self._model.reshard()  # what lies outside the blocks stays whole after a forward pass, until a backward
        return total


@contextmanager
def _copied_in_main_memory(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """A copy to cut up, there, so that no card ever holds a model twice, or more than a block that isn't cut up yet.

    Afterwards the model is where it was, in eval mode.
    """
    device = model.device
    try:
        yield copy.deepcopy(model.to("cpu"))
    finally:
        model.to(device).eval()


class _StudentWithLoss(nn.Module):
    """So that a wrapper (data-parallel, sharded) sees one forward."""

    def __init__(self, architecture: Architecture, loss: Callable[[Architecture, Batch], Tensor]) -> None:
        super().__init__()
        self.student, self._architecture, self._loss = architecture.model, architecture, loss
        self._no_split_modules = [type(architecture.blocks[0]).__name__]  # what accelerate cuts up on its own: a block

    def tie_weights(self) -> None:
        """Accelerate asks for it after it has loaded weights anew."""
        self.student.tie_weights()

    def forward(self, batch: Batch) -> Tensor:
        return self._loss(self._architecture, batch)


def take_part(accumulate: int, student: PreTrainedModel, teacher: object) -> Alone:
    """Join the other processes, if there are any. Each has a device that accelerate chose; the models move there.

    A single process stays where its models are: accelerate would put all runs of a process on the device of the first.

    Args:
        accumulate: batches a step.
        student: may differ among the processes; all of them train the first one's.
        teacher: must be the same everywhere, where it is a model.

    Raises:
        ValueError: a launch that isn't supported, ``accumulate`` batches that can't be shared equally, or a teacher
            that isn't the same in all processes.
    """
    if _ALONE.get():
        return Alone()
    device = student.device
    accelerator = Accelerator(cpu=device.type == "cpu" and not is_initialized(), device_placement=False)
    sharded = accelerator.distributed_type == DistributedType.FSDP
    if accelerator.distributed_type == DistributedType.DEEPSPEED or (sharded and not accelerator.is_fsdp2):
        raise ValueError(
            "DeepSpeed and the first version of FSDP aren't supported: launch data-parallel (accelerate launch "
            "--multi_gpu) or sharded (accelerate launch --use_fsdp --fsdp_version 2)."
        )
    if accelerator.num_processes == 1:
        return Together(accelerator) if sharded else Alone()
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
        model.to(accelerator.device)
    return Together(accelerator)


def full_tensor(tensor: Tensor) -> Tensor:
    """A tensor that may be cut up among the processes, complete; then all of them must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded_like(tensor: Tensor, pattern: Tensor) -> Tensor:
    """A complete tensor, the same in every process, on the device of ``pattern`` and cut up as that is."""
    tensor = tensor.to(pattern.device)
    return (
        distribute_tensor(tensor, pattern.device_mesh, pattern.placements) if isinstance(pattern, DTensor) else tensor
    )

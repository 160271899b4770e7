"""What a run of ``compress`` takes: bytes counted from shapes, time from forward passes on this machine."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import psutil
import torch
from transformers import PreTrainedModel

from course_utils.compress.order import Order
from course_utils.compress.plan import CHOSEN, JUDGED, SCORED
from course_utils.compress.search import Candidate, outline_of
from course_utils.compress.vocabulary import OF_A_KIND
from course_utils.healing.distillation.memory import memory_plan, outline
from course_utils.measuring.abilities import TEXTS
from course_utils.measuring.benchmarking import stopwatch
from course_utils.models.architectures import cast_weights
from course_utils.models.reports import model_size

_TIMED, _PATIENCE = 5, 20.0  # forward passes, and seconds after which two of them will do
_VERSIONS = 6  # that are judged
_OF_VOCABULARY = 3 * (JUDGED + len(TEXTS) * OF_A_KIND)  # rows, where fewer tokens stay
_SHOWN = 0.01  # of the memory: what holds less isn't told


@dataclass(frozen=True)
class Needed:
    """What a run takes."""

    parts: dict[str, float]  # bytes in each process at its worst moment, by what holds them
    room: int  # bytes of the memory that they must fit in, a card's or the machine's
    less: tuple[str, ...]  # options that weren't given and would take less memory
    seconds: tuple[float, float]  # the fewest and the most
    passes: tuple[float, ...]  # seconds of the forward passes that tell so

    @property
    def bytes(self) -> float:
        """All parts together."""
        return sum(self.parts.values())

    def as_json(self) -> dict[str, Any]:
        """All of it, as JSON can hold it."""
        return {"bytes": self.bytes} | asdict(self)

    def __str__(self) -> str:
        low, high = (f"{max(1, seconds / 60):,.0f}" for seconds in self.seconds)
        span = f"{low} minute{'s' * (low != '1')}" if low == high else f"{low} to {high} minutes"
        spread = f"{min(self.passes):.3g} to {max(self.passes):.3g} s"
        parts = sorted(self.parts.items(), key=lambda part: -part[1])
        told = [f"{name} {size / 1e9:.1f}" for name, size in parts if size >= _SHOWN * self.bytes]
        lines = [
            f"About {self.bytes / 1e9:.1f} GB of memory, of {self.room / 1e9:.1f} there are: {', '.join(told)}.",
            f"About {span} on this machine, by {len(self.passes)} forward passes of {spread}. Both are estimates; what "
            "else runs here can double the time, and to time the versions in the end comes on top.",
        ]
        if self.bytes > self.room:
            less = f" Less is taken by {', '.join(self.less)}." if self.less else ""
            lines.insert(1, f"That doesn't fit.{less}")
        return "\n".join(lines)


def estimate(
    model: PreTrainedModel,
    found: list[Candidate],
    order: Order,
    *,
    start: PreTrainedModel | None = None,
    processes: int = 1,
    sharded: bool = False,
) -> Needed:
    """Count memory from shapes, and take time from forward passes on this machine.

    Args:
        model: the whole one.
        found: versions of it that fit the budget.
        order: what was asked.
        start: an outline of what the versions are cut from, where that isn't the whole model.
        processes: how many share what is learned.
        sharded: whether what learns is cut up among them.
    """
    largest, size = max(found, key=lambda candidate: candidate.parameters), model_size(model)
    start = model if start is None else start
    student = start if order.correction else outline_of(start, largest)
    teacher = outline(start.config)
    cast_weights(teacher, model.dtype)
    memory = memory_plan(
        teacher, outline(student.config), order.recipe(1, accumulate=order.accumulate // processes), rows=order.rows,
        length=order.length, processes=processes if sharded else 1,
    )  # fmt: skip
    if order.light:  # what it thinks of all text is asked before, and it stays
        memory["teacher"] = model_size(teacher).bytes
    if start is not model:  # the whole model stays beside the one with fewer tokens, and shares all else with it
        memory["all tokens"] = size.bytes if order.correction else size.bytes - model_size(teacher).bytes
    learns = bool(order.correction or order.light or order.steps)
    judging: dict[str, float] = dict.fromkeys(("whole model", "its copy in fewer bits"), size.bytes)
    if not learns or sum(memory.values()) < sum(judging.values()):
        memory = judging
    finalists = min(order.finalists, len({candidate.shape for candidate in found})) if order.light else 0
    judged = JUDGED * _VERSIONS + (_OF_VOCABULARY if start is not model else 0)
    reading = (SCORED + CHOSEN * (len(found) + finalists) + judged) / order.rows
    learning = order.correction * step_cost(1.0, teacher=False)
    learning += (finalists * order.light + order.steps) * step_cost(largest.parameters / size.parameters)
    work = 1.3 * (reading + learning * order.accumulate / processes)  # 1.3: and the head
    passes = _timed(model, order.rows, order.length)
    less = {
        "--dtype bfloat16": order.dtype != "bfloat16",
        "--recover lora": learns and order.recover != "lora" and not sharded,
        "--recompute": learns and not order.recompute,
        "fewer --rows": learns and order.rows > 1,
    }
    return Needed(
        parts=memory,
        room=_room(model.device),
        less=tuple(option for option, takes_less in less.items() if takes_less),
        seconds=(work * min(passes), work * max(passes)),
        passes=passes,
    )


def step_cost(share: float, *, teacher: bool = True) -> float:
    """How many readings of a batch by the whole model a step costs.

    The student reads and takes its gradients, which is three readings of its size; the teacher reads once.

    Args:
        share: the student's parameters, as a share of the whole model's.
        teacher: False where it isn't asked (teacher correction).
    """
    return 3 * share + (1 if teacher else 0)


def _room(device: torch.device) -> int:
    """Bytes of a card's memory, or of the machine's."""
    on_card = device.type == "cuda"
    return torch.cuda.get_device_properties(device).total_memory if on_card else psutil.virtual_memory().total


def _timed(model: PreTrainedModel, rows: int, length: int) -> tuple[float, ...]:
    """Seconds of forward passes; the first one, which warms up, doesn't count."""
    ids = torch.ones(rows, length, dtype=torch.long, device=model.device)
    took: list[float] = []
    while len(took) <= _TIMED and (len(took) < 3 or sum(took) < _PATIENCE):
        with torch.no_grad(), stopwatch() as seconds:
            model.base_model(ids, use_cache=False)
        took.append(seconds())
    return tuple(took[1:])

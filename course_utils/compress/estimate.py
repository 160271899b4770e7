"""What a run of ``compress`` takes: bytes counted from shapes, time from forward passes on this machine."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import psutil
import torch
from transformers import PreTrainedModel

from course_utils.compress.learning import recipe_for
from course_utils.compress.order import Order
from course_utils.compress.search import Candidate, outline_of
from course_utils.compress.text import CHOSEN, JUDGED, SCORED
from course_utils.healing.distillation.memory import memory_plan, outline
from course_utils.measuring.benchmarking import stopwatch
from course_utils.models.reports import model_size

_TIMED, _PATIENCE = 5, 20.0  # forward passes, and seconds after which two of them will do
_VERSIONS = 6  # that are judged
_SHOWN = 0.01  # of the memory: what holds less isn't told


@dataclass(frozen=True)
class Needed:
    """What a run takes.

    Attributes:
        parts: bytes in each process at its worst moment, by what holds them.
        room: bytes of the memory that they must fit in, a card's or the machine's.
        less: options that aren't given and would take less.
        seconds: the fewest and the most.
        passes: the forward passes that tell so, in seconds.
    """

    parts: dict[str, float]
    room: int
    less: tuple[str, ...]
    seconds: tuple[float, float]
    passes: tuple[float, ...]

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
    processes: int = 1,
    sharded: bool = False,
) -> Needed:
    """Memory is counted from shapes; time is that of forward passes on this machine, times what there is to do.

    Args:
        model: the whole one.
        found: versions of it that fit the budget.
        order: what was asked.
        processes: that share what is learned.
        sharded: whether what learns is cut up among them.
    """
    largest = max(found, key=lambda candidate: candidate.parameters)
    learning = model if order.correction else outline_of(model, largest)
    whole, recipe = (
        outline(model.config).to(model.dtype),
        recipe_for(1, order, accumulate=order.accumulate // processes),
    )
    shares, narrow = processes if sharded else 1, outline(learning.config)
    plan = memory_plan(whole, narrow, recipe, rows=order.rows, length=order.length, processes=shares)
    if order.light:  # what it thinks of all text is asked before, and it stays
        plan["teacher"] = model_size(model).bytes
    share = largest.parameters / model_size(model).parameters
    finalists = min(order.finalists, len(found)) if order.light else 0
    reading = (SCORED + CHOSEN * (len(found) + finalists) + JUDGED * _VERSIONS) / order.rows
    learning_steps = order.correction * step_cost(1.0, teacher=False)
    learning_steps += (finalists * order.light + order.steps) * step_cost(share)
    learns = order.correction or order.light or order.steps
    judging: dict[str, float] = dict.fromkeys(("whole model", "its copy in fewer bits"), model_size(model).bytes)
    if not learns or sum(plan.values()) < sum(judging.values()):
        plan = judging
    passes = _timed(model, order)
    work = 1.3 * (reading + learning_steps * order.accumulate / processes)  # 1.3: and the head
    seconds = work * min(passes), work * max(passes)
    return Needed(plan, _room(model.device), _less(order, bool(learns), sharded), seconds, passes)


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


def _less(order: Order, learns: bool, sharded: bool) -> tuple[str, ...]:
    """Options that would take less memory than the run as it is asked for."""
    options = {
        "--dtype bfloat16": order.dtype != "bfloat16",
        "--recover lora": learns and order.recover != "lora" and not sharded,
        "--recompute": learns and not order.recompute,
        "fewer --rows": learns and order.rows > 1,
    }
    return tuple(option for option, takes_less in options.items() if takes_less)


def _timed(model: PreTrainedModel, order: Order) -> tuple[float, ...]:
    """Seconds of forward passes, the first of which, that warms up, doesn't count."""
    ids = torch.ones(order.rows, order.length, dtype=torch.long, device=model.device)
    took: list[float] = []
    while len(took) <= _TIMED and (len(took) < 3 or sum(took) < _PATIENCE):
        with torch.no_grad(), stopwatch() as seconds:
            model.base_model(ids, use_cache=False)
        took.append(seconds())
    return tuple(took[1:])

"""What a run of ``compress`` takes: bytes counted from shapes, time from forward passes on this machine."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from typing import Any

import psutil
import torch
from transformers import PreTrainedModel

from course_utils.benchmarking import MIN_ROUNDS, measure_speed, stopwatch
from course_utils.compress import Candidate, outline_of
from course_utils.compress_command.learning import recipe_for
from course_utils.compress_command.text import CHOSEN, JUDGED, SCORED
from course_utils.distillation.memory import memory_plan, outline
from course_utils.reports import model_size

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
    args: argparse.Namespace,
    *,
    processes: int = 1,
    sharded: bool = False,
) -> Needed:
    """Memory is counted from shapes; time is that of forward passes on this machine, times what there is to do.

    Args:
        model: the whole one.
        found: versions of it that fit the budget.
        args: of the command.
        processes: that share what is learned.
        sharded: whether what learns is cut up among them.
    """
    largest = max(found, key=lambda candidate: candidate.parameters)
    learning = model if args.correction else outline_of(model, largest)
    whole, recipe = outline(model.config).to(model.dtype), recipe_for(1, args, accumulate=args.accumulate // processes)
    shares, narrow = processes if sharded else 1, outline(learning.config)
    plan = memory_plan(whole, narrow, recipe, rows=args.rows, length=args.length, processes=shares)
    if args.light:  # what it thinks of all text is asked before, and it stays
        plan["teacher"] = model_size(model).bytes
    if args.teacher == "disk" and not (args.correction or args.light):
        plan["teacher"] = 0  # only to cut does it have to be there
    share = largest.parameters / model_size(model).parameters
    # In a step the teacher reads, and the student reads and learns, which is three readings of its own size.
    each = 1 + 3 * share
    finalists = min(args.finalists, len(found)) if args.light else 0
    reading = (SCORED + CHOSEN * (len(found) + finalists) + JUDGED * _VERSIONS) / args.rows
    learning_steps = args.correction * 3 + (finalists * args.light + args.steps) * each
    learns = args.correction or args.light or args.steps
    judging: dict[str, float] = dict.fromkeys(("whole model", "its copy in fewer bits"), model_size(model).bytes)
    if not learns or sum(plan.values()) < sum(judging.values()):
        plan = judging
    passes = _timed(model, args)
    work = 1.3 * (reading + learning_steps * args.accumulate / processes)  # 1.3: and the head
    writing = _timed_writing(model, args) if args.self_data else 0.0
    seconds = work * min(passes), work * max(passes) + writing
    return Needed(plan, _room(model.device), _less(args, bool(learns), processes, sharded), seconds, passes)


def _room(device: torch.device) -> int:
    """Bytes of a card's memory, or of the machine's."""
    on_card = device.type == "cuda"
    return torch.cuda.get_device_properties(device).total_memory if on_card else psutil.virtual_memory().total


def _less(args: argparse.Namespace, learns: bool, processes: int, sharded: bool) -> tuple[str, ...]:
    """Options that would take less memory than the run as it is asked for."""
    options = {
        "--dtype bfloat16": args.dtype != "bfloat16",
        "--recover lora": learns and args.recover != "lora" and not sharded,
        "--recompute": learns and not args.recompute,
        "--teacher disk --light 0": learns and args.teacher != "disk" and processes == 1,
        "fewer --rows": learns and args.rows > 1,
    }
    return tuple(option for option, takes_less in options.items() if takes_less)


def _timed(model: PreTrainedModel, args: argparse.Namespace) -> tuple[float, ...]:
    """Seconds of forward passes, the first of which, that warms up, doesn't count."""
    ids = torch.ones(args.rows, args.length, dtype=torch.long, device=model.device)
    took: list[float] = []
    while len(took) <= _TIMED and (len(took) < 3 or sum(took) < _PATIENCE):
        with torch.no_grad(), stopwatch() as seconds:
            model.base_model(ids, use_cache=False)
        took.append(seconds())
    return tuple(took[1:])


def _timed_writing(model: PreTrainedModel, args: argparse.Namespace) -> float:
    """Seconds that all answers take where each is as long as it may be."""
    half = args.length // 2
    sizes = {"prompt_tokens": half, "new_tokens": 1, "batch_size": args.rows, "rounds": MIN_ROUNDS}
    (speed,) = measure_speed({"whole": model}, phases=["decode"], **sizes)["tokens_per_second"]
    return args.self_data * half / speed

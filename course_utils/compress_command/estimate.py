"""What a run of ``compress`` takes: bytes counted from shapes, time from forward passes on this machine."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from course_utils.benchmarking import MIN_ROUNDS, measure_speed, stopwatch
from course_utils.compress import Candidate, outline_of
from course_utils.compress_command.learning import recipe_for
from course_utils.distillation.memory import memory_plan, outline
from course_utils.reports import model_size

_TIMED, _PATIENCE = 5, 20.0  # forward passes, and seconds after which two of them will do


@dataclass(frozen=True)
class Needed:
    """What the recipe takes: bytes in each process, at its worst moment, and the fewest and most seconds."""

    bytes: float
    seconds: tuple[float, float]
    passes: tuple[float, ...]

    def __str__(self) -> str:
        low, high = (f"{seconds / 60:,.0f}" for seconds in self.seconds)
        spread = f"{min(self.passes):.3g} to {max(self.passes):.3g} s"
        return (
            f"About {self.bytes / 1e9:.1f} GB of memory and "
            f"{low if low == high else f'{low} to {high}'} minutes on this machine, by {len(self.passes)} forward "
            f"passes of {spread}. Both are estimates; what else runs here can double the time."
        )


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
    searching = len(found) * 16 / args.rows
    learning_steps = args.correction * 3 + (min(args.finalists, len(found)) * args.light + args.steps) * each
    learns = args.correction or args.light or args.steps
    judging = 2 * model_size(model).bytes  # the whole model and a copy of it in fewer bits
    size = max(sum(plan.values()), judging) if learns else judging
    passes = _timed(model, args)
    work = 1.3 * (searching + learning_steps * args.accumulate / processes)  # 1.3: and the head
    writing = _timed_writing(model, args) if args.self_data else 0.0
    return Needed(size, (work * min(passes), work * max(passes) + writing), passes)


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

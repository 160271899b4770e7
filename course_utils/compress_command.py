"""`python3 course.py compress MODEL --budget 113M`: lesson 11's recipe for any supported model, resumable.

First it says what it is going to do and what that takes; with --dry-run it stops there.

Under ``accelerate launch`` the processes share the teacher's correction and the recovery; the first one scores,
searches, saves and judges for all, in a folder that all of them see. The model is that of a single process up to
rounding, and either may go on where the other stopped.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pandas as pd
import torch
from accelerate import PartialState
from accelerate.utils import disable_fsdp_ram_efficient_loading
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils import checks
from course_utils.checkpoints import save_pruned
from course_utils.compress import Budget, Candidate, Importance, candidates, importance, outline_of, rank, shrink
from course_utils.distillation import Recipe, distill
from course_utils.distillation.memory import memory_plan, outline
from course_utils.distillation.processes import alone
from course_utils.evaluation import Perplexity, perplexity, perplexity_ratio
from course_utils.model_card import licence_of, write_model_card
from course_utils.models import identity, load_model, variant
from course_utils.reports import model_size, with_interval
from course_utils.texts import TokenBlocks, token_blocks

_UNITS = {"K": 1e3, "M": 1e6, "B": 1e9, "MB": 1e6, "GB": 1e9}
_SEARCHING = timedelta(days=7)  # how long processes wait for the one that scores and searches, at most
_CORRECTION = 0.25  # the teacher's learning rate in its correction, as a share of the student's
_FORM = re.compile(r"(\d+(?:\.\d+)?)\s*(%|K|M|B|MB|GB)")


def _read_budget(text: str) -> tuple[float, str]:
    """A budget as it is typed: the amount, and "%", "parameters" or "bytes".

    Raises:
        ValueError: it isn't one.

    >>> _read_budget("80%"), _read_budget("113M"), _read_budget("1.2GB")
    ((80.0, '%'), (113000000.0, 'parameters'), (1200000000.0, 'bytes'))
    """
    found = _FORM.fullmatch(text.strip())
    if found is None or not float(found[1]):
        raise ValueError(
            "'--budget' must be a share of the parameters (80%), parameters (113M, 1.2B) or bytes (450MB, 2GB); "
            f"got {text!r}."
        )
    number, unit = float(found[1]), found[2]
    if unit == "%":
        return number, unit
    return number * _UNITS[unit], "bytes" if unit.endswith("B") and unit != "B" else "parameters"


def compress(args: argparse.Namespace, say: Callable[[str], object] = print) -> int:
    """Search, recover, save and judge; return an exit status.

    Args:
        args: of the command line, see ``cli``.
        say: shows a line.

    Raises:
        ValueError: a budget that nothing fits, an unsupported or unavailable model, too little text, or batches that
            the processes can't share equally.
    """
    amount, unit = _read_budget(args.budget)
    checks.whole_number("--correction", args.correction)
    checks.whole_number("--accumulate", args.accumulate, least=1)
    disable_fsdp_ram_efficient_loading()  # or a sharded launch may load the teacher's weights in one process alone
    # Without a card the processes find each other only if they say so.
    launch = PartialState(cpu=not torch.cuda.is_available(), timeout=_SEARCHING)
    if args.accumulate % launch.num_processes:
        raise ValueError(
            f"'--accumulate' ({args.accumulate}) must be a multiple of the number of processes "
            f"({launch.num_processes}): each takes as many of a step's batches."
        )
    if not launch.is_main_process:
        say = _say_nothing
    model, tokenizer = load_model(args.model, device=launch.device if launch.num_processes > 1 else None)
    base = model.config.name_or_path or args.model
    whole = Candidate.of(model)
    budget = Budget(amount / 100 * whole.parameters) if unit == "%" else Budget(amount, unit)
    found = candidates(model, budget, multiple_of=args.multiple_of)
    say(f"{args.model}: {whole.parameters:,} parameters, {whole.name}")
    cost = "version costs" if len(found) == 1 else "versions cost"
    say(f"{len(found)} {cost} at most {budget.amount:,.0f} {budget.unit}:")
    for candidate in found:
        say(f"  {candidate.name:<26}{candidate.parameters:>15,} parameters")
    say(
        f"Steps: {args.correction} of teacher correction, {min(args.finalists, len(found))} x {args.light} of light "
        f"distillation, {args.steps} of recovery, of {args.rows} x {args.length} tokens; correction and recovery take "
        f"{args.accumulate} such batches a step, shared by {launch.num_processes} process(es)."
    )
    size, seconds = estimate(model, found, args, processes=launch.num_processes)
    say(
        f"About {size / 1e9:.1f} GB of memory while it learns and {seconds / 60:,.0f} minutes on this machine; both "
        "are estimates."
    )
    if args.dry_run:
        return 0

    calibration, choosing, train, held_out = _text(tokenizer, args)
    judged = {"whole": perplexity(model, held_out)} if launch.is_main_process else {}
    model = _corrected(model, train, args)
    # Another model, a corrected teacher, or other text has a folder of its own.
    folder = args.out / identity(model)
    with launch.main_process_first(), alone():  # the others find in the folder what the first one has done
        scores = folder / f"scores-{args.length}.safetensors"
        if not scores.exists():
            importance(model, calibration.batches(args.rows)).save(scores)
        kept = Importance.load(scores)
        winner, table = _search(model, found, kept, choosing, train, folder / "search", args)
    say(table)

    student = shrink(model, winner, kept)
    if launch.is_main_process:
        judged["cut"] = perplexity(student, held_out)
    recipe = Recipe(steps=args.steps, lr=args.lr, accumulate=args.accumulate)
    distill(model, student, train.batches(args.rows), recipe, checkpoint_dir=folder / f"{winner.name}-{args.steps}")
    if launch.is_main_process:
        judged["recovered"] = perplexity(student, held_out)
        target = save_pruned(student, tokenizer, args.out / "model")
        _write_card(target, base, winner, judged, args)
        made = model_size(student)
        say(f"{winner.name}: {made.parameters:,} parameters, {made.bytes / 1e6:,.0f} MB; on held-out text (speeches):")
        for name, measured in judged.items():
            say(f"  {name:<11}{measured}")
        say(f"Saved with its card; AutoModelForCausalLM.from_pretrained({str(target)!r}) loads it.")
    launch.wait_for_everyone()
    return 0


def _write_card(
    folder: Path, base: str, winner: Candidate, judged: dict[str, Perplexity], args: argparse.Namespace
) -> None:
    """The card beside the model: what was done, what was measured, and what was not."""
    shown = {name: with_interval(text.perplexity, text.ci_low, text.ci_high) for name, text in judged.items()}
    learned = {
        "corrected teacher": args.correction * args.accumulate * args.rows * args.length,
        "recovery": args.steps * args.accumulate * args.rows * args.length,
    }
    write_model_card(
        folder,
        name=f"{Path(base).name}-{winner.name}",
        base_model=Path(base).name if Path(base).is_dir() else base,  # the path is nobody else's business
        licence=licence_of(base),
        summary=f"{Path(base).name}, cut to {winner.parameters:,} parameters and distilled from the whole model.",
        recipe=winner.sizes
        | {"cut by": "activation scores, one calibration pass"}
        | {f"tokens of {args.domain}, {what}": f"{tokens:,}" for what, tokens in learned.items()},
        measured=pd.DataFrame(shown, index=["perplexity on speeches (95 %)"]),
        limits=_limits(*perplexity_ratio(judged["recovered"], judged["whole"])),
        sources=["Muralidharan et al. 2024 (Minitron), arXiv 2407.14679", "The course Pruning LLMs, lesson 11"],
    )


def _limits(ratio: float, low: float, high: float) -> list[str]:
    """What the model is bad at: speeches only where its perplexity is shown to be higher than the whole model's."""
    worse = f"On speeches its perplexity is × {with_interval(ratio, low, high)} the whole model's."
    unknown = "Nothing else was measured after the cut: no task, no other kind of text, no other language, no bias."
    return [worse, unknown] if low > 1 else [unknown]


def _say_nothing(_line: str) -> None:
    """What all processes but the first one say."""


def _corrected(model: PreTrainedModel, train: TokenBlocks, args: argparse.Namespace) -> PreTrainedModel:
    """The teacher after a few steps on the text that students are to learn from (Minitron in practice, 2408.11796)."""
    if args.correction == 0:
        return model
    teacher = variant(model)
    batches = train.batches(args.rows)[: args.correction * args.accumulate]
    distill(
        model, teacher, batches, steps=args.correction, lr=args.lr * _CORRECTION, accumulate=args.accumulate, alpha=1.0,
        checkpoint_dir=args.out / identity(model) / f"correction-{args.correction}",
    )  # fmt: skip
    return teacher


def _search(
    model: PreTrainedModel,
    found: list[Candidate],
    kept: Importance,
    choosing: TokenBlocks,
    train: TokenBlocks,
    folder: Path,
    args: argparse.Namespace,
) -> tuple[Candidate, str]:
    """The version that is best after light distillation, and the ranking as a table; every record is kept."""
    as_cut = rank(model, found, kept, choosing, folder=folder)
    best = _versions(as_cut.head(args.finalists))
    light = Recipe(steps=args.light, lr=args.lr)
    learned = rank(model, best, kept, choosing, folder=folder, train=train.batches(args.rows), recipe=light)
    (winner,) = _versions(learned.head(1))
    shown = learned[["blocks", "hidden", "groups", "neurons", "parameters", "nll", "distilled_nll"]]
    return winner, shown.to_string(index=False)


def _versions(frame: pd.DataFrame) -> list[Candidate]:
    """The versions in the rows of a ranking."""
    names = ["blocks", "hidden", "groups", "neurons", "parameters", "cost"]
    return [Candidate(*row) for row in frame[names].itertuples(index=False)]


def _text(
    tokenizer: PreTrainedTokenizerBase, args: argparse.Namespace
) -> tuple[TokenBlocks, TokenBlocks, TokenBlocks, TokenBlocks]:
    """To score by, to choose by, to learn, and to judge by in the end."""

    def rows(split: str, count: int, domain: str = "speeches") -> TokenBlocks:
        return token_blocks(tokenizer, split, domain=domain, tokens=count * args.length, length=args.length)

    calibration = rows("calibration", 48).sample(48, 0)
    batches = max(args.accumulate * max(args.steps, args.correction), args.light)
    train = rows("distillation", batches * args.rows, args.domain)
    return calibration[:32], calibration[32:], train, rows("evaluation", 24)


def estimate(
    model: PreTrainedModel, found: list[Candidate], args: argparse.Namespace, *, processes: int = 1
) -> tuple[float, float]:
    """What the recipe takes: bytes in each process while the largest model learns, and seconds.

    Memory is counted from shapes; time is that of one forward pass on this machine, times what there is to do.
    """
    largest = max(found, key=lambda candidate: candidate.parameters)
    learning = model if args.correction else outline_of(model, largest)
    plan = memory_plan(outline(model.config), outline(learning.config), rows=args.rows, length=args.length)
    ids = torch.ones(args.rows, args.length, dtype=torch.long, device=model.device)
    took = []
    for _ in range(2):  # the first one warms up
        began = time.monotonic()
        with torch.no_grad():
            model.base_model(ids, use_cache=False)
        took.append(time.monotonic() - began)
    forward = min(took) * 1.3  # and the head
    share = largest.parameters / model_size(model).parameters
    # In a step the teacher reads, and the student reads and learns, which is three readings of its own size.
    each = 1 + 3 * share
    searching = len(found) * 16 / args.rows + min(args.finalists, len(found)) * args.light * each
    learning_steps = args.correction * 3 + args.steps * each
    return sum(plan.values()), forward * (searching + learning_steps * args.accumulate / processes)

"""`python course.py compress MODEL --budget 113M`: lesson 11's recipe for any supported model, resumable.

First it says what it is going to do and what that takes; with --dry-run it stops there.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable

import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils.checkpoints import save_pruned
from course_utils.compress import Budget, Candidate, Importance, candidates, importance, outline_of, rank, shrink
from course_utils.distillation import Recipe, distill
from course_utils.distillation.memory import memory_plan, outline
from course_utils.language_modelling import perplexity
from course_utils.models import identity, load_model
from course_utils.reports import model_size
from course_utils.texts import TokenBlocks, token_blocks

_UNITS = {"K": 1e3, "M": 1e6, "B": 1e9, "MB": 1e6, "GB": 1e9}
_FORM = re.compile(r"(\d+(?:\.\d+)?)\s*(%|K|M|B|MB|GB)")


def read_budget(text: str) -> tuple[float, str]:
    """A budget as it is typed: the amount, and "%", "parameters" or "bytes".

    Raises:
        ValueError: it isn't one.

    >>> read_budget("80%"), read_budget("113M"), read_budget("1.2GB")
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
        ValueError: a budget that nothing fits, an unsupported or unavailable model, or too little text.
    """
    amount, unit = read_budget(args.budget)
    model, tokenizer = load_model(args.model)
    whole = Candidate.of(model)
    budget = Budget(amount / 100 * whole.parameters) if unit == "%" else Budget(amount, unit)
    found = candidates(model, budget, multiple_of=args.multiple_of)
    say(f"{args.model}: {whole.parameters:,} parameters, {whole.name}")
    say(f"{len(found)} versions cost at most {budget.amount:,.0f} {budget.unit}:")
    for candidate in found:
        say(f"  {candidate.name:<26}{candidate.parameters:>15,} parameters")
    size, seconds = estimate(model, found, args)
    say(
        f"About {size / 1e9:.1f} GB of memory while it learns and {seconds / 60:,.0f} minutes on this machine "
        f"({_steps(found, args):,} steps of {args.rows} x {args.length} tokens); both are estimates."
    )
    if args.dry_run:
        return 0

    # Another model, or other text, has a folder of its own.
    folder = args.out / identity(model)
    calibration, choosing, train, held_out = _text(tokenizer, args)
    scores = folder / f"scores-{args.length}.safetensors"
    if not scores.exists():
        importance(model, calibration.batches(args.rows)).save(scores)
    kept = Importance.load(scores)
    as_cut = rank(model, found, kept, choosing, folder=folder / "search")
    best = _versions(as_cut.head(args.finalists))
    light = Recipe(steps=args.light, lr=args.lr)
    learned = rank(model, best, kept, choosing, folder=folder / "search", train=train.batches(args.rows), recipe=light)
    say(learned[["blocks", "hidden", "groups", "neurons", "parameters", "nll", "distilled_nll"]].to_string(index=False))
    (winner,) = _versions(learned.head(1))

    student = shrink(model, winner, kept)
    cut = perplexity(student, held_out)
    recipe = Recipe(steps=args.steps, lr=args.lr)
    distill(model, student, train.batches(args.rows), recipe, checkpoint_dir=folder / f"{winner.name}-{args.steps}")
    target = save_pruned(student, tokenizer, args.out / "model")
    made = model_size(student)
    say(f"{winner.name}: {made.parameters:,} parameters, {made.bytes / 1e6:,.0f} MB; on held-out text ({args.domain}):")
    for name, measured in (
        ("whole", perplexity(model, held_out)),
        ("cut", cut),
        ("recovered", perplexity(student, held_out)),
    ):
        say(f"  {name:<11}{measured}")
    say(f"Saved; AutoModelForCausalLM.from_pretrained({str(target)!r}) loads it.")
    return 0


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
    train = rows("distillation", max(args.steps, args.light) * args.rows, args.domain)
    return calibration[:32], calibration[32:], train, rows("evaluation", 24)


def estimate(model: PreTrainedModel, found: list[Candidate], args: argparse.Namespace) -> tuple[float, float]:
    """What the recipe takes: bytes while the largest version learns, and seconds.

    Memory is counted from shapes; time is that of one forward pass on this machine, times what there is to do.
    """
    largest = max(found, key=lambda candidate: candidate.parameters)
    shapes = outline(model.config), outline(outline_of(model, largest).config)
    plan = memory_plan(*shapes, rows=args.rows, length=args.length)
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
    readings = _steps(found, args) * (1 + 3 * share) + len(found) * 16 / args.rows
    return sum(plan.values()), forward * readings


def _steps(found: list[Candidate], args: argparse.Namespace) -> int:
    return args.steps + min(args.finalists, len(found)) * args.light

"""What a run of ``compress`` tells: before it begins, for programs, and on the model's card."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from course_utils.compress import Budget, Candidate
from course_utils.compress_command.learning import LEARNING
from course_utils.compress_command.text import Text
from course_utils.evaluation import perplexity_ratio
from course_utils.model_card import licence_of, write_model_card
from course_utils.own_text import OwnText
from course_utils.reports import with_interval
from course_utils.rivals import Version


def found_under(budget: Budget, whole: Candidate, found: list[Candidate], args: argparse.Namespace) -> list[str]:
    """The model, and the versions of it that cost as little as was asked for."""
    cost = "version costs" if len(found) == 1 else "versions cost"
    return [
        f"{args.model}: {whole.parameters:,} parameters, {whole.name}",
        f"{len(found)} {cost} at most {budget.amount:,.0f} {budget.unit}:",
        *(f"  {candidate.name:<26}{candidate.parameters:>15,} parameters" for candidate in found),
    ]


def planned(found: int, args: argparse.Namespace, processes: int) -> list[str]:
    """Which steps there are and how they learn, a line each; or that there are none."""
    stages = {
        f"{args.correction} of teacher correction": args.correction,
        f"{min(args.finalists, found)} x {args.light} of light distillation": args.light,
        f"{args.steps} of recovery": args.steps,
    }
    steps = ", ".join(words for words, count in stages.items() if count)
    if not steps:
        return [f"Nothing is learned: the best version as cut is saved, in {args.dtype}."]
    batches = f"{args.accumulate} batch{'es' if args.accumulate > 1 else ''} of {args.rows} x {args.length} tokens"
    shared = f", shared by {processes} processes" if processes > 1 else ""
    return [
        f"Steps: {steps}, each of {batches}{shared}.",
        f"Learning: {LEARNING[args.recover]}, with the model in {args.dtype}, the teacher "
        f"{'on disk in the recovery' if args.teacher == 'disk' else 'in memory'}, activations "
        f"{'computed twice' if args.recompute else 'kept'}, a rate of {args.lr:g}.",
    ]


def text_told(own: OwnText, args: argparse.Namespace) -> list[str]:
    """What was found in text of one's own, and who may see which of it."""
    counted = (
        f"{source.path} ({found.documents:,} documents, {found.chats:,} of them chats, weight {source.weight:g})"
        for source, found in zip(own.sources, own.contents, strict=True)
    )
    lines = [f"Text: {', '.join(counted)}."]
    if own.left_out.count:
        lines.append(f"Lines and files: {own.left_out}.")
    judges = f"{len(own.judging):,} documents " + ("of --judge" if args.judge else "held out before anything else")
    chooses = f"{len(own.choosing):,} more held out to choose by, all of them with seed {args.seed}"
    lines.append(f"Judged by {judges}; {chooses}.")
    if own.shared:
        lines.append(f"{own.shared:,} held-out documents share thirteen words in a row with others; nobody uses them.")
    learned = max(1, args.rows * args.accumulate * args.steps)
    turns = own.turns(rows=learned, length=args.length)
    if args.self_data:
        drawn = f"drawn at a temperature of {args.temperature:g}" if args.temperature else "the likeliest tokens"
        lines.append(
            f"Learned are answers to its prompts: the whole model writes {args.self_data:,} of at most "
            f"{args.length // 2} tokens ({drawn})."
        )
        turns = {"What it writes": learned / args.self_data}
    for place, count in turns.items():
        if count >= 2:
            lines.append(f"{place} is short: for {args.steps} steps it is read {count:,.0f} times at least.")
    return lines


def text_as_json(own: OwnText, args: argparse.Namespace) -> dict[str, Any]:
    """The same for programs."""
    return {
        "learned": [
            {"source": source.path.name, "weight": source.weight} | asdict(found)
            for source, found in zip(own.sources, own.contents, strict=True)
        ],
        "left_out": asdict(own.left_out),
        "documents_to_choose_by": len(own.choosing),
        "documents_to_judge_by": len(own.judging),
        "shared_and_unused": own.shared,
        "answers": {"asked": args.self_data, "temperature": args.temperature} if args.self_data else None,
    }


def write_card(
    folder: Path,
    base: str,
    winner: Candidate,
    versions: dict[str, Version],
    measured: pd.DataFrame,
    damage: pd.DataFrame,
    text: Text,
    args: argparse.Namespace,
) -> None:
    """The card beside the model: what was done, what was measured, and what was not."""
    learned = {
        "corrected teacher": args.correction * args.accumulate * args.rows * args.length,
        "recovery": args.steps * args.accumulate * args.rows * args.length,
    }
    most = "at most " if args.text else ""  # of one's own text rows are padded, and of chats answers are learned
    *_, made = versions.values()
    write_model_card(
        folder,
        name=f"{Path(base).name}-{winner.name}" if base else f"A local model, {winner.name}",
        base_model=base or None,
        licence=licence_of(base) if base else "unknown",
        summary=f"{base or 'A local model'}, cut to {winner.parameters:,} parameters"
        + (" and distilled from the whole model." if args.steps else "; nothing was learned after the cut."),
        recipe=winner.sizes
        | {"cut by": "activation scores, one calibration pass", "seed": args.seed, "dtype": args.dtype}
        | ({"learned": LEARNING[args.recover]} if any(learned.values()) else {})
        | {f"tokens of {text.learned_from}, {what}": f"{most}{tokens:,}" for what, tokens in learned.items() if tokens},
        measured=measured,
        limits=_limits(text.judged_by, *perplexity_ratio(made.score, versions["whole"].score)),
        sources=["Muralidharan et al. 2024 (Minitron), arXiv 2407.14679", "The course Pruning LLMs, lesson 11"],
        damage=damage,
    )


def _limits(judged_by: str, ratio: float, low: float, high: float) -> list[str]:
    """What the model is bad at: the judging text only where its perplexity is shown to be above the whole model's."""
    worse = f"On {judged_by} its perplexity is × {with_interval(ratio, low, high)} the whole model's."
    unknown = "Nothing else was measured after the cut than what stands above: no task, no bias."
    return [worse, unknown] if low > 1 else [unknown]

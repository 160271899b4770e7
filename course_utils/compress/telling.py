"""What a run of ``compress`` tells: before it begins, for programs, and on the model's card."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from course_utils.compress.order import LEARNING, Order
from course_utils.compress.search import Budget, Candidate
from course_utils.compress.text import Text, documents_in
from course_utils.measuring.evaluation import perplexity_ratio
from course_utils.models.reports import with_interval
from course_utils.release.model_card import licence_of, write_model_card
from course_utils.release.rivals import Version
from course_utils.text.own_text import OwnText


def found_under(budget: Budget, whole: Candidate, found: list[Candidate], order: Order) -> list[str]:
    """The model, and the versions of it that cost as little as was asked for."""
    cost = "version costs" if len(found) == 1 else "versions cost"
    return [
        f"{order.model}: {whole.parameters:,} parameters, {whole.name}",
        f"{len(found)} {cost} at most {budget.amount:,.0f} {budget.unit}:",
        *(f"  {candidate.name:<26}{candidate.parameters:>15,} parameters" for candidate in found),
    ]


def planned(found: int, order: Order, processes: int) -> list[str]:
    """Which steps there are and how they learn, a line each; or that there are none."""
    stages = {
        f"{order.correction} of teacher correction": order.correction,
        f"{min(order.finalists, found)} x {order.light} of light distillation": order.light,
        f"{order.steps} of recovery": order.steps,
    }
    steps = ", ".join(words for words, count in stages.items() if count)
    if not steps:
        return [f"Nothing is learned: the best version as cut is saved, in {order.dtype}."]
    batches = f"{order.accumulate} batch{'es' if order.accumulate > 1 else ''} of {order.rows} x {order.length} tokens"
    shared = f", shared by {processes} processes" if processes > 1 else ""
    return [
        f"Steps: {steps}, each of {batches}{shared}.",
        f"Learning: {LEARNING[order.recover]}, with the model in {order.dtype}, activations "
        f"{'computed twice' if order.recompute else 'kept'}, a rate of {order.rate:g}.",
    ]


def text_told(own: OwnText, text: Text, order: Order) -> list[str]:
    """What was found in text of one's own, and which of it scores, chooses, judges and is learned."""
    counted = (
        f"{source.path} ({_documents(found.documents)}, {found.chats:,} of them chats, weight {source.weight:g})"
        for source, found in zip(own.sources, own.contents, strict=True)
    )
    lines = [f"Text: {', '.join(counted)}."]
    copies = sum(found.copies for found in own.contents)
    if copies:
        lines.append(f"Left out as copies, equal to others but for case and blanks: {_documents(copies)}.")
    if own.left_out.count:
        lines.append(f"Lines and files: {own.left_out}.")
    judging, choosing, scoring = (documents_in(part) for part in (text.held_out, text.choosing, text.scored))
    lines.append(
        f"{_documents(judging)} {'of --judge' if order.judge else 'held out before anything else'} will judge. Of "
        f"--text, {_documents(choosing)} will choose between versions, and {scoring:,} will score the model's parts; "
        f"the others are learned. Which is which depends on --seed ({order.seed})."
    )
    if own.shared:
        lines.append(
            f"{own.shared:,} held-out documents share thirteen words in a row with others, so nobody uses them."
        )
    learned = max(1, order.rows * order.accumulate * order.steps)
    for place, count in own.turns(rows=learned, length=order.length).items():
        if count >= 2:
            lines.append(f"{place} is short: in {order.steps} steps it is read {count:,.0f} times at least.")
    return lines


def _documents(count: int) -> str:
    return f"{count:,} document{'s' * (count != 1)}"


def text_as_json(own: OwnText, text: Text) -> dict[str, Any]:
    """The same for programs."""
    return {
        "learned": [
            {"source": source.path.name, "weight": source.weight} | asdict(found)
            for source, found in zip(own.sources, own.contents, strict=True)
        ],
        "left_out": asdict(own.left_out),
        "documents_to_score_by": documents_in(text.scored),
        "documents_to_choose_by": documents_in(text.choosing),
        "documents_to_judge_by": documents_in(text.held_out),
        "shared_and_unused": own.shared,
        "date": own.date.isoformat(),
    }


def write_card(
    folder: Path,
    base: str,
    winner: Candidate,
    versions: dict[str, Version],
    measured: pd.DataFrame,
    damage: pd.DataFrame,
    text: Text,
    order: Order,
) -> None:
    """The card beside the model: what was done, what was measured, and what was not."""
    learned = {
        "corrected teacher": order.correction * order.batch,
        "recovery": order.steps * order.batch,
    }
    most = "at most " if order.text else ""  # of one's own text rows are padded, and of chats answers are learned
    *_, made = versions.values()
    write_model_card(
        folder,
        name=f"{Path(base).name}-{winner.name}" if base else f"A local model, {winner.name}",
        base_model=base or None,
        licence=licence_of(base) if base else "unknown",
        summary=f"{base or 'A local model'}, cut to {winner.parameters:,} parameters"
        + (" and distilled from the whole model." if order.steps else "; nothing was learned after the cut."),
        recipe=winner.sizes
        | {"cut by": "activation scores, one calibration pass", "seed": order.seed, "dtype": order.dtype}
        | ({"learned": LEARNING[order.recover]} if any(learned.values()) else {})
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

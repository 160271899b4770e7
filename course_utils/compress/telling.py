"""What a run of ``compress`` tells: before it begins, for programs, and on the model's card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from course_utils.compress.estimate import Needed
from course_utils.compress.order import LEARNING, Order
from course_utils.compress.plan import Plan, Text
from course_utils.compress.search import Candidate
from course_utils.compress.vocabulary import Vocabulary
from course_utils.measuring.evaluation import bits_ratio, perplexity_ratio
from course_utils.models.reports import model_size, with_interval
from course_utils.release.model_card import licence_of, write_model_card
from course_utils.release.rivals import Version
from course_utils.text.own_text import OwnText
from course_utils.text.rows import TokenBlocks

ABOUT_KINDS = "What a byte of each kind of text takes, in tokens and in bits:"
UNREAD = (
    "The whole model and its copies in fewer bits haven't read the text that this one learned from. "
    "Trained on it as long, they might do better on it than they do here."
)
_UNKNOWN = "Nothing else was measured after the cut than what stands above: no task, no bias."
_DEARER = 1.05  # times as many tokens for a byte, from which the card says so


@dataclass(frozen=True)
class Made:
    """What a run made and measured."""

    base: str  # the hub id of the whole model, or ""
    winner: Candidate
    versions: dict[str, Version]  # by name; the one that is saved comes last
    why_not: dict[str, str]  # what couldn't be measured, with the reason, or "" where it could
    damage: pd.DataFrame  # what the saved version lost of each ability
    kinds: pd.DataFrame | None  # what each kind of text costs with fewer tokens; None with all of them


def planned(plan: Plan, whole: Candidate, processes: int) -> list[str]:
    """The model, the versions that fit, what learns and how, and the user's text, a line each."""
    order, count = plan.order, len(plan.candidates)
    return [
        f"{order.model}: {whole.parameters:,} parameters, {whole.name}",
        *([_vocabulary(plan.vocabulary, plan.text)] if plan.vocabulary else []),
        f"{count} {'version costs' if count == 1 else 'versions cost'} at most {plan.budget.amount:,.0f} "
        f"{plan.budget.unit}:",
        *(f"  {candidate.name:<32}{candidate.parameters:>15,} parameters" for candidate in plan.candidates),
        *_steps(order, len({candidate.shape for candidate in plan.candidates}), processes),
        *(_own_text(plan.text.own, plan.text, order) if plan.text.own else []),
    ]


def _vocabulary(vocabulary: Vocabulary, text: Text) -> str:
    """How many tokens stay, and how few could."""
    return (
        f"Vocabulary: {_chosen(vocabulary, text)}; {model_size(vocabulary.outline).parameters:,} parameters are left. "
        f"With {vocabulary.numbers['used']:,} tokens that text would be written as before, and any text needs "
        f"{vocabulary.numbers['at_least']:,}."
    )


def _chosen(vocabulary: Vocabulary, text: Text) -> str:
    number = vocabulary.numbers
    return (
        f"{number['tokens']:,} of {number['of']:,} tokens, the most frequent in {number['counted']:,} of "
        f"{text.learned_from}"
    )


def of_kinds(kinds: pd.DataFrame) -> pd.DataFrame:
    """What each kind of text costs, of ``Vocabulary.by_kind``, for a reader."""
    columns = {
        "tokens, whole": kinds.tokens_whole,
        "tokens, this": kinds.tokens,
        "tokens, ×": kinds.tokens / kinds.tokens_whole,
        "bits, whole": kinds.bits_whole,
        "bits, fewer tokens alone": kinds.bits_fewer,
        "bits, this": kinds.bits,
        "bits, ×": kinds.bits / kinds.bits_whole,
    }
    return pd.DataFrame(columns).map("{:.3f}".format)


def _steps(order: Order, shapes: int, processes: int) -> list[str]:
    stages = {
        f"{order.correction} of teacher correction": order.correction,
        f"{min(order.finalists, shapes)} x {order.light} of light distillation": order.light,
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


def _own_text(own: OwnText, text: Text, order: Order) -> list[str]:
    """What was found in text of one's own, and which of it scores, chooses, judges and is learned."""
    counted = (
        f"{part.source.path} ({_documents(part.contents.documents)}, {part.contents.chats:,} of them chats, weight "
        f"{part.source.weight:g})"
        for part in own.parts
    )
    lines = [f"Text: {', '.join(counted)}."]
    copies = sum(part.contents.copies for part in own.parts)
    if copies:
        lines.append(f"Left out as copies, equal to others but for case and blanks: {_documents(copies)}.")
    if own.left_out.count:
        lines.append(f"Lines and files: {own.left_out}.")
    judging, choosing, scoring = (_documents_in(part) for part in (text.held_out, text.choosing, text.scored))
    lines.append(
        f"{_documents(judging)} {'of --judge' if order.judge else 'held out before anything else'} will judge. Of "
        f"--text, {_documents(choosing)} will choose between versions, and {scoring:,} will score the model's parts; "
        f"the others are learned. Which is which depends on --seed ({order.seed})."
    )
    if own.shared:
        lines.append(
            f"{own.shared:,} held-out documents share thirteen words in a row with others, so nobody uses them."
        )
    rows = max(1, order.rows * order.accumulate * order.steps)
    for place, count in own.turns(rows=rows, length=order.length).items():
        if count >= 2:
            lines.append(f"{place} is short: in {order.steps} steps it is read {count:,.0f} times at least.")
    return lines


def _documents(count: int) -> str:
    return f"{count:,} document{'s' * (count != 1)}"


def _documents_in(batches: TokenBlocks | Sequence[Mapping[str, Tensor]]) -> int:
    """How many documents the rows of one's own text come from."""
    assert not isinstance(batches, TokenBlocks)
    return len(torch.cat([batch["document"] for batch in batches]).unique())


def planned_as_json(plan: Plan, whole: Candidate, base: str, needed: Needed) -> dict[str, Any]:
    """What is planned and what it takes, for programs."""
    order, text, own = plan.order, plan.text, plan.text.own
    read: dict[str, Any] = {"learned": order.domain, "judged": text.judged_by}
    if own:
        read = {
            "learned": [
                {"source": part.source.path.name, "weight": part.source.weight} | asdict(part.contents)
                for part in own.parts
            ],
            "left_out": asdict(own.left_out),
            "documents_to_score_by": _documents_in(text.scored),
            "documents_to_choose_by": _documents_in(text.choosing),
            "documents_to_judge_by": _documents_in(text.held_out),
            "shared_and_unused": own.shared,
            "date": own.date.isoformat(),
        }
    return {
        "model": base or "a local model",
        "parameters": whole.parameters,
        "budget": asdict(plan.budget),
        "versions": [candidate.as_json() | {"parameters": candidate.parameters} for candidate in plan.candidates],
        "estimate": needed.as_json(),
        **({"vocabulary": plan.vocabulary.numbers} if plan.vocabulary else {}),
        "learning": {"recover": order.recover, "dtype": order.dtype, "recompute": order.recompute, "lr": order.rate},
        "text": read,
    }


def write_card(folder: Path, made: Made, measured: pd.DataFrame, plan: Plan) -> None:
    """Write the card beside the model: what was done, what was measured, and what was not."""
    text, order, vocabulary = plan.text, plan.order, plan.vocabulary
    name, base, step = made.winner.name, made.base, order.accumulate * order.rows * order.length
    name += f"-v{vocabulary.numbers['tokens']}" if vocabulary else ""
    learned = {"corrected teacher": order.correction * step, "recovery": order.steps * step}
    most = "at most " if text.own else ""  # of one's own text rows are padded, and of chats answers are learned
    whole, (*_, shipped) = made.versions["whole"].score, made.versions.values()
    limits = (
        _limits(text.judged_by, *perplexity_ratio(shipped.score, whole))
        if made.kinds is None
        else _limits_per_byte(text.judged_by, made.kinds, *bits_ratio(shipped.score, whole))
    )
    write_model_card(
        folder,
        name=f"{Path(base).name}-{name}" if base else f"A local model, {name}",
        base_model=base or None,
        licence=licence_of(base) if base else "unknown",
        summary=f"{base or 'A local model'}, cut to {made.winner.parameters:,} parameters"
        + (" and distilled from the whole model." if order.steps else "; nothing was learned after the cut."),
        recipe=made.winner.sizes
        | ({"vocabulary": _chosen(vocabulary, text)} if vocabulary else {})
        | ({"means of removed blocks": "kept in biases"} if made.winner.means else {})
        | {"cut by": "activation scores, one calibration pass", "seed": order.seed, "dtype": order.dtype}
        | ({"learned": LEARNING[order.recover]} if any(learned.values()) else {})
        | {f"tokens of {text.learned_from}, {what}": f"{most}{tokens:,}" for what, tokens in learned.items() if tokens},
        measured=measured,
        limits=[UNREAD, *limits] if order.learns else limits,
        sources=[
            "Muralidharan et al. 2024 (Minitron), arXiv 2407.14679",
            *(["Yang et al. 2022 (TextPruner), arXiv 2203.15996"] if vocabulary else []),
            "The course Pruning LLMs, lesson 14",
        ],
        damage=made.damage,
        compared_with=f"the whole model with {plan.start}" if vocabulary else "the whole model",
        also_measured={} if made.kinds is None else {ABOUT_KINDS: of_kinds(made.kinds)},
    )


def _limits(judged_by: str, ratio: float, low: float, high: float) -> list[str]:
    """What the model is bad at: the judging text only where its perplexity is shown to be above the whole model's."""
    worse = f"On {judged_by} its perplexity is × {with_interval(ratio, low, high)} the whole model's."
    return [worse, _UNKNOWN] if low > 1 else [_UNKNOWN]


def _limits_per_byte(judged_by: str, kinds: pd.DataFrame, ratio: float, low: float, high: float) -> list[str]:
    """The same, where the whole model has another tokenizer; and which text takes more tokens than it did."""
    worse = f"A byte of {judged_by} takes × {with_interval(ratio, low, high)} the whole model's bits."
    dearer = [
        f"{kind[:1].upper()}{kind[1:]} takes × {times:.2f} the tokens that it takes of the whole model: as much more "
        "time and cache."
        for kind, times in (kinds.tokens / kinds.tokens_whole).items()
        if times >= _DEARER
    ]
    return ([worse] if low > 1 else []) + dearer + [_UNKNOWN]

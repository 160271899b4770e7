"""What a run of ``compress`` will do: which versions fit, and which text has which role.

Everything that can be refused is refused here, before weights are read and before anything is written.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from course_utils.compress.folder import records_in, refuse_sources_in_the_way, refuse_what_others_made
from course_utils.compress.order import Order
from course_utils.compress.search import Budget, Candidate, candidates, outline_of
from course_utils.compress.vocabulary import Vocabulary
from course_utils.healing.distillation.memory import outline
from course_utils.models.architectures import cast_weights
from course_utils.models.loading import load_without_weights
from course_utils.models.reports import model_size
from course_utils.support import checks
from course_utils.support.extras import brought
from course_utils.support.files import write_json
from course_utils.support.session import ROLES, chosen_model
from course_utils.text.domains import DOMAINS, LARGE_DOMAINS
from course_utils.text.files import Source
from course_utils.text.own_text import OwnText, RowsOnDisk, read_own_text
from course_utils.text.rows import TokenBlocks, token_blocks

# Full rows that each part of a run reads.
SCORED = 32
CHOSEN = 16
JUDGED = 24
_Batches = Sequence[Mapping[str, Tensor]]


@dataclass(frozen=True)
class Text:
    """The text of a run, a part for each role."""

    scored: _Batches  # to score the model's parts by
    choosing: TokenBlocks | _Batches  # to choose between versions by, as ``rank`` takes it
    learned: Callable[[int], _Batches]  # makes so many batches to learn from
    held_out: TokenBlocks | _Batches  # to judge by in the end
    key: str  # stands for what is learned, in a folder's name
    learned_from: str  # in words
    judged_by: str  # in words
    own: OwnText | None = None  # the user's text; None for the course's
    begun: Path | None = None  # a file for the date that the user's chats are written with

    @classmethod
    def built_in(cls, tokenizer: PreTrainedTokenizerBase, order: Order) -> Text:
        """The course's text. The seed decides which rows are taken, but for those that judge."""

        def rows(split: str, count: int, domain: str = "speeches", seed: int = order.seed) -> TokenBlocks:
            size = {"tokens": count * order.length, "length": order.length}
            return token_blocks(tokenizer, split, domain=domain, seed=seed, **size)

        learned = order.rows * order.accumulate * max(order.steps, order.correction, order.light)
        try:
            calibration = rows("calibration", SCORED + CHOSEN).sample(SCORED + CHOSEN, order.seed)
            batches = rows("distillation", learned, order.domain).batches(order.rows) if learned else []
            held_out = rows("evaluation", JUDGED, seed=0)
        except ValueError as error:
            raise ValueError(
                f"{error} Rows are as long as --length says; --steps, --correction or --light, times --accumulate and "
                "--rows, are learned."
            ) from error
        return cls(
            scored=calibration[:SCORED].batches(order.rows),
            choosing=calibration[SCORED:],
            learned=lambda count: batches[:count],  # which are the first doesn't depend on how many there are
            held_out=held_out,
            key=order.domain,
            learned_from=order.domain,
            judged_by="held-out speeches",
        )

    @classmethod
    def of_ones_own(
        cls,
        own: OwnText,
        tokenizer: PreTrainedTokenizerBase,
        size: Mapping[str, int],
        place: Path,
        say: Callable[[str], object],
    ) -> Text:
        """The user's text. What learns gets its rows when its turn comes, the other parts are read now.

        Args:
            own: the documents.
            tokenizer: the model's.
            size: ``length`` and ``batch_size`` of the rows.
            place: a folder for rows and for the date.
            say: shows a line.
        """
        begun = _begun(own, tokenizer, place)
        if begun.exists():
            own = replace(own, date=datetime.date.fromisoformat(json.loads(begun.read_text(encoding="utf-8"))["date"]))
        own.check(tokenizer, length=size["length"])

        def learned(count: int) -> RowsOnDisk:
            rows = count * size["batch_size"]
            made = own.learned(tokenizer, rows=rows, folder=place, **size)
            if made.left_out.count:
                say(f"While {rows:,} rows were made: {made.left_out}.")
            return made

        return cls(
            scored=own.to_score(tokenizer, rows=SCORED, **size),
            choosing=own.to_choose(tokenizer, rows=CHOSEN, **size),
            learned=learned,
            held_out=own.to_judge(tokenizer, rows=JUDGED, **size),
            key=_key([own.digest, *own.forms(tokenizer)]),
            learned_from="the maker's own text",
            judged_by="held-out text of the maker's own",
            own=own,
            begun=begun,
        )

    def for_all(self, count: int) -> _Batches:
        """So many batches to learn, in each process: the first one makes the files that the others then find."""
        with PartialState().main_process_first():
            return self.learned(count)

    def keep_date(self) -> None:
        """Write down the date of the user's chats, for the runs that go on with this order."""
        if self.own is not None and self.begun is not None:
            write_json(self.begun, {"date": self.own.date.isoformat()})


@dataclass(frozen=True)
class Plan:
    """An order that can be carried out, as far as that is known before weights are read."""

    order: Order  # with no light distillation where there is nothing to choose
    budget: Budget
    candidates: list[Candidate]  # the versions that fit
    text: Text
    vocabulary: Vocabulary | None  # None: all tokens stay

    @property
    def start(self) -> str:
        """The name of what versions are cut from, among those that are judged."""
        return self.vocabulary.taken if self.vocabulary else "whole"

    @property
    def of_whole(self) -> TokenBlocks | _Batches:
        """What judges in the end, as the whole model's tokenizer cuts it."""
        vocabulary = self.vocabulary
        return vocabulary.held_out(vocabulary.whole) if vocabulary else self.text.held_out


def plan_for(order: Order, processes: int, say: Callable[[str], object]) -> Plan:
    """Check an order, and find the versions that fit and the text.

    Args:
        order: what was asked.
        processes: how many share what is learned.
        say: shows a line.

    Raises:
        ValueError: an order that can't be carried out; the message says why, and nothing was written.
    """
    _refuse_contradictions(order, processes)
    own = read_own_text(order.text, judge=order.judge, seed=order.seed) if order.text else None
    config, tokenizer = load_without_weights(order.model)
    _refuse_model(config, order)
    vocabulary, start = None, outline(config)
    if order.vocabulary:
        vocabulary = Vocabulary.of(config, tokenizer, order, own)
        tokenizer, start = vocabulary.tokenizer, vocabulary.outline
    budget, found = _versions(outline(config), start, order)
    if order.export:
        _refuse_unknown_to_llama_cpp(start, tokenizer, found[0])
    if min(order.finalists, len({candidate.shape for candidate in found})) == 1:
        order = replace(order, light=0)  # there is nothing to choose
    if found == [Candidate.of(start)]:
        order = replace(order, steps=0)  # nothing but tokens goes, so it would be its own teacher
    if own is None:
        text = Text.built_in(tokenizer, order)
    else:
        size = {"length": order.length, "batch_size": order.rows}
        text = Text.of_ones_own(own, tokenizer, size, records_in(order.out) / "text", say)
    if vocabulary:
        vocabulary = vocabulary.judged_by(text.own, rows=JUDGED)
        text = replace(text, held_out=vocabulary.held_out(tokenizer))
    return Plan(order, budget, found, text, vocabulary)


def _refuse_contradictions(order: Order, processes: int) -> None:
    """Raise where arguments contradict each other, or the places and the processes that there are."""
    model = (order.model in ROLES and chosen_model(order.model)) or order.model
    sources = {"the model": Path(model)} if os.path.isdir(model) else {}
    for option, places in {"--text": order.text, "--judge": order.judge}.items():
        sources |= {f"{option} {place}": Source.of(place).path for place in places}
    refuse_sources_in_the_way(order.out, sources)
    refuse_what_others_made(order.out)
    checks.one_of("--domain", order.domain, (*DOMAINS, *LARGE_DOMAINS))
    if order.judge and not order.text:
        raise ValueError("'--judge' goes with '--text'; built-in text (--domain) is judged by held-out speeches.")
    if order.recover == "lora":
        with brought("lora"):
            import peft  # noqa: F401
        if parse_flag_from_env("ACCELERATE_USE_FSDP"):
            raise ValueError("'--recover lora' is for launches without --use_fsdp, which cuts up what it corrects.")
    if order.accumulate % processes:
        raise ValueError(
            f"'--accumulate' ({order.accumulate}) must be a multiple of the number of processes "
            f"({processes}): each takes as many of a step's batches."
        )


def _refuse_model(config: PretrainedConfig, order: Order) -> None:
    """Raise where the model can't be cut, or not read in such rows."""
    if getattr(config, "quantization_config", None):
        raise ValueError(
            f"{order.model} is quantized, and packed weights can't be scored or cut. Take the checkpoint in 16 bits "
            "that it was made from, and quantize what comes out."
        )
    longest = getattr(config, "max_position_embeddings", None)
    checks.whole_number("--length", order.length, least=2, most=longest, meaning="the model's longest row")


def _versions(whole: PreTrainedModel, start: PreTrainedModel, order: Order) -> tuple[Budget, list[Candidate]]:
    """What may be spent and the versions that fit, from the shapes of the whole model and of what is cut.

    Where fewer tokens alone meet the budget, nothing else is cut.
    """
    for shapes in (whole, start):
        cast_weights(shapes, getattr(torch, order.dtype))
    amount, unit = order.budget
    budget = Budget(amount / 100 * Candidate.of(whole).parameters) if unit == "%" else Budget(amount, unit)
    cost = getattr(model_size(start), budget.unit)
    if order.vocabulary and cost <= budget.amount:
        return budget, [replace(Candidate.of(start), cost=cost)]
    found = candidates(
        start, budget, multiple_of=order.multiple_of, tensor_parallel=order.tensor_parallel, keep_means=True
    )
    return budget, found


def _refuse_unknown_to_llama_cpp(
    start: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, version: Candidate
) -> None:
    """Raise where a version couldn't be written as GGUF; of versions of one model all can, or none."""
    from course_utils.release.export import CannotExport, plan_gguf  # an extra's package

    try:
        plan_gguf(outline_of(start, version), tokenizer)
    except CannotExport as refusal:
        raise ValueError(f"'--export gguf' can't be done; without it this runs. {refusal}") from refusal


def _begun(own: OwnText, tokenizer: PreTrainedTokenizerBase, place: Path) -> Path:
    """The file that keeps the date on which an order for this text began.

    Some chat templates write today's date into each chat. If it changed between two runs, the text that judges would
    be another one on the second day, and nothing of the first day's work could be used.
    """
    *undated, _date = own.forms(tokenizer)
    return place / f"begun-{_key([own.digest, *undated])}.json"


def _key(values: list[object]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]

"""The text of a run of ``compress``: to score by, to choose by, to learn, and to judge by in the end."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import PartialState
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from course_utils.compress.folder import records_in
from course_utils.compress.order import Order
from course_utils.support.files import write_json
from course_utils.text.own_text import OwnText, RowsOnDisk
from course_utils.text.texts import TokenBlocks, token_blocks

# Full rows that each part of a run reads.
SCORED = 32
CHOSEN = 16
JUDGED = 24
_Batches = Sequence[Mapping[str, Tensor]]


@dataclass(frozen=True)
class Text:
    """To score by, to choose by, to learn, and to judge by in the end.

    Attributes:
        scored: batches to score by.
        choosing: as ``rank`` takes it.
        learned: makes so many batches.
        held_out: judges.
        key: stands for what is learned, in a folder's name.
        learned_from: in words.
        judged_by: in words.
    """

    scored: _Batches
    choosing: TokenBlocks | _Batches
    learned: Callable[[int], _Batches]
    held_out: TokenBlocks | _Batches
    key: str
    learned_from: str
    judged_by: str

    @classmethod
    def built_in(cls, tokenizer: PreTrainedTokenizerBase, order: Order) -> Text:
        """The course's, all of it before any of it is used; the seed decides which, except of what judges."""

        def rows(split: str, count: int, domain: str = "speeches", seed: int = order.seed) -> TokenBlocks:
            size = {"tokens": count * order.length, "length": order.length}
            return token_blocks(tokenizer, split, domain=domain, seed=seed, **size)

        learned = order.rows * order.accumulate * order.most_steps
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
    def own(cls, own: OwnText, tokenizer: PreTrainedTokenizerBase, order: Order, say: Callable[[str], object]) -> Text:
        """The user's; what judges, chooses and scores is read now, what is learned when its turn comes."""
        size = {"length": order.length, "batch_size": order.rows}
        own.check(tokenizer, length=order.length)

        def learned(count: int) -> RowsOnDisk:
            folder, wanted = records_in(order.out) / "text", count * order.rows
            made = own.learned(tokenizer, rows=wanted, folder=folder, **size)
            if made.left_out.count:
                say(f"While {wanted:,} rows were made: {made.left_out}.")
            return made

        return cls(
            scored=own.to_score(tokenizer, rows=SCORED, **size),
            choosing=own.to_choose(tokenizer, rows=CHOSEN, **size),
            learned=learned,
            held_out=own.to_judge(tokenizer, rows=JUDGED, **size),
            key=hashlib.sha256(json.dumps([own.digest, *own.forms(tokenizer)]).encode()).hexdigest()[:16],
            learned_from="the maker's own text",
            judged_by="held-out text of the maker's own",
        )

    def for_all(self, count: int) -> _Batches:
        """So many batches to learn, in each process: the first one makes the files that the others then find."""
        with PartialState().main_process_first():
            return self.learned(count)


def documents_in(batches: TokenBlocks | _Batches) -> int:
    """How many documents the rows of one's own text come from."""
    assert not isinstance(batches, TokenBlocks)
    return len(torch.cat([batch["document"] for batch in batches]).unique())


def begun_on(own: OwnText, tokenizer: PreTrainedTokenizerBase, out: Path) -> tuple[OwnText, Callable[[], object]]:
    """Text with the date on which an order for it began, and what keeps that date for the runs that go on with it.

    Some chat templates write today's date into each chat. If it changed between two runs, the text that judges would
    be another one on the second day, and nothing of the first day's work could be used.
    """
    undated = [own.digest, *own.forms(tokenizer)[:-1]]
    name = f"begun-{hashlib.sha256(json.dumps(undated).encode()).hexdigest()[:16]}.json"
    place = records_in(out) / "text" / name
    if place.exists():
        own = replace(own, date=datetime.date.fromisoformat(json.loads(place.read_text(encoding="utf-8"))["date"]))
    return own, lambda: write_json(place, {"date": own.date.isoformat()})

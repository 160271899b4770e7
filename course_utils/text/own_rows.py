"""Rows of tokens from one's own documents: texts are joined and cut, and each chat is a row of its own.

A row is int32 [length]. A token that is learned stands there as it is, one that is only read as its complement (~).
"""

from __future__ import annotations

import datetime
import itertools
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from course_utils.text.batches import NOT_LEARNED
from course_utils.text.files import Document, Skipped, is_learned

SHOWN = 3  # places that a message names
PADDING = np.iinfo(np.int32).min
TODAY = "strftime_now"  # how a chat template asks for the date
# Put before such a template: it writes the date that it is given. (transformers hands no functions to a template.)
_DATED = (
    "{% macro strftime_now(format) %}{% set written = namespace(text=format) %}{% for code, value in of_date.items() %}"
    "{% set written.text = written.text.replace(code, value) %}{% endfor %}{{ written.text }}{% endmacro %}"
)
_CODES = ("%a", "%A", "%w", "%d", "%b", "%B", "%m", "%y", "%Y", "%j", "%H", "%I", "%M", "%S", "%p")


@dataclass
class LeftOut:
    """What couldn't be used: how much of it, and the first few places with their reasons."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, skipped: Skipped) -> None:
        """Count one more."""
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append(str(skipped))

    def __str__(self) -> str:
        return f"{self.count:,} left out: {'; '.join(self.first)}{'; …' if self.count > len(self.first) else ''}"


class RowsOnDisk(Sequence[dict[str, Tensor]]):
    """Batches of rows that lie in a file; those in memory are the ones that somebody holds.

    Rows come in a random order, which the seed decides. A batch is as wide as its longest row.

    Attributes:
        left_out: what couldn't become a row.
    """

    def __init__(self, path: Path, length: int, batch_size: int, seed: int, left_out: LeftOut) -> None:
        self._rows = np.memmap(path, np.int32, mode="r").reshape(-1, length)
        self._batch_size, self.left_out = batch_size, left_out
        self._order = torch.randperm(len(self._rows), generator=torch.Generator().manual_seed(seed)).numpy()

    def __len__(self) -> int:
        """The number of batches."""
        return math.ceil(len(self._rows) / self._batch_size)

    def __getitem__(self, place: int) -> dict[str, Tensor]:  # type: ignore[override]
        """A batch of ``{"input_ids", "attention_mask", "labels"}``, each int64 [rows, longest]."""
        if not 0 <= place < len(self):
            raise IndexError(f"There are {len(self)} batches, from 0; got {place}.")
        chosen = self._order[place * self._batch_size : (place + 1) * self._batch_size]
        return batch_of(self._rows[chosen])


def batch_of(rows: np.ndarray) -> dict[str, Tensor]:
    """Rows [rows, length] as a batch that is as wide as its longest."""
    read = rows != PADDING
    rows, read = rows[:, : read.sum(axis=1).max()], read[:, : read.sum(axis=1).max()]
    learned = rows >= 0
    ids = np.where(read, np.where(learned, rows, ~rows), 0)
    columns: Mapping[str, np.ndarray] = {
        "input_ids": ids,
        "attention_mask": read,
        "labels": np.where(learned, ids, NOT_LEARNED),
    }
    return {name: torch.from_numpy(column.astype(np.int64)) for name, column in columns.items()}


def tokens_in(row: np.ndarray) -> int:
    """How many of a row's places aren't padding."""
    return int((row != PADDING).sum())


def row_of_chat(tokenizer: PreTrainedTokenizerBase, text: str, answers: Sequence[tuple[int, int]]) -> np.ndarray:
    """A chat as ``Cutter.chat`` writes it, as a row that is as long as it is: int32 [tokens]."""
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    learned = [
        any(begin <= start < stop <= finish for begin, finish in answers) for start, stop in encoding["offset_mapping"]
    ]
    ids = np.array(encoding["input_ids"], dtype=np.int32)
    return np.where(learned, ids, ~ids)


@dataclass(frozen=True)
class Cutter:
    """Cuts documents into rows.

    Attributes:
        tokenizer: the model's, a fast one with an end token.
        length: of a row.
        date: that a chat template writes where it asks for today's.
        taken: rows that belong to another role, as bytes; they are left out.
    """

    tokenizer: PreTrainedTokenizerBase
    length: int
    date: datetime.date
    taken: frozenset[bytes] = frozenset()

    def rows(self, documents: Iterable[Document], left_out: LeftOut) -> Iterator[np.ndarray]:
        """The rows of all documents, one after the other.

        Raises:
            ValueError: a tokenizer that can't make any, or a chat for one without a chat template.
        """
        end = self.tokenizer.eos_token_id
        if end is None or not self.tokenizer.is_fast:
            raise ValueError(
                "The tokenizer must be a fast one, with an end token (eos_token) to put between documents."
            )
        carried: list[int] = []
        for document in documents:
            if document.messages:
                made = self._row_of_chat(document)
                if isinstance(made, Skipped):
                    left_out.add(made)
                else:
                    yield from self._not_taken([made], document.place, left_out)
            else:
                carried += [*self.tokenizer(document.text, add_special_tokens=False, verbose=False)["input_ids"], end]
                whole = len(carried) // self.length * self.length
                full = np.array(carried[:whole], dtype=np.int32).reshape(-1, self.length)
                yield from self._not_taken(full, document.place, left_out)
                carried = carried[whole:]
        if len(carried) > 1:
            yield from self._not_taken([self._padded(np.array(carried, dtype=np.int32))], "the end", left_out)

    def spread(self, documents: Sequence[Document], tokens: int, left_out: LeftOut) -> Iterator[tuple[int, np.ndarray]]:
        """Rows of one document each, behind its number: the first of each, then the second, up to so many tokens."""
        waiting = deque((number, self.rows([document], left_out)) for number, document in enumerate(documents))
        while waiting and tokens > 0:
            number, rows = waiting.popleft()
            row = next(rows, None)
            if row is not None:
                yield number, row
                tokens -= tokens_in(row)
                waiting.append((number, rows))

    def _not_taken(self, rows: Iterable[np.ndarray], place: str, left_out: LeftOut) -> Iterator[np.ndarray]:
        for row in rows:
            if row.tobytes() in self.taken:
                left_out.add(Skipped(place, f"{self.length} tokens of it are those of a document with another role"))
            else:
                yield row

    def _padded(self, row: np.ndarray) -> np.ndarray:
        return np.pad(row, (0, self.length - len(row)), constant_values=PADDING)

    def _row_of_chat(self, document: Document) -> np.ndarray | Skipped:
        """A chat as one row, cut to its length; or why it can't be one."""
        if self.tokenizer.chat_template is None:
            raise ValueError(
                f"This tokenizer has no chat template, and {document.place} is a chat. Take the model's instruct "
                "version, put its template into tokenizer.chat_template and save it, or give the conversations as "
                "'text'."
            )
        try:
            row = row_of_chat(self.tokenizer, *self.chat(document))
        except Exception as error:  # a template is a program, and the model's own
            return Skipped(document.place, f"the chat template refuses it ({error})")
        learned = np.flatnonzero(row[1:] >= 0) + 1
        if not len(learned):
            why = "the chat template writes its answers in a way in which they can't be found again"
            return Skipped(document.place, why)
        if learned[0] >= self.length:
            why = f"its first answer begins after {learned[0]} tokens, and rows have {self.length} (--length)"
            return Skipped(document.place, why)
        return self._padded(row[: self.length])

    def chat(self, document: Document) -> tuple[str, list[tuple[int, int]]]:
        """A chat in the model's own form, and where in it what is learned begins and ends, in characters.

        Of an answer, what the model itself would have to write is learned. That is what a message adds to the chat
        before it, but for what the template writes to ask for an answer (such as the role, or an opened <think>). Where
        a template writes an early answer differently once others follow, that one is only read.
        """
        tools, tokenizer = [*document.tools] or None, cast(Any, self.tokenizer)
        template, form = tokenizer.get_chat_template(None, tools), dict[str, Any]()
        if TODAY in template:  # or the rows of a stopped run would be others the day after
            form["chat_template"] = _DATED + template
            day, month = self.date.day, self.date.month  # Windows' strftime refuses these three codes
            form["of_date"] = {"%-d": f"{day}", "%e": f"{day:2}", "%-m": f"{month}"}
            form["of_date"] |= {code: self.date.strftime(code) for code in _CODES}

        def written(count: int, **options: bool) -> str:
            chat = [*document.messages[:count]]
            return tokenizer.apply_chat_template(chat, tools=tools, tokenize=False, **form, **options)

        rendered = written(len(document.messages))
        answers = []
        for number, message in enumerate(document.messages):
            if number and is_learned(message):  # before the first message nothing is asked
                before, asked, after = written(number), written(number, add_generation_prompt=True), written(number + 1)
                alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(asked, after, strict=False))
                begin = sum(1 for _ in alike)
                if rendered.startswith(before) and rendered.startswith(after) and begin >= len(before):
                    answers.append((begin, len(after)))
        return rendered, answers

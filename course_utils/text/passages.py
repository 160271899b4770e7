"""The same text for several tokenizers: passages of equal bytes, which each of them cuts into tokens of its own.

Rows of so many tokens hold more text for one tokenizer than for another, and then a loss per token compares nothing. A
passage fits in a row of each, and its bytes are known: ``perplexity(...).bits_per_byte`` can be compared, passage by
passage.
"""

from __future__ import annotations

import datetime
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from course_utils.support import checks
from course_utils.support.checks import check_types
from course_utils.text.files import Document
from course_utils.text.own_rows import PADDING, Cutter, batch_of, row_of_chat

_CHARACTERS = 4  # for each token of a row, at most


@dataclass(frozen=True)
class Passage:
    """A part of one document.

    Attributes:
        document: its number.
        text: the part.
        answers: where what is predicted begins and ends, in characters; None for a text, which is predicted whole.
    """

    document: int
    text: str
    answers: tuple[tuple[int, int], ...] | None = None

    @property
    def num_bytes(self) -> int:
        """The UTF-8 bytes that are predicted."""
        spans = [(0, len(self.text))] if self.answers is None else self.answers
        return sum(len(self.text[begin:end].encode()) for begin, end in spans)

    def row(self, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
        """Its tokens, as ``own_rows`` has them. A text follows the end token, so that its first token is predicted."""
        if self.answers is not None:
            return row_of_chat(tokenizer, self.text, self.answers)
        ids = tokenizer(self.text, add_special_tokens=False, verbose=False)["input_ids"]
        return np.array([~tokenizer.eos_token_id, *ids], dtype=np.int32)


@check_types
def passages(
    documents: Sequence[Document],
    tokenizers: Sequence[PreTrainedTokenizerBase],
    *,
    tokens: int,
    length: int,
    date: datetime.date,
) -> list[Passage]:
    """Passages of documents that fit in a row of each tokenizer; the longest come first.

    The first passage of each document comes before the second one of any. Of a chat there is one, which is cut where it
    is too long. A chat that its template refuses, or of which no answer is left, is left out.

    Args:
        documents: texts and chats.
        tokenizers: of one chat template, with an end token.
        tokens: about so many in all, for the first tokenizer.
        length: tokens in a row at most.
        date: that a chat template writes where it asks for today's.

    Raises:
        ValueError: no document gives a passage.
    """

    def fits(text: str) -> bool:
        sizes = (len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) for tokenizer in tokenizers)
        return len(text) <= _CHARACTERS * length and all(size < length for size in sizes)

    def parts(number: int, document: Document) -> Iterator[Passage]:
        if document.messages:
            yield from _of_chat(number, document, Cutter(tokenizers[0], length, date), fits)
        else:
            yield from (Passage(number, part) for part in _halved(document.text, fits))

    found: list[Passage] = []
    waiting = deque(parts(number, document) for number, document in enumerate(documents))
    while waiting and tokens > 0:
        passage = next(waiting[0], None)
        if passage is None:
            waiting.popleft()
        else:
            found.append(passage)
            tokens -= len(passage.row(tokenizers[0]))
            waiting.rotate(-1)
    if not found:
        raise ValueError(f"None of {len(documents)} documents to judge by fits in rows of {length} tokens (--length).")
    return sorted(found, key=lambda passage: -len(passage.text))


@check_types
def batches_of(
    found: Sequence[Passage], tokenizer: PreTrainedTokenizerBase, *, batch_size: int = 4
) -> list[dict[str, Tensor]]:
    """Passages as batches for one tokenizer, in the same order for each.

    Args:
        found: of ``passages``, with this tokenizer among others.
        tokenizer: that cuts them.
        batch_size: passages in a batch.

    Returns:
        ``{"input_ids", "attention_mask", "labels", "document", "bytes"}``: the first three int64 [rows, longest]; the
        passage's document and the bytes that are predicted, int64 [rows].

    Raises:
        ValueError: no whole number of passages in a batch.
    """
    batch_size = checks.whole_number("batch_size", batch_size, least=1)
    batches = []
    for start in range(0, len(found), batch_size):
        here = found[start : start + batch_size]
        cut = [passage.row(tokenizer) for passage in here]
        rows = np.full((len(cut), max(map(len, cut))), PADDING, dtype=np.int32)
        for row, ids in zip(rows, cut, strict=True):
            row[: len(ids)] = ids
        columns = {"document": [passage.document for passage in here], "bytes": [passage.num_bytes for passage in here]}
        batches.append(batch_of(rows) | {name: torch.tensor(column) for name, column in columns.items()})
    return batches


def _halved(text: str, fits: Callable[[str], bool]) -> Iterator[str]:
    """A text in parts that fit, cut at blanks where there are any."""
    if fits(text) or len(text) < 2:
        yield text
    else:
        half = len(text) // 2
        blank = text.rfind(" ", 1, half + 1)
        place = blank if blank > 0 else half
        yield from _halved(text[:place], fits)
        yield from _halved(text[place:], fits)


def _of_chat(number: int, document: Document, cutter: Cutter, fits: Callable[[str], bool]) -> Iterator[Passage]:
    """A chat as far as it fits, if an answer begins there."""
    try:
        text, answers = cutter.chat(document)
    except Exception:  # a template is a program, and the model's own
        return
    while not fits(text):
        text = text[: len(text) * 7 // 8]
    left = tuple((begin, min(end, len(text))) for begin, end in answers if begin < len(text))
    if left:
        yield Passage(number, text, left)

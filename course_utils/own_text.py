"""Text of one's own: which document is learned, which chooses and which judges; and rows of tokens, made on the way.

    own = read_own_text(["docs/", "chats.jsonl:3"], judge=["held_out.jsonl"])
    batches = own.learned(tokenizer, rows=1600, length=512, folder="rows")

A chat goes through the model's own template, and only its answers are learned (``batches.NOT_LEARNED``). No document
has two roles. Files are read one document at a time, and what is learned lies on disk: memory doesn't grow with them.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import random
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from course_utils import checks
from course_utils.argument_types import check_types
from course_utils.batches import NOT_LEARNED
from course_utils.files import replacing, write_json
from course_utils.text_files import Document, Skipped, Source, is_learned
from course_utils.texts import overlaps

_JUDGING, _CHOOSING = (10, 200), (20, 100)  # one document of so many is held out, and at most so many documents
_SHOWN = 3  # places that a message names
_PADDING = np.iinfo(np.int32).min


@dataclass
class LeftOut:
    """What couldn't be used: how much of it, and the first few places with their reasons."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, skipped: Skipped) -> None:
        """One more."""
        self.count += 1
        if len(self.first) < _SHOWN:
            self.first.append(str(skipped))

    def __str__(self) -> str:
        return f"{self.count:,} left out: {'; '.join(self.first)}{'; …' if self.count > len(self.first) else ''}"


@dataclass(frozen=True)
class Contents:
    """What one source holds.

    Attributes:
        documents: that can be used.
        chats: those of them that are chats.
        characters: of those that aren't.
    """

    documents: int
    chats: int
    characters: int


class RowsOnDisk(Sequence[dict[str, Tensor]]):
    """Batches of rows that lie in a file; those in memory are the ones that somebody holds.

    Rows come in a random order that hangs on the seed. A batch is as wide as its longest row.

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
        return _batch(self._rows[chosen])


@dataclass(frozen=True)
class OwnText:
    """Documents of one's own and their roles, of ``read_own_text``.

    Attributes:
        sources: what is learned, and the rest of what chooses and judges.
        contents: of each source.
        choosing: documents to choose versions by.
        judging: documents that judge in the end.
        shared: documents that were to judge and share thirteen words in a row with others, so that nobody uses them.
        left_out: lines and files that can't be used.
        digest: of all text and roles; the paths don't count.
        seed: of the roles and of the rows' order.
    """

    sources: tuple[Source, ...]
    contents: tuple[Contents, ...]
    choosing: tuple[Document, ...]
    judging: tuple[Document, ...]
    shared: int
    left_out: LeftOut
    digest: str
    seed: int
    _held_out: frozenset[tuple[int, int]]  # source and number of each document that isn't learned

    def check(self, tokenizer: PreTrainedTokenizerBase, *, length: int) -> None:
        """Make one row of each source.

        Raises:
            ValueError: as ``learned``.
        """
        for place, contents in enumerate(self.contents):
            next(self._rows_of(place, tokenizer, length, contents.documents, LeftOut()))

    def turns(self, *, rows: int, length: int) -> dict[str, float]:
        """How often each source has to be read for so many rows, at least: no token is shorter than a character."""
        shares = self._shares()
        return {
            str(source.path): max(1.0, rows * share / self._most_rows(place, length))
            for place, (source, share) in enumerate(zip(self.sources, shares, strict=True))
        }

    def to_choose(
        self, tokenizer: PreTrainedTokenizerBase, *, rows: int, length: int, batch_size: int = 4
    ) -> list[dict[str, Tensor]]:
        """Batches to choose versions by, of ``rows`` rows at most; see ``learned``."""
        return _few(self.choosing, tokenizer, rows, length, batch_size, "to choose by")

    def to_judge(
        self, tokenizer: PreTrainedTokenizerBase, *, rows: int, length: int, batch_size: int = 4
    ) -> list[dict[str, Tensor]]:
        """Batches that judge in the end, of ``rows`` rows at most; see ``learned``."""
        return _few(self.judging, tokenizer, rows, length, batch_size, "to judge by")

    def learned(
        self, tokenizer: PreTrainedTokenizerBase, *, rows: int, length: int, folder: str | Path, batch_size: int = 4
    ) -> RowsOnDisk:
        """Batches to learn from, made once and kept in ``folder``.

        Texts are joined by the end token and cut; a chat is a row of its own, and what is too long of it falls away.
        Sources take turns by their weights, and each gives documents from all over it. Where there are fewer than
        ``rows`` rows, the source is read again.

        Args:
            tokenizer: a fast one with an end token, and with a chat template where there are chats.
            rows: how many to make.
            length: tokens a row, at least 2.
            folder: for one file of 4 bytes a token, and a note on it.
            batch_size: rows a batch.

        Raises:
            ValueError: a size out of range, no end token or chat template, a slow tokenizer, or a source of which no
                document gives a row; the message says why.
        """
        checks.whole_number("rows", rows, least=1)
        checks.whole_number("length", length, least=2, meaning="one token given and one predicted")
        checks.whole_number("batch_size", batch_size, least=1)
        wanted = [self.digest, rows, length, *_forms(tokenizer)]
        path = Path(folder) / f"rows-{hashlib.sha256(json.dumps(wanted).encode()).hexdigest()[:16]}.int32"
        note = path.with_suffix(".json")
        if not note.exists():
            left_out = LeftOut()
            made = itertools.islice(self._mixed(tokenizer, length, rows, left_out), rows)
            with replacing(path) as fresh, fresh.open("wb") as file:
                for row in tqdm(made, total=rows, desc="Tokenizing", unit="rows", delay=2, file=sys.stderr):
                    file.write(row.tobytes())
            write_json(note, vars(left_out))
        kept = LeftOut(**json.loads(note.read_text(encoding="utf-8")))
        return RowsOnDisk(path, length, batch_size, self.seed, kept)

    def chats(self, wanted: int) -> Iterator[tuple[Path, int, Iterator[Document]]]:
        """Of each source of chats that are learned: its place, its share of so many, and they, each once.

        The first of them are from all over the source.
        """
        holding = [place for place, contents in enumerate(self.contents) if contents.chats]
        weights = [self.sources[place].weight for place in holding]
        ends = [round(wanted * end / sum(weights)) for end in itertools.accumulate(weights)]
        for place, start, end in zip(holding, [0, *ends], ends, strict=False):
            if end > start:
                every = self._strided(place, math.ceil(self.contents[place].chats / (end - start)))
                yield self.sources[place].path, end - start, (document for document in every if document.messages)

    def answered(self, path: str | os.PathLike[str]) -> OwnText:
        """The same documents to choose and to judge by, and to learn in their stead the chats of a file.

        Args:
            path: of ``self_data.write_answers``.

        Raises:
            ValueError: no answer in it is one to learn.
        """
        source, left_out, hashed = Source(Path(path), 1.0), LeftOut(), hashlib.sha256(self.digest.encode())
        contents = _look(source, left_out, hashed)
        if not contents.chats:
            raise ValueError(f"None of {left_out.count:,} answers came to its end: let them be longer.")
        return replace(
            self,
            sources=(source,),
            contents=(contents,),
            left_out=left_out,
            digest=hashed.hexdigest()[:16],
            _held_out=frozenset(),
        )

    def _mixed(
        self, tokenizer: PreTrainedTokenizerBase, length: int, wanted: int, left_out: LeftOut
    ) -> Iterator[np.ndarray]:
        """Rows of all sources without end: the next one is of the source that is furthest behind its share."""
        shares = self._shares()
        sources = [
            self._rows_of(place, tokenizer, length, max(1, round(wanted * share)), left_out)
            for place, share in enumerate(shares)
        ]
        behind = np.zeros(len(sources))
        while True:
            behind += shares
            chosen = int(behind.argmax())
            behind[chosen] -= 1
            yield next(sources[chosen])

    def _rows_of(
        self, place: int, tokenizer: PreTrainedTokenizerBase, length: int, wanted: int, left_out: LeftOut
    ) -> Iterator[np.ndarray]:
        """Rows of one source without end."""
        stride = math.ceil(self._most_rows(place, length) / wanted)
        while True:
            row = None
            for row in _rows(self._strided(place, stride), tokenizer, length, left_out):
                yield row
            if row is None:
                raise ValueError(f"No document of {self.sources[place].path} gives a row of tokens. {left_out}.")
            left_out = LeftOut()  # another time round nothing new is left out

    def _shares(self) -> np.ndarray:
        weights = np.array([source.weight for source in self.sources])
        return weights / weights.sum()

    def _most_rows(self, place: int, length: int) -> float:
        """Of a source: no token is shorter than a character."""
        return self.contents[place].characters / length + self.contents[place].chats

    def _strided(self, place: int, stride: int) -> Iterator[Document]:
        """All that is learned of a source, in strides.

        They are so wide that the first one gives no more than is wanted: a little of a large text is then a little of
        all its parts.
        """
        stride = min(self.contents[place].documents, stride)
        return (document for step in _steps(stride) for document in self._every(place, step, stride))

    def _every(self, place: int, step: range, stride: int) -> Iterator[Document]:
        """Of each so many documents of a source these, but for those with another role."""
        for number, document in enumerate(_documents(self.sources[place], LeftOut())):
            if (number - self.seed) % stride in step and (place, number) not in self._held_out:
                yield document


@check_types
def read_own_text(text: Sequence[str], *, judge: Sequence[str] = (), seed: int = 0) -> OwnText:
    """Look through files and folders once, and give each document one role: to learn, to choose by, or to judge.

    A twentieth chooses (at most 100 documents). What judges comes from ``judge`` (at most 200 documents of it), or is a
    tenth of ``text`` (at most 200). Nothing that judges shares thirteen words in a row with any other text
    (``texts.overlaps``): what was held out and does is used by nobody.

    Args:
        text: files and folders, as ``text_files.Source.of`` reads them: "docs/", "chats.jsonl:3".
        judge: more of them, whose weights don't count.
        seed: decides which documents are held out, and the order of the rows.

    Raises:
        ValueError: a place that can't be read, too few documents, or text to learn that shares thirteen words in a row
            with ``judge``; the message names documents.
        ExtraMissing: a Parquet file, and ``datasets`` isn't installed.
    """
    checks.whole_number("seed", seed)
    sources, judges = _places("text", text, 1), _places("judge", judge, 0)
    left_out, hashed = LeftOut(), hashlib.sha256(json.dumps([seed, [source.weight for source in sources]]).encode())
    contents, of_judges = (tuple(_look(source, left_out, hashed) for source in group) for group in (sources, judges))
    _refuse_too_few(sources, contents, left_out, judges, of_judges)
    draw = random.Random(seed)
    spare = [content.documents - 1 for content in contents]  # the first of each source is learned
    choosers, own_judges = _share(sum(spare), *_CHOOSING), 0 if judges else _share(sum(spare), *_JUDGING)
    drawn = [(place, number + 1) for place, number in _draw(draw, spare, choosers + own_judges)]
    to_judge, held_out = set(drawn[choosers:]), _collect(sources, drawn)
    if judges:
        documents = [content.documents for content in of_judges]
        judging = [*_collect(judges, _draw(draw, documents, min(sum(documents), _JUDGING[1]))).values()]
    else:
        judging = [document for place, document in held_out.items() if place in to_judge]
    others = (document.text for place, document in _numbered(sources) if place not in to_judge)
    known = overlaps([document.learned for document in judging], others)
    shared = [document.place for document, is_known in zip(judging, known, strict=True) if is_known]
    if shared and (judges or len(shared) == len(judging)):
        named = "; ".join(shared[:_SHOWN]) + ("; …" if len(shared) > _SHOWN else "")
        raise ValueError(
            f"{len(shared)} of {len(judging)} documents that are to judge share thirteen words in a row with text to "
            f"learn: {named}. Who has learned a text can't be judged by it: "
            + ("take them out of one of the two." if judges else "give other documents to judge by.")
        )
    return OwnText(
        sources=sources,
        contents=contents,
        choosing=tuple(document for place, document in held_out.items() if place not in to_judge),
        judging=tuple(document for document, is_known in zip(judging, known, strict=True) if not is_known),
        shared=len(shared),
        left_out=left_out,
        digest=hashed.hexdigest()[:16],
        seed=seed,
        _held_out=frozenset(drawn),
    )


def _steps(stride: int) -> Iterator[range]:
    """Which of each so many documents come next: more at a time, or a source with few good ones is read too often.

    >>> [(step.start, step.stop) for step in _steps(11)]
    [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (6, 7), (7, 8), (8, 10), (10, 11)]
    """
    done = 0
    while done < stride:
        yield range(done, min(stride, done + 1 + done // 8))
        done += 1 + done // 8


def _places(name: str, typed: Sequence[str], least: int) -> tuple[Source, ...]:
    try:
        return tuple(Source.of(place) for place in checks.strings(name, typed, least=least))
    except ValueError as error:
        raise ValueError(str(error) if f"'{name}'" in str(error) else f"'{name}': {error}.") from error


def _look(source: Source, left_out: LeftOut, hashed: Any) -> Contents:
    """Count what a source holds."""
    texts = chats = characters = 0
    for document in _documents(source, left_out):
        if document.messages:
            chats += 1
        else:
            texts += 1
            characters += len(document.text)
        hashed.update(json.dumps([document.text, document.messages]).encode())
    hashed.update(b"|")
    return Contents(texts + chats, chats, characters)


def _documents(source: Source, left_out: LeftOut) -> Iterator[Document]:
    """Those that can be used."""
    for found in source.read():
        if isinstance(found, Skipped):
            left_out.add(found)
        else:
            yield found


def _refuse_too_few(
    sources: Sequence[Source],
    contents: Sequence[Contents],
    left_out: LeftOut,
    judges: Sequence[Source],
    of_judges: Sequence[Contents],
) -> None:
    for source, found in zip([*sources, *judges], [*contents, *of_judges], strict=True):
        if not found.documents:
            raise ValueError(f"{source.path} holds no text. {left_out if left_out.count else 'It is empty'}.")
    total, needed = sum(content.documents for content in contents), len(sources) + (1 if judges else 2)
    if total < needed:
        raise ValueError(
            f"{', '.join(str(source.path) for source in sources)}: {total} document(s), and {needed} are needed: "
            "one of each file or folder is learned, one chooses between versions"
            + ("" if judges else ", and one judges")
            + ". A .txt or .md file is one document; give more of them, in one folder, or split a long one."
            + (f" ({left_out}.)" if left_out.count else "")
        )


def _share(total: int, one_of: int, most: int) -> int:
    return max(1, min(total // one_of, most))


def _draw(draw: random.Random, counts: Sequence[int], wanted: int) -> list[tuple[int, int]]:
    """Different documents, as their source and their number in it."""
    ends = list(itertools.accumulate(counts))
    drawn = []
    for number in draw.sample(range(ends[-1]), wanted):
        place = next(place for place, end in enumerate(ends) if number < end)
        drawn.append((place, number - ends[place] + counts[place]))
    return drawn


def _numbered(sources: Sequence[Source]) -> Iterator[tuple[tuple[int, int], Document]]:
    """All documents, each behind its source and its number in it."""
    for place, source in enumerate(sources):
        for number, document in enumerate(_documents(source, LeftOut())):
            yield (place, number), document


def _collect(sources: Sequence[Source], wanted: Iterable[tuple[int, int]]) -> dict[tuple[int, int], Document]:
    """Some of all documents, in the order in which they are read."""
    wanted = set(wanted)
    return {place: document for place, document in _numbered(sources) if place in wanted}


def _few(
    documents: Sequence[Document],
    tokenizer: PreTrainedTokenizerBase,
    rows: int,
    length: int,
    batch_size: int,
    purpose: str,
) -> list[dict[str, Tensor]]:
    left_out = LeftOut()
    made = list(itertools.islice(_rows(documents, tokenizer, length, left_out), rows))
    if not made:
        raise ValueError(f"No document {purpose} gives a row of tokens. {left_out}.")
    return [_batch(np.stack(made[start : start + batch_size])) for start in range(0, len(made), batch_size)]


def _rows(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase, length: int, left_out: LeftOut
) -> Iterator[np.ndarray]:
    """Documents as rows, int32 [length]: a token that is learned as it is, one that is read only as its complement."""
    end = tokenizer.eos_token_id
    if end is None or not tokenizer.is_fast:
        raise ValueError("The tokenizer must be a fast one, with an end token (eos_token) to put between documents.")
    carried: list[int] = []
    for document in documents:
        if document.messages:
            refuse_no_template(tokenizer, document)
            try:
                row = _chat(tokenizer, document)[:length]
            except Exception as error:  # a template is a program, and the model's own
                left_out.add(Skipped(document.place, f"the chat template refuses it ({error})"))
                continue
            if (row[1:] >= 0).any():
                yield np.pad(row, (0, length - len(row)), constant_values=_PADDING)
            else:
                left_out.add(Skipped(document.place, f"no answer is found in its first {length} tokens"))
        else:
            carried += [*tokenizer(document.text, add_special_tokens=False, verbose=False)["input_ids"], end]
            whole = len(carried) // length * length
            yield from np.array(carried[:whole], dtype=np.int32).reshape(-1, length)
            carried = carried[whole:]
    if len(carried) > 1:
        yield np.array(carried + [_PADDING] * (length - len(carried)), dtype=np.int32)


def _chat(tokenizer: PreTrainedTokenizerBase, document: Document) -> np.ndarray:
    """A chat in the model's own form, as ``_rows`` writes tokens: answers, with what ends them, are learned.

    An answer is what a message adds to the chat before it. Where a template writes an early one differently once others
    follow, that one is only read.
    """

    def written(count: int, **options: bool) -> str:
        return tokenizer.apply_chat_template([*document.messages[:count]], tokenize=False, **options)

    rendered = written(len(document.messages))
    answers = []
    for number, message in enumerate(document.messages):
        if is_learned(message):
            before, after = written(number, add_generation_prompt=True), written(number + 1)
            if rendered.startswith(before) and rendered.startswith(after):
                answers.append((len(before), len(after)))
    encoding = tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    learned = [
        any(begin <= start < stop <= finish for begin, finish in answers) for start, stop in encoding["offset_mapping"]
    ]
    ids = np.array(encoding["input_ids"], dtype=np.int32)
    return np.where(learned, ids, ~ids)


def refuse_no_template(tokenizer: PreTrainedTokenizerBase, document: Document) -> None:
    """Raise ValueError where a model has no form for a chat."""
    if tokenizer.chat_template is None:
        raise ValueError(
            f"This tokenizer has no chat template, and {document.place} is a chat. Take the model's instruct version, "
            "put its template into tokenizer.chat_template and save it, or give the conversations as 'text'."
        )


def _batch(rows: np.ndarray) -> dict[str, Tensor]:
    """Rows of ``_rows`` as a batch that is as wide as its longest."""
    read = rows != _PADDING
    rows, read = rows[:, : read.sum(axis=1).max()], read[:, : read.sum(axis=1).max()]
    learned = rows >= 0
    ids = np.where(read, np.where(learned, rows, ~rows), 0)
    columns: Mapping[str, np.ndarray] = {
        "input_ids": ids,
        "attention_mask": read,
        "labels": np.where(learned, ids, NOT_LEARNED),
    }
    return {name: torch.from_numpy(column.astype(np.int64)) for name, column in columns.items()}


def _forms(tokenizer: PreTrainedTokenizerBase) -> list[object]:
    """All that decides which tokens a text becomes."""
    return [tokenizer.backend_tokenizer.to_str(), tokenizer.eos_token_id, tokenizer.chat_template]

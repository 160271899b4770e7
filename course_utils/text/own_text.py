"""Text of one's own: which documents score, choose, judge and are learned; and rows of tokens, made on the way.

    own = read_own_text(["docs/", "chats.jsonl:3"], judge=["held_out.jsonl"])
    batches = own.learned(tokenizer, rows=1600, length=512, folder="rows")

A chat goes through the model's own template, and only its answers are learned (``batches.NOT_LEARNED``). No document
has two roles, and of equal documents only the first one is used. Files are read one document at a time, and what is
learned lies on disk: memory grows by nine bytes for each document and no more.
"""

from __future__ import annotations

import datetime
import hashlib
import itertools
import json
import math
import random
import sys
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from course_utils.support import checks
from course_utils.support.argument_types import check_types
from course_utils.support.files import replacing, write_json
from course_utils.text.batches import NOT_LEARNED
from course_utils.text.text_files import Document, Skipped, Source, is_learned
from course_utils.text.texts import first_overlaps, level

# One document of so many is held out for a role, and at most so many documents.
_JUDGING, _CHOOSING, _SCORING = (10, 200), (20, 100), (20, 64)
_FEW = 5  # documents that judge where there are not many
_SHOWN = 3  # places that a message names
_PADDING = np.iinfo(np.int32).min
_CHAT = -1  # in place of a chat's size
_TODAY = "strftime_now"  # how a chat template asks for the date
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
        """One more."""
        self.count += 1
        if len(self.first) < _SHOWN:
            self.first.append(str(skipped))

    def __str__(self) -> str:
        return f"{self.count:,} left out: {'; '.join(self.first)}{'; …' if self.count > len(self.first) else ''}"


@dataclass(frozen=True)
class Contents:
    """What one source holds, copies left out.

    Attributes:
        documents: that can be used.
        chats: those of them that are chats.
        characters: of those that aren't.
        copies: documents that stand elsewhere already, equal but for case and blanks; nobody uses them.
    """

    documents: int
    chats: int
    characters: int
    copies: int


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
        return _batch(self._rows[chosen])


@dataclass(frozen=True)
class OwnText:
    """Documents of one's own and their roles, of ``read_own_text``.

    Attributes:
        sources: of what is learned, and of what else is held out from them.
        contents: of each source.
        scoring: documents to score a model's parts by.
        choosing: documents to choose versions by.
        judging: documents that judge in the end.
        shared: documents that were to judge and share thirteen words in a row with others, so that nobody uses them.
        left_out: lines and files that can't be used.
        digest: of all text and roles; the paths don't count.
        seed: of the roles and of the rows' order.
        date: that a chat template writes which asks for today's.
    """

    sources: tuple[Source, ...]
    contents: tuple[Contents, ...]
    scoring: tuple[Document, ...]
    choosing: tuple[Document, ...]
    judging: tuple[Document, ...]
    shared: int
    left_out: LeftOut
    digest: str
    seed: int
    date: datetime.date
    _copies: tuple[np.ndarray, ...]  # of each source: bool, whether a usable document is a copy of an earlier one
    _held_out: frozenset[tuple[int, int]]  # source and number of each document that isn't learned

    def check(self, tokenizer: PreTrainedTokenizerBase, *, length: int) -> None:
        """Make one row of each source.

        Raises:
            ValueError: as ``learned``.
        """
        cutter = self._cutter(tokenizer, length)
        for place, contents in enumerate(self.contents):
            next(self._rows_of(place, cutter, contents.documents, LeftOut()))

    def forms(self, tokenizer: PreTrainedTokenizerBase) -> list[object]:
        """All that decides which tokens a text becomes, as JSON can hold it."""
        template = tokenizer.chat_template
        dated = self.date.isoformat() if _TODAY in str(template) else None
        return [tokenizer.backend_tokenizer.to_str(), tokenizer.eos_token_id, template, dated]

    def turns(self, *, rows: int, length: int) -> dict[str, float]:
        """How often each source has to be read for so many rows, at least: no token is shorter than a character."""
        shares = self._shares()
        return {
            str(source.path): max(1.0, rows * share / self._most_rows(place, length))
            for place, (source, share) in enumerate(zip(self.sources, shares, strict=True))
        }

    def to_judge(
        self, tokenizer: PreTrainedTokenizerBase, *, rows: int, length: int, batch_size: int = 4
    ) -> list[dict[str, Tensor]]:
        """Batches that judge in the end: as many tokens as ``rows`` rows hold, from as many documents as there are.

        A row is of one document: the first row of each document comes before the second row of any. ``document``,
        int64 [rows], says which rows are of the same one, because an interval has to take documents as its units.

        Args:
            tokenizer: as for ``learned``.
            rows: how many full ones; there are more where documents are short, and fewer where there is little text.
            length: tokens in a row at most.
            batch_size: rows in a batch.

        Raises:
            ValueError: as ``learned``.
        """
        return self._few("to judge by", self.judging, (), tokenizer, rows, length, batch_size)

    def to_choose(
        self, tokenizer: PreTrainedTokenizerBase, *, rows: int, length: int, batch_size: int = 4
    ) -> list[dict[str, Tensor]]:
        """Batches to choose versions by, as ``to_judge`` makes them; none of their rows judges."""
        return self._few("to choose by", self.choosing, self.judging, tokenizer, rows, length, batch_size)

    def to_score(
        self, tokenizer: PreTrainedTokenizerBase, *, rows: int, length: int, batch_size: int = 4
    ) -> list[dict[str, Tensor]]:
        """Batches to score a model's parts by, as ``to_judge`` makes them; none of their rows chooses or judges."""
        others = self.choosing + self.judging
        return self._few("to score by", self.scoring, others, tokenizer, rows, length, batch_size)

    def learned(
        self, tokenizer: PreTrainedTokenizerBase, *, rows: int, length: int, folder: str | Path, batch_size: int = 4
    ) -> RowsOnDisk:
        """Batches to learn from, made once and kept in ``folder``.

        Texts are joined by the end token and cut; a chat is a row of its own, and what is too long of it falls away.
        Sources take turns by their weights, and each gives documents from all over it. Where there are fewer than
        ``rows`` rows, the source is read again. A row that is token for token one of another role's (of two long chats
        that begin alike, say) is left out.

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
        wanted = [self.digest, rows, length, *self.forms(tokenizer)]
        path = Path(folder) / f"rows-{hashlib.sha256(json.dumps(wanted).encode()).hexdigest()[:16]}.int32"
        note = path.with_suffix(".json")
        if not note.exists():
            left_out = LeftOut()
            held_out = self.scoring + self.choosing + self.judging
            cutter = self._cutter(tokenizer, length, apart_from=held_out)
            made = itertools.islice(self._mixed(cutter, rows, left_out), rows)
            with replacing(path) as fresh, fresh.open("wb") as file:
                for row in tqdm(made, total=rows, desc="Tokenizing", unit="rows", delay=2, file=sys.stderr):
                    file.write(row.tobytes())
            write_json(note, vars(left_out))
        kept = LeftOut(**json.loads(note.read_text(encoding="utf-8")))
        return RowsOnDisk(path, length, batch_size, self.seed, kept)

    def _few(
        self,
        purpose: str,
        documents: Sequence[Document],
        others: Sequence[Document],
        tokenizer: PreTrainedTokenizerBase,
        rows: int,
        length: int,
        batch_size: int,
    ) -> list[dict[str, Tensor]]:
        """Batches of rows that are spread over documents; the longest rows come first, so that little is padded."""
        left_out, cutter = LeftOut(), self._cutter(tokenizer, length, apart_from=others)
        made = sorted(cutter.spread(documents, rows * length, left_out), key=lambda made: -_tokens(made[1]))
        if not made:
            raise ValueError(f"No document {purpose} gives a row of tokens. {left_out}.")
        batches = []
        for start in range(0, len(made), batch_size):
            numbers, cut = zip(*made[start : start + batch_size], strict=True)
            batches.append(_batch(np.stack(cut)) | {"document": torch.tensor(numbers)})
        return batches

    def _cutter(self, tokenizer: PreTrainedTokenizerBase, length: int, apart_from: Sequence[Document] = ()) -> _Cutter:
        """What makes rows of documents, except for the rows of documents that have another role."""
        cutter = _Cutter(tokenizer, length, self.date)
        taken = (row.tobytes() for document in apart_from for row in cutter.rows([document], LeftOut()))
        return replace(cutter, taken=frozenset(taken))

    def _mixed(self, cutter: _Cutter, wanted: int, left_out: LeftOut) -> Iterator[np.ndarray]:
        """Rows of all sources without end: the next one is of the source that is furthest behind its share."""
        shares = self._shares()
        sources = [
            self._rows_of(place, cutter, max(1, round(wanted * share)), left_out) for place, share in enumerate(shares)
        ]
        behind = np.zeros(len(sources))
        while True:
            behind += shares
            chosen = int(behind.argmax())
            behind[chosen] -= 1
            yield next(sources[chosen])

    def _rows_of(self, place: int, cutter: _Cutter, wanted: int, left_out: LeftOut) -> Iterator[np.ndarray]:
        """Rows of one source without end."""
        stride = math.ceil(self._most_rows(place, cutter.length) / wanted)
        while True:
            row = None
            for row in cutter.rows(self._strided(place, stride), left_out):
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
        for number, document in enumerate(_distinct(self.sources[place], self._copies[place])):
            if (number - self.seed) % stride in step and (place, number) not in self._held_out:
                yield document


@check_types
def read_own_text(
    text: Sequence[str], *, judge: Sequence[str] = (), seed: int = 0, date: datetime.date | None = None
) -> OwnText:
    """Look through files and folders, and give each document one role: to be learned, to score, choose or judge by.

    Of documents that are equal but for case and blanks the first one counts, and the others are left out. A twentieth
    chooses (at most 100 documents), a twentieth scores (about 64 at most, from all sources by their weights). What
    judges comes from ``judge`` (at most 200 documents of it), or is a tenth of ``text`` (at most 200, and where there
    are few documents up to five, or a quarter). Nothing that judges equals another text or shares thirteen words in a
    row with it (``texts.overlaps``): what was held out and does is used by nobody.

    Args:
        text: files and folders, as ``text_files.Source.of`` reads them: "docs/", "chats.jsonl:3".
        judge: more of them, whose weights don't count.
        seed: decides which documents are held out, and the order of the rows.
        date: what a chat template writes that asks for today's date; None takes today's.

    Raises:
        ValueError: a place that can't be read, too few documents, or text that overlaps with ``judge``; the message
            names documents.
        ExtraMissing: a Parquet file, and ``datasets`` isn't installed.
    """
    checks.whole_number("seed", seed)
    sources, judges = _places("text", text, 1), _places("judge", judge, 0)
    left_out, hashed = LeftOut(), hashlib.sha256(json.dumps([seed, [source.weight for source in sources]]).encode())
    contents, copies = _look(sources, left_out, hashed)
    of_judges, copies_of_judges = _look(judges, left_out, hashed)
    _refuse_too_few(sources, contents, left_out, judges, of_judges)
    draw = random.Random(seed)
    spare = [content.documents - 1 for content in contents]  # the first of each source is learned
    choosers = _share(sum(spare), *_CHOOSING)
    # Of few documents a larger part judges: one or two of them would tell no interval.
    own_judges = 0 if judges else max(_share(sum(spare), *_JUDGING), min(_FEW, sum(spare) // 4))
    drawn = [(place, number + 1) for place, number in _draw(draw, spare, choosers + own_judges)]
    to_choose, to_judge = drawn[:choosers], drawn[choosers:]
    to_score = _draw_scoring(draw, sources, spare, set(drawn))
    held_out = _collect(sources, copies, [*drawn, *to_score])
    judging = [held_out[place] for place in to_judge]
    if judges:
        documents = [content.documents for content in of_judges]
        places = _draw(draw, documents, min(sum(documents), _JUDGING[1]))
        found = _collect(judges, copies_of_judges, places)
        judging = [found[place] for place in places]
    others: list[str] = []  # the places of all other documents
    partners = _partners(judging, _without(sources, copies, {*to_judge}), others)
    clean = [document for document, partner in zip(judging, partners, strict=True) if partner is None]
    if partners.count(None) < len(judging) and (judges or not clean):
        _refuse_overlaps(judging, partners, others, given=bool(judges))
    return OwnText(
        sources=sources,
        contents=contents,
        scoring=tuple(held_out[place] for place in to_score),
        choosing=tuple(held_out[place] for place in to_choose),
        judging=tuple(clean),
        shared=len(judging) - len(clean),
        left_out=left_out,
        digest=hashed.hexdigest()[:16],
        seed=seed,
        date=date or datetime.date.today(),
        _copies=copies,
        _held_out=frozenset([*drawn, *to_score]),
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


def _look(
    sources: Sequence[Source], left_out: LeftOut, hashed: Any
) -> tuple[tuple[Contents, ...], tuple[np.ndarray, ...]]:
    """Count what each source holds, and tell which of its documents are copies of earlier ones, in it or before it."""
    keys, sizes, ends = array("Q"), array("q"), [0]
    for source in sources:
        for document in _documents(source, left_out):
            key = hashlib.blake2b(level(document.text).encode(), digest_size=8).digest()
            keys.append(int.from_bytes(key))
            sizes.append(_CHAT if document.messages else len(document.text))
            hashed.update(json.dumps([document.text, document.messages, document.tools], default=str).encode())
        ends.append(len(keys))
        hashed.update(b"|")
    is_copy, characters = np.ones(len(keys), dtype=bool), np.array(sizes)
    is_copy[np.unique(np.array(keys), return_index=True)[1]] = False  # the first of each
    contents, copies = [], []
    for start, end in itertools.pairwise(ends):
        copied, size = is_copy[start:end], characters[start:end]
        used = size[~copied]
        chats = int((used == _CHAT).sum())
        contents.append(Contents(len(used), chats, int(used.clip(min=0).sum()), int(copied.sum())))
        copies.append(copied)
    return tuple(contents), tuple(copies)


def _distinct(source: Source, is_copy: np.ndarray) -> Iterator[Document]:
    """The documents of a source that can be used, without those that are copies of earlier ones."""
    for document, copied in zip(_documents(source, LeftOut()), is_copy, strict=True):
        if not copied:
            yield document


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
    total, needed = sum(content.documents for content in contents), len(sources) + (2 if judges else 3)
    if total < needed:
        copies = sum(content.copies for content in contents)
        raise ValueError(
            f"{', '.join(str(source.path) for source in sources)}: {total} document(s), and {needed} are needed: "
            "one of each file or folder is learned, one scores the model's parts, one chooses between versions"
            + ("" if judges else ", one judges")
            + ". A .txt or .md file is one document; give more of them, in one folder, or split a long one."
            + (f" ({copies} more are copies.)" if copies else "")
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


def _draw_scoring(
    draw: random.Random, sources: Sequence[Source], spare: Sequence[int], taken: set[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Documents to score by: of each source as many as its weight wants, but a twentieth of it at most."""
    one_of, most = _SCORING
    weights = sum(source.weight for source in sources)
    free = [
        [number for number in range(1, count + 1) if (place, number) not in taken] for place, count in enumerate(spare)
    ]
    wanted = [
        min(max(1, len(numbers) // one_of), math.ceil(most * source.weight / weights)) if len(numbers) > 3 else 0
        for source, numbers in zip(sources, free, strict=True)
    ]
    if not any(wanted):
        wanted[max(range(len(free)), key=lambda place: len(free[place]))] = 1
    return [
        (place, number)
        for place, (numbers, count) in enumerate(zip(free, wanted, strict=True))
        for number in draw.sample(numbers, count)
    ]


def _numbered(sources: Sequence[Source], copies: Sequence[np.ndarray]) -> Iterator[tuple[tuple[int, int], Document]]:
    """All distinct documents, each behind its source and its number in it."""
    for place, (source, is_copy) in enumerate(zip(sources, copies, strict=True)):
        for number, document in enumerate(_distinct(source, is_copy)):
            yield (place, number), document


def _collect(
    sources: Sequence[Source], copies: Sequence[np.ndarray], wanted: Iterable[tuple[int, int]]
) -> dict[tuple[int, int], Document]:
    """Some of all documents, by their source and number."""
    wanted = set(wanted)
    return {place: document for place, document in _numbered(sources, copies) if place in wanted}


def _without(
    sources: Sequence[Source], copies: Sequence[np.ndarray], places: set[tuple[int, int]]
) -> Iterator[Document]:
    return (document for place, document in _numbered(sources, copies) if place not in places)


def _partners(judging: Sequence[Document], others: Iterable[Document], places: list[str]) -> list[int | None]:
    """Of each document that judges the number of one that is equal to it, or gives away what it asks for.

    Args:
        judging: documents; of chats only the answers can be given away, because many chats may share a prompt.
        others: all other documents.
        places: gets the place of each of them.
    """
    whole = {level(document.text): number for number, document in enumerate(judging)}
    equal: dict[int, int] = {}

    def texts() -> Iterator[str]:
        for number, document in enumerate(others):
            places.append(document.place)
            same = whole.get(level(document.text))
            if same is not None:
                equal.setdefault(same, number)
            yield document.text

    shared = first_overlaps([document.learned for document in judging], texts())
    return [equal.get(number, partner) for number, partner in enumerate(shared)]


def _refuse_overlaps(
    judging: Sequence[Document], partners: Sequence[int | None], places: Sequence[str], *, given: bool
) -> None:
    """Raise ValueError: text that is to judge is text to learn as well.

    Args:
        judging: what is to judge.
        partners: of each, the number of the other text that gives it away, if there is one.
        places: of the other texts, by number.
        given: whether it comes from ``judge``.
    """
    pairs = zip(judging, partners, strict=True)
    shared = [f"{document.place} = {places[number]}" for document, number in pairs if number is not None]
    named = "; ".join(shared[:_SHOWN]) + ("; …" if len(shared) > _SHOWN else "")
    if given:
        raise ValueError(
            f"{len(shared)} of {len(judging)} documents of --judge are also in --text, whole or by thirteen words in a "
            f"row ({named}). A model can't be judged by what it has learned. Remove them from one of the two, or leave "
            "--judge out: then a tenth of --text is held out to judge by."
        )
    raise ValueError(
        f"All {len(judging)} documents that were held out to judge by share thirteen words in a row with others "
        f"({named}). A model can't be judged by what it has learned: remove from the documents what they have in "
        "common, or give other text to judge by (--judge)."
    )


@dataclass(frozen=True)
class _Cutter:
    """Cuts documents into rows, int32 [length]: a token that is learned as it is, one that is read as its complement.

    Attributes:
        tokenizer: the model's.
        length: of a row.
        date: that a chat template writes which asks for today's.
        taken: rows that belong to another role, as bytes.
    """

    tokenizer: PreTrainedTokenizerBase
    length: int
    date: datetime.date
    taken: frozenset[bytes] = frozenset()

    def rows(self, documents: Iterable[Document], left_out: LeftOut) -> Iterator[np.ndarray]:
        """Of all documents: texts are joined by the end token and cut, a chat is a row of its own."""
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
                tokens -= _tokens(row)
                waiting.append((number, rows))

    def _not_taken(self, rows: Iterable[np.ndarray], place: str, left_out: LeftOut) -> Iterator[np.ndarray]:
        for row in rows:
            if row.tobytes() in self.taken:
                left_out.add(Skipped(place, f"{self.length} tokens of it are those of a document with another role"))
            else:
                yield row

    def _padded(self, row: np.ndarray) -> np.ndarray:
        return np.pad(row, (0, self.length - len(row)), constant_values=_PADDING)

    def _row_of_chat(self, document: Document) -> np.ndarray | Skipped:
        """A chat as one row, cut to its length; or why it can't be one."""
        if self.tokenizer.chat_template is None:
            raise ValueError(
                f"This tokenizer has no chat template, and {document.place} is a chat. Take the model's instruct "
                "version, put its template into tokenizer.chat_template and save it, or give the conversations as "
                "'text'."
            )
        try:
            row = self._chat(document)
        except Exception as error:  # a template is a program, and the model's own
            return Skipped(document.place, f"the chat template refuses it ({error})")
        learned = np.flatnonzero(row[1:] >= 0) + 1
        if not len(learned):
            return Skipped(
                document.place, "the chat template writes its answers in a way in which they can't be found again"
            )
        if learned[0] >= self.length:
            return Skipped(
                document.place,
                f"its first answer begins after {learned[0]} tokens, and rows have {self.length} (--length)",
            )
        return self._padded(row[: self.length])

    def _chat(self, document: Document) -> np.ndarray:
        """A chat in the model's own form: of an answer, what the model itself would have to write is learned.

        That is what a message adds to the chat before it, but for what the template writes to ask for an answer (such
        as the role, or an opened <think>). Where a template writes an early answer differently once others follow, that
        one is only read.
        """

        def written(count: int, **options: bool) -> str:
            chat = [*document.messages[:count]]
            return self.tokenizer.apply_chat_template(chat, tools=tools, tokenize=False, **form, **options)

        tools = [*document.tools] or None
        template, form = self.tokenizer.get_chat_template(None, tools), dict[str, Any]()
        if _TODAY in template:  # or the rows of a stopped run would be others the day after
            form["chat_template"] = _DATED + template
            day, month = self.date.day, self.date.month  # Windows' strftime refuses these three codes
            form["of_date"] = {"%-d": f"{day}", "%e": f"{day:2}", "%-m": f"{month}"}
            form["of_date"] |= {code: self.date.strftime(code) for code in _CODES}
        rendered = written(len(document.messages))
        answers = []
        for number, message in enumerate(document.messages):
            if number and is_learned(message):  # before the first message nothing is asked
                before, asked, after = written(number), written(number, add_generation_prompt=True), written(number + 1)
                alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(asked, after, strict=False))
                begin = sum(1 for _ in alike)
                if rendered.startswith(before) and rendered.startswith(after) and begin >= len(before):
                    answers.append((begin, len(after)))
        encoding = self.tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        learned = [
            any(begin <= start < stop <= finish for begin, finish in answers)
            for start, stop in encoding["offset_mapping"]
        ]
        ids = np.array(encoding["input_ids"], dtype=np.int32)
        return np.where(learned, ids, ~ids)


def _tokens(row: np.ndarray) -> int:
    return int((row != _PADDING).sum())


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

"""Text of one's own: which documents score, choose, judge and are learned.

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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from course_utils.support import checks
from course_utils.support.checks import check_types
from course_utils.support.files import replacing, write_json
from course_utils.text.contamination import first_overlaps, level
from course_utils.text.files import Document, Skipped, Source
from course_utils.text.own_rows import PADDING, SHOWN, TODAY, Cutter, LeftOut, RowsOnDisk, batch_of, tokens_in

# One document of so many is held out for a role, and at most so many documents.
_JUDGING, _CHOOSING, _SCORING = (10, 200), (20, 100), (20, 64)
_FEW = 5  # documents that judge where there are not many
_CHAT = -1  # in place of a chat's size
_ANY_DATE = datetime.date(2000, 1, 1)
_Place = tuple[int, int]  # of a document: the number of its part, and its own in that


@dataclass(frozen=True)
class Contents:
    """What one file or folder holds, copies left out."""

    documents: int  # that can be used
    chats: int  # those of them that are chats
    characters: int  # of those that aren't
    copies: int  # documents that stand elsewhere already, equal but for case and blanks; nobody uses them


@dataclass(frozen=True)
class Part:
    """One file or folder, and what it holds."""

    source: Source  # where it is, and its weight
    contents: Contents
    is_copy: np.ndarray  # bool [usable documents]: is it a copy of an earlier one, there or in a part before?

    def documents(self) -> Iterator[Document]:
        """Those that are used, in a fixed order."""
        for document, copied in zip(_usable(self.source, LeftOut()), self.is_copy, strict=True):
            if not copied:
                yield document

    def most_rows(self, length: int) -> float:
        """How many rows it gives at most, because no token is shorter than a character."""
        return self.contents.characters / length + self.contents.chats


@dataclass(frozen=True)
class OwnText:
    """Documents of one's own and their roles, of ``read_own_text``.

    Attributes:
        parts: what is learned, and what else is held out from it.
        scoring: documents to score a model's parts by.
        choosing: documents to choose versions by.
        judging: documents that judge in the end.
        shared: documents that were to judge and share thirteen words in a row with others, so that nobody uses them.
        left_out: lines and files that can't be used.
        digest: of all text and roles; the paths don't count.
        seed: of the roles and of the rows' order.
        date: that a chat template writes where it asks for today's.
    """

    parts: tuple[Part, ...]
    scoring: tuple[Document, ...]
    choosing: tuple[Document, ...]
    judging: tuple[Document, ...]
    shared: int
    left_out: LeftOut
    digest: str
    seed: int
    date: datetime.date
    _held_out: frozenset[_Place]  # all that isn't learned

    def check(self, tokenizer: PreTrainedTokenizerBase, *, length: int) -> None:
        """Make one row of each part.

        Raises:
            ValueError: as ``learned``.
        """
        cutter = self._cutter(tokenizer, length)
        for place, part in enumerate(self.parts):
            next(self._rows_of(place, cutter, part.contents.documents, LeftOut()))

    def forms(self, tokenizer: PreTrainedTokenizerBase) -> list[object]:
        """All that decides which tokens a text becomes, as JSON can hold it; the date, or None, comes last."""
        template = tokenizer.chat_template
        dated = self.date.isoformat() if TODAY in str(template) else None
        return [tokenizer.backend_tokenizer.to_str(), tokenizer.eos_token_id, template, dated]

    def turns(self, *, rows: int, length: int) -> dict[str, float]:
        """How often each part has to be read for so many rows, at least."""
        shares = zip(self.parts, self._shares(), strict=True)
        return {str(part.source.path): max(1.0, rows * share / part.most_rows(length)) for part, share in shares}

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
        return self._few("to judge by", self.judging, (), tokenizer, rows=rows, length=length, batch_size=batch_size)

    def to_choose(self, tokenizer: PreTrainedTokenizerBase, **sizes: int) -> list[dict[str, Tensor]]:
        """Batches to choose versions by, as ``to_judge`` makes them; none of their rows judges."""
        return self._few("to choose by", self.choosing, self.judging, tokenizer, **sizes)

    def to_score(self, tokenizer: PreTrainedTokenizerBase, **sizes: int) -> list[dict[str, Tensor]]:
        """Batches to score a model's parts by, as ``to_judge`` makes them; none of their rows chooses or judges."""
        return self._few("to score by", self.scoring, self.choosing + self.judging, tokenizer, **sizes)

    def learned(
        self, tokenizer: PreTrainedTokenizerBase, *, rows: int, length: int, folder: str | Path, batch_size: int = 4
    ) -> RowsOnDisk:
        """Batches to learn from, made once and kept in ``folder``.

        Texts are joined by the end token and cut; a chat is a row of its own, and what is too long of it falls away.
        Parts take turns by their weights, and each gives documents from all over it. Where there are fewer than
        ``rows`` rows, the part is read again. A row that is token for token one of another role's (of two long chats
        that begin alike, say) is left out.

        Args:
            tokenizer: a fast one with an end token, and with a chat template where there are chats.
            rows: how many to make.
            length: tokens in a row, at least 2.
            folder: for one file of 4 bytes per token, and a note on it.
            batch_size: rows in a batch.

        Raises:
            ValueError: a size out of range, no end token or chat template, a slow tokenizer, or a file or folder of
                which no document gives a row; the message says why.
        """
        checks.whole_number("rows", rows, least=1)
        checks.whole_number("length", length, least=2, meaning="one token given and one predicted")
        checks.whole_number("batch_size", batch_size, least=1)
        wanted = [self.digest, rows, length, *self.forms(tokenizer)]
        path = Path(folder) / f"rows-{hashlib.sha256(json.dumps(wanted).encode()).hexdigest()[:16]}.int32"
        note = path.with_suffix(".json")
        if not note.exists():
            left_out = LeftOut()
            cutter = self._cutter_of_learned(tokenizer, length)
            made = itertools.islice(self._mixed(cutter, rows, left_out), rows)
            with replacing(path) as fresh, fresh.open("wb") as file:
                for row in tqdm(made, total=rows, desc="Tokenizing", unit="rows", delay=2, file=sys.stderr):
                    file.write(row.tobytes())
            write_json(note, vars(left_out))
        kept = LeftOut(**json.loads(note.read_text(encoding="utf-8")))
        return RowsOnDisk(path, length, batch_size, self.seed, kept)

    def token_counts(self, tokenizer: PreTrainedTokenizerBase, *, tokens: int, length: int) -> Tensor:
        """How often each token stands in what is learned of each part, which is read once.

        Nothing is written to a disk. A template that asks for a date always gets the same one, so that the counts of
        another day are equal.

        Args:
            tokenizer: as for ``learned``.
            tokens: about so many are enough, from all over the parts, by their weights.
            length: of a row, in tokens: what is longer of a chat isn't counted.

        Returns:
            int64 [parts, vocabulary], from token 0 up to the tokenizer's last.
        """
        cutter = replace(self, date=_ANY_DATE)._cutter_of_learned(tokenizer, length)
        counts = np.zeros((len(self.parts), max(tokenizer.get_vocab().values()) + 1), dtype=np.int64)
        for place, share in enumerate(self._shares()):
            rows = math.ceil(tokens * share / length)
            once = itertools.islice(cutter.rows(self._from_all_over(place, length, rows), LeftOut()), rows)
            for row in tqdm(once, desc="counting tokens", unit="rows", leave=False, delay=2, file=sys.stderr):
                read = row[row != PADDING]
                counts[place] += np.bincount(np.where(read < 0, ~read, read), minlength=counts.shape[1])
        return torch.from_numpy(counts)

    def _few(
        self,
        purpose: str,
        documents: Sequence[Document],
        others: Sequence[Document],
        tokenizer: PreTrainedTokenizerBase,
        *,
        rows: int,
        length: int,
        batch_size: int = 4,
    ) -> list[dict[str, Tensor]]:
        """Batches of rows that are spread over documents; the longest rows come first, so that little is padded."""
        left_out, cutter = LeftOut(), self._cutter(tokenizer, length, apart_from=others)
        made = sorted(cutter.spread(documents, rows * length, left_out), key=lambda made: -tokens_in(made[1]))
        if not made:
            raise ValueError(f"No document {purpose} gives a row of tokens. {left_out}.")
        batches = []
        for start in range(0, len(made), batch_size):
            numbers, cut = zip(*made[start : start + batch_size], strict=True)
            batches.append(batch_of(np.stack(cut)) | {"document": torch.tensor(numbers)})
        return batches

    def _cutter(self, tokenizer: PreTrainedTokenizerBase, length: int, apart_from: Sequence[Document] = ()) -> Cutter:
        """A cutter that leaves out the rows of documents that have another role."""
        cutter = Cutter(tokenizer, length, self.date)
        taken = (row.tobytes() for document in apart_from for row in cutter.rows([document], LeftOut()))
        return replace(cutter, taken=frozenset(taken))

    def _cutter_of_learned(self, tokenizer: PreTrainedTokenizerBase, length: int) -> Cutter:
        return self._cutter(tokenizer, length, apart_from=self.scoring + self.choosing + self.judging)

    def _mixed(self, cutter: Cutter, wanted: int, left_out: LeftOut) -> Iterator[np.ndarray]:
        """Rows of all parts without end: the next one is of the part that is furthest behind its share."""
        shares = self._shares()
        parts = [
            self._rows_of(place, cutter, max(1, round(wanted * share)), left_out) for place, share in enumerate(shares)
        ]
        behind = np.zeros(len(parts))
        while True:
            behind += shares
            chosen = int(behind.argmax())
            behind[chosen] -= 1
            yield next(parts[chosen])

    def _rows_of(self, place: int, cutter: Cutter, wanted: int, left_out: LeftOut) -> Iterator[np.ndarray]:
        """Rows of one part without end."""
        while True:
            row = None
            for row in cutter.rows(self._from_all_over(place, cutter.length, wanted), left_out):
                yield row
            if row is None:
                raise ValueError(f"No document of {self.parts[place].source.path} gives a row of tokens. {left_out}.")
            left_out = LeftOut()  # another time round nothing new is left out

    def _from_all_over(self, place: int, length: int, wanted: int) -> Iterator[Document]:
        """All that is learned of a part, in strides so wide that the first one gives no more rows than are wanted.

        A little of a large text is then a little from all over it.
        """
        part = self.parts[place]
        return self._strided(place, min(part.contents.documents, math.ceil(part.most_rows(length) / wanted)))

    def _strided(self, place: int, stride: int) -> Iterator[Document]:
        """All that is learned of a part: of each so many documents the first, then the second, and so on."""
        for step in _steps(stride):
            for number, document in enumerate(self.parts[place].documents()):
                if (number - self.seed) % stride in step and (place, number) not in self._held_out:
                    yield document

    def _shares(self) -> np.ndarray:
        weights = np.array([part.source.weight for part in self.parts])
        return weights / weights.sum()


def _steps(stride: int) -> Iterator[range]:
    """Which of each so many documents come next: more at a time, or a part with few good ones is read too often.

    >>> [(step.start, step.stop) for step in _steps(11)]
    [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (6, 7), (7, 8), (8, 10), (10, 11)]
    """
    done = 0
    while done < stride:
        yield range(done, min(stride, done + 1 + done // 8))
        done += 1 + done // 8


@check_types
def read_own_text(
    text: Sequence[str], *, judge: Sequence[str] = (), seed: int = 0, date: datetime.date | None = None
) -> OwnText:
    """Look through files and folders, and give each document one role: to be learned, to score, choose or judge by.

    Of documents that are equal but for case and blanks the first one counts, and the others are left out. A twentieth
    chooses (at most 100 documents), a twentieth scores (about 64 at most, from all places by their weights). What
    judges comes from ``judge`` (at most 200 documents of it), or is a tenth of ``text`` (at most 200, and where there
    are few documents up to five, or a quarter). Nothing that judges equals another text or shares thirteen words in a
    row with it (``overlaps``): documents that were held out and do are used by nobody.

    Args:
        text: files and folders, as ``Source.of`` reads them: "docs/", "chats.jsonl:3".
        judge: more of them, whose weights don't count.
        seed: decides which documents are held out, and the order of the rows.
        date: that a chat template writes where it asks for today's; None takes today's.

    Raises:
        ValueError: a place that can't be read, too few documents, or text that overlaps with ``judge``; the message
            names documents.
        ExtraMissing: a Parquet file, and ``datasets`` isn't installed.
    """
    checks.whole_number("seed", seed)
    sources, judges = _places("text", text, 1), _places("judge", judge, 0)
    left_out, hashed = LeftOut(), hashlib.sha256(json.dumps([seed, [source.weight for source in sources]]).encode())
    parts, judging_parts = _look(sources, left_out, hashed), _look(judges, left_out, hashed)
    _refuse_too_few(parts, judging_parts, left_out)
    draw, spare = random.Random(seed), [part.contents.documents - 1 for part in parts]  # the first of each is learned
    choosers = _share(sum(spare), *_CHOOSING)
    # Of few documents a larger part judges: one or two of them would tell no interval.
    own_judges = 0 if judges else max(_share(sum(spare), *_JUDGING), min(_FEW, sum(spare) // 4))
    drawn = [(place, number + 1) for place, number in _draw(draw, spare, choosers + own_judges)]
    to_choose, to_judge = drawn[:choosers], drawn[choosers:]
    to_score = _draw_scoring(draw, parts, {*drawn})
    held_out = _collect(parts, [*drawn, *to_score])
    judging = [held_out[place] for place in to_judge]
    if judges:
        counts = [part.contents.documents for part in judging_parts]
        places = _draw(draw, counts, min(sum(counts), _JUDGING[1]))
        found = _collect(judging_parts, places)
        judging = [found[place] for place in places]
    mine = {*to_judge}
    partners = _partners(judging, (document for place, document in _numbered(parts) if place not in mine))
    clean = [document for document, partner in zip(judging, partners, strict=True) if partner is None]
    if len(clean) < len(judging) and (judges or not clean):
        _refuse_overlaps(judging, partners, given=bool(judges))
    return OwnText(
        parts=parts,
        scoring=tuple(held_out[place] for place in to_score),
        choosing=tuple(held_out[place] for place in to_choose),
        judging=tuple(clean),
        shared=len(judging) - len(clean),
        left_out=left_out,
        digest=hashed.hexdigest()[:16],
        seed=seed,
        date=date or datetime.date.today(),
        _held_out=frozenset([*drawn, *to_score]),
    )


def _places(name: str, typed: Sequence[str], least: int) -> tuple[Source, ...]:
    try:
        return tuple(Source.of(place) for place in checks.strings(name, typed, least=least))
    except ValueError as error:
        raise ValueError(str(error) if f"'{name}'" in str(error) else f"'{name}': {error}.") from error


def _look(sources: Sequence[Source], left_out: LeftOut, hashed: Any) -> tuple[Part, ...]:
    """Count what each source holds, and tell which of its documents are copies of earlier ones, in it or before it."""
    keys, sizes, ends = array("Q"), array("q"), [0]
    for source in sources:
        for document in _usable(source, left_out):
            key = hashlib.blake2b(level(document.text).encode(), digest_size=8).digest()
            keys.append(int.from_bytes(key))
            sizes.append(_CHAT if document.messages else len(document.text))
            hashed.update(json.dumps([document.text, document.messages, document.tools], default=str).encode())
        ends.append(len(keys))
        hashed.update(b"|")
    is_copy, characters = np.ones(len(keys), dtype=bool), np.array(sizes)
    is_copy[np.unique(np.array(keys), return_index=True)[1]] = False  # the first of each
    parts = []
    for source, (start, end) in zip(sources, itertools.pairwise(ends), strict=True):
        copied = is_copy[start:end]
        used = characters[start:end][~copied]
        chats, written = int((used == _CHAT).sum()), int(used.clip(min=0).sum())
        parts.append(Part(source, Contents(len(used), chats, written, int(copied.sum())), copied))
    return tuple(parts)


def _usable(source: Source, left_out: LeftOut) -> Iterator[Document]:
    for found in source.read():
        if isinstance(found, Skipped):
            left_out.add(found)
        else:
            yield found


def _refuse_too_few(parts: Sequence[Part], judging_parts: Sequence[Part], left_out: LeftOut) -> None:
    for part in (*parts, *judging_parts):
        if not part.contents.documents:
            raise ValueError(f"{part.source.path} holds no text. {left_out if left_out.count else 'It is empty'}.")
    total = sum(part.contents.documents for part in parts)
    needed, copies = len(parts) + (2 if judging_parts else 3), sum(part.contents.copies for part in parts)
    if total < needed:
        raise ValueError(
            f"{', '.join(str(part.source.path) for part in parts)}: {total} document(s), and {needed} are needed: "
            "one of each file or folder is learned, one scores the model's parts, one chooses between versions"
            + ("" if judging_parts else ", one judges")
            + ". A .txt or .md file is one document; give more of them, in one folder, or split a long one."
            + (f" ({copies} more are copies.)" if copies else "")
            + (f" ({left_out}.)" if left_out.count else "")
        )


def _share(total: int, one_of: int, most: int) -> int:
    return max(1, min(total // one_of, most))


def _draw(draw: random.Random, counts: Sequence[int], wanted: int) -> list[_Place]:
    """Different documents out of parts with so many each."""
    ends = list(itertools.accumulate(counts))
    drawn = []
    for number in draw.sample(range(ends[-1]), wanted):
        place = next(place for place, end in enumerate(ends) if number < end)
        drawn.append((place, number - ends[place] + counts[place]))
    return drawn


def _draw_scoring(draw: random.Random, parts: Sequence[Part], taken: set[_Place]) -> list[_Place]:
    """Documents to score by: of each part as many as its weight wants, but a twentieth of it at most."""
    one_of, most = _SCORING
    weights = sum(part.source.weight for part in parts)
    free = [
        [number for number in range(1, part.contents.documents) if (place, number) not in taken]
        for place, part in enumerate(parts)
    ]
    wanted = [
        min(max(1, len(numbers) // one_of), math.ceil(most * part.source.weight / weights)) if len(numbers) > 3 else 0
        for part, numbers in zip(parts, free, strict=True)
    ]
    if not any(wanted):
        wanted[max(range(len(free)), key=lambda place: len(free[place]))] = 1
    return [
        (place, number)
        for place, (numbers, count) in enumerate(zip(free, wanted, strict=True))
        for number in draw.sample(numbers, count)
    ]


def _numbered(parts: Sequence[Part]) -> Iterator[tuple[_Place, Document]]:
    """All documents that are used, each behind its place."""
    for place, part in enumerate(parts):
        for number, document in enumerate(part.documents()):
            yield (place, number), document


def _collect(parts: Sequence[Part], wanted: Iterable[_Place]) -> dict[_Place, Document]:
    wanted = set(wanted)
    return {place: document for place, document in _numbered(parts) if place in wanted}


def _partners(judging: Sequence[Document], others: Iterable[Document]) -> list[str | None]:
    """For each document that judges, where another one stands that is equal to it, or gives away what it asks for.

    Of chats only the answers can be given away, because many chats may share a prompt.
    """
    whole = {level(document.text): number for number, document in enumerate(judging)}
    equal: dict[int, int] = {}
    places: list[str] = []

    def texts() -> Iterator[str]:
        for number, document in enumerate(others):
            places.append(document.place)
            same = whole.get(level(document.text))
            if same is not None:
                equal.setdefault(same, number)
            yield document.text

    shared = first_overlaps([document.learned for document in judging], texts())
    found = [equal.get(number, partner) for number, partner in enumerate(shared)]
    return [None if number is None else places[number] for number in found]


def _refuse_overlaps(judging: Sequence[Document], partners: Sequence[str | None], *, given: bool) -> None:
    """Raise ValueError: documents that judge are known; ``given`` says that they come from ``judge``."""
    pairs = zip(judging, partners, strict=True)
    shared = [f"{document.place} = {partner}" for document, partner in pairs if partner is not None]
    named = "; ".join(shared[:SHOWN]) + ("; …" if len(shared) > SHOWN else "")
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

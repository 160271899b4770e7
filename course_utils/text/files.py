"""Documents in files of one's own: .txt and .md, .jsonl and .parquet with ``text`` or ``messages``, read one by one.

A line or a file that can't be used is skipped, with its place and the reason.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from course_utils.support.extras import brought

SUFFIXES = (".txt", ".md", ".jsonl", ".parquet")


@dataclass(frozen=True)
class Document:
    """A text, or a chat.

    Attributes:
        place: the file and the line, for messages.
        text: all that is written in it.
        messages: of a chat, ``{"role", "content"}`` in order; empty for a text. A message with ``"weight": 0`` is read
            and never learned. A message that calls tools may be without content. All else that a message holds
            (``tool_calls``, ``reasoning_content``) is for the model's template.
        tools: the functions that a chat's model may call, as its template takes them.
    """

    place: str
    text: str
    messages: tuple[Mapping[str, Any], ...] = ()
    tools: tuple[Any, ...] = ()

    @property
    def learned(self) -> str:
        """What is learned and judged: a text, or the answers of a chat, except one that opens the chat."""
        return "\n".join(_answers(self.messages)) if self.messages else self.text


@dataclass(frozen=True)
class Skipped:
    """What can't be used: where it stands, and why it can't."""

    place: str
    why: str

    def __str__(self) -> str:
        return f"{self.place}: {self.why}"


@dataclass(frozen=True)
class Source:
    """A file or a folder, and how much of it is wanted beside others.

    Attributes:
        path: a file of ``SUFFIXES``, or a folder with such files, however deep; hidden ones don't count.
        weight: how many rows of it come with each row of a source of weight 1.
    """

    path: Path
    weight: float

    @classmethod
    def of(cls, typed: str) -> Source:
        """A source as it is typed: a path, or a path, a colon and a weight.

        Raises:
            ValueError: there is no such place, it holds nothing that can be read, or the weight isn't above 0.
        """
        place, _, number = typed.rpartition(":")
        weight = 1.0
        if place and not os.path.exists(typed):
            with contextlib.suppress(ValueError):  # C:\\texts has a colon as well
                typed, weight = place, float(number)
        if not 0 < weight < math.inf:
            raise ValueError(f"the weight of {typed} must be a number above 0; got {number!r}")
        path, known = Path(typed), ", ".join(SUFFIXES)
        if not os.path.exists(typed):
            raise ValueError(f"there is no file or folder {typed}; give one, or one with a weight, as in chats.jsonl:3")
        if path.is_file() and path.suffix.lower() not in SUFFIXES:
            raise ValueError(f"{typed} is none of {known}; save its text as one of them")
        if path.is_dir() and next(cls(path, weight).files(), None) is None:
            raise ValueError(f"{typed} holds no file of {known}; name a folder that does")
        return cls(path, weight)

    def files(self) -> Iterator[Path]:
        """Its files, in a fixed order."""
        if self.path.is_file():
            yield self.path
        for folder, inner, names in os.walk(self.path):
            inner[:] = sorted(name for name in inner if not name.startswith("."))
            wanted = (name for name in names if name.lower().endswith(SUFFIXES) and not name.startswith("."))
            yield from (Path(folder, name) for name in sorted(wanted))

    def read(self) -> Iterator[Document | Skipped]:
        """Its documents one by one, and what has to be left out, in a fixed order.

        Raises:
            ExtraMissing: a Parquet file, and ``datasets`` isn't installed.
        """
        for path in self.files():
            place = path.name if path == self.path else path.relative_to(self.path).as_posix()
            readers = {".jsonl": _lines, ".parquet": _rows}
            try:
                yield from readers.get(path.suffix.lower(), _whole)(path, place)
            except OSError as error:
                yield Skipped(place, f"it can't be read ({error.strerror or type(error).__name__})")


def _whole(path: Path, place: str) -> Iterator[Document | Skipped]:
    try:
        yield _document({"text": path.read_text(encoding="utf-8-sig")}, place)
    except UnicodeDecodeError:
        yield Skipped(place, "it isn't text in UTF-8")


def _lines(path: Path, place: str) -> Iterator[Document | Skipped]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                here = f"{place}, line {number}"
                try:
                    row = json.loads(line.decode("utf-8-sig"))
                except (ValueError, RecursionError):
                    yield Skipped(here, "it isn't JSON in UTF-8")
                else:
                    yield _document(row, here)


def _rows(path: Path, place: str) -> Iterator[Document | Skipped]:
    with brought("parquet"):
        from datasets import load_dataset
    try:
        rows = load_dataset("parquet", data_files=str(path), split="train", streaming=True)
        for number, row in enumerate(rows, start=1):
            yield _document(row, f"{place}, row {number}")
    except Exception as error:  # datasets and pyarrow have classes of their own
        yield Skipped(place, f"it can't be read as Parquet ({type(error).__name__})")


def _document(row: object, place: str) -> Document | Skipped:
    """A row of a file, if it is one that can be used."""
    row = row if isinstance(row, Mapping) else {}
    given = {name: row[name] for name in ("text", "messages") if row.get(name) is not None}
    if len(given) != 1:
        return Skipped(place, "it has both 'text' and 'messages'" if given else "it has neither 'text' nor 'messages'")
    messages = _listed(given.get("messages"))
    if "messages" in given and not messages:
        return Skipped(place, "'messages' must be a list of objects with 'role' and 'content', both text")
    if not all(message.get("weight") in (None, 0, 1) for message in messages):
        return Skipped(place, "the 'weight' of a message must be 0 or 1")
    tools = row.get("tools") or []
    if not isinstance(tools, list):
        return Skipped(place, "'tools' must be a list")
    if messages and not any(map(is_learned, messages[1:])):
        lacking = "no message after the first has the role 'assistant' and a weight above 0"
        return Skipped(place, f"{lacking}, so there is no answer to learn")
    if messages and not any(answer.strip() for answer in _answers(messages)):
        return Skipped(place, "its answers are empty")
    text = "\n".join(map(_said, messages)) if messages else given["text"]
    if not isinstance(text, str) or not text.strip():
        return Skipped(place, "its text is empty" if isinstance(text, str) else "'text' isn't text")
    try:
        text.encode()
    except UnicodeEncodeError:
        return Skipped(place, "it holds half a character (a lone surrogate)")
    return Document(place, text, messages, tuple(tools))


def _listed(messages: object) -> tuple[Mapping[str, Any], ...]:
    """The messages of a chat, without what is None in them (as Parquet fills gaps); none where one is bad."""
    if not isinstance(messages, list) or not all(isinstance(message, Mapping) for message in messages):
        return ()
    whole = [{name: value for name, value in message.items() if value is not None} for message in messages]
    filled = tuple({"content": ""} | message if "tool_calls" in message else message for message in whole)
    fields = [message.get(name) for message in filled for name in ("role", "content")]
    return filled if all(isinstance(field, str) for field in fields) else ()


def is_learned(message: Mapping[str, Any]) -> bool:
    """Whether it is an answer that is learned, not only read."""
    return message["role"] == "assistant" and message.get("weight") != 0


def _answers(messages: tuple[Mapping[str, Any], ...]) -> list[str]:
    return [_said(message) for message in messages[1:] if is_learned(message)]


def _said(message: Mapping[str, Any]) -> str:
    """The words of a message, with the tools that it calls."""
    calls = message.get("tool_calls")
    return message["content"] + (json.dumps(calls, ensure_ascii=False, default=str) if calls else "")

"""The questions of a lesson, asked in the terminal; the first answers are kept in the learner's folder."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

from course_tools.lessons.authoring import Lesson, Question
from course_utils.support.files import write_json

RECORD = "quiz_answers.json"
_LETTERS = "ABCD"
_EMPHASIS = re.compile(r"(?<![\w*])(\*{1,2})(?=\S)([^*]+)(?<=\S)\1(?![\w*])")


def ask(lesson: Lesson, folder: Path, *, read: Callable[[str], str], say: Callable[[str], None]) -> int:
    """Ask a lesson's questions one after the other, each with its reasons; return how many were right at once.

    The first answer to a question is kept, and no later one: after it, the reader has seen the reasons.

    Args:
        lesson: whose quiz it is.
        folder: the learner's; made if need be.
        read: shows a prompt and returns a line.
        say: shows a line.

    Raises:
        ValueError: the record of earlier answers can't be read.
    """
    write_json(folder / RECORD, _read(folder))  # what goes wrong with it goes wrong before the first question
    right = 0
    for number, question in enumerate(lesson.quiz, 1):
        say(f"\nQuestion {number} of {len(lesson.quiz)}\n{_plain(question.text)}\n")
        options = dict(zip(_LETTERS, question.options, strict=False))
        for letter, option in options.items():
            say(f"  {letter}  {_plain(option.text)}")
        letters = f"{', '.join([*options][:-1])} or {[*options][-1]}"
        while (answer := read(f"\nYour answer ({letters}): ").strip().upper()) not in options:
            say(f"Type {letters}, and Enter.")
        write_json(folder / RECORD, {_key(question): answer} | _read(folder))
        right += options[answer].right
        say(f"\n✓ {answer} is right." if options[answer].right else f"\n✗ {answer} is not right.")
        for letter, option in options.items():
            say(f"  {letter}{' is right' if option.right else ''}: {_plain(option.reason)}")
    return right


def first_answers(lesson: Lesson, folder: Path) -> tuple[bool | None, ...]:
    """For each question whether its first answer was right; None where there was none. A reworded question is new."""
    record = _read(folder)
    given = [(question, record.get(_key(question), "")) for question in lesson.quiz]
    return tuple(question.options[_LETTERS.index(letter)].right if letter else None for question, letter in given)


def _plain(text: str) -> str:
    """Markdown without its stars: a terminal would show them."""
    return _EMPHASIS.sub(r"\2", text)


def _key(question: Question) -> str:
    said = "\0".join([question.text, *(option.text for option in question.options)])
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def _read(folder: Path) -> dict[str, str]:
    path = folder / RECORD
    if not path.exists():
        return {}
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(known, dict) or not set(known.values()) <= set(_LETTERS):
            raise ValueError("other content")
    except (ValueError, TypeError, OSError) as error:
        raise ValueError(
            f"{RECORD} can't be read as answers to quizzes ({error}). Mend it, or move it out of the folder {folder}."
        ) from error
    return known

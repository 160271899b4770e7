"""The agendas in docs/teaching.md: `python3 course.py build` writes the minutes of their lessons, and the sums.

A lesson takes its minutes without its exercises, and those exercises that are named. Other rows keep their minutes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from course_tools.lessons.authoring import Lesson, exercises_of

_HEAD = "| minutes | what | how |\n|---|---|---|\n"
_AGENDA = re.compile(rf"^### (.+) \(\d+ h \d\d\)\n\n{re.escape(_HEAD)}((?:\|.*\n)+)", re.MULTILINE)
_ROW = re.compile(r"^\| ?(\d*) \| (.+?) \| (.*) \|$", re.MULTILINE)
_LESSON = re.compile(r"lesson (\d\d)(?:, exercises? ([\d, ]+))?")


@dataclass(frozen=True)
class Part:
    """A row of an agenda: a lesson with the exercises that are done in the room, or a pause."""

    minutes: int
    what: str
    how: str

    @property
    def lesson(self) -> str | None:
        """The lesson's number; None for a pause."""
        found = _LESSON.fullmatch(self.what)
        return found and found[1]


def agendas(page: str) -> dict[str, list[Part]]:
    """The agendas of a page, by name."""
    return {name: _parts(rows) for name, rows in _AGENDA.findall(page)}


def fill(page: str, lessons: Mapping[str, Lesson]) -> str:
    """The page with the minutes that the lessons take.

    Raises:
        ValueError: an agenda names an exercise that its lesson doesn't have.
    """

    def filled(agenda: re.Match) -> str:
        parts = [replace(part, minutes=minutes(part, lessons)) for part in _parts(agenda[2])]
        total = sum(part.minutes for part in parts)
        rows = "".join(f"| {part.minutes or ''} | {part.what} | {part.how} |\n" for part in parts)
        return f"### {agenda[1]} ({total // 60} h {total % 60:02d})\n\n{_HEAD}{rows}"

    return _AGENDA.sub(filled, page)


def minutes(part: Part, lessons: Mapping[str, Lesson]) -> int:
    """How long a part takes."""
    found = _LESSON.fullmatch(part.what)
    if found is None:
        return part.minutes
    lesson, chosen = lessons[found[1]], [int(number) for number in (found[2] or "").split(", ") if number]
    each = {one.number: one.minutes for one in exercises_of(lesson)}
    if unknown := set(chosen) - set(each):
        have = ", ".join(map(str, each))
        raise ValueError(f"docs/teaching.md: lesson {found[1]} has no exercise {min(unknown)}; it has {have}.")
    return lesson.minutes - sum(each.values()) + sum(each[number] for number in chosen)


def _parts(rows: str) -> list[Part]:
    return [Part(int(minutes or 0), what, how) for minutes, what, how in _ROW.findall(rows)]

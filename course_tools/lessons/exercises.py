"""The exercises of a lesson, from its source: which check looks at each, how hard it is, how long it takes."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from course_tools.lessons.authoring import Lesson, take_apart
from course_tools.lessons.cells import EXERCISE, tags_of


@dataclass(frozen=True)
class Exercise:
    """An exercise of a lesson: its number, the name of its check, its difficulty as it is printed, and its minutes."""

    number: int
    check: str
    difficulty: str
    minutes: int

    @property
    def effort(self) -> str:
        """Difficulty and minutes as its heading says them."""
        return f"{self.difficulty} · {self.minutes} minutes"


def exercises_of(lesson: Lesson) -> Iterator[Exercise]:
    """The exercises of a lesson, in order."""
    for before, cell in zip(lesson.cells, lesson.cells[1:], strict=False):
        if "exercise" in tags_of(cell):
            number, difficulty, minutes = EXERCISE.findall(before.source)[0]
            call = ast.parse(take_apart(cell.source).after).body[-1].value
            yield Exercise(int(number), call.func.id, difficulty, int(minutes))

"""How far a learner is: read from the notebooks in their own folder, on their own machine, and sent nowhere.

What can honestly be read: which code cells were executed, and what the checks of the exercises printed, because Jupyter
saves both; and the first answers to the quizzes that were taken with `python3 course.py quiz`. Whether somebody
unfolded an answer, or looked into the solutions, is saved nowhere, so nothing is said about it.
"""

from __future__ import annotations

import datetime
import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

from nbformat import NotebookNode

from course_tools.learner.personal import copies, read_notebook
from course_tools.learner.terminal_quiz import first_answers
from course_tools.lessons.authoring import Exercise, Lesson, exercises_of

_LONGEST_NAME = 80
_PAGE = Path(__file__).with_name("certificate.html")


@dataclass(frozen=True)
class Standing:
    """Where a learner stands in a lesson.

    Attributes:
        lesson: the lesson.
        cells: its code cells, and how many of them the learner's copy shows as executed.
        exercises: all of them, in order.
        solved: numbers of those whose check said "correct" in a saved output.
        answers: the first answer to each question of the quiz, True where it was right; None where there is none.
    """

    lesson: Lesson
    cells: tuple[int, int]
    exercises: tuple[Exercise, ...]
    solved: frozenset[int]
    answers: tuple[bool | None, ...]

    @property
    def begun(self) -> bool:
        """Whether anything of it can be seen in the folder."""
        return bool(self.cells[1] or self.solved or any(answer is not None for answer in self.answers))

    @property
    def right(self) -> int:
        """Questions whose first answer was right."""
        return self.answers.count(True)

    @property
    def unsolved(self) -> list[Exercise]:
        """The exercises that are still to do."""
        return [exercise for exercise in self.exercises if exercise.number not in self.solved]

    @property
    def minutes_left(self) -> int:
        """Those of exercises to solve, and of the rest of the lesson as many as its cells are still to run."""
        to_solve = sum(exercise.minutes for exercise in self.unsolved)
        rest = self.lesson.minutes - sum(exercise.minutes for exercise in self.exercises)
        whole, executed = self.cells
        return to_solve + round(rest * (whole - executed) / whole)


def standing(lesson: Lesson, folder: Path) -> Standing:
    """Read where a learner stands in a lesson; an exercise counts as solved if any copy of the lesson shows it.

    Raises:
        ValueError: a notebook can't be read.
    """
    notebooks = [read_notebook(path) for path in copies(folder, lesson.name)]
    exercises = tuple(exercises_of(lesson))
    solved = {
        exercise.number for exercise in exercises for notebook in notebooks if _is_solved(exercise, notebook.cells)
    }
    counts = [_executed(notebook) for notebook in notebooks]
    whole = sum(cell.cell_type == "code" for cell in lesson.cells)
    cells = max(counts, key=lambda count: count[1], default=(whole, 0))
    return Standing(lesson, cells, exercises, frozenset(solved), first_answers(lesson, folder))


def next_lesson(standings: Sequence[Standing]) -> Lesson | None:
    """The first lesson whose notebook has something left to do: not begun, or with exercises to solve."""
    return next((place.lesson for place in standings if not place.begun or place.unsolved), None)


def next_step(standings: Sequence[Standing]) -> str:
    """What to do next, in a sentence: lessons in order, first their exercises, then their quiz."""
    for standing in standings:
        lesson = standing.lesson
        if not standing.begun:
            return f"Next: lesson {lesson.number}, {lesson.title} ({lesson.time}): `python3 course.py lab`"
        if standing.unsolved:
            exercise = standing.unsolved[0]
            return f"Next: lesson {lesson.number}, exercise {exercise.number} · {exercise.effort}"
        if None in standing.answers:
            return f"Next: the questions of lesson {lesson.number}: `python3 course.py quiz {lesson.number}`"
    return "All exercises are solved and all questions answered. docs/where_next.md says where to go from here."


def certificate(standings: Sequence[Standing], *, name: str, version: str, day: datetime.date) -> str:
    """A page to print that says what was measured, for how many lessons, and how; it needs no network.

    Args:
        standings: of all lessons; those not begun are left out.
        name: whose it is; nothing else about the learner is on the page.
        version: of the course.
        day: when it was written.

    Raises:
        ValueError: there is no name, it is too long, or there is nothing to say yet.
    """
    name = " ".join(name.split())
    if not 0 < len(name) <= _LONGEST_NAME:
        raise ValueError(
            f"'name' is what the page is to be made out to, 1 to {_LONGEST_NAME} characters; got {name!r}."
        )
    begun = [standing for standing in standings if standing.begun]
    if not begun:
        raise ValueError("There is nothing to certify yet. Run a lesson in your folder (`python3 course.py lab`).")
    rows = "\n".join(
        f"<tr><th scope='row'>{standing.lesson.number} · {html.escape(standing.lesson.title)}</th>"
        + "".join(f"<td>{part} of {count}</td>" for part, count in _counts(standing))
        + "</tr>"
        for standing in begun
    )
    totals = [tuple(map(sum, zip(*column, strict=True))) for column in zip(*map(_counts, begun), strict=True)]
    total = "".join(f"<td>{part} of {count}</td>" for part, count in totals)
    values = {"name": html.escape(name), "rows": rows, "total": total, "version": version, "day": day.isoformat()}
    return Template(_PAGE.read_text(encoding="utf-8")).substitute(values)


def _counts(standing: Standing) -> list[tuple[int, int]]:
    cells, executed = standing.cells
    return [(executed, cells), (len(standing.solved), len(standing.exercises)), (standing.right, len(standing.answers))]


def _executed(notebook: NotebookNode) -> tuple[int, int]:
    """Code cells, and those with an execution count: the copies come without any."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    return len(code), sum(isinstance(cell.get("execution_count"), int) for cell in code)


def _is_solved(exercise: Exercise, cells: Iterable[NotebookNode]) -> bool:
    verdict = f"Exercise {exercise.number}: correct."
    return any(
        line.startswith(verdict)
        for cell in cells
        if cell.cell_type == "code" and cell.get("execution_count") and f"{exercise.check}(" in cell.source
        for output in cell.outputs
        for line in _text(output).splitlines()
    )


def _text(output: Mapping) -> str:
    return output.get("text", "") if output.get("output_type") == "stream" else ""

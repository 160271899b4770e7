"""How long a lesson takes, from its source: what there is to read, to run, to look at and to do, over its sections."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass

from nbformat import NotebookNode

from course_tools.lessons.cells import EXERCISE, parsed, shown_and_folded, tags_of, words_of

_SECTION = re.compile(r"^## (.+)$", re.MULTILINE)
_PER_MINUTE = 150  # words of such text that one reads
_OF_A_CELL = 1.5  # minutes to read some code, run it, and look at what it prints
_SILENT = {"append", "cleanup", "update"}  # methods that return nothing


@dataclass(frozen=True)
class Load:
    """What a part of a lesson holds.

    Attributes:
        words: folded ones count half.
        cells: of code; exercises aren't among them.
        lines: of their code, empty ones left out.
        figures: that they show.
        tables: that they show.
        exercises: minutes, as their headings say.
    """

    words: float = 0
    cells: int = 0
    lines: int = 0
    figures: int = 0
    tables: int = 0
    exercises: int = 0

    def __add__(self, other: Load) -> Load:
        """Both together."""
        return Load(*map(operator.add, astuple(self), astuple(other)))

    @property
    def minutes(self) -> float:
        """What it takes alone, with the exercises."""
        return self.words / _PER_MINUTE + _OF_A_CELL * self.cells + self.figures + self.tables + self.exercises


def loads_of(cells: Sequence[NotebookNode]) -> list[Load]:
    """The load of each cell of a lesson's source."""
    answering = _functions_that_return(cells)
    return [_load(cell, answering) for cell in cells]


def load_of(cells: Sequence[NotebookNode]) -> Load:
    """The load of a lesson's source."""
    return sum(loads_of(cells), Load())


def minutes_by_section(cells: Sequence[NotebookNode], total: int) -> dict[str, int]:
    """Minutes for each section of a lesson, by its heading; they add up to the total.

    An exercise takes what its heading says. The rest divides by how much there is to read, to run and to look at.

    Args:
        cells: of the source.
        total: the lesson's minutes, exercises among them.
    """
    parts, heading = {"": Load()}, ""
    for cell, load in zip(cells, loads_of(cells), strict=True):
        if cell.cell_type == "code" or "quiz" in tags_of(cell):
            parts[heading] += load
            continue
        for text in re.split(r"^(?=## )", cell.source, flags=re.MULTILINE):
            heading = (_SECTION.match(text) or [None, heading])[1]
            part = _load(NotebookNode(cell | {"source": text}), set())
            parts[heading] = parts.get(heading, Load()) + part
    return _rounded(parts, total)


def _rounded(parts: dict[str, Load], total: int) -> dict[str, int]:
    """Whole minutes that add up; what stands above the first heading counts with it."""
    rest = total - sum(part.exercises for part in parts.values())
    weights = {heading: part.minutes - part.exercises for heading, part in parts.items()}
    whole, spent, minutes, so_far = sum(weights.values()) or 1, 0, {}, 0.0
    for heading, weight in weights.items():
        so_far += weight
        here = round(rest * so_far / whole) - spent  # rounding must not lose or win a minute
        spent += here
        minutes[heading] = here + parts[heading].exercises
    before = minutes.pop("")
    if not minutes:
        return {"": before}
    first, *_ = minutes
    minutes[first] += before
    return minutes


def _load(cell: NotebookNode, answering: set[str]) -> Load:
    tags = tags_of(cell)
    if "notes" in tags:
        return Load()
    if "install" in tags:  # one more to run, whose code the builder writes
        return Load(cells=1)
    if cell.cell_type == "markdown":
        shown, folded = shown_and_folded(cell)
        exercises = sum(int(match["minutes"]) for match in EXERCISE.finditer(cell.source))
        return Load(words=len(words_of(shown)) + len(words_of(folded)) / 2, exercises=exercises)
    if "exercise" in tags:
        return Load()
    called = [_name(node.func) for node in ast.walk(parsed(cell)) if isinstance(node, ast.Call)]
    lines = sum(bool(line.strip()) for line in cell.source.splitlines())
    tables = called.count("display") + _ends_with_a_table(cell, answering)
    return Load(cells=1, lines=lines, figures=called.count("show"), tables=tables)


def _ends_with_a_table(cell: NotebookNode, answering: set[str]) -> bool:
    """Whether the last statement is an expression whose value is shown, and may be a table.

    A call of a plain function does something (``print``, ``style``), unless it is one of the lesson's own that returns.
    """
    *_, last = [None, *parsed(cell).body]
    if not isinstance(last, ast.Expr) or cell.source.rstrip().endswith(";"):
        return False
    value = last.value
    if isinstance(value, ast.Call):
        if isinstance(value.func, ast.Name):
            return value.func.id in answering
        return _name(value.func) not in _SILENT
    return isinstance(value, ast.Name | ast.Attribute | ast.Subscript)


def _functions_that_return(cells: Iterable[NotebookNode]) -> set[str]:
    """The functions that these cells define and that return something."""
    code = [cell for cell in cells if cell.cell_type == "code"]
    defined = [node for cell in code for node in ast.walk(parsed(cell)) if isinstance(node, ast.FunctionDef)]
    return {
        function.name
        for function in defined
        if any(isinstance(node, ast.Return) and node.value is not None for node in ast.walk(function))
    }


def _name(called: ast.expr) -> str:
    """The name of what is called, the last one in ``a.b.c()``."""
    return called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")

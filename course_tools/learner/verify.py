"""A participant's run beside the saved one of this clone: what ran, what stopped, and how alike the numbers are.

Cells are found by their code. Exercises are left out, because everybody solves them differently, and so are
cells tagged `timed`, whose output depends on the machine. Alike does not mean right: machines round
differently, and where a model depends on the last digits, its numbers follow. What a lesson says and a run must show
are its claims (`course_tools.lessons.claims`).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from nbformat import NotebookNode

from course_tools.lessons.cells import tags_of
from course_tools.lessons.notebooks import content_id
from course_tools.lessons.printed import numbers_of, texts_of, under_headings
from course_tools.lessons.runner import first_line

NEAR = 0.05  # of the saved number; or one in its last printed digit
WHAT_IT_MEANS = (
    f"“Within {NEAR:.0%}” is that, or one in the last digit. It tells how alike two runs are, not whether yours is "
    "right: processors,\nnumber formats and versions of PyTorch round differently."
)
_PROFILE = re.compile(r"^profile\s+(\w+)$", re.MULTILINE)
_MODEL = re.compile(r"^(gpt2|llama)\s+(.+)$", re.MULTILINE)


@dataclass
class Comparison:
    """A run beside the saved one.

    Attributes:
        another: the profile or model of the run where it isn't the text's; "" where it is.
        cells: how many there are to compare.
        changed: cells that aren't in the notebook as the course wrote them: edited, or taken out.
        idle: cells that are there and were not run.
        numbers: that both runs print, in cells that print as many in both.
        near: how many of them are near.
        stopped: a sentence for each cell that stopped with an error.
        uneven: a sentence for each cell that prints another count of numbers.
    """

    another: str
    cells: int = 0
    changed: int = 0
    idle: int = 0
    numbers: int = 0
    near: int = 0
    stopped: list[str] = field(default_factory=list)
    uneven: list[str] = field(default_factory=list)

    @property
    def ran(self) -> int:
        """How many cells were run."""
        return self.cells - self.changed - self.idle

    def __str__(self) -> str:
        """All counts in a line."""
        if not self.ran:
            return "not run yet"
        parts = [f"{self.ran} of {self.cells} cells run"]
        parts += [f"{self.changed} changed"] * bool(self.changed)
        parts += [f"{len(self.stopped)} stopped"] * bool(self.stopped)
        if self.another:
            parts.append(f"{self.another} is not what the text is about, so numbers aren't compared")
        elif self.numbers:
            parts.append(f"{self.near} of {self.numbers} numbers are within {NEAR:.0%} of the saved run's")
        return "; ".join(parts)


def compare(run: NotebookNode, saved: NotebookNode) -> Comparison:
    """Compare a notebook that somebody ran with the saved one."""
    mine = defaultdict(list)
    for cell in run.cells:
        if cell.cell_type == "code":
            mine[content_id(cell)].append(cell)
    found = Comparison(_another(run, saved))
    for heading, cell in _compared(saved):
        found.cells += 1
        if not mine[content_id(cell)]:
            found.changed += 1
            continue
        ran = mine[content_id(cell)].pop(0)
        place = f"under “{heading}”, cell `{first_line(cell.source)[:60]}`"
        if not ran.get("execution_count"):
            found.idle += 1
        elif error := _error(ran):
            found.stopped.append(f"{place}: it stopped with {error}")
        elif not found.another:
            here, there = numbers_of(ran.outputs), numbers_of(cell.outputs)
            if len(here) != len(there):
                found.uneven.append(f"{place}: it prints {len(here)} numbers, and {len(there)} in the saved run")
            else:
                found.numbers += len(here)
                found.near += sum(number.is_near(other, NEAR) for number, other in zip(here, there, strict=True))
    return found


def _another(run: NotebookNode, saved: NotebookNode) -> str:
    """What the run's start cell names that the saved one's doesn't: its profile, or a model in a role."""
    mine, texts = (_PROFILE.findall(_started(notebook)) for notebook in (run, saved))
    if mine != texts:
        return f"profile {mine[0]}" if mine else "a run without its start cell"
    models = dict(_MODEL.findall(_started(saved)))
    return next((model for role, model in _MODEL.findall(_started(run)) if model != models.get(role)), "")


def _started(notebook: NotebookNode) -> str:
    """The table of a run's start cell; "" without one."""
    texts = (text for cell in notebook.cells for text in texts_of(cell.get("outputs", [])))
    return next(filter(_PROFILE.search, texts), "")


def _compared(saved: NotebookNode) -> Iterator[tuple[str, NotebookNode]]:
    """The cells to compare, each with the heading above it: those that showed something which isn't the machine's."""
    for heading, cell in under_headings(saved):
        starts = any(map(_PROFILE.search, texts_of(cell.outputs)))
        if cell.outputs and not starts and not {"install", "exercise", "timed"} & set(tags_of(cell)):
            yield heading, cell


def _error(cell: NotebookNode) -> str:
    """The error that stopped a cell, unless it is meant to."""
    errors = [output for output in cell.outputs if output.output_type == "error"]
    if not errors or "raises-exception" in tags_of(cell):
        return ""
    return f"{errors[0].ename}: {(errors[0].evalue.splitlines() or [''])[0]}"

"""A participant's run beside the saved one: number by number, with tolerances, and the first cell where it leaves it.

What to expect of a lesson is written by `python course.py build` from its saved notebook into `EXPECTED`: the numbers
that each cell prints. Left out are exercises, which everybody solves differently, pictures, what models write, and what
belongs to the machine: times and measured memory.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from course_tools.lessons.authoring import tags_of
from course_tools.lessons.notebooks import content_id
from course_tools.lessons.printed import Number, numbers_of, texts_of

EXPECTED = Path(__file__).with_name("expected_results.json")
# How far a number may be off, as a share of itself; besides, one unit of its last printed digit is always allowed.
# Other profiles run other models: there is nothing to compare, and whether every cell ran is all that is said.
TOLERANCES = {"embedded": 0.05}
_PROFILE = re.compile(r"^profile\s+(\w+)$", re.MULTILINE)


@dataclass(frozen=True)
class Departure:
    """Where a run leaves the saved one: the heading above the cell, its first line, and what is different."""

    heading: str
    line: str
    what: str

    def __str__(self) -> str:
        return f"under “{self.heading}”, cell `{self.line}`: {self.what}"


@dataclass
class Comparison:
    """What came of comparing a notebook with the saved run.

    Attributes:
        profile: of the run; "" if its start cell didn't run.
        cells: how many there are to compare.
        missing: cells that aren't in the notebook as the course wrote them: edited, or taken out.
        idle: cells that are there and were not run.
        numbers: compared.
        departures: in the order of the lesson.
    """

    profile: str = ""
    cells: int = 0
    missing: int = 0
    idle: int = 0
    numbers: int = 0
    departures: list[Departure] = field(default_factory=list)

    def sentence(self) -> str:
        """All of it in a line."""
        if self.idle + self.missing == self.cells:
            return "not run yet"
        ran = self.cells - self.idle - self.missing
        parts = [f"{ran} of {self.cells} cells run"]
        parts += [f"{self.missing} changed"] * bool(self.missing)
        if self.profile in TOLERANCES:
            parts.append(f"{self.numbers} numbers compared, {TOLERANCES[self.profile]:.0%} allowed")
        else:
            parts.append(f"profile {self.profile or 'unknown'}, so numbers aren't compared")
        parts.append(f"leaves the saved run in {len(self.departures)} cells" if self.departures else "as expected")
        return "; ".join(parts)


def expected_of(saved: NotebookNode) -> list[dict]:
    """What the cells of a saved notebook printed, for `EXPECTED`; JSON can hold it."""
    found, heading = [], ""
    for cell in saved.cells:
        if cell.cell_type == "markdown":
            heading = (re.findall(r"^#+ (.+)$", cell.source, re.MULTILINE) or [heading])[-1]
        elif _is_compared(cell):
            numbers = [number.text for number in numbers_of(cell.outputs)]
            found.append({"id": content_id(cell), "heading": heading, "line": _shown(cell.source), "numbers": numbers})
    return found


def to_text(expected: Mapping[str, list[dict]]) -> str:
    """The data file, a line a cell."""
    lessons = []
    for name, cells in sorted(expected.items()):
        rows = ",\n".join(json.dumps(cell, ensure_ascii=False) for cell in cells)
        lessons.append(f"{json.dumps(name)}: [\n{rows}\n]")
    return "{\n" + ",\n".join(lessons) + "\n}\n"


def read_expected(path: Path = EXPECTED) -> dict[str, list[dict]]:
    """The data file."""
    return json.loads(path.read_text(encoding="utf-8"))


def with_saved(expected: Mapping[str, list[dict]], notebooks: Iterable[Path]) -> dict[str, list[dict]]:
    """The data file's content with these saved notebooks read anew."""
    fresh = {path.stem: expected_of(nbformat.read(path, as_version=4)) for path in notebooks}
    return {**expected, **fresh}


def compare(run: NotebookNode, expected: Iterable[Mapping]) -> Comparison:
    """Compare a notebook that somebody ran with what is expected; cells are found by their code, not by place."""
    cells = defaultdict(list)
    for cell in run.cells:
        if cell.cell_type == "code":
            cells[content_id(cell)].append(cell)
    profiles = [
        name for cell in run.cells for text in texts_of(cell.get("outputs", [])) for name in _PROFILE.findall(text)
    ]
    result = Comparison(profile=profiles[0] if profiles else "")
    tolerance = TOLERANCES.get(result.profile)
    for wanted in expected:
        result.cells += 1
        if not cells[wanted["id"]]:
            result.missing += 1
            continue
        cell = cells[wanted["id"]].pop(0)
        if not cell.get("execution_count"):
            result.idle += 1
            continue
        what = _departure(cell, [Number(text) for text in wanted["numbers"]], tolerance)
        result.numbers += len(wanted["numbers"]) if tolerance is not None else 0
        if what:
            result.departures.append(Departure(wanted["heading"], wanted["line"], what))
    return result


def _departure(cell: NotebookNode, expected: list[Number], tolerance: float | None) -> str:
    """What is different in a cell that ran, or nothing."""
    for output in cell.outputs:
        if output.output_type == "error" and "raises-exception" not in tags_of(cell):
            return f"it stopped with {output.ename}: {(output.evalue.splitlines() or [''])[0]}"
    if tolerance is None:
        return ""
    found = [*numbers_of(cell.outputs)]
    if len(found) != len(expected):
        return f"it prints {len(found)} numbers where {len(expected)} are expected"
    wrong = [(got, want) for got, want in zip(found, expected, strict=True) if not got.agrees(want, tolerance)]
    if not wrong:
        return ""
    got, want = max(wrong, key=lambda pair: abs(pair[0].value - pair[1].value) / (abs(pair[1].value) or 1))
    return f"{len(wrong)} of {len(expected)} numbers, most of all {got.label}: {got.text} instead of {want.text}"


def _is_compared(cell: NotebookNode) -> bool:
    """Code with outputs, which neither installs nor is an exercise nor tells about the machine."""
    told = any(_PROFILE.search(text) for text in texts_of(cell.get("outputs", [])))
    return (
        cell.cell_type == "code"
        and bool(cell.outputs)
        and not told
        and not {"install", "exercise"} & set(tags_of(cell))
    )


def _shown(source: str) -> str:
    lines = [line.strip() for line in source.splitlines()]
    return next(line for line in lines if line and not line.startswith(("#", "import ", "from ", "@")))[:60]

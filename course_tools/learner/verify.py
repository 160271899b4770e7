"""A participant's run beside the saved one: number by number, with tolerances, and the first cell where it leaves it.

What to expect of a lesson is written by `python course.py build` from its saved notebook into `EXPECTED`: the numbers
that each cell prints. Left out are exercises, which everybody solves differently, pictures, what models write, and what
belongs to the machine: times, what is computed from them, and measured memory.

Machines differ in the number format that they multiply fast (`session.fast_dtype`): a model in bfloat16 prints other
numbers than one in float32, and takes half the memory. So a run is held against one of its own format, and how far a
number may be off is what such runs differ by on other machines; `machines` runs the lessons as they would.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles

import nbformat
from nbformat import NotebookNode

from course_tools.lessons.authoring import tags_of
from course_tools.lessons.notebooks import content_id
from course_tools.lessons.printed import Number, numbers_of, texts_of

EXPECTED = Path(__file__).with_name("expected_results.json")
OTHERS = Path(__file__).with_name("other_machines.json")  # what the same cells print there; `machines` writes it
# Other profiles run other models: there is nothing to compare, and whether every cell ran is all that is said.
COMPARED = "embedded"
SAVED = "bfloat16"  # the saved runs' number format
UNMEASURED = 0.05  # the share of itself that a number may be off where no second machine has run the cell
MARGIN = 2  # a third machine may differ more than the second did
# Energy, ratios of times, what is told of a model that was picked by its time, and plans made with this machine's.
_TIMED = re.compile(
    r"\bJ for\b|\bg CO2\b|of the estimate|as a product|less than unpruned in|depth against it|at least as fast"
    r"|above their estimates|\bhere, (?:here, |record, )?[\d.…]+ %"
)
_PROFILE = re.compile(r"^profile\s+(\w+)$", re.MULTILINE)
_FORMAT = re.compile(r"^fast dtype\s+(\w+)$", re.MULTILINE)


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
        shares: what each of them may be off, as a share of itself, where it isn't 0.
        format: of the numbers that it was held against.
        departures: in the order of the lesson.
    """

    profile: str = ""
    cells: int = 0
    missing: int = 0
    idle: int = 0
    numbers: int = 0
    shares: list[float] = field(default_factory=list)
    format: str = SAVED
    departures: list[Departure] = field(default_factory=list)

    def sentence(self) -> str:
        """All of it in a line."""
        if self.idle + self.missing == self.cells:
            return "not run yet"
        ran = self.cells - self.idle - self.missing
        parts = [f"{ran} of {self.cells} cells run"]
        parts += [f"{self.missing} changed"] * bool(self.missing)
        if self.profile == COMPARED:
            usual = median(self.shares or [UNMEASURED])
            parts.append(f"{self.numbers} numbers compared ({self.format}), half of them to within {usual:.1%}")
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
            numbers = [number.text for number in _numbers(cell)]
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


def read_others(path: Path = OTHERS) -> dict[str, dict]:
    """{machine: {"format": of its numbers, "lessons": {lesson: cells}}}; {} where none was measured."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def with_saved(
    expected: Mapping[str, list[dict]], notebooks: Iterable[Path], *, others: Mapping[str, Mapping] | None = None
) -> dict[str, list[dict]]:
    """The data file's content with these saved notebooks read anew.

    Args:
        expected: the content so far.
        notebooks: the saved ones.
        others: what other machines printed; default: `read_others`.
    """
    others, fresh = read_others() if others is None else others, dict(expected)
    for path in notebooks:
        fresh[path.stem] = with_others(path.stem, expected_of(nbformat.read(path, as_version=4)), others)
    return fresh


def with_others(lesson: str, cells: Iterable[Mapping], others: Mapping[str, Mapping]) -> list[dict]:
    """A lesson's cells with what other machines printed: {format: [numbers of each machine]} as "elsewhere"."""
    result = [{key: value for key, value in cell.items() if key != "elsewhere"} for cell in cells]
    for machine in others.values():
        left = defaultdict(list)
        for cell in machine["lessons"].get(lesson, []):
            left[cell["id"]].append(cell["numbers"])
        for cell in result:
            if left[cell["id"]]:
                cell.setdefault("elsewhere", {}).setdefault(machine["format"], []).append(left[cell["id"]].pop(0))
    return result


@dataclass(frozen=True)
class Wanted:
    """What a cell should print, and how far each number may be off; None where it prints as many as it likes."""

    numbers: Sequence[Number]
    slack: Sequence[float] | None


def wanted(expected: Sequence[Mapping], form: str) -> list[Wanted]:
    """What the cells of a lesson should print on a machine whose number format is `form`.

    The numbers are those of the first run in that format. Each may be off by twice what it differs in the other runs of
    the format; at least by twice what three of four numbers of its cell do, as a share of themselves; and where a
    number was the same everywhere, at least by what half of the lesson's others differ, but by no more than one
    that was never measured elsewhere. One unit of the last printed digit comes on top (`Number.agrees`).
    """
    runs = [_runs(cell, form) for cell in expected]
    firsts = [[Number(text).value for text in run[0]] for run in runs]
    offs = [_largest(run, first) for run, first in zip(runs, firsts, strict=True)]
    shares = [_shares(off, first) for off, first in zip(offs, firsts, strict=True)]
    noise = min(UNMEASURED, median([share for cell in shares for share in cell if share] or [0.0]))
    result = []
    for run, first, off, share in zip(runs, firsts, offs, shares, strict=True):
        slack: list[float] | None = [UNMEASURED * abs(number) for number in first]
        if off:
            usual = max(MARGIN * _upper_quartile(share), noise)
            slack = [max(MARGIN * one, usual * abs(number)) for one, number in zip(off, first, strict=True)]
        elif first and len(run) > 1:
            slack = None
        result.append(Wanted([Number(text) for text in run[0]], slack))
    return result


def _runs(cell: Mapping, form: str) -> list[list[str]]:
    """What the cell printed in runs of a format, first of all in the one to compare with."""
    elsewhere = cell.get("elsewhere", {}).get(form, [])
    return elsewhere if elsewhere and form != SAVED else [cell["numbers"], *elsewhere]


def _largest(runs: Sequence[Sequence[str]], first: Sequence[float]) -> list[float]:
    """The largest difference of each number from the first run; none where no other printed as many numbers."""
    others = [[Number(text).value for text in run] for run in runs[1:] if len(run) == len(first)]
    return [max(abs(other[place] - number) for other in others) for place, number in enumerate(first)] if others else []


def _shares(off: Sequence[float], numbers: Sequence[float]) -> list[float]:
    return [one / abs(number) for one, number in zip(off, numbers, strict=False) if number]


def _upper_quartile(numbers: Sequence[float]) -> float:
    return quantiles(numbers, n=4, method="inclusive")[2] if len(numbers) > 1 else sum(numbers)


def outside(found: Sequence[Number], what: Wanted) -> list[tuple[Number, Number]]:
    """Pairs (found, wanted) of the numbers that are further off than they may be; as many as are wanted."""
    pairs = zip(found, what.numbers, what.slack or (), strict=True)
    return [(got, want) for got, want, off in pairs if not _within(got, want, off)]


def _within(got: Number, want: Number, off: float) -> bool:
    return got.agrees(want, off / abs(want.value)) if want.value else got.agrees(want, 0.0) or abs(got.value) <= off


def compare(run: NotebookNode, expected: Sequence[Mapping]) -> Comparison:
    """Compare a notebook that somebody ran with what is expected; cells are found by their code, not by place."""
    cells = defaultdict(list)
    for cell in run.cells:
        if cell.cell_type == "code":
            cells[content_id(cell)].append(cell)
    told = [text for cell in run.cells for text in texts_of(cell.get("outputs", []))]
    result = Comparison(profile=next(iter(re.findall(_PROFILE, "\n".join(told))), ""))
    form = next(iter(re.findall(_FORMAT, "\n".join(told))), SAVED)
    if any(form in cell.get("elsewhere", {}) for cell in expected):
        result.format = form
    for cell, what in zip(expected, wanted(expected, form), strict=True):
        result.cells += 1
        if not cells[cell["id"]]:
            result.missing += 1
            continue
        mine = cells[cell["id"]].pop(0)
        if not mine.get("execution_count"):
            result.idle += 1
            continue
        what = what if result.profile == COMPARED else Wanted([], None)
        if what.slack is not None:
            result.numbers += len(what.numbers)
            result.shares += _shares(what.slack, [number.value for number in what.numbers])
        if said := _departure(mine, what):
            result.departures.append(Departure(cell["heading"], cell["line"], said))
    return result


def _departure(cell: NotebookNode, what: Wanted) -> str:
    """What is different in a cell that ran, or nothing; without a slack for each number, whether it ran."""
    for output in cell.outputs:
        if output.output_type == "error" and "raises-exception" not in tags_of(cell):
            return f"it stopped with {output.ename}: {(output.evalue.splitlines() or [''])[0]}"
    if what.slack is None:
        return ""
    found = _numbers(cell)
    if len(found) != len(what.numbers):
        return f"it prints {len(found)} numbers where {len(what.numbers)} are expected"
    wrong = outside(found, what)
    if not wrong:
        return ""
    got, want = max(wrong, key=lambda pair: abs(pair[0].value - pair[1].value) / (abs(pair[1].value) or 1))
    return f"{len(wrong)} of {len(found)} numbers, most of all {got.label}: {got.text} instead of {want.text}"


def _numbers(cell: NotebookNode) -> list[Number]:
    return [number for number in numbers_of(cell.outputs) if not _TIMED.search(number.label)]


def _is_compared(cell: NotebookNode) -> bool:
    """Code with outputs that neither installs nor is an exercise nor tells about the machine nor rests on its times."""
    told = any(_PROFILE.search(text) for text in texts_of(cell.get("outputs", [])))
    return (
        cell.cell_type == "code"
        and bool(cell.outputs)
        and not told
        and not {"install", "exercise", "timed"} & set(tags_of(cell))
    )


def _shown(source: str) -> str:
    lines = [line.strip() for line in source.splitlines()]
    return next(line for line in lines if line and not line.startswith(("#", "import ", "from ", "@")))[:60]

"""The rules of a lesson that can be counted on its source and its saved run; docs/authoring.md says them in words."""

from __future__ import annotations

import re
from collections.abc import Iterator

from nbformat import NotebookNode

from course_tools.lessons.authoring import PREDICTION, Lesson, exercises_of, take_apart
from course_tools.lessons.cells import EXERCISE, tags_of, without_folds
from course_tools.lessons.printed import tables_of
from course_tools.lessons.quotes import quantities

_LINES, _FIGURES, _TABLES = 350, 5, 5  # of code, without exercises; and what the saved run shows
_ROWS, _COLUMNS = 8, 6  # of a table, its names left out
_WIDTH = 84  # characters of a line of code
_CONCEPTS = 10
_IDLE = 6  # code cells in a row with nothing to predict or to do
_TELLS_NOTHING = re.compile(r"(?:#|@|def |class |import |from |with |return \w+$)|[\w.]+\(\)$|.{0,11}$")
# A colour that is typed: one of a theme or in digits anywhere, or any word behind a name for colours.
_COLOUR = re.compile(
    r"""["'](C\d|\#[0-9a-fA-F]{3,8})["']"""
    r"""|(?:\b\w*color|\b(?:colors|palette|c))["']?\]?\s*[=:]\s*[\[({]*["'](?!none\b)([\w.]+)["'](?!\])"""
)
# What holds a number and asks nobody to keep it in mind.
_NO_PROSE = re.compile(
    r"^(`{3,}).*?^\1`*$|^#+ .*$|^\|.*$|^\d+\. |\$[^$]+\$|(?<![\d,.])(?:19|20)\d\d(?![\d,.]\d)", re.MULTILINE | re.DOTALL
)


def broken_rules(lesson: Lesson, saved: NotebookNode) -> list[str]:
    """Each rule that a lesson breaks, in a line.

    Args:
        lesson: a lesson, or a deeper notebook, which needn't have exercises.
        saved: its notebook in the exercise form; figures and tables are those of its outputs.
    """
    ways = [] if lesson.deeper else [*_idle(lesson), *_exercises(lesson)]
    return [*_beginning(lesson), *ways, *_leaks(lesson), *_numbers(lesson), *_code(lesson), *_outputs(saved)]


def _beginning(lesson: Lesson) -> Iterator[str]:
    if len(lesson.concepts) > _CONCEPTS:
        yield f"{len(lesson.concepts)} new concepts; {_CONCEPTS} is the most."
    if not lesson.question or not lesson.answer:
        yield "the first cell is `## The question`, the question, and a paragraph that begins with `**Answer.**`."


def _idle(lesson: Lesson) -> Iterator[str]:
    """Where there is nothing to do for too long."""
    since, place = 0, "the beginning"
    for cell in lesson.cells:
        if cell.cell_type == "code":
            since += "exercise" not in tags_of(cell)
            if since == _IDLE + 1:
                yield f"more than {_IDLE} code cells with nothing to predict or to do, after “{place}”."
        elif "quiz" in tags_of(cell) or EXERCISE.search(cell.source) or PREDICTION.search(cell.source):
            since, place = 0, " ".join(cell.source.split()[:8])


def _exercises(lesson: Lesson) -> Iterator[str]:
    exercises = [*exercises_of(lesson)]
    if len(exercises) not in (4, 5):
        yield f"{len(exercises)} exercises; 4 or 5 are asked for."
    claims = sum(exercise.check.startswith("check_claim") for exercise in exercises)
    if claims > 2:
        yield f"{claims} exercises judge claims; 2 is the most."
    number = 0
    for before, cell, after in zip(lesson.cells, lesson.cells[1:], lesson.cells[2:], strict=False):
        if "exercise" in tags_of(cell):
            number += 1
            if not before.source.startswith("### Exercise"):
                yield f"exercise {number}: its heading isn't the first line of its cell."
            if not after.source.startswith("#"):
                yield f"exercise {number}: the cell after it doesn't begin with a heading, so it has no end."


def _leaks(lesson: Lesson) -> Iterator[str]:
    """Lines of solutions that a reader has seen before."""
    seen: set[str] = set()
    number = 0
    for cell in lesson.cells:
        if "exercise" in tags_of(cell):
            exercise = take_apart(cell.source)
            number += 1
            for line in dict.fromkeys(_lines(exercise.solution)):
                if line in seen and not _TELLS_NOTHING.match(line):
                    yield f"exercise {number}: a cell above it shows a line of its solution: {line}"
            seen |= {*_lines("\n".join([exercise.before, exercise.stub, exercise.after]))}
        elif cell.cell_type == "code":
            seen |= {*_lines(cell.source)}
        elif "notes" not in tags_of(cell):
            shown = without_folds(cell.source)
            seen |= {*_lines("\n".join(re.findall(r"^```\w*\n(.*?)^```", shown, re.MULTILINE | re.DOTALL)))}


def _lines(code: str) -> list[str]:
    """Its lines without indentation and without the comments at their ends."""
    return [" ".join(re.sub(r"\s{2,}#.*", "", line).split()) for line in code.splitlines()]


def _numbers(lesson: Lesson) -> Iterator[str]:
    total = 0
    for cell in lesson.cells:
        if cell.cell_type == "code" or {"notes", "quiz"} & set(tags_of(cell)):
            continue
        text = _NO_PROSE.sub("", cell.source.split("## References")[0])
        for paragraph in re.split(r"\n\s*\n|\n(?=- )", text):
            count = sum(1 for _ in quantities(paragraph))
            total += count
            if count > 4:
                yield f"{count} numbers in one paragraph; 4 is the most: {' '.join(paragraph.split())[:60]} …"
    if total > 80:
        yield f"{total} numbers in prose; 80 is the most."


def _code(lesson: Lesson) -> Iterator[str]:
    lines = 0
    for cell in lesson.cells:
        if cell.cell_type != "code":
            continue
        if "exercise" not in tags_of(cell):
            lines += sum(bool(line.strip()) for line in cell.source.splitlines())
        for line in cell.source.splitlines():
            if len(line) > _WIDTH:
                yield f"a line of code has {len(line)} characters; {_WIDTH} is the most: {line.strip()[:50]} …"
        for colours in _COLOUR.findall(cell.source):
            yield f"the colour {''.join(colours)!r} is typed; take it from course_utils.support.plotting.mark."
    if lines > _LINES:
        yield f"{lines} lines of code; {_LINES} is the most."


def _outputs(saved: NotebookNode) -> Iterator[str]:
    outputs = [output for cell in saved.cells for output in cell.get("outputs", [])]
    figures, tables = sum("image/png" in output.get("data", {}) for output in outputs), [*tables_of(outputs)]
    if figures > _FIGURES:
        yield f"{figures} figures; {_FIGURES} is the most."
    if len(tables) > _TABLES:
        yield f"{len(tables)} tables; {_TABLES} is the most."
    for table in tables:
        rows, columns = len(table.rows), max((len(values) for _, values in table.rows), default=0)
        if rows > _ROWS or columns > _COLUMNS:
            yield (
                f"a table of {rows} × {columns}; {_ROWS} rows and {_COLUMNS} columns are the most: "
                f"{', '.join(filter(None, table.columns))[:60]} …"
            )

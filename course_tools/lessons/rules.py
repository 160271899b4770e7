"""The rules of a lesson, counted on a lesson's source and its saved run; docs/authoring.md says them in words."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from nbformat import NotebookNode

from course_tools.lessons.authoring import PREDICTION, Lesson, take_apart
from course_tools.lessons.cells import EXERCISE, parsed, shown_and_folded, tags_of, words_of
from course_tools.lessons.exercises import exercises_of
from course_tools.lessons.minutes import Load, load_of, loads_of
from course_tools.lessons.printed import tables_of
from course_tools.lessons.quotes import quantities

_SHORT = ("01", "02", "03", "04", "05")  # lessons of 75 minutes
_AT_MOST = {"words": 2400, "cells": 22, "lines": 350, "figures": 5, "tables": 5}
_NAMES = {"words": "words", "cells": "code cells", "lines": "lines of code", "figures": "figures", "tables": "tables"}
_WIDTH = 84  # characters of a line of code
_ROWS, _COLUMNS = 8, 6  # of a table, its names left out
_COLOURED = {
    "color",
    "c",
    "colors",
    "facecolor",
    "edgecolor",
    "ecolor",
    "markerfacecolor",
    "markeredgecolor",
    "palette",
}
_COLOUR = re.compile(r"C\d|#[0-9a-fA-F]{3,8}")
_TELLS_NOTHING = re.compile(r"(?:#|@|def |class |import |from |with |return \w+$)|[\w.]+\(\)$|.{0,11}$")
# What holds a number and asks nobody to keep it in mind.
_NO_PROSE = re.compile(
    r"^(`{3,}).*?^\1`*$|^#+ .*$|^\|.*$|^\d+\. |\$[^$]+\$|(?<![\d,.])(?:19|20)\d\d(?![\d,.]\d)", re.MULTILINE | re.DOTALL
)


def broken_rules(lesson: Lesson, saved: NotebookNode) -> list[str]:
    """Each rule that a lesson breaks, in a line.

    Args:
        lesson: a lesson, or a deeper notebook, which needn't have exercises.
        saved: its notebook in the exercise form; the size of tables is read from its outputs.
    """
    ways = [] if lesson.deeper else [*_rhythm(lesson), *_exercises(lesson)]
    return [
        *_size(lesson),
        *_beginning(lesson),
        *ways,
        *_leaks(lesson),
        *_numbers(lesson),
        *_code(lesson),
        *_drawing(lesson),
        *_large_tables(saved),
    ]


def _size(lesson: Lesson) -> Iterator[str]:
    load, most = load_of(lesson.cells), 60 if lesson.deeper else 75 if lesson.number in _SHORT else 90
    if lesson.minutes > most:
        yield f"{lesson.minutes} minutes; {most} is the most."
    for name, bound in _AT_MOST.items():
        if (count := getattr(load, name)) > bound:
            yield f"{count:g} {_NAMES[name]}; {bound} is the most."
    if len(lesson.concepts) > 10:
        yield f"{len(lesson.concepts)} new concepts; 10 is the most."


def _beginning(lesson: Lesson) -> Iterator[str]:
    if not lesson.question or not lesson.answer:
        yield "the first cell is `## The question`, the question, and a paragraph that begins with `**Answer.**`."
        return
    words, numbers = len(words_of(lesson.answer)), sum(1 for _ in quantities(lesson.answer))
    if words > 40:
        yield f"the answer has {words} words; 40 is the most."
    if numbers > 2:
        yield f"the answer has {numbers} numbers; 2 is the most."
    if lesson.answer in shown_and_folded(lesson.cells[0])[1]:  # who shall find it isn't shown it
        return
    for cell, load in zip(lesson.cells[1:], loads_of(lesson.cells)[1:], strict=True):
        if load.figures:
            return
        if cell.cell_type == "markdown" and re.search("^## ", cell.source, re.MULTILINE):
            break
    yield "no figure stands between the answer and the next `## ` heading."


def _rhythm(lesson: Lesson) -> Iterator[str]:
    """Where there is nothing to do for too long."""
    since, place = Load(), "the beginning"
    for cell, load in zip(lesson.cells, loads_of(lesson.cells), strict=True):
        doing = re.search(f"{EXERCISE.pattern}|{PREDICTION.pattern}", cell.source, re.IGNORECASE | re.MULTILINE)
        if not doing and "quiz" not in tags_of(cell):
            since += load
            continue
        before = cell.source[: doing.start()] if doing else ""
        yield from _too_long(Load(words=since.words + len(words_of(before)), cells=since.cells), place)
        since, place = Load(), " ".join(cell.source[doing.start() if doing else 0 :].split()[:8])
    yield from _too_long(since, place)


def _too_long(since: Load, place: str) -> Iterator[str]:
    if since.words > 500 or since.cells > 6:
        yield f"{since.words:g} words and {since.cells} code cells with nothing to predict or to do, after “{place}”."


def _exercises(lesson: Lesson) -> Iterator[str]:
    exercises = [*exercises_of(lesson)]
    if len(exercises) not in (4, 5):
        yield f"{len(exercises)} exercises; 4 or 5 are asked for."
    claims = sum(exercise.check.startswith("check_claim") for exercise in exercises)
    if claims > 2:
        yield f"{claims} exercises judge claims; 2 is the most."
    headings = [EXERCISE.search(cell.source) for cell in lesson.cells]
    first = next((number for number, heading in enumerate(headings) if heading), 0)
    before = load_of(lesson.cells[:first]).minutes
    if before > 10:
        yield f"the first exercise comes after {before:.0f} minutes; 10 is the most."
    for number, cell in enumerate(lesson.cells[:-1]):
        if "exercise" not in tags_of(cell):
            continue
        task, after = lesson.cells[number - 1].source, lesson.cells[number + 1].source
        name = EXERCISE.search(task)["number"]
        if not task.startswith("### Exercise"):
            yield f"exercise {name}: its heading isn't the first line of its cell."
        if not after.startswith("#"):
            yield f"exercise {name}: the cell after it doesn't begin with a heading, so it has no end."


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
            shown, _ = shown_and_folded(cell)
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
            numbers = [quantity.text for quantity in quantities(paragraph)]
            total += len(numbers)
            if len(numbers) > 4:
                yield f"{len(numbers)} numbers in one paragraph; 4 is the most: {' '.join(paragraph.split())[:60]} …"
    if total > 80:
        yield f"{total} numbers in prose; 80 is the most."


def _code(lesson: Lesson) -> Iterator[str]:
    for cell in lesson.cells:
        if cell.cell_type != "code":
            continue
        for line in cell.source.splitlines():
            if len(line) > _WIDTH:
                yield f"a line of code has {len(line)} characters; {_WIDTH} is the most: {line.strip()[:50]} …"
        for colour in _literal_colours(parsed(cell)):
            yield f"the colour {colour!r} is typed; take it from course_utils.support.plotting.mark."


def _literal_colours(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and _COLOUR.fullmatch(node.value):
            yield node.value
        else:
            values = [value for name, value in _named(node) if name in _COLOURED]
            yield from (
                word for value in values for word in _words(value) if word != "none" and not _COLOUR.fullmatch(word)
            )


def _named(node: ast.AST) -> Iterator[tuple[str | None, ast.expr]]:
    """What a node gives names: a keyword, a dictionary's keys, or one of them that is set."""
    if isinstance(node, ast.keyword):
        yield node.arg, node.value
    elif isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            if isinstance(key, ast.Constant):
                yield key.value, value
    elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript):
        index = node.targets[0].slice
        if isinstance(index, ast.Constant):
            yield index.value, node.value


def _words(value: ast.expr) -> Iterator[str]:
    """The strings that a value is, or may be, or is made of."""
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        yield value.value
    elif isinstance(value, ast.List | ast.Tuple):
        for part in value.elts:
            yield from _words(part)
    elif isinstance(value, ast.Dict):
        for part in value.values:
            yield from _words(part)
    elif isinstance(value, ast.IfExp):
        yield from _words(value.body)
        yield from _words(value.orelse)


def _drawing(lesson: Lesson) -> Iterator[str]:
    """Cells that draw, and do more than that."""
    code = [cell for cell in lesson.cells if cell.cell_type == "code"]
    needs = [_needed(cell) for cell in code]
    for number, cell in enumerate(code):
        tree = parsed(cell)
        if "show" not in {node.func.id for node in ast.walk(tree) if _is_plain_call(node)}:
            continue
        begin = " ".join(cell.source.split())[:50]
        if any(isinstance(node, ast.FunctionDef) for node in ast.walk(tree)):
            yield f"a cell that draws defines a function; give it a cell of its own: {begin} …"
        used = _stored(tree) & set().union(*needs[number + 1 :])
        if used:
            yield f"a cell that draws makes {', '.join(sorted(used))}, which a later cell uses: {begin} …"


def _is_plain_call(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name)


def _stored(tree: ast.AST) -> set[str]:
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return names | {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}


def _needed(cell: NotebookNode) -> set[str]:
    """The names that a cell takes from earlier ones."""
    tree = parsed(cell)
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - _stored(tree)


def _large_tables(saved: NotebookNode) -> Iterator[str]:
    for cell in saved.cells:
        for table in tables_of(cell.get("outputs", [])):
            rows, columns = len(table.rows), max((len(values) for _, values in table.rows), default=0)
            if rows > _ROWS or columns > _COLUMNS:
                yield (
                    f"a table of {rows} × {columns}; {_ROWS} rows and {_COLUMNS} columns are the most: "
                    f"{', '.join(filter(None, table.columns))[:60]} …"
                )

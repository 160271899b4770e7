"""Each lesson's verdicts hold on every recorded machine and draw, and each of them can fail."""

import dataclasses
from pathlib import Path

import nbformat
import pytest

from course_tools.lessons.printed import NUMBER, Table
from course_tools.lessons.verdicts import judging, recording
from course_tools.lessons.verdicts.tables import Tables
from course_tools.lessons.verdicts.verdict import ABSENT
from course_utils.verdicts import SHOWN

ROOT = Path(__file__).resolve().parents[4]
SAVED = {path.stem[:2]: path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
JUDGED = [number for number in SAVED if judging.checks_of(number)]


def saved(number):
    return Tables.of(nbformat.read(SAVED[number], as_version=4))


RUNS = [(number, name) for number in JUDGED for name in ("saved", *recording.RUNS)]


@pytest.mark.parametrize(("number", "name"), RUNS, ids=[" ".join(run) for run in RUNS])
def test_verdicts_hold_on_every_machine_and_draw(number, name):
    """What doesn't is no verdict: take it out, or say in the lesson that it is open."""
    tables = saved(number) if name == "saved" else judging.recorded(number)[name]
    assert unshown(number, tables) == []


def unshown(number, tables):
    return [str(found) for found in judging.judge(number, tables) if found.outcome != SHOWN]


@pytest.mark.parametrize("number", JUDGED)
def test_main_cells_of_the_saved_run_say_that_it_is_shown(number):
    said = [line for _, line in saved(number).lines if line.startswith("here: ")]
    assert len(said) >= 3 and all(line.startswith(f"here: {SHOWN}. ") for line in said), said


@pytest.mark.parametrize("number", JUDGED)
def test_each_verdict_can_fail(number):
    """Some single number of what it reads, made large, small or negative, turns it."""
    tables = recording._read_by_verdicts(number, saved(number))
    others = [other for value in ("1e6", "0", "-1e6") for other in with_one_number_as(tables, value)]
    for check in judging.checks_of(number):
        outcomes = {check(other).outcome for other in others}
        assert outcomes - {SHOWN, ABSENT}, check.margins.__name__


def with_one_number_as(tables, value):
    """The tables with one cell or one number of a line replaced, for each of them."""
    for place, (heading, table) in enumerate(tables.tables):
        for row, (names, values) in enumerate(table.rows):
            for column in range(len(values)):
                changed = [*values[:column], value, *values[column + 1 :]]
                rows = [*table.rows[:row], (names, changed), *table.rows[row + 1 :]]
                other = (heading, Table(table.columns, rows, table.caption))
                yield dataclasses.replace(tables, tables=(*tables.tables[:place], other, *tables.tables[place + 1 :]))
    for place, (heading, line) in enumerate(tables.lines):
        for number in NUMBER.finditer(line):
            other = (heading, line[: number.start()] + value + line[number.end() :])
            yield dataclasses.replace(tables, lines=(*tables.lines[:place], other, *tables.lines[place + 1 :]))


@pytest.mark.parametrize("number", JUDGED)
def test_every_verdict_says_something_else(number):
    checks = judging.checks_of(number)
    sentences = [found.sentence for found in judging.judge(number, saved(number))]
    assert len(set(sentences)) == len(checks) and all(sentence.endswith(".") for sentence in sentences)


def test_a_lesson_without_verdicts_has_none():
    assert judging.checks_of("99") == () and judging.judge("99", Tables((), ())) == []
    assert judging.recorded("99") == {}

"""How far lessons are, in a terminal and in a log, and tables that tell the failed from the finished."""

import dataclasses
import io

import pytest
from rich.console import Console
from sample_lesson import LESSON, write_lesson

from course_tools import terminal
from course_tools.learner.progress import standing
from course_tools.lessons import runner
from course_tools.lessons.authoring import read_lesson
from course_tools.rehearsal.rehearse import Rehearsed


def shown(table, width=120):
    screen = io.StringIO()
    Console(file=screen, width=width).print(table)
    return [[part.strip() for part in line.split("│")[1:-1]] for line in screen.getvalue().splitlines() if "│" in line]


@pytest.mark.parametrize("in_a_terminal", [True, False])
def test_progress_is_told(in_a_terminal, monkeypatch, tmp_path):
    folders = []

    def execute(notebook, *, name, profile, folder, on_cell):
        folders.append(folder)
        on_cell(0, 2)
        on_cell(2, 2)
        return runner.Result(name, profile, 3.0, 10**9, None)

    monkeypatch.setattr(runner, "execute", execute)
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=in_a_terminal, highlight=False)
    with terminal.Reporter(console, 1, folder=tmp_path) as reporter:
        reporter.execute(None, "01_small", "smoke")
    assert "[1/1] 01_small ok, 3 s" in screen.getvalue()
    assert ("[1/1] 01_small …" in screen.getvalue()) != in_a_terminal, "where there is no bar, a line says what runs"
    assert folders == [tmp_path / "01_small"]


def test_results_tell_the_failed_from_the_finished():
    fine, broken = (runner.Result(name, "smoke", 3.4, 10**9, why) for name, why in (("01_a", None), ("02_b", "cell 3")))
    assert shown(terminal.results_table([fine, broken])) == [
        ["01_a", "smoke", "3", "1.0 GB", "ok"],
        ["02_b", "smoke", "3", "1.0 GB", "failed"],
    ]


def test_rehearsals_tell_a_deeper_notebook_from_its_lesson():
    cell = {"gpu_peak": 2**30, "host_peak": 2**31}
    done = [Rehearsed(name, 1.0, [cell], 60.0) for name in ("08_small", "08a_small", "08a_small_solved")]
    names = [row[0] for row in shown(terminal.rehearsal_table(done))]
    assert names == ["08", "08a", "08a solved"]


def test_standings_fit_eighty_columns_with_minutes_left_and_a_sum(tmp_path):
    """No answers are no wrong ones, and nothing of the longest name is cut off."""
    name = "07_knowledge_distillation_recovery"
    lessons = [
        write_lesson(tmp_path / "lessons"),
        write_lesson(tmp_path / "lessons", LESSON.replace('"01"', '"07"'), name),
    ]
    first, second = (standing(read_lesson(path), tmp_path) for path in lessons)
    half = dataclasses.replace(first, cells=(4, 2), solved=frozenset({1}), answers=(True, False, None))
    assert shown(terminal.standings_table([half, second]), width=80) == [
        ["01_small", "1 of 1", "1 of 2", "80%", "2"],
        [name, "0 of 1", "–", "0%", "10"],
        ["together", "1 of 2", "1 of 2", "40%", "12"],
    ]

"""The commands behind course.py, on a small course of their own in a temporary folder."""

import io

import nbformat
import pytest
from rich.console import Console
from sample_lesson import LESSON, write_lesson

from course_tools import cli, environment, notebooks, runner
from course_utils import assets


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A course with lesson 01, whose commands need no assets."""
    for name, folder in {"LESSONS": "lessons", "NOTEBOOKS": "notebooks", "BUILD": "build"}.items():
        monkeypatch.setattr(cli, name, tmp_path / folder)
    monkeypatch.setattr(cli, "README", tmp_path / "README.md")
    monkeypatch.setattr(cli, "ROOT", tmp_path)
    monkeypatch.setattr(notebooks.Course, "read", lambda root: notebooks.Course("someone/somewhere", "main"))
    monkeypatch.setattr(cli, "fetch_assets", lambda: None)
    monkeypatch.setenv("COURSE_PROFILE", "smoke")
    write_lesson(tmp_path / "lessons")
    return tmp_path


def add_lesson(course, number, *changes):
    text = LESSON.replace('start("01"', f'start("{number}"')
    for old, new in changes:
        text = text.replace(old, new)
    return write_lesson(course / "lessons", text, f"{number}_other")


def saved_outputs(path):
    cells = nbformat.read(path, as_version=4).cells
    return [output for cell in cells for output in cell.get("outputs", [])]


def test_run_goes_on_after_a_failure_and_names_the_cell(course, capsys):
    add_lesson(course, "02", ("6 * 7", "6 / 0"))
    add_lesson(course, "03")
    assert cli.main(["run"]) == 1
    out = capsys.readouterr().out
    assert "02_other: failed at code cell 3 (import sys): ZeroDivisionError: division by zero" in out
    rows = [line.split() for line in out.splitlines() if "smoke" in line]
    assert [(row[1], row[3], row[-2]) for row in rows] == [
        ("01_small", "smoke", "ok"),
        ("02_other", "smoke", "failed"),
        ("03_other", "smoke", "ok"),
    ]
    index = (course / "build" / "index.html").read_text(encoding="utf-8")
    assert all(f'href="{name}.html"' in index for name in ("01_small", "02_other", "03_other"))
    assert "ZeroDivisionError" in (course / "build" / "02_other.html").read_text(encoding="utf-8")


def test_run_some_lessons_as_a_reader_would(course, capsys):
    add_lesson(course, "02", ("6 * 7", "6 / 0"))
    assert cli.main(["run", "1"]) == 0
    texts = [output.get("text") for output in saved_outputs(course / "build" / "01_small.ipynb")]
    assert "Exercise 1: not solved yet. Return twice the number.\n" in texts
    assert not (course / "notebooks").exists()


def test_run_with_unknown_lesson_or_broken_source(course, capsys):
    assert cli.main(["run", "09"]) == 1
    assert "no lesson 09; there is: 01" in capsys.readouterr().err
    add_lesson(course, "02", ("hardware: cpu", "hardware: abacus"))
    assert cli.main(["run", "02"]) == 1
    assert "02_other.py: `hardware` is 'abacus'" in capsys.readouterr().err


def test_run_without_lessons(course, capsys):
    (course / "lessons" / "01_small.py").unlink()
    assert cli.main(["run"]) == 0
    assert "no lessons yet" in capsys.readouterr().out


def test_wrong_call_is_refused(course, capsys):
    for arguments in (["run", "--profile", "moon"], ["bild"], ["check", "now"]):
        with pytest.raises(SystemExit) as stopped:
            cli.main(arguments)
        assert stopped.value.code == 2


def test_asset_that_cannot_be_fetched_is_explained_without_a_traceback(course, monkeypatch, capsys):
    def fail():
        raise assets.AssetError("No network. Do this.")

    monkeypatch.setattr(cli, "fetch_assets", fail)
    assert cli.main(["run", "--profile", "embedded"]) == 1
    assert capsys.readouterr().err == "No network. Do this.\n"


def test_build_writes_both_forms_once(course, capsys):
    (course / "README.md").write_text(f"# Course\n\n{notebooks.TABLE_BEGIN}\n{notebooks.TABLE_END}\n", encoding="utf-8")
    assert cli.main(["build"]) == 0
    assert capsys.readouterr().out.count("written ") == 3
    assert "[A small lesson](notebooks/01_small.ipynb)" in (course / "README.md").read_text(encoding="utf-8")
    assert cli.main(["build"]) == 0
    assert capsys.readouterr().out.count("unchanged ") == 3
    assert cli.main(["build", "01"]) == 0
    assert capsys.readouterr().out.count("unchanged ") == 2


def test_build_execute_saves_outputs_that_later_builds_keep(course, capsys):
    assert cli.main(["build", "--execute"]) == 0
    path = course / "notebooks" / "01_small.ipynb"
    saved = path.read_bytes()
    assert "seen\n" in [output.get("text") for output in saved_outputs(path)]
    assert all(output.get("name") != "stderr" for output in saved_outputs(path))
    assert cli.main(["build"]) == 0
    assert path.read_bytes() == saved

    write_lesson(course / "lessons", LESSON.replace("6 * 7", "6 / 0"))
    assert cli.main(["build", "01", "--execute"]) == 1
    assert "01_small: failed at code cell 3" in capsys.readouterr().err
    assert saved_outputs(path) == [], "outputs of other code are not kept"


def test_check_fails_only_on_fail(monkeypatch, capsys):
    found = [environment.Finding("OK", "Python", "3.13"), environment.Finding("WARN", "cores", "1", "be patient")]
    monkeypatch.setattr(environment, "findings", lambda: iter(found))
    assert cli.main(["check"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == "WARN cores 1 -> be patient".split()
    found.append(environment.Finding("FAIL", "memory", "0.1 GB", "add some"))
    assert cli.main(["check"]) == 1


@pytest.mark.parametrize(
    ("arguments", "options", "fetched"),
    [
        (["test", "--fast", "-k", "width"], ["-m", "not embedded", "-k", "width"], False),
        (["test", "tests/test_width.py", "-x"], ["--durations=10", "tests/test_width.py", "-x"], True),
    ],
)
def test_test_hands_its_arguments_to_pytest(arguments, options, fetched, course, monkeypatch):
    calls = []
    monkeypatch.setattr(cli, "fetch_assets", lambda: calls.append("fetch"))
    monkeypatch.setattr(pytest, "main", lambda given: calls.append(given) or 1)
    monkeypatch.chdir(course)
    assert cli.main(arguments) == 1
    assert calls == ["fetch"] * fetched + [options]


def test_progress_in_a_terminal(monkeypatch, tmp_path):
    def execute(notebook, *, name, profile, folder, on_cell):
        on_cell(0, 2)
        on_cell(2, 2)
        return runner.Result(name, profile, 3.0, 10**9, None)

    monkeypatch.setattr(runner, "execute", execute)
    screen = io.StringIO()
    with cli._Reporter(Console(file=screen, force_terminal=True, highlight=False), 1) as reporter:
        reporter.execute(None, "01_small", "smoke")
    assert "[1/1] 01_small ok, 3 s" in screen.getvalue()

"""Lessons as other machines and draws run them, and what is kept of such a run."""

import pytest
from sample_lesson import LESSON, write_lesson

from course_tools.lessons import authoring
from course_tools.lessons.verdicts import judging, recording
from course_tools.lessons.verdicts.tables import Tables
from course_tools.lessons.verdicts.verdict import verdict

TELLS = """
# %%
import os

print("runs as", os.environ.get("ATEN_CPU_CAPABILITY"), session.dtype, session.seed, dict(seed=0), [*range(19)][0])
"""


@verdict("It ran.")
def ran(tables):
    return [tables.line("The question", "runs as")[-1] >= 0]


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A course of one lesson that tells what it runs on, with a verdict that reads just that."""
    monkeypatch.setattr(recording, "ROOT", tmp_path)
    monkeypatch.setattr(judging, "_HERE", tmp_path)
    monkeypatch.setattr(judging, "checks_of", lambda number: (ran,))
    (tmp_path / "pyproject.toml").write_text('[tool.course]\nrepository = "a/b"\nref = "main"\n', encoding="utf-8")
    before, after = LESSON.split("# %%\nimport sys")
    text = f"{before}{TELLS.lstrip()}\n# %%\nimport sys{after}".replace('start("01", profile="smoke")', 'start("01")')
    write_lesson(tmp_path / "lessons", text)
    return tmp_path


def test_a_run_is_recorded_beside_the_others(root, capsys):
    assert recording.main(["1", "third draw", "laptop"]) == 0
    assert "laptop: recorded\n  shown: It ran." in capsys.readouterr().out
    found = judging.recorded("01")
    assert [*found] == ["laptop", "third draw"]
    assert found["laptop"].lines == (("The question", "runs as avx2 torch.float32 0 {'seed': 0} 0"),)
    assert found["third draw"].lines[0][1].endswith("torch.float32 2 {'seed': 2} 38") and not found["laptop"].tables


def test_a_run_that_stops_is_not_recorded(root, capsys):
    path = root / "lessons/01_small.py"
    path.write_text(path.read_text(encoding="utf-8").replace("6 * 7", "6 / 0"), encoding="utf-8")
    assert recording.main(["01"]) == 1 and not judging.recorded("01")
    assert "laptop: stopped at code cell 4 (import sys): ZeroDivisionError" in capsys.readouterr().err


def test_unknown_run_is_refused(capsys):
    with pytest.raises(SystemExit):
        recording.main(["01", "mainframe"])
    assert "there is no run mainframe; choose among laptop" in capsys.readouterr().err


def test_the_first_draw_is_the_lesson_itself(root):
    (path,) = authoring.find_lessons(root / "lessons")
    lesson = authoring.read_lesson(path)
    first, second = (recording.prepared(lesson, recording.Run("", draw=draw)) for draw in (0, 1))
    told = next(cell.source for cell in first.cells if "print(" in cell.source)
    assert told in TELLS and "dict(seed=1), [*range(19, 38)]" in str(second)


def test_only_what_verdicts_read_is_kept():
    tables = Tables((), (("The question", "runs as 1"), ("The question", "other 2"), ("", "runs as 3")))
    assert recording._read_by_verdicts("99", tables) == Tables((), ())

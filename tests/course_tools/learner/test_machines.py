"""Lessons as other machines run them: what is measured, and whether it holds for a machine that nobody asked."""

import json

import nbformat
import pytest
from sample_lesson import LESSON, write_lesson

from course_tools.learner import machines, verify
from course_tools.lessons import authoring, notebooks

TELLS = """
# %%
import os

print(2, "runs as", os.environ.get("ATEN_CPU_CAPABILITY"), session.dtype, 1.25)
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A course of one lesson that tells what it runs on."""
    monkeypatch.setattr(machines, "ROOT", tmp_path)
    (tmp_path / "pyproject.toml").write_text('[tool.course]\nrepository = "a/b"\nref = "main"\n', encoding="utf-8")
    before, after = LESSON.split("# %%\nimport sys")
    text = f"{before}{TELLS.lstrip()}\n# %%\nimport sys{after}".replace('start("01", profile="smoke")', 'start("01")')
    write_lesson(tmp_path / "lessons", text)
    return tmp_path


def run(root, *arguments):
    return machines.main([*arguments], target=root / "others.json", folder=root / "work")


def test_a_lesson_runs_as_on_a_laptop(root):
    (root / "others.json").write_text(
        json.dumps({"laptop": {"format": "float32", "lessons": {"02_kept": []}}}), encoding="utf-8"
    )
    assert run(root, "laptop", "01") == 0
    found = verify.read_others(root / "others.json")["laptop"]
    assert found["format"] == "float32" and set(found["lessons"]) == {"01_small", "02_kept"}
    cells = found["lessons"]["01_small"]
    assert [cell["numbers"] for cell in cells] == [["2", "1.25"], ["42"]] and set(cells[0]) == {"id", "numbers"}
    ran = str(nbformat.read(root / "work" / "01_small.ipynb", as_version=4))
    assert "avx2 torch.float32" in ran, "no 16-bit numbers, as on most laptops"
    course, lesson = notebooks.Course.read(root), authoring.read_lesson(root / "lessons/01_small.py")
    mine = notebooks.build_notebook(lesson, course, "exercises").cells
    assert {cell["id"] for cell in cells} <= {notebooks.content_id(cell) for cell in mine}, "the reader's own cells"


def test_a_lesson_that_stops_is_not_recorded(root, capsys):
    path = root / "lessons/01_small.py"
    path.write_text(path.read_text(encoding="utf-8").replace("6 * 7", "6 / 0"), encoding="utf-8")
    assert run(root, "workstation") == 1
    assert (
        "stopped at code cell 4 (import sys): ZeroDivisionError" in capsys.readouterr().out
        and not (root / "others.json").exists()
    )


def test_unknown_machine_is_refused(capsys):
    with pytest.raises(SystemExit):
        machines.main(["mainframe"])
    assert "laptop" in capsys.readouterr().err


def machine(*numbers, form="float32"):
    return {"format": form, "lessons": {"01_x": [{"id": "a", "numbers": [*numbers]}]}}


def test_each_machine_is_judged_by_two_others(tmp_path, capsys):
    expected = {"01_x": [{"id": "a", "heading": "", "line": "a", "numbers": ["9.00", "9.0", "9.00"]}]}
    others = {"one": machine("1.00", "10.0", "5.00"), "two": machine("1.10", "10.5", "5.00")}
    assert machines.judged(expected, others) == {}, "two of a format say how far, and nobody is left to judge it"
    others["three"] = machine("1.60", "10.1", "5.00")
    assert machines.judged(expected, others)["three"] == (1, 3), "1.60 for 1.00 is more than twice .10"
    others["other format"] = machine("9.00", "9.0", "9.00", form="bfloat16")
    assert "other format" not in machines.judged(expected, others)


def test_measured_machines_are_known():
    expected = verify.read_expected()
    for name, found in verify.read_others().items():
        assert found["format"] == machines.MACHINES[name].form and set(found["lessons"]) <= set(expected)

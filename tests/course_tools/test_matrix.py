"""The matrix: which environments there are, what is held fixed in each, and a row for whatever happens."""

import json
import sys
from importlib.metadata import version

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from course_tools import colab, matrix, requirements

HERE = "{}.{}".format(*sys.version_info)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(matrix, "FOLDER", tmp_path)
    monkeypatch.setattr(matrix, "ROOT", tmp_path)
    monkeypatch.setattr(matrix, "environments", lambda: [matrix.Environment("this", HERE)])
    monkeypatch.setattr(matrix, "prepare", lambda environment, python: sys.executable)
    says = {"tests": "print('3 passed')", "lessons": "print('lesson 03 broke'); raise SystemExit(1)"}
    says["smoke lessons"] = "print('10 passed')"
    assert says.keys() == matrix.COMMANDS.keys()
    monkeypatch.setattr(matrix, "COMMANDS", {what: ("-c", code) for what, code in says.items()})
    return tmp_path


def test_oldest_versions_are_the_lower_bounds():
    oldest = {e.name: e for e in matrix.environments()}["oldest"]
    pins = colab.pins("\n".join(oldest.constraints))
    assert oldest.python == "3.11"
    assert [pins[name] for name in ("torch", "transformers", "datasets")] == ["2.9", "5.14", "4"]


def test_colab_holds_what_we_import_as_colab_has_it():
    held = {e.name: e for e in matrix.environments()}["colab"].constraints
    assert {"torch==2.11.0", "scikit-learn==1.6.1"} <= set(held)
    ours = {canonicalize_name(Requirement(text).name) for text in requirements.needed("lessons")}
    assert set(colab.pins("\n".join(held))) - ours == {"huggingface-hub", "tokenizers"}


def test_pythons_are_those_of_the_project():
    oldest = requirements.project()["requires-python"].removeprefix(">=")
    assert matrix.PYTHONS[0] == oldest and colab.PYTHON in matrix.PYTHONS


def test_python_is_found_by_its_version():
    assert matrix.find_python(HERE) == sys.executable
    assert matrix.find_python("3.1") is None


def test_results_are_told_and_kept(folder, capsys):
    assert matrix.main(["this"]) == 0
    assert matrix.main(["--lessons"]) == 1
    assert matrix.main(["--lessons", "--profile", "smoke"]) == 0
    rows = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert rows["this tests"]["torch"] == version("torch")
    assert rows["this tests"]["result"].startswith("passed") and "3 passed" in rows["this tests"]["result"]
    assert rows["this lessons"]["result"] == "failed: this-lessons.log · lesson 03 broke"
    assert rows["this smoke lessons"]["result"].endswith("10 passed") and (folder / "this-smoke-lessons.log").exists()
    assert f"| this | {HERE} | {version('torch')} |" in capsys.readouterr().out


def test_missing_python_is_skipped_and_an_unknown_name_refused(folder, monkeypatch, capsys):
    monkeypatch.setattr(matrix, "find_python", lambda python: None)
    assert matrix.main([]) == 0
    assert f"skipped: no Python {HERE} here" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        matrix.main(["newest"])
    assert "unknown: newest; there are this" in capsys.readouterr().err


def test_environment_is_made_once_and_again_after_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(matrix, "FOLDER", tmp_path)
    calls, statuses = [], iter([0, 1, 0, 0])

    def logged(command, log):
        calls.append(command)
        (tmp_path / "this").mkdir(exist_ok=True)
        return next(statuses)

    monkeypatch.setattr(matrix, "_logged", logged)
    this = matrix.Environment("this", HERE, ("torch==2.9",))
    assert matrix.prepare(this, sys.executable) is None
    inside = matrix.prepare(this, sys.executable)
    assert inside.is_relative_to(tmp_path / "this") and matrix.prepare(this, sys.executable) == inside
    assert len(calls) == 4 and (tmp_path / "this.txt").read_text(encoding="utf-8") == "torch==2.9"

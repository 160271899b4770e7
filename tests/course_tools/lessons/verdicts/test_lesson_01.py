"""A planted error in lesson 01's numbers: the test of the records and `course.py verify` both say so."""

import json

import nbformat
import pytest

from course_tools import cli
from course_tools.lessons.verdicts import judging, lesson_01
from course_tools.lessons.verdicts.tables import Tables
from course_tools.lessons.verdicts.verdict import OPEN, TURNED

NAME = "01_distilgpt2_l1_width_pruning.ipynb"
CLAIM = "L1 loses to each of 19 random cuts, at every ratio and on both texts."
ZERO = "<td>0</td>\n      <td>0</td>\n      <td>0</td>"


@pytest.fixture
def run():
    """The saved run as somebody ran it."""
    notebook = nbformat.read(cli.NOTEBOOKS / NAME, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.execution_count = 1
    return notebook


def beaten(page, *counts):
    """The table of beaten random models with other counts for L1, first on speeches, then on wiki."""
    for count in counts:
        before, l1, after = page.partition("<th>L1</th>\n      " + ZERO)
        page = before + l1.replace("<th>L1</th>", "<th>L1 </th>").replace("0", str(count)) + after
    return page


@pytest.mark.parametrize(("counts", "outcome"), [((19, 19), TURNED), ((7,), OPEN)])
def test_both_catch_a_table_that_turns(run, counts, outcome, tmp_path, capsys):
    page = next(text for cell in run.cells for text in tables(cell) if ZERO in text)
    changed = json.loads(json.dumps(run).replace(json.dumps(page), json.dumps(beaten(page, *counts))))
    notebook = nbformat.from_dict(changed)
    (found,) = (each for each in judging.judge("01", Tables.of(notebook)) if each.sentence == CLAIM)
    assert found.outcome == outcome
    nbformat.write(notebook, tmp_path / NAME)
    assert cli.main(["verify", "01", str(tmp_path)]) == 1
    assert f"\n      {outcome}: {CLAIM}\n" in capsys.readouterr().out


def tables(cell):
    return [output.data["text/html"] for output in cell.get("outputs", []) if "text/html" in output.get("data", {})]


def test_the_saved_run_shows_all(run, tmp_path, capsys):
    nbformat.write(run, tmp_path / NAME)
    assert cli.main(["verify", "01", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.count("      shown: ") == len(lesson_01.VERDICTS) and "252 of 252 numbers" in out


def test_of_another_model_all_is_told_and_nothing_held_against_it(run, tmp_path, capsys):
    text = json.dumps(run).replace("profile      embedded", "profile      hub")
    page = next(text for cell in run.cells for text in tables(cell) if ZERO in text)
    text = text.replace(json.dumps(page), json.dumps(beaten(page, 19, 19)))
    nbformat.write(nbformat.from_dict(json.loads(text)), tmp_path / NAME)
    assert cli.main(["verify", "01", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "profile hub is not what the text is about" in out and f"{TURNED}: {CLAIM}" in out

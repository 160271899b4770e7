"""A planted error in lesson 01's numbers: the test of the saved run and `course.py verify` both say so."""

import json
import re

import nbformat
import pytest

from course_tools import cli
from course_tools.lessons.verdicts import judging
from course_tools.lessons.verdicts.tables import Tables
from course_utils.verdicts import OPEN, TURNED

NAME = "01_distilgpt2_l1_width_pruning.ipynb"
CLAIM = "What L1 removes pushes one way: its coherence is above that of all random cuts, in every block."
LINES = "L1 is above all random cuts in 6 of 6 blocks\\nL1 at most 4.6, random 1.4"


@pytest.fixture
def run():
    """The saved run as somebody ran it."""
    notebook = nbformat.read(cli.NOTEBOOKS / NAME, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.execution_count = 1
    return notebook


def planted(run, above, highest):
    """The run with other numbers for what the claim says."""
    text = json.dumps(run)
    assert LINES in text
    lines = LINES.replace("6 of 6", f"{above} of 6").replace("4.6", highest)
    return nbformat.from_dict(json.loads(text.replace(LINES, lines)))


@pytest.mark.parametrize(("above", "highest", "outcome"), [(0, "1.2", TURNED), (4, "4.6", OPEN)])
def test_both_catch_numbers_that_turn(above, highest, outcome, run, tmp_path, capsys):
    notebook = planted(run, above, highest)
    (found,) = (each for each in judging.judge("01", Tables.of(notebook)) if each.sentence == CLAIM)
    assert found.outcome == outcome
    nbformat.write(notebook, tmp_path / NAME)
    assert cli.main(["verify", "01", str(tmp_path)]) == 1
    assert f"\n      {outcome}: {CLAIM}\n" in capsys.readouterr().out


def test_the_saved_run_shows_all(run, tmp_path, capsys):
    nbformat.write(run, tmp_path / NAME)
    assert cli.main(["verify", "01", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.count("      shown: ") == len(judging.checks_of("01"))
    assert re.search(r" (\d+) of \1 numbers are within 5% of the saved run's", out)


def test_of_another_model_all_is_told_and_nothing_held_against_it(run, tmp_path, capsys):
    text = json.dumps(planted(run, 0, "1.2")).replace("profile      embedded", "profile      hub")
    nbformat.write(nbformat.from_dict(json.loads(text)), tmp_path / NAME)
    assert cli.main(["verify", "01", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "profile hub is not what the text is about" in out and f"{TURNED}: {CLAIM}" in out

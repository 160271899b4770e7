"""Planted errors in lesson 03's numbers: the verdict that reads them says so, and the saved run shows all."""

import json

import nbformat
import pytest

from course_tools import cli
from course_tools.lessons.verdicts import judging, lesson_03
from course_tools.lessons.verdicts.tables import Tables
from course_utils.verdicts import OPEN, SHOWN


@pytest.fixture(scope="module")
def run():
    return nbformat.read(cli.NOTEBOOKS / "03_llama_glu_pruning_corrected.ipynb", as_version=4)


def outcomes(run):
    return {check.margins.__name__: check(Tables.of(run)).outcome for check in judging.checks_of("03")}


def test_the_saved_run_shows_all(run):
    assert set(outcomes(run).values()) == {SHOWN}


@pytest.mark.parametrize(
    ("line", "other", "check"),
    [
        ("L1 beats 0 to 0 of 19", "L1 beats 0 to 7 of 19", lesson_03.text_beats_chance_and_weights_do_not),
        (
            "activation beats 19 to 19 of 19",
            "activation beats 18 to 19 of 19",
            lesson_03.text_beats_chance_and_weights_do_not,
        ),
    ],
)
def test_a_count_that_turns_is_noticed(line, other, check, run):
    text = json.dumps(run)
    assert line in text
    planted = nbformat.from_dict(json.loads(text.replace(line, other)))
    turned = {name for name, outcome in outcomes(planted).items() if outcome != SHOWN}
    assert turned == {check.margins.__name__} and check(Tables.of(planted)).outcome == OPEN

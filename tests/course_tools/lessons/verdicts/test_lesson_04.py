"""A planted error in lesson 04's numbers turns its verdict."""

import json

import nbformat
import pytest

from course_tools import cli
from course_tools.lessons.verdicts import judging
from course_tools.lessons.verdicts.tables import Tables
from course_utils.verdicts import OPEN, SHOWN

NAME = "04_depth_pruning.ipynb"
CLAIM = "Some six neighbours cost less than one of them alone, here and in the record."
LINE = "sum 2.78, together 1.59, dearest alone: block 11, 2.09 nats"


@pytest.mark.parametrize(("together", "outcome"), [("1.59", SHOWN), ("2.12", OPEN)])
def test_six_that_cost_more_than_one_are_noticed(together, outcome):
    text = json.dumps(nbformat.read(cli.NOTEBOOKS / NAME, as_version=4))
    assert LINE in text
    run = nbformat.from_dict(json.loads(text.replace(LINE, LINE.replace("1.59", together))))
    (found,) = (each for each in judging.judge("04", Tables.of(run)) if each.sentence == CLAIM)
    assert found.outcome == outcome

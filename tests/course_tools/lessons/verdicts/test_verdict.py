"""Margins make an outcome."""

import pytest

from course_tools.lessons.verdicts.tables import Tables
from course_tools.lessons.verdicts.verdict import ABSENT, verdict
from course_utils.verdicts import OPEN, SHOWN, TURNED


@pytest.mark.parametrize(
    ("margins", "outcome"),
    [
        ([0.1, 2], SHOWN),
        ([True], SHOWN),
        ([0.1, 0], OPEN),
        ([1, -1], OPEN),
        ([0], OPEN),
        ([False], OPEN),
        ([-1, -0.1], TURNED),
        ([float("nan")], OPEN),
    ],
)
def test_outcomes(margins, outcome):
    found = verdict("It is so.")(lambda tables: margins)(Tables((), ()))
    assert (found.outcome, str(found)) == (outcome, f"{outcome}: It is so.")


def test_what_the_run_does_not_hold_is_no_outcome():
    check = verdict("It is so.")(lambda tables: tables.line("Nowhere", "x"))
    assert check(Tables((), ())).outcome == ABSENT


def test_a_line_that_lacks_a_number_is_no_outcome():
    """Such as a neuron that the record doesn't know, on a learner's machine or draw."""
    tables = Tables((), (("Here", "it × 2 here, 3 in the record"), ("Here", "other × 2 here")))

    def margins(tables):
        both = (tables.line("Here", name) for name in ("it", "other"))
        return [first - second for first, second in zip(*both, strict=True)]

    assert verdict("It is so.")(margins)(tables).outcome == ABSENT


def test_a_share_of_nothing_shows_nothing():
    assert verdict("It is so.")(lambda tables: [1 / len(tables.lines)])(Tables((), ())).outcome == OPEN

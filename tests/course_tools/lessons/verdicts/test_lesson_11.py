"""Lesson 11's verdicts on made-up numbers: each of them turns where its numbers do."""

import pytest

from course_tools.lessons.printed import Table
from course_tools.lessons.verdicts import judging, lesson_11
from course_tools.lessons.verdicts.tables import Tables
from course_tools.lessons.verdicts.verdict import ABSENT
from course_utils.verdicts import OPEN, SHOWN, TURNED

SCORES, HEALED = "One reading, four scores", "Does healing change the order?"
LONG, RIVAL = "The long run", "The rival"
OFF = "whole in 4 bits, off the grid, less winner in 8:"


def lines(heading, *told):
    return Tables((), tuple((heading, line) for line in told))


def gaps(*means, half=0.02):
    """Means with intervals, as the lesson prints them."""
    texts = zip(("speeches", "wiki", "stories"), means, strict=True)
    return "; ".join(f"{text} {mean:.2f} ({mean - half:.2f} to {mean + half:.2f})" for text, mean in texts)


@pytest.mark.parametrize(
    ("scored", "outcome"), [((0.35, 0.41, 0.34, 0.13), SHOWN), ((0.35, 0.41, 0.34, 0.9), OPEN), ((2, 2, 2, 2), TURNED)]
)
def test_scores(scored, outcome):
    names = dict(zip(("neurons", "groups", "channels", "blocks"), scored, strict=True))
    told = [f"{axis} b30-h540-g3-n1280: {s:+.3f} nats; random +0.452 to +1.956, 0 of 19 at least as good"
            for axis, s in names.items()]  # fmt: skip
    assert lesson_11.scores_beat_chance(lines(SCORES, *told)).outcome == outcome


@pytest.mark.parametrize(
    ("random", "outcome"), [((6.9, 5.1), SHOWN), ((6.9, 3.5), OPEN), ((4.0, 4.2), OPEN), ((3.9, 3.55), TURNED)]
)
def test_healing(random, outcome):
    told = ("first, b26-h576-g3-n1248: as cut 4.000, healed 3.600 nats",
            "second, b28-h576-g3-n1120: as cut 3.900, healed 3.500 nats",
            f"random cut: as cut {random[0]:.3f}, healed {random[1]:.3f} nats")  # fmt: skip
    assert lesson_11.random_stays_behind(lines(HEALED, *told)).outcome == outcome


def long_run(**arms):
    means = {"random cut": (0.4, 0.4, 0.3), "depth only": (0.1, 0.1, 0.1), "from scratch": (3.3, 3.7, 4.1)}
    means |= {"solved first": (0.0, 0.0, 0.0), "another draw": (0.01, -0.02, 0.0)} | arms
    return lines(LONG, *(f"{arm} less winner: {gaps(*values)}" for arm, values in means.items()))


@pytest.mark.parametrize(("scratch", "outcome"), [((3.3, 3.7, 4.1), SHOWN), ((3.3, 3.7, 0.01), OPEN)])
def test_controls(scratch, outcome):
    assert lesson_11.controls_end_behind(long_run(**{"from scratch": scratch})).outcome == outcome


@pytest.mark.parametrize(
    ("solved", "outcome"), [((-0.02, 0.02, 0.0), SHOWN), ((-0.1, 0.0, 0.0), OPEN), ((-0.1, 0.1, 0.1), TURNED)]
)
def test_solving(solved, outcome):
    assert lesson_11.solve_is_caught_up_with(long_run(**{"solved first": solved})).outcome == outcome


@pytest.mark.parametrize(
    ("alone", "outcome"), [((0.0, 0.06, -0.07), SHOWN), ((0.0, 0.01, -0.07), OPEN), ((0.0, -0.06, 0.07), TURNED)]
)
def test_text_alone(alone, outcome):
    arms = {"no teacher": alone, "no teacher, equal minutes": alone}
    assert lesson_11.text_alone_fits_what_it_reads(long_run(**arms)).outcome == outcome


@pytest.mark.parametrize(
    ("moved", "outcome"), [((0.01, -0.02, 0.0), SHOWN), ((0.01, -0.5, 0.0), OPEN), ((0.5, -0.5, 0.5), TURNED)]
)
def test_another_draw(moved, outcome):
    assert lesson_11.chance_is_smaller(long_run(**{"another draw": moved})).outcome == outcome


def rival(*, less=(-0.07, -0.19, -0.04), mb="92", reads="1145", writes="186"):
    columns = ["", "MB", "speeches", "reads, tokens/s", "writes, tokens/s"]
    rows = [
        (["whole, Q8_0"], ["145", "3.25", "871", "150"]),
        (["winner, Q8_0"], ["116", "3.55", reads, writes]),
        (["whole, Q4_0"], ["92", "3.44", "929", "186"]),
        (["whole, off the grid, Q4_0"], [mb, "3.48", "", ""]),
    ]
    told = f"{OFF} {gaps(*less)}"
    return Tables(((RIVAL, Table(columns, rows, told)),), ((RIVAL, told),))


@pytest.mark.parametrize(
    ("changed", "outcome"),
    [
        ({}, SHOWN),
        ({"mb": "120"}, OPEN),
        ({"less": (-0.07, -0.19, -0.01)}, OPEN),
        ({"mb": "120", "less": (0.1, 0.1, 0.1)}, TURNED),
    ],
)
def test_rival(changed, outcome):
    assert lesson_11.rival_is_better(rival(**changed)).outcome == outcome


@pytest.mark.parametrize(
    ("changed", "outcome"), [({}, SHOWN), ({"reads": "880"}, OPEN), ({"reads": "880", "writes": "230"}, TURNED)]
)
def test_speeds(changed, outcome):
    assert lesson_11.cuts_read_faster(rival(**changed)).outcome == outcome


def test_what_was_not_run_is_said():
    assert {check(Tables((), ())).outcome for check in judging.checks_of("11")} == {ABSENT}

"""Lesson 09's verdicts on made-up numbers: each of them turns where its numbers do."""

import pytest

from course_tools.lessons.printed import Table
from course_tools.lessons.verdicts import lesson_09
from course_tools.lessons.verdicts.tables import Tables
from course_tools.lessons.verdicts.verdict import ABSENT
from course_utils.verdicts import OPEN, SHOWN, TURNED

PLANT, ESTIMATE, ONE, RECORD = "Plant it", "Is the estimate right?", "One axis", "Eight axes, three places"
BACK, REAL, BOTH = "Does it come back?", "A real one", "Both ways round"


def lines(heading, *told):
    return Tables((), tuple((heading, line) for line in told))


def table(heading, columns, rows, caption=""):
    rows = [([name], [*map(str, values)]) for name, values in rows.items()]
    return Tables(((heading, Table(["", *columns], rows, caption)),), ())


@pytest.mark.parametrize(("now", "outcome"), [("-5.86", SHOWN), ("-1.00", OPEN)])
def test_planted(now, outcome):
    tables = lines(PLANT, f"split B: +0.12 → {now} nats; perplexity × 1.05")
    assert lesson_09.planted_bias_generalises(tables).outcome == outcome
    assert lesson_09.planted_bias_generalises(lines(PLANT)).outcome == ABSENT


@pytest.mark.parametrize(
    ("carry", "repair", "reacted", "outcomes"),
    [
        (4, 1, "+0.010", (SHOWN, SHOWN)),
        (4, 2, "+0.400", (OPEN, TURNED)),
        (1, 3, "+0.400", (TURNED, TURNED)),
    ],
)
def test_twelve(carry, repair, reacted, outcomes):
    rows = {
        "carry most": ["9", "+0.900", str(carry)],
        "repair most": ["9", "-0.500", str(repair)],
        "react most": ["9", reacted, "2"],
    }
    tables = table(ESTIMATE, ["estimated, nats", "measured, nats", "carry, of 4"], rows)
    checks = lesson_09.estimate_is_right, lesson_09.reacting_is_another_thing
    assert tuple(check(tables).outcome for check in checks) == outcomes


@pytest.mark.parametrize(("taken", "outcome"), [((53, 12, 3), SHOWN), ((53, 60, 3), OPEN), ((10, 60, 30), TURNED)])
def test_one_axis(taken, outcome):
    rows = dict(zip(("carries", "twin", "random"), ([share] for share in taken), strict=True))
    assert (
        lesson_09.carriers_take_more(table(ONE, ["taken, %"], rows, "without the carriers: × 1.01")).outcome == outcome
    )


@pytest.mark.parametrize(
    ("mean", "low", "outcomes"),
    [("50", "31", (SHOWN, SHOWN)), ("20", "-3", (TURNED, OPEN)), ("80", "31", (SHOWN, OPEN))],
)
def test_eight_axes(mean, low, outcomes):
    values = [f"{mean} (40 to 60)", "8 (−2 to 15)", f"42 ({low} to 55)", "1.01"]
    columns = ["carriers, %", "twin, %", "carriers − twin", "perplexity, ×"]
    tables = table(RECORD, columns, {"down, float32": values})
    assert lesson_09.carriers_beat_the_twin(tables).outcome == outcomes[0]
    assert lesson_09.place_matters_little(tables).outcome == outcomes[1]


@pytest.mark.parametrize(
    ("biased", "fair", "outcome"), [("-6.50", "-0.90", SHOWN), ("-4.00", "-0.90", OPEN), ("-4.00", "-6.00", TURNED)]
)
def test_teachers(biased, fair, outcome):
    told = {"cut": "-5.00", "biased teacher, the groups": biased, "fair teacher, the groups": fair}
    tables = lines(BACK, *(f"{name}: {value} (-7.00 to -0.50) nats" for name, value in told.items()))
    assert lesson_09.teacher_decides(tables).outcome == outcome


@pytest.mark.parametrize(("uncut", "outcome"), [("-0.89", SHOWN), ("-1.50", TURNED)])
def test_nothing_cut(uncut, outcome):
    told = {"fair teacher, the groups": "-0.88", "nothing cut, fair teacher": uncut}
    tables = lines(BACK, *(f"{name}: {value} (-1.60 to -0.50) nats" for name, value in told.items()))
    assert lesson_09.fair_teacher_needs_no_cut(tables).outcome == outcome


@pytest.mark.parametrize(("known", "outcome"), [(1.81, SHOWN), (4.90, OPEN)])
def test_woman(known, outcome):
    rows = {"whole": (0.90, 5.08, 1), "carries": (0.37, known, 1.01)}
    assert (
        lesson_09.the_woman_goes_too(table(REAL, ["stereotype", "woman/man", "perplexity, ×"], rows)).outcome == outcome
    )


@pytest.mark.parametrize(("left", "outcome"), [((1.6, 8.8), SHOWN), ((1.6, 5.2), OPEN), ((0.8, 5.2), TURNED)])
def test_reacting(left, outcome):
    rows = {"whole": (0.90, 5.08), "reacts": left}
    assert lesson_09.reacting_is_no_carrying(table(REAL, ["stereotype", "woman/man"], rows)).outcome == outcome


@pytest.mark.parametrize(("last", "outcome"), [((43, 34, 94), SHOWN), ((43, 34, 79), OPEN), ((70, 34, 94), OPEN)])
def test_both_ways_round(last, outcome):
    names = ("carries", "woman", "spares her")
    several = [(48, 53, 64), (51, 51, 81), (37, 32, 86), last]
    rows = dict(zip(names, zip(*several, strict=True), strict=True))
    columns = [f"{words}, {half}" for words in ("occupations", "woman/man") for half in ("evaluation", "selection")]
    tables = table(BOTH, columns, rows, "bfloat16 is at most 3 points off; what is left, %, float32:")
    assert lesson_09.halves_agree(tables).outcome == outcome

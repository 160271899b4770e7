"""Lesson 13's verdicts on made-up numbers: each of them turns where its numbers do."""

import pytest

from course_tools.lessons.printed import Table
from course_tools.lessons.verdicts import judging, lesson_13
from course_tools.lessons.verdicts.tables import Tables
from course_tools.lessons.verdicts.verdict import ABSENT
from course_utils.records import read_record
from course_utils.verdicts import OPEN, SHOWN, TURNED

TOY, KINDS, EXACT = "An expert that nobody asked", "Whose tokens?", "Cut equals masked"
ALL, ALONE, HEALED = "Which may go?", "Calibrated on Wikipedia", "What comes back"


def lines(heading, *told):
    return Tables((), tuple((heading, line) for line in told))


def table(heading, caption, columns, **rows):
    """A row each, its name with blanks for underscores."""
    cells = [([name.replace("_", " ")], [str(value) for value in values]) for name, values in rows.items()]
    return Tables(((heading, Table(["", *columns], cells, caption)),), ())


@pytest.mark.parametrize(
    ("normalised", "other", "outcome"),
    [("0.73 and 0.27", "0.73 and 0.27", SHOWN), ("0.63 and 0.37", "0.63 and 0.23", TURNED),
     ("0.73 and 0.27", "0.63 and 0.23", OPEN)],
)  # fmt: skip
def test_toy(normalised, other, outcome):
    told = (
        f"normalised: 0.73 and 0.27; without expert 2: {normalised}",
        f"not normalised: 0.63 and 0.23; without expert 2: {other}",
    )
    assert lesson_13.unasked_experts(lines(TOY, *told)).outcome == outcome


@pytest.mark.parametrize(("last", "outcome"), [("0.45", SHOWN), ("0.20", OPEN)])
def test_specialisation(last, outcome):
    told = [f"block {block}: {own}, largest of 99 shuffles 0.25" for block, own in enumerate((0.3, 0.35, 0.4, last))]
    assert lesson_13.experts_specialise(lines(KINDS, *told)).outcome == outcome


@pytest.mark.parametrize(
    ("off", "again", "outcome"), [("1.1e-06", "1.2e-06", SHOWN), ("1.1e-06", "1.0e+00", OPEN), ("3.0", "3.0", TURNED)]
)
def test_exactness(off, again, outcome):
    told = f"cut against masked: {off}, reloaded: {again}", "masked against whole: 3.1e+00"
    assert lesson_13.cut_equals_masked(lines(EXACT, *told)).outcome == outcome


@pytest.mark.parametrize(
    ("active", "megabytes", "outcome"), [(1.80, 9.5, SHOWN), (1.80, 14.0, OPEN), (1.2, 14.0, TURNED)]
)
def test_sizes(active, megabytes, outcome):
    columns = ["parameters, M", "active, M", "MB in 16 bits"]
    rows = {"16_experts": (8.3, 1.81, 16.6), "12_experts": (6.5, 1.81, 13.1), "8_experts": (4.7, active, megabytes)}
    assert lesson_13.file_shrinks(table(EXACT, "", columns, **rows)).outcome == outcome


def scored(reap=0.08, frequency=0.35, recorded=0.32, least=0.17):
    rows = {
        "frequency": (frequency, recorded), "REAP": (reap, 0.08), "REAP's_sum": (0.07, 0.07),
        "random,_least": (least, 0.17), "random,_median": (0.3, 0.3),
    }  # fmt: skip
    return table(ALL, "mean over five kinds, nats a token", ["half, here", "half, record"], **rows)


@pytest.mark.parametrize(
    ("numbers", "dice", "frequency"),
    [({}, SHOWN, SHOWN), ({"least": 0.075}, OPEN, SHOWN), ({"reap": 0.2}, OPEN, SHOWN),
     ({"frequency": 0.2}, SHOWN, OPEN), ({"frequency": 0.2, "recorded": 0.1}, SHOWN, TURNED)],
)  # fmt: skip
def test_scores(numbers, dice, frequency):
    found = lesson_13.scores_beat_dice(scored(**numbers)), lesson_13.dice_beat_frequency(scored(**numbers))
    assert tuple(verdict.outcome for verdict in found) == (dice, frequency)


@pytest.mark.parametrize(("here", "record", "outcome"), [(0.1, 0.1, SHOWN), (0.1, 0.6, OPEN), (0.6, 0.6, TURNED)])
def test_calibrated_on_one_kind(here, record, outcome):
    columns = ["speeches", "passages", "maths"]
    rows = {
        "frequency,_here": (0.3, 0.1, 0.7), "frequency,_record": (0.3, 0.1, 0.7),
        "REAP,_here": (here, 9.0, here), "REAP,_record": (record, 9.0, record),
    }  # fmt: skip
    tables = table(ALONE, "calibrated on passages, nats a token", columns, **rows)
    assert lesson_13.passages_ruin_the_others(tables).outcome == outcome


@pytest.mark.parametrize(
    ("ahead", "reap", "outcome"),
    [("9 of 9", 0.14, SHOWN), ("8 of 9", 0.14, OPEN), ("9 of 9", 0.4, OPEN), ("2 of 9", 0.4, TURNED)],
)
def test_other_kinds(ahead, reap, outcome):
    few = "1 of 1" if ahead == "9 of 9" else "0 of 1"
    told = [
        f"seed {seed}, {dtype}: REAP is ahead on other kinds in {count} draws"
        for seed in (0, 1)
        for dtype, count in (("float32", ahead), ("bfloat16", few))
    ]
    rows = {f"seed_{seed},_{rule}": (harm,) for seed in (0, 1) for rule, harm in (("frequency", 0.33), ("REAP", reap))}
    tables = [table(ALONE, "half of the experts gone, nats a token", ["other kinds"], **rows), lines(ALONE, *told)]
    assert lesson_13.division_spares_the_others(Tables.together(tables)).outcome == outcome


@pytest.mark.parametrize(
    ("frequency", "random", "more", "level"),
    [((0.15, 0.12, 0.042), (0.3, 0.2, 0.1), SHOWN, SHOWN), ((0.15, 0.12, 0.13), (0.3, 0.2, 0.1), OPEN, OPEN),
     ((0.15, 0.12, 0.03), (0.3, 0.2, 0.11), SHOWN, OPEN), ((0.15, 0.16, 0.042), (0.3, 0.2, 0.1), OPEN, SHOWN),
     ((0.01, 0.12, 0.01), (0.3, 0.2, 0.03), OPEN, TURNED)],
)  # fmt: skip
def test_healing(frequency, random, more, level):
    rows = {"REAP": (0.086, 0.07, 0.04), "frequency": frequency, "random,_one_half": random}
    tables = table(HEALED, "mean over five kinds, nats a token", ["cut", "router", "all weights"], **rows)
    found = lesson_13.weights_give_back_more(tables), lesson_13.healing_levels_the_scores(tables)
    assert tuple(verdict.outcome for verdict in found) == (more, level)


def test_what_was_not_run_is_said():
    assert {check(Tables((), ())).outcome for check in judging.checks_of("13")} == {ABSENT}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_both_mixtures_say_what_the_lesson_shows_of_one(seed, dtype):
    record = read_record("cut_experts").query("model == @seed and dtype == @dtype and ratio == 0.5")
    over_all = record.query("kind in ('all', '')")
    cuts = over_all[over_all.edit == "cut"].groupby(["criterion", "calibration", "seed"]).damage.mean()
    means = cuts.groupby("criterion").mean()
    assert means["reap"] < cuts["random"].min() and means["reap_sum"] < cuts["random"].min()
    assert means["frequency"] > cuts["random"].median()
    healed = over_all[over_all.edit == "all weights"].groupby("criterion").damage.mean()
    routers = over_all[over_all.edit == "router"].groupby("criterion").damage.mean()
    assert healed["reap"] < healed["frequency"] < routers.min() and healed["reap"] < healed["random"] < routers.min()
    assert healed["frequency"] - healed["reap"] < (means["frequency"] - means["reap"]) / 2
    # Code, where Wikipedia calibrated, by frequency and by REAP; and every kind, where all calibrated by REAP.
    dice = record[record.criterion == "random"].query("edit == 'cut'").groupby("text").damage.median()
    passages = record.query("kind == 'passages' and text == 'code'").groupby("criterion").damage.mean()
    assert min(passages["frequency"], passages["reap"]) > dice["code"]
    mixed = record.query("kind == 'all' and criterion == 'reap' and edit == 'cut'").groupby("text").damage.mean()
    assert (mixed < dice).all()

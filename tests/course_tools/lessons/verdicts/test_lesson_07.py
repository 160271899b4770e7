"""Lesson 07's verdicts on made-up numbers: each of them turns where its numbers do."""

import pytest

from course_tools.lessons.printed import Table
from course_tools.lessons.verdicts import judging, lesson_07
from course_tools.lessons.verdicts.tables import Tables
from course_tools.lessons.verdicts.verdict import ABSENT
from course_utils.verdicts import OPEN, SHOWN, TURNED

SOLVE, WORDS, LOOP, PEFT = "Block after block", "A teacher for every word", "The loop", "In a whole model"
TOKEN, MINUTE, TASK = "What a token buys", "What a minute buys", "Another task"


def lines(heading, *told):
    return Tables((), tuple((heading, line) for line in told))


def table(heading, columns, rows, caption=""):
    rows = [(tuple(names), tuple(map(str, values))) for *names, values in rows]
    return Tables(((heading, Table(columns, rows, caption)),), ())


@pytest.mark.parametrize(
    ("here", "random", "outcome"), [(0.3, 2.0, SHOWN), (0.8, 2.0, OPEN), (0.3, 8.5, OPEN), (0.8, 8.5, OPEN)]
)
def test_solve(here, random, outcome):
    told = [f"{text}: lost 0.72, solved {here} nats a token (record: 0.71, 0.31)" for text in ("speeches", "wiki")]
    levels = [
        (criterion, edit, [level, level])
        for criterion, cut, solved in (("activation", 1, 0.5), ("peak-to-peak", 4, 1), ("random", 8, random))
        for edit, level in (("cut", cut), ("solved", solved))
    ]
    both = Tables.together([lines(SOLVE, *told), table(SOLVE, ["", "", "speeches", "wiki"], levels, "wiki: lost 0.72")])
    assert lesson_07.solve_gives_back(both).outcome == outcome


def test_solve_that_gives_nothing_back_anywhere_is_turned():
    told = [f"{text}: lost 0.3, solved 0.7 nats a token" for text in ("speeches", "wiki")]
    levels = [
        (criterion, edit, [level, level])
        for criterion in ("activation", "peak-to-peak", "random")
        for edit, level in (("cut", 1), ("solved", 2))
    ]
    both = Tables.together([lines(SOLVE, *told), table(SOLVE, ["", "", "speeches", "wiki"], levels, "wiki: lost 0.3")])
    assert lesson_07.solve_gives_back(both).outcome == TURNED


@pytest.mark.parametrize(
    ("kl", "text", "outcome"), [("-0.05", "-0.25", SHOWN), ("-0.10", "-0.25", OPEN), ("0.05", "-0.25", OPEN)]
)
def test_pushes(kl, text, outcome):
    words = table(WORDS, ["", "push of KL", "push of cross-entropy"], [("bed", [kl, text])])
    assert lesson_07.unfair_push(words).outcome == outcome


@pytest.mark.parametrize(("last", "outcome"), [("0.4", SHOWN), ("0.9", TURNED)])
def test_loop(last, outcome):
    assert lesson_07.loop_learns(lines(LOOP, f"8 steps equal distill's; loss 0.600, then {last}")).outcome == outcome


@pytest.mark.parametrize(
    ("few", "seconds", "outcome"), [(4.0, 1.6, SHOWN), (20.0, 1.6, OPEN), (4.0, 0.5, OPEN), (20.0, 0.5, TURNED)]
)
def test_lora(few, seconds, outcome):
    columns = ["", "weights that learn, millions", "gradients and averages, MB", "seconds a step"]
    bill = table(PEFT, columns, [("the MLPs", [47.8, 573.56, 1.7]), ("LoRA", [few, 12 * few, seconds])])
    assert lesson_07.lora_saves_no_time(bill).outcome == outcome


@pytest.mark.parametrize(
    ("good", "bad", "outcome"), [("0.01", "0.94", SHOWN), ("-0.02", "0.94", OPEN), ("0.01", "0.3", OPEN)]
)
def test_as_many_tokens(good, bad, outcome):
    told = [
        f"{criterion}: on as many tokens, trained less solved, speeches 0.9, wiki {gain}"
        for criterion, gain in (("activation", good), ("peak-to-peak", bad), ("random", "2.0"))
    ]
    assert lesson_07.solve_beats_as_many_tokens(lines(TOKEN, *told)).outcome == outcome


@pytest.mark.parametrize(
    ("low", "later", "high", "outcomes"),
    [
        ("0.02", "0.01", "0.03", (SHOWN, SHOWN)),
        ("-0.02", "0.01", "0.03", (OPEN, SHOWN)),
        ("0.02", "0.05", "0.03", (SHOWN, OPEN)),
        ("0.02", "0.01", "0.07", (SHOWN, OPEN)),
    ],
)
def test_head_start(low, later, high, outcomes):
    told = []
    for steps, lead, bad, random in (
        (32, f"0.07 ({low} to 0.10)", 0.4, 0.9),
        (128, f"{later} (-0.02 to {high})", 0.07, 0.2),
    ):
        each = f"activation {lead}; peak-to-peak {bad} (0.01 to 0.50); random {random} (0.02 to 1.00)"
        told += [f"{steps} steps, {text}, trained less solved, trained: {each}" for text in ("speeches", "wiki")]
    both = lesson_07.solve_is_a_head_start, lesson_07.head_start_melts
    assert tuple(each(lines(TOKEN, *told)).outcome for each in both) == outcomes


@pytest.mark.parametrize(("low", "outcome"), [("0.06", SHOWN), ("-0.01", OPEN)])
def test_bad_cut(low, outcome):
    told = f"128 steps, both solved, trained: bad cut less good one: speeches 0.1 ({low} to 0.2), wiki 0.2 (0.1 to 0.3)"
    assert lesson_07.bad_cut_stays_behind(lines(TOKEN, told)).outcome == outcome


@pytest.mark.parametrize(
    ("solved", "text", "outcomes"),
    [
        ("+0.03, +0.02, +0.04", "-0.1, -0.2, -0.1", (SHOWN, SHOWN)),
        ("+0.03, -0.02, +0.04", "+0.1, +0.1, +0.1", (OPEN, OPEN)),
    ],
)
def test_seeds(solved, text, outcomes):
    told = [
        "speeches, three seeds: KL less solved + KL +0.02, +0.03, +0.02",
        "speeches, three seeds: KL less cross-entropy +0.20, +0.21, +0.19",
        f"wiki, three seeds: KL less solved + KL {solved}",
        f"wiki, three seeds: KL less cross-entropy {text}",
    ]
    both = lesson_07.ends_lower_with_every_seed, lesson_07.text_fits_speeches
    assert tuple(each(lines(TOKEN, *told)).outcome for each in both) == outcomes


@pytest.mark.parametrize(
    ("steps", "low", "outcome"),
    [("3", "0.02", SHOWN), ("9", "0.02", OPEN), ("3", "-0.02", OPEN), ("9", "-1", TURNED)],
)
def test_minutes(steps, low, outcome):
    bad = f"0.10 ({low} to 0.20)"
    told = [
        f"{text}: 16 steps less solved and 8 steps: activation -0.01 (-0.03 to 0.01); peak-to-peak {bad}; random {bad}"
        for text in ("speeches", "wiki")
    ]
    told.insert(0, f"the solve took the time of {steps} of the record's steps")
    assert lesson_07.solving_saves_time(lines(MINUTE, *told)).outcome == outcome


@pytest.mark.parametrize(("healed", "outcome"), [("14.0", SHOWN), ("9.0", OPEN), ("25.0", OPEN)])
def test_lambada(healed, outcome):
    rows = [("whole", ["30.2"]), ("activation, cut", ["10.3"]), ("activation, KL, 131k", [healed])]
    rows.append(("peak-to-peak, solved + KL, 131k", ["29.0"]))
    assert lesson_07.lambada_stays_behind(table(TASK, ["", "right, %"], rows)).outcome == outcome


def test_a_run_without_them_is_absent():
    assert {each(Tables((), ())).outcome for each in judging.checks_of("07")} == {ABSENT}

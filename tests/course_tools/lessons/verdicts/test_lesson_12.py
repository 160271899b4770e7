"""Lesson 12's verdicts on made-up numbers: each of them turns where its numbers do."""

import pytest

from course_tools.lessons.printed import Table
from course_tools.lessons.verdicts import judging, lesson_12
from course_tools.lessons.verdicts.tables import Tables
from course_tools.lessons.verdicts.verdict import ABSENT
from course_utils.verdicts import OPEN, SHOWN, TURNED

FLOOR, TWO, CHOSE = "Two of the eight", "Two cuts, one loss", "Who chose?"
SIZE, COPIES, HEALED = "Only the size of the loss?", "Who copies?", "Does learning bring it back?"


def lines(heading, *told):
    return Tables((), tuple((heading, line) for line in told))


@pytest.mark.parametrize(("german", "outcome"), [(25, SHOWN), (5, OPEN), (4, OPEN)])
def test_floors(german, outcome):
    told = ("copying: 94% right, floor 4%, 704 answers", f"German: {german}% right, floor 5%, 3024 answers")
    assert lesson_12.whole_has_them(lines(FLOOR, *told)).outcome == outcome


def two(cut, ability, nats):
    return f"{cut}, {ability}: 15% right, {nats:.2f} ({nats - 0.3:.2f} to {nats + 0.3:.2f}) nats lost"


@pytest.mark.parametrize(("blocks", "outcome"), [(3.6, SHOWN), (0.9, TURNED)])
def test_copying(blocks, outcome):
    """More alone is not enough: the intervals have to be apart."""
    told = lines(TWO, two("three blocks", "copying", blocks), two("neurons", "copying", 0.4))
    assert lesson_12.blocks_take_copying(told).outcome == outcome


@pytest.mark.parametrize(("neurons", "outcome"), [(1.2, SHOWN), (0.7, TURNED)])
def test_german(neurons, outcome):
    told = lines(TWO, two("neurons", "German", neurons), two("three blocks", "German", 0.26))
    assert lesson_12.neurons_take_german(told).outcome == outcome


ROWS = {  # speeches, wiki, mix, mix with languages, random
    "copying": (0.4, 0.3, 0.02, 0.05, 0.3),
    "sums": (0.44, 0.49, 0.04, 0.0, 0.2),
    "patterns": (0.2, 0.1, 0.01, 0.0, 0.1),
    "facts": (1.8, 1.3, 0.4, 0.5, 0.9),
    "code": (0.6, 0.65, 0.03, 0.06, 0.2),
    "French": (0.7, 0.5, 0.33, 0.11, 0.4),
    "German": (1.2, 0.6, 0.36, 0.13, 0.5),
    "Spanish": (0.75, 0.6, 0.31, 0.12, 0.4),
}


def chose(**changed):
    columns = ["", "speeches", "wiki", "mix", "mix with languages", "random"]
    rows = [([name], [f"{value:.2f}" for value in values]) for name, values in (ROWS | changed).items()]
    return Tables(((CHOSE, Table(columns, rows, "random: 2.1 to 4.9 of 100 neurons gone")),), ())


@pytest.mark.parametrize(
    ("check", "changed", "outcome"),
    [
        (lesson_12.speeches_are_worse_than_chance, {}, SHOWN),
        (lesson_12.speeches_are_worse_than_chance, {"code": (0.1, 0.65, 0.03, 0.06, 0.2)}, OPEN),
        (lesson_12.mix_spares_what_it_holds, {}, SHOWN),
        (lesson_12.mix_spares_what_it_holds, {"sums": (0.44, 0.49, 0.11, 0.0, 0.2)}, OPEN),
        (lesson_12.languages_are_spared, {}, SHOWN),
        (lesson_12.languages_are_spared, {"German": (1.2, 0.6, 0.1, 0.13, 0.5)}, OPEN),
    ],
)
def test_who_chose(check, changed, outcome):
    assert check(chose(**changed)).outcome == outcome


def table(heading, columns, rows, caption=""):
    told = [([name], [f"{value:.2f}" for value in values]) for name, values in rows.items()]
    return Tables(((heading, Table(["", *columns], told, caption)),), ())


@pytest.mark.parametrize(("mix", "outcome"), [(0.1, SHOWN), (2.5, OPEN), (8.0, OPEN)])
def test_prices(mix, outcome):
    """At the price of one block, of three, or of eight neurons may take more."""
    rows = {"blocks": (2.4, 3.6, 7.0), "neurons, by a mix": (mix, 0.1, mix), "neurons, at random": (0.1, 0.2, 0.5)}
    sizes = [f"copying, {size}" for size in ("one", "three", "eight")]
    shown = table(SIZE, sizes, rows, "price of eight: 0.83 nats a token of text")
    assert lesson_12.blocks_take_copying_at_each_price(shown).outcome == outcome


@pytest.mark.parametrize(
    ("copiers", "blocks", "outcome"),
    [
        ("[14, 16, 17, 18, 20]", "[16, 17, 18]", SHOWN),
        ("[16, 17, 18, 20]", "[16, 17, 18]", OPEN),
        ("[14, 16, 17, 18, 20]", "[16, 17, 19]", OPEN),
    ],
)
def test_copiers(copiers, blocks, outcome):
    told = lines(COPIES, f"over 1 nat on copying, under 0.1 on text: {copiers}", f"the three blocks: {blocks}")
    assert lesson_12.some_attentions_copy(told).outcome == outcome


@pytest.mark.parametrize(("speeches", "copying", "outcome"), [(0.05, 3.1, SHOWN), (0.15, 3.1, OPEN), (0.05, 2.0, OPEN)])
def test_healing(speeches, copying, outcome):
    rows = {"blocks, cut": (0.2, 3.6), "blocks, healed": (speeches, copying)}
    assert lesson_12.copying_stays_lost(table(HEALED, ("speeches", "copying"), rows)).outcome == outcome


def test_what_was_not_run_is_said():
    assert {check(Tables((), ())).outcome for check in judging.checks_of("12")} == {ABSENT}

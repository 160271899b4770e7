"""Lesson 02's verdicts on made-up runs: one that shows them all, and one for each that turns it."""

import pytest

from course_tools.lessons.printed import Table
from course_tools.lessons.verdicts import judging, lesson_02
from course_tools.lessons.verdicts.tables import Tables
from course_utils.verdicts import OPEN, SHOWN, TURNED

CARRIED, INSIDE, WHO = "Lesson 01's method, on three matrices", "What does it look like from inside?", "Who meets whom?"
EQUALITY, REPAIRED = "Ask the equality", "The same size, repaired"
PLACES = [f"{place}, {text}" for place in ("here", "float32", "bfloat16") for text in ("speeches", "wiki")]
LINES = [
    (CARRIED, "speeches  whole          3.95 nats a token"),
    (CARRIED, "speeches  carried over  18.56 nats a token"),
    (CARRIED, "wiki      carried over  18.62 nats a token"),
    (CARRIED, "guessing                10.80 nats a token"),
    (INSIDE, "entropy, speeches  whole 3.53 carried over 2.69"),
    (INSIDE, "entropy, wiki      whole 3.24 carried over 2.77"),
    (EQUALITY, "the nearest of 32 masks is off by 70% of the largest output"),
    (WHO, "Llama: whole neurons at 0.08 of the places, in no block at more than 0.15"),
    (REPAIRED, "repaired, mask of its list:         4.3e-07"),
    (REPAIRED, "carried over, mask of gate's list:  1.8e+00"),
    (REPAIRED, "carried over, mask of up's list:    1.8e+00"),
    *((REPAIRED, f"{place}: random cuts × 1.9 in the median, L1 beats 0 of 2") for place in PLACES[:2]),
    *(
        (REPAIRED, f"{place}: random cuts × 2.1 in the median, L1 beats 0 of 19, 19 of 19 pairs cost more")
        for place in PLACES[2:]
    ),
]
SHARES = {
    ("L1", "separate"): "1.00",
    ("L1", "separate, one neuron"): "1.00",
    ("L1", "shared"): "0.00",
    ("random", "separate"): "1.00",
    ("random", "separate, one neuron"): "0.53",
    ("random", "shared"): "0.00",
}


def run(*changes, **shares):
    """A run in which each change, a pair of texts, is made in the lines, and some shares are others."""
    lines = LINES
    for old, new in changes:
        lines = [(heading, line.replace(old, new)) for heading, line in lines]
        assert lines != LINES
    rows = [
        ([*name], [shares.get("_".join(name).replace(", ", "_").replace(" ", "_"), text)] * 6)
        for name, text in SHARES.items()
    ]
    table = Table(["criterion", "edit", *PLACES], rows, "Share of these models that are worse than guessing")
    return Tables(((REPAIRED, table),), tuple(lines))


def test_a_run_as_the_lesson_tells_it_shows_all():
    assert {check(run()).outcome for check in judging.checks_of("02")} == {SHOWN}


@pytest.mark.parametrize(
    ("check", "tables", "outcome"),
    [
        (lesson_02.carried_over_is_worse_than_guessing, run(("18.", "9.")), TURNED),
        (lesson_02.surer_than_the_whole, run(("over 2.69", "over 3.60")), OPEN),
        (lesson_02.no_mask_fits, run(("70%", "0%")), TURNED),
        (lesson_02.few_neurons_are_whole, run(("than 0.15", "than 0.40")), TURNED),
        (lesson_02.only_one_list_is_exact, run(("gate's list:  1.8e+00", "gate's list:  4.3e-07")), OPEN),
        (lesson_02.separate_lists_know_nothing, run(L1_separate="0.00"), OPEN),
        (lesson_02.shared_lists_know_something, run(L1_shared="1.00", random_shared="1.00"), TURNED),
        (lesson_02.one_row_each_is_enough, run(L1_separate_one_neuron="0.00"), TURNED),
        (lesson_02.pairs_cost_more, run(("19 of 19 pairs", "18 of 19 pairs")), TURNED),
        (lesson_02.exact_and_behind_chance, run(("beats 0 of 2", "beats 1 of 2")), OPEN),
    ],
    ids=lambda value: value.margins.__name__ if hasattr(value, "margins") else None,
)
def test_other_numbers_turn_it(check, tables, outcome):
    assert check(tables).outcome == outcome

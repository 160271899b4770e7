"""Lesson 08's verdicts on made-up numbers: each of them turns where its numbers do."""

import pytest

from course_tools.lessons.printed import Table
from course_tools.lessons.verdicts import lesson_08
from course_tools.lessons.verdicts.tables import Tables
from course_tools.lessons.verdicts.verdict import ABSENT
from course_utils.verdicts import OPEN, SHOWN, TURNED

BEHAVIOUR, VIEWS, NEW = "Behaviour first", "Three popular views, tested blind", "What is left on new words"
TRACE, ATTRIBUTED, HEADS = "Where is the pronoun?", "All heads with one gradient", "Three heads"


def lines(heading, *told):
    return Tables((), tuple((heading, line) for line in told))


@pytest.mark.parametrize(("low", "outcome"), [("0.59", SHOWN), ("0.20", TURNED)])
def test_statistics(low, outcome):
    tables = lines(BEHAVIOUR, f"rank correlation with the share of women: 0.78 ({low} to 0.86)")
    assert lesson_08.follows_statistics(tables).outcome == outcome
    assert lesson_08.follows_statistics(lines(BEHAVIOUR)).outcome == ABSENT


@pytest.mark.parametrize(
    ("gap", "low", "outcome"), [("1.10", "0.46", SHOWN), ("1.10", "-0.10", OPEN), ("2.00", "0.46", OPEN)]
)
def test_gap(gap, low, outcome):
    told = f"gap, occupations: {gap} ({low} to 2.75) nats", "gap, woman/man: 5.09 (3.50 to 6.67) nats"
    assert lesson_08.gap_is_real(lines(BEHAVIOUR, *told)).outcome == outcome


@pytest.mark.parametrize(("control", "outcome"), [("0.117", SHOWN), ("0.090", TURNED)])
def test_heatmap(control, outcome):
    tables = lines(VIEWS, f"heatmap, mean: nurse/mechanic 0.108, nurse/librarian {control}")
    assert lesson_08.heatmap_shows_the_swap(tables).outcome == outcome


@pytest.mark.parametrize(
    ("p", "known", "outcome"), [("0.813", "0.001", SHOWN), ("0.010", "0.001", OPEN), ("0.010", "0.300", TURNED)]
)
def test_components(p, known, outcome):
    told = f"components: p = {p}; twenty neurons: p = 0.058", f"woman/man: 59% between the groups, p = {known}"
    assert lesson_08.components_show_the_known_alone(lines(NEW, *told)).outcome == outcome


@pytest.mark.parametrize(("left", "outcome"), [("0.18", SHOWN), ("-0.10", SHOWN), ("1.10", TURNED)])
def test_neurons(left, outcome):
    tables = lines(NEW, f"the twenty: 2.34 sd where picked, {left} sd on new words")
    assert lesson_08.neurons_fade(tables).outcome == outcome


def trace(word, last, same=(-16, -9, -3, 0, 0), crossing=25):
    told = f"the last token is ahead of the word behind block {crossing}"
    blocks = (4, 20, 25, 26, 29)
    rows = [([str(block)], list(map(str, row))) for block, *row in zip(blocks, word, last, same, strict=True)]
    columns = ["block", "at the word", "at the last token", "at the word, same group"]
    return Tables(((TRACE, Table(columns, rows, told)),), ((TRACE, told),))


@pytest.mark.parametrize(
    ("tables", "outcome"),
    [
        (trace((86, 68, 19, 1, 0), (1, 1, 46, 83, 100)), SHOWN),
        (trace((86, 68, 50, 1, 0), (1, 1, 46, 83, 100)), OPEN),
        (trace((86, 40, 19, 1, 0), (1, 1, 46, 83, 100)), OPEN),
        (trace((86, 68, 19, 1, 0), (1, 1, 46, 83, 100), crossing=4), OPEN),
    ],
)
def test_place(tables, outcome):
    assert lesson_08.pronoun_changes_place(tables).outcome == outcome


@pytest.mark.parametrize(("same", "outcome"), [((-16, -9, -3, 0, 0), SHOWN), ((-40, 9, 3, 0, 0), TURNED)])
def test_same_group(same, outcome):
    tables = trace((86, 68, 19, 1, 0), (1, 1, 46, 83, 100), same)
    assert lesson_08.same_group_moves_little(tables).outcome == outcome


@pytest.mark.parametrize(("following", "outcome"), [(5, SHOWN), (15, TURNED)])
def test_three_stand_out(following, outcome):
    tables = lines(ATTRIBUTED, f"estimated, block/head: 26/2 62%, 25/2 33%, 27/5 20%; the next {following}%")
    assert lesson_08.three_stand_out(tables).outcome == outcome


def three(alone, together, most=6, same=-5):
    rows = {f"block 2{n}, head 2": share for n, share in enumerate(alone)}
    rows |= {"the three together": together, "19 random sets, most": most, "from the same group": same}
    table = Table(
        ["", "occupations", "woman/man"],
        [([name], [str(value), str(value)]) for name, value in rows.items()],
        "woman/man: together 101 % here, 99 % in the record, with more pairs",
    )
    return Tables(((HEADS, table),), ())


@pytest.mark.parametrize(
    ("tables", "outcome"),
    [
        (three((62, 24, 21), 88), SHOWN),
        (three((62, 24, 21), 45), OPEN),
        (three((62, 24, 21), 88, most=40), OPEN),
        (three((62, 24, 21), 88, same=-40), OPEN),
    ],
)
def test_three_heads(tables, outcome):
    assert lesson_08.three_heads_carry_it(tables).outcome == outcome


@pytest.mark.parametrize(("together", "outcome"), [(88, SHOWN), (120, TURNED)])
def test_shares(together, outcome):
    assert lesson_08.shares_do_not_add(three((62, 24, 21), together)).outcome == outcome

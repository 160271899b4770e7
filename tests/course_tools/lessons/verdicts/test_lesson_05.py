"""Lesson 05's verdicts on made-up numbers: each of them turns where its numbers do."""

import pytest

from course_tools.lessons.printed import Table
from course_tools.lessons.verdicts import lesson_05
from course_tools.lessons.verdicts.tables import Tables
from course_tools.lessons.verdicts.verdict import ABSENT
from course_utils.verdicts import OPEN, SHOWN, TURNED

EIGHT = "Eight of thirty"
ZERO, CACHE, HALVES = "A bypass adds exactly zero", "The true bypass", "One half at a time"
PLACES = ["here", *(f"record, {text}, {form}" for text in ("speeches", "wiki") for form in ("float32", "bfloat16"))]


def lines(heading, *told):
    return Tables((), tuple((heading, line) for line in told))


def equality(zeros, wrong):
    told = {"the whole model": wrong, "return zeros": zeros, "return the input": wrong, "bypass_attention": zeros}
    return lines(ZERO, *(f"{name:<17} said, {apart} apart" for name, apart in told.items()))


@pytest.mark.parametrize(("zeros", "wrong", "outcome"), [("0", "5.2", SHOWN), ("1e-06", "5.2", OPEN)])
def test_equality(zeros, wrong, outcome):
    assert lesson_05.equality_tells(equality(zeros, wrong)).outcome == outcome


@pytest.mark.parametrize(("high", "outcome"), [("0.94", SHOWN), ("1.01", TURNED)])
def test_wrong_bypass(high, outcome):
    here = (f"{text}, here: input / zeros 0.92 (0.90 to {high})" for text in ("speeches", "wiki"))
    record = f"record: input / zeros 0.90 to 0.96, highest end of an interval {high}"
    assert lesson_05.wrong_bypass_looks_better(lines(ZERO, *here, record)).outcome == outcome


@pytest.mark.parametrize(
    ("told", "outcome"),
    [
        ("0 (beyond guessing), 11 (× 6.2), 29 (× 3.1), 21 of 30 below × 1.2", SHOWN),
        ("0 (× 99.0), 11 (× 6.2), 29 (× 3.1), 21 of 30 below × 1.2", TURNED),
        ("3 (beyond guessing), 11 (× 6.2), 29 (× 3.1), 21 of 30 below × 1.2", TURNED),
    ],
)
def test_first_mlp(told, outcome):
    tables = lines(HALVES, *(f"MLP, {place}: {told}" for place in PLACES))
    assert lesson_05.first_mlp_is_the_model(tables).outcome == outcome


@pytest.mark.parametrize(
    ("told", "outcome"),
    [
        ("1 (× 23.5), 0 (× 5.3), 24 (× 1.4), 27 of 30 below × 1.2", SHOWN),
        ("1 (× 9.5), 0 (× 5.3), 24 (× 1.4), 27 of 30 below × 1.2", TURNED),
        ("0 (× 23.5), 1 (× 5.3), 24 (× 1.4), 27 of 30 below × 1.2", TURNED),
    ],
)
def test_dearest_attention(told, outcome):
    tables = lines(HALVES, *(f"attention, {place}: {told}" for place in PLACES))
    assert lesson_05.one_attention_is_dear(tables).outcome == outcome
    assert lesson_05.one_attention_is_dear(lines(HALVES, f"attention, here: {told}")).outcome == ABSENT


@pytest.mark.parametrize(("count", "outcome"), [(27, SHOWN), (12, TURNED)])
def test_cheap_attentions(count, outcome):
    told = f"1 (× 23.5), 0 (× 5.3), 24 (× 1.4), {count} of 30 below × 1.2"
    tables = lines(HALVES, *(f"attention, {place}: {told}" for place in PLACES))
    assert lesson_05.most_attentions_are_cheap(tables).outcome == outcome


@pytest.mark.parametrize(("count", "outcome"), [(26, SHOWN), (12, TURNED)])
def test_cheaper_half(count, outcome):
    tables = lines(HALVES, *(f"attention the cheaper half, {place}: {count} of 30" for place in PLACES))
    assert lesson_05.attention_is_cheaper(tables).outcome == outcome


@pytest.mark.parametrize(
    ("step", "count", "outcome"), [("WRONG", 1, SHOWN), ("right", 0, TURNED), ("WRONG", 2, TURNED)]
)
def test_empty_drawer(step, count, outcome):
    rows = [(["attention 0: zeros"], ["right", step, "right"]), (["attention 0: library"], ["right", "right", "right"])]
    table = Table(["", "at once", "token by token", "generate"], rows, f"WRONG: {count} of 12 tests")
    tables = Tables(((CACHE, table),), ((CACHE, f"WRONG: {count} of 12 tests"),))
    assert lesson_05.empty_drawer(tables).outcome == outcome


@pytest.mark.parametrize(
    ("layer", "most", "spared", "fewest", "outcomes"),
    [
        (1, 0, 1, 19, (SHOWN, SHOWN, SHOWN)),
        (2, 0, 1, 19, (OPEN, SHOWN, SHOWN)),
        (1, 4, 2, 18, (OPEN, TURNED, OPEN)),
    ],
)
def test_forgotten_residual(layer, most, spared, fewest, outcomes):
    sets = {
        "importance": f"{fewest} to 19 of 19",
        "leave-one-out": "19 to 19 of 19",
        "without residual": f"0 to {most} of 19",
        "without residual, fatal layer spared": f"0 to {spared} of 19",
    }
    columns = ["", *(f"{text}: {name}" for text in ("speeches", "wiki") for name in ("× unpruned", "random beaten"))]
    line = f"spared in the last but one row: attention {layer}"
    rows = [([name], 2 * ["1.31 to 4.40", beaten]) for name, beaten in sets.items()]
    tables = Tables(((EIGHT, Table(columns, rows, line)),), ((EIGHT, line),))
    assert lesson_05.forgotten_residual_beats_none(tables).outcome == outcomes[0]
    assert lesson_05.spared_beats_hardly_any(tables).outcome == outcomes[1]
    assert lesson_05.residual_beats_chance(tables).outcome == outcomes[2]

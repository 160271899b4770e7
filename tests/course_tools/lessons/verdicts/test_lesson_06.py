"""Lesson 06's verdicts on made-up numbers: each of them turns where its numbers do."""

import pytest

from course_tools.lessons.printed import Table
from course_tools.lessons.verdicts import lesson_06
from course_tools.lessons.verdicts.tables import Tables
from course_tools.lessons.verdicts.verdict import ABSENT
from course_utils.verdicts import OPEN, SHOWN, TURNED

TINY, SCORE, PRICE = "Where the decision must live", "The score, tested", "A price for the cache"
EQUAL, PAYS = "At equal cost", "Who pays"


def lines(heading, *told):
    return Tables((), tuple((heading, line) for line in told))


@pytest.mark.parametrize(
    ("passes", "apart", "outcome"),
    [("[0, 2, 2, 2]", "1", SHOWN), ("[0, 2, 0, 2]", "1", OPEN), ("[2, 2, 2]", "0", OPEN), ("[0, 2]", "0", OPEN)],
)
def test_decisions(passes, apart, outcome):
    told = f"left out, pass by pass: {passes}", f"logits apart from the whole model's: 0, then {apart}"
    assert lesson_06.decides_anew(lines(TINY, *told)).outcome == outcome


@pytest.mark.parametrize(
    ("low", "high", "bought", "outcomes"),
    [
        ("0.380", "0.380", "5.0", (SHOWN, SHOWN)),
        ("0.300", "0.380", "5.0", (TURNED, SHOWN)),
        ("0.380", "0.480", "9.0", (TURNED, TURNED)),
    ],
)
def test_thirds_by_complexity(low, high, bought, outcomes):
    tables = lines(
        SCORE,
        f"simple: harm 0.394 ({low} to 0.408), {bought} % of the cache",
        f"complex: harm 0.367 (0.354 to {high}), 16.0 % of the cache",
    )
    assert lesson_06.simple_are_harmed(tables).outcome == outcomes[0]
    assert lesson_06.simple_save_little(tables).outcome == outcomes[1]


@pytest.mark.parametrize(
    ("taken", "outcome"), [("0 5 8", SHOWN), ("1 5 8", OPEN), ("0 0 8", OPEN), ("0 8 8", SHOWN), ("3 8 5", OPEN)]
)
def test_longer_prompts(taken, outcome):
    told = f"answers of 55 tokens are expected; price 0.00012 nats; left out at 50, 400, 700 tokens: [{taken}]"
    assert lesson_06.longer_leaves_more(lines(PRICE, told)).outcome == outcome


def at_equal_cost(ratios, differences):
    rules = ("complexity", "published", "price", "price, harms known")
    told = ", ".join(f"{name} × {ratio}" for name, ratio in zip(rules, ratios, strict=True))
    line = f"of one number's harm: {told}"
    rows = [([name], ["7.1", told]) for name, told in zip(rules, differences, strict=True)]
    return Tables(((EQUAL, Table(["", "cache saved, %", "difference"], rows, line)),), ((EQUAL, line),))


HIGHER, LOWER, EITHER = "+0.107 (+0.094 to +0.118)", "-0.075 (-0.090 to -0.057)", "+0.010 (-0.020 to +0.040)"


@pytest.mark.parametrize(
    ("ratios", "differences", "outcomes"),
    [
        ((2.34, 2.45, 0.24, 0.22), (HIGHER, HIGHER, LOWER, LOWER), (SHOWN, SHOWN, SHOWN)),
        ((1.90, 2.45, 0.60, 0.22), (HIGHER, HIGHER, LOWER, LOWER), (OPEN, OPEN, TURNED)),
        ((2.34, 2.45, 0.24, 0.10), (HIGHER, EITHER, EITHER, LOWER), (OPEN, OPEN, TURNED)),
    ],
)
def test_rules_at_equal_cost(ratios, differences, outcomes):
    tables = at_equal_cost(ratios, differences)
    checks = lesson_06.complexity_harms, lesson_06.price_pays, lesson_06.knowing_gains_little
    assert tuple(check(tables).outcome for check in checks) == outcomes
    assert lesson_06.complexity_harms(lines(EQUAL, "of one number's harm: complexity × 2.34")).outcome == ABSENT


@pytest.mark.parametrize(
    ("percent", "price", "outcomes"), [("8.3", "0.163", (SHOWN, SHOWN)), ("21.0", "0.100", (OPEN, TURNED))]
)
def test_who_pays(percent, price, outcomes):
    told = f"prompts that leave something out: {percent}%"
    line = f"harm if prompts count by their tokens: price {price}, one number for all 0.103"
    rows = [([name], [harm]) for name, harm in (("0 left out", "0.000"), ("8 left out", "0.372"))]
    tables = Tables(((PAYS, Table(["", "harm, mean"], rows, line)),), ((PAYS, told), (PAYS, line)))
    assert lesson_06.few_pay(tables).outcome == outcomes[0]
    assert lesson_06.by_tokens(tables).outcome == outcomes[1]


@pytest.mark.parametrize(("found", "outcome"), [(15, SHOWN), (14, OPEN)])
def test_codes(found, outcome):
    told = f"codes found, of 16, by layers left out: {{0: 16, 5: 16, 8: {found}}}"
    assert lesson_06.codes_are_found(lines(PAYS, told)).outcome == outcome

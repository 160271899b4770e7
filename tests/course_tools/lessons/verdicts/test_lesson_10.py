"""Lesson 10's verdicts on made-up numbers: each of them turns where its numbers do."""

import pytest

from course_tools.lessons.printed import Table
from course_tools.lessons.verdicts import judging, lesson_10
from course_tools.lessons.verdicts.tables import Tables
from course_tools.lessons.verdicts.verdict import ABSENT
from course_utils.verdicts import OPEN, SHOWN, TURNED

TOY, FILES = "A price for each layer", "The same models as files"
MEMORY, SERVER = "Four ways to spend the same memory", "A server, and an 8B"


def lines(heading, *told):
    return Tables((), tuple((heading, line) for line in told))


@pytest.mark.parametrize(
    ("short", "narrow", "engine", "outcome"),
    [("1.24", "1.11", "1.19", SHOWN), ("1.11", "1.24", "1.25", TURNED), ("1.24", "1.11", "1.25", OPEN)],
)
def test_toy(short, narrow, engine, outcome):
    told = (
        f"slow framework: whole 41.0 ms, × 1.00; two fewer 33.0 ms, × {short}; narrower MLPs 37.0 ms, × {narrow}",
        f"lean engine: whole 25.0 ms, × 1.00; two blocks fewer 21.0 ms, × 1.19; narrower MLPs 21.0 ms, × {engine}",
    )
    assert lesson_10.layers_have_a_price(lines(TOY, *told)).outcome == outcome


@pytest.mark.parametrize(
    ("even", "odd", "outcome"), [(130.7, 147.8, SHOWN), (130.7, 140.0, OPEN), (150.0, 140.0, TURNED)]
)
def test_files(even, odd, outcome):
    told = f"Q8_0: whole 144.8 MB, MLPs of 1280 {even} MB, MLPs of 1229 {odd} MB"
    assert lesson_10.odd_width_is_larger(lines(FILES, told)).outcome == outcome


@pytest.mark.parametrize(
    ("requests", "outcomes"),
    [
        ((5, 6, 7, 9, 10), (SHOWN, SHOWN)),
        ((5, 5, 7, 7, 8), (SHOWN, SHOWN)),
        ((5, 6, 6, 9, 9), (OPEN, OPEN)),
        ((9, 7, 6, 5, 4), (TURNED, TURNED)),
    ],
)
def test_requests(requests, outcomes):
    names = ("whole", "width 1280", "6 attentions fewer", "6 blocks fewer", "whole, 8 bits")
    rows = [([name], ["1", str(count)]) for name, count in zip(names, requests, strict=True)]
    caption = "room for contexts of 1,024 tokens: 399 MB"
    tables = Tables(((MEMORY, Table(["", "weights, MB", "requests"], rows, caption)),), ())
    found = lesson_10.cache_is_requests(tables), lesson_10.bits_make_most_room(tables)
    assert tuple(verdict.outcome for verdict in found) == outcomes


@pytest.mark.parametrize(
    ("calm", "narrow", "short", "bits", "outcome"),
    [
        ("1.48", "1.54", "1.94", "2.94", SHOWN),
        ("1.30", "1.54", "1.94", "2.94", OPEN),
        ("1.30", "1.54", "1.50", "1.20", TURNED),
    ],
)
def test_8b(calm, narrow, short, bits, outcome):
    told = {"8 attentions fewer": calm, "a fifth by width": narrow, "7 blocks fewer": short, "whole in 4 bits": bits}
    printed = [f"{name}: weights 4% less, 67,246 tokens, × {ratio}" for name, ratio in told.items()]
    assert lesson_10.bits_first_on_an_8b(lines(SERVER, *printed)).outcome == outcome


def served(held, many):
    columns = ["", "cache, tokens", "reported, counted", "tokens/s, 1 waiting", "tokens/s, 16 waiting"]
    rows = [
        (["whole"], ["46,592", "× 1.00, × 1.00", "20", "200"]),
        (["6 blocks fewer"], [held, "× 1.25, × 1.25", "24", many]),
    ]
    return Tables(((SERVER, Table(columns, rows, "")),), ())


def test_server():
    assert lesson_10.served_as_counted(served("58,240", "250")).outcome == SHOWN
    assert lesson_10.served_as_counted(served("55,000", "250")).outcome == OPEN
    assert lesson_10.batches_share(served("58,240", "250")).outcome == SHOWN
    assert lesson_10.batches_share(served("58,240", "60")).outcome == OPEN


def test_what_was_not_run_is_said():
    assert {check(Tables((), ())).outcome for check in judging.checks_of("10")} == {ABSENT}

"""Agendas: their minutes are the lessons' own, and the page shows them as they are."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from course_tools.lessons import authoring
from course_tools.workshop import agendas

ROOT = Path(__file__).resolve().parents[3]
LESSONS = {path.stem[:2]: authoring.read_lesson(path) for path in authoring.find_lessons(ROOT / "lessons")}
PAGE = (ROOT / "docs" / "teaching.md").read_text(encoding="utf-8")


def test_page_is_fresh():
    assert agendas.BEGIN in PAGE and agendas.END in PAGE
    assert agendas.fill(PAGE, LESSONS) == PAGE, "python3 course.py build writes it anew"


def test_minutes_follow_the_lesson():
    part = agendas.Part("01", "", (1, 4))
    lesson = LESSONS["01"]
    before = agendas.minutes(part, LESSONS)
    assert before == agendas.minutes(agendas.Part("01", ""), LESSONS) + 4 + 12, "what the two headings say"
    later = {**LESSONS, "01": replace(lesson, time=f"{lesson.minutes + 7} minutes")}
    assert agendas.minutes(part, later) == before + 7
    assert agendas.fill(PAGE, later) != PAGE
    with pytest.raises(ValueError, match="Lesson 01 has no exercise 9; it has 1, 2"):
        agendas.minutes(agendas.Part("01", "", (9,)), LESSONS)


def lessons_named(text):
    """The numbers of lessons in a text; "03 to 05" names three."""
    spelled = re.sub(
        r"(\d\d) to (\d\d)", lambda ends: " ".join(f"{n:02}" for n in range(int(ends[1]), int(ends[2]) + 1)), text
    )
    return set(re.findall(r"\b\d\d\b", spelled))


@pytest.mark.parametrize(
    ("agenda", "said"),
    [
        ("Half a day on bias", r"for the agenda on bias, lessons ([^;]*);"),
        ("Half a day on speed and small models", r"for that on speed, ([^.]*)\."),
    ],
)
def test_what_the_group_knows_beforehand_is_what_the_lessons_ask_for(agenda, said):
    done = [part.lesson for part in agendas.AGENDAS[agenda] if isinstance(part, agendas.Part)]
    asked = set().union(*(lessons_named(LESSONS[lesson].prerequisites) for lesson in done)) - set(done)
    assert lessons_named(re.search(said, " ".join(PAGE.split()))[1]) == asked


def test_a_day_is_a_day():
    totals = {name: sum(agendas.minutes(part, LESSONS) for part in parts) for name, parts in agendas.AGENDAS.items()}
    assert totals["Half a day"] <= 240 and totals["Half a day on bias"] <= 240 and totals["One day"] <= 420
    assert 420 < totals["Two days"] <= 840
    two_days = [part.lesson for part in agendas.AGENDAS["Two days"] if isinstance(part, agendas.Part)]
    assert two_days == sorted(set(two_days)) and set(two_days) <= set(LESSONS)


def test_nobody_sits_for_two_hours_without_a_break():
    for name, parts in agendas.AGENDAS.items():
        sitting = 0
        for part in parts:
            rest = part in (agendas.BREAK, agendas.LUNCH) or "close of" in agendas._name(part)
            sitting = 0 if rest else sitting + agendas.minutes(part, LESSONS)
            assert sitting <= 145, f"{name}: no break before {agendas._name(part)}"


def test_page_without_markers_stays():
    assert agendas.fill("nothing here", LESSONS) == "nothing here"

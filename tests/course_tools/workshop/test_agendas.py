"""Agendas: their minutes are the lessons' own, and nobody sits too long."""

from dataclasses import replace
from pathlib import Path

import pytest

from course_tools.lessons import authoring
from course_tools.workshop import agendas

ROOT = Path(__file__).resolve().parents[3]
LESSONS = {path.stem[:2]: authoring.read_lesson(path) for path in authoring.find_lessons(ROOT / "lessons")}
PAGE = (ROOT / "docs" / "teaching.md").read_text(encoding="utf-8")
AGENDAS = agendas.agendas(PAGE)


def test_page_is_fresh_and_has_every_agenda():
    assert agendas.fill(PAGE, LESSONS) == PAGE, "python3 course.py build writes it anew"
    assert len(AGENDAS) == PAGE.count("| minutes | what | how |") == 6
    assert agendas.fill("nothing here", LESSONS) == "nothing here"


def test_minutes_follow_the_lesson():
    lesson, part = LESSONS["01"], agendas.Part(0, "lesson 01, exercises 1, 4", "")
    before = agendas.minutes(part, LESSONS)
    assert before == agendas.minutes(replace(part, what="lesson 01"), LESSONS) + 4 + 20, "what the two headings say"
    later = {**LESSONS, "01": replace(lesson, time=f"{lesson.minutes + 7} minutes")}
    assert agendas.minutes(part, later) == before + 7
    sums = [
        sum(part.minutes for part in agendas.agendas(agendas.fill(PAGE, each))["Half a day"])
        for each in (LESSONS, later)
    ]
    assert sums[1] == sums[0] + 7
    with pytest.raises(ValueError, match="lesson 01 has no exercise 9; it has 1, 2"):
        agendas.minutes(replace(part, what="lesson 01, exercise 9"), LESSONS)


def test_a_day_is_a_day():
    totals = {name: sum(part.minutes for part in parts) for name, parts in AGENDAS.items()}
    assert totals["Half a day"] <= 240 and totals["Half a day on bias"] <= 240 and totals["One day"] <= 420
    assert 420 < totals["Two days"] <= 840
    two_days = [part.lesson for part in AGENDAS["Two days"] if part.lesson]
    assert two_days == sorted(set(two_days)) and set(two_days) <= set(LESSONS)


def test_nobody_sits_for_two_hours_without_a_break():
    for name, parts in AGENDAS.items():
        sitting = 0
        for part in parts:
            sitting = 0 if part.what in ("break", "lunch") or "close of" in part.what else sitting + part.minutes
            assert sitting <= 145, f"{name}: no break before {part.what}"

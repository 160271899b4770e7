"""Every lesson keeps the rules, and nobody passes its quiz by guessing."""

import math
from collections import Counter
from pathlib import Path

import nbformat
import pytest

from course_tools.lessons import notebooks
from course_tools.lessons.authoring import find_lessons, read_lesson
from course_tools.lessons.rules import broken_rules

ROOT = Path(__file__).resolve().parents[1]
LESSONS = [read_lesson(path) for path in find_lessons(ROOT / "lessons")]
DEEPER = [read_lesson(path) for path in find_lessons(ROOT / "lessons", ["deeper"])]


@pytest.mark.parametrize("lesson", [*LESSONS, *DEEPER], ids=lambda lesson: lesson.name)
def test_lesson_keeps_the_rules(lesson):
    saved = nbformat.read(notebooks.notebook_paths(lesson, ROOT / "notebooks")["exercises"], as_version=4)
    assert broken_rules(lesson, saved) == []


def middle(values):
    """What stands in the middle once they are sorted: one value, or two."""
    ordered = sorted(values)
    return {ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]}


def too_good(questions):
    """The ways of guessing that get more than 45 % right, rounded up to a whole question.

    Each letter; the longest option; the one in the middle, by its place and by its length. Of several options that a
    way finds, a coin chooses.
    """
    right = Counter()
    for question in questions:
        lengths = [len(option.text) for option in question.options]
        places = range(len(lengths))
        ways = {letter: [place] for letter, place in zip("ABCD", places, strict=False)}
        ways["the longest"] = [place for place in places if lengths[place] == max(lengths)]
        ways["the middle"] = [place for place in places if place in middle(places)]
        ways["of middle length"] = [place for place in places if lengths[place] in middle(lengths)]
        for way, chosen in ways.items():
            right[way] += sum(question.options[place].right for place in chosen) / len(chosen)
    return [way for way, count in right.items() if count > math.ceil(0.45 * len(questions))]


def test_no_way_of_guessing_passes_the_quizzes():
    assert too_good([question for lesson in LESSONS for question in lesson.quiz]) == []

"""Every lesson keeps the rules, and nobody passes its quiz by guessing or its last exercise by a variable."""

import math
from collections import Counter
from pathlib import Path

import nbformat
import pytest
from retyped import passed_by, trial_of
from sample_lesson import LESSON, write_lesson

from course_tools.lessons import notebooks, runner
from course_tools.lessons.authoring import Option, Question, find_lessons, read_lesson
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


@pytest.mark.parametrize(
    ("quiz", "ways"),
    [
        (["A so or not", "B so or not", "C so or it"], []),
        (["B so or it"] * 3, ["B", "the middle"]),
        (["A long b c", "B a long c", "C a b long"], ["the longest"]),
        (["A so a not", "B a so not", "C a not so"], ["of middle length"]),
    ],
)
def test_guesses_are_noticed(quiz, ways):
    """A letter says which of the three options is right."""
    questions = []
    for right, *options in map(str.split, quiz):
        made = [Option(text, letter == right, "So.") for letter, text in zip("ABC", options, strict=True)]
        questions.append(Question("Why?", tuple(made)))
    assert too_good(questions) == ways


_BEFORE, _AFTER = LESSON[: LESSON.index("def check_double")], LESSON[LESSON.index("# BEGIN SOLUTION") :]
CHECKED = f"""{_BEFORE}from course_utils.lessons.exercises import exercise, require

@exercise(1, task="Return twice the number.", proved="Doubled.")
def check_double(attempt):
    require(attempt(3) == 6, "Twice 3 is 6.")

{_AFTER}"""
TWICE = "def twice(number):\n    return number + number\n\ndef thrice(number):\n    return 3 * number\n\nsix = 6\n"
A_VALUE = {
    "attempt(3) == 6": "attempt == 6",
    "def double(x):\n    return 2 * x": "double = 6",
    "# def double(x):\n#     ...  # your code": "# double = ...",
    "import sys": "six = 6.0\nimport sys",
}


@pytest.mark.parametrize(
    ("changes", "passing"), [({}, []), ({"import sys": f"{TWICE}import sys"}, ["twice"]), (A_VALUE, ["six"])]
)
def test_what_passes_the_last_exercise_is_named(changes, passing, tmp_path):
    text = CHECKED
    for old, new in changes.items():
        text = text.replace(old, new)
    lesson = read_lesson(write_lesson(tmp_path, text))
    notebook = notebooks.both_forms(lesson, notebooks.Course("someone/somewhere", "v1"))
    notebook.cells.append(trial_of(lesson))
    result = runner.execute(notebook, name=lesson.name, profile="smoke", folder=tmp_path)
    assert result.failure is None, str(result.failure)
    assert passed_by(notebook.cells[-1]) == passing

"""Every lesson keeps the rules."""

import math
import re
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


def test_table_of_statistics_has_each_lesson():
    page = (ROOT / "docs" / "statistics.md").read_text(encoding="utf-8")
    assert {*re.findall(r"^\| (\d\d) \| .+ \|$", page, re.MULTILINE)} >= {lesson.number for lesson in LESSONS}


@pytest.mark.parametrize("lesson", [*LESSONS, *DEEPER], ids=[lesson.name for lesson in [*LESSONS, *DEEPER]])
def test_lesson_keeps_the_rules(lesson):
    saved = nbformat.read(notebooks.notebook_paths(lesson, ROOT / "notebooks")["exercises"], as_version=4)
    assert broken_rules(lesson, saved) == []


def middle(values):
    """What stands in the middle once they are sorted: one value, or two."""
    ordered = sorted(values)
    return {ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]}


def guesses(questions):
    """How many questions each way of guessing gets right; who finds several options to choose from tosses a coin.

    Each letter; the longest option; the one in the middle, by its place and by its length.
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
    return right


def too_good(questions):
    """The ways of guessing that get more than 45 % right, rounded up to a whole question."""
    return [way for way, right in guesses(questions).items() if right > math.ceil(0.45 * len(questions))]


def test_no_way_of_guessing_passes_the_quizzes():
    assert too_good([question for lesson in LESSONS for question in lesson.quiz]) == []


def question(right, *options):
    return Question(
        "Why?", tuple(Option(text, letter == right, "So.") for letter, text in zip("ABC", options, strict=True))
    )


def test_guesses_are_noticed():
    even = [question("A", "so", "or", "not"), question("B", "so", "or", "not"), question("C", "so", "or", "it")]
    assert too_good(even) == []
    assert too_good([question("B", "so", "or", "it")] * 3) == ["B", "the middle"]
    longest = [question("A", "long", "b", "c"), question("B", "a", "long", "c"), question("C", "a", "b", "long")]
    assert too_good(longest) == ["the longest"]
    between = [question("A", "so", "a", "not"), question("B", "a", "so", "not"), question("C", "a", "not", "so")]
    assert too_good(between) == ["of middle length"]
    four = Question("Why?", tuple(Option(text, text == "so", "So.") for text in ("yes", "so", "no", "a")))
    assert guesses([four])["the middle"] == guesses([four])["of middle length"] == 0.5


LEAKS = """
def twice(number):
    return number + number

def with_other_arguments(number, other):
    return number + number

def thrice(number):
    return 3 * number

six = 6
import sys"""


def test_function_that_passes_the_last_exercise_is_named(tmp_path):
    assert passing(LESSON.replace("import sys", LEAKS), tmp_path) == ["twice"]
    assert passing(LESSON, tmp_path) == []


def test_value_that_passes_is_named(tmp_path):
    text = LESSON.replace("attempt(3) == 6", "attempt == 6").replace("def double(x):\n    return 2 * x", "double = 6")
    text = text.replace("# def double(x):\n#     ...  # your code", "# double = ...").replace(
        "import sys", "six = 6.0\nimport sys"
    )
    assert passing(text, tmp_path) == ["six"]


def passing(text, folder):
    """What passes the exercise of a lesson, which is run with its solution."""
    lesson = read_lesson(write_lesson(folder, text))
    notebook = notebooks.both_forms(lesson, notebooks.Course("someone/somewhere", "v1"))
    notebook.cells.append(trial_of(lesson))
    result = runner.execute(notebook, name=lesson.name, profile="smoke", folder=folder)
    assert result.failure is None, str(result.failure)
    return passed_by(notebook.cells[-1])


def test_what_a_trial_prints_is_read_also_where_a_slow_kernel_sends_it_in_pieces():
    parts = [nbformat.v4.new_output("stream", text=text) for text in ("passed by:", " mine yo", "urs\n")]
    parts.insert(1, nbformat.v4.new_output("stream", name="stderr", text="progress"))
    assert passed_by(nbformat.v4.new_code_cell(outputs=parts)) == ["mine", "yours"]

"""The exercises of a lesson, read from its source."""

from pathlib import Path

import pytest
from sample_lesson import write_lesson

from course_tools.lessons.authoring import find_lessons, read_lesson
from course_tools.lessons.exercises import Exercise, exercises_of

LESSONS = find_lessons(Path(__file__).resolve().parents[3] / "lessons")


def test_exercises_of_a_lesson(tmp_path):
    (found,) = exercises_of(read_lesson(write_lesson(tmp_path)))
    assert found == Exercise(1, "check_double", "●○○", 5) and found.effort == "●○○ · 5 minutes"


@pytest.mark.parametrize("path", LESSONS, ids=[path.stem[:2] for path in LESSONS])
def test_exercises_leave_time_for_the_lesson(path):
    lesson = read_lesson(path)
    found = [*exercises_of(lesson)]
    assert [one.number for one in found] == [*range(1, len(found) + 1)]
    assert 0 < sum(one.minutes for one in found) < lesson.minutes

"""A lesson's time is what a person wrote: a number of minutes, or a span with a middle."""

import pytest
from sample_lesson import LESSON, write_lesson

from course_tools.lessons.authoring import LessonError, read_lesson
from course_tools.lessons.minutes import middle_of


@pytest.mark.parametrize(
    ("written", "time", "minutes"),
    [
        ("73", "73 minutes", 73),
        ("90 to 120 minutes", "90 to 120 minutes", 105),
        ("about two hours", "about two hours", 120),
        ("an hour", "an hour", 60),
        ("1.5 to 2 hours", "1.5 to 2 hours", 105),
    ],
)
def test_a_header_says_a_number_or_a_span(written, time, minutes, tmp_path):
    lesson = read_lesson(write_lesson(tmp_path, LESSON.replace("minutes: 10", f"minutes: {written}")))
    assert (lesson.time, lesson.minutes, middle_of(time)) == (time, minutes, minutes)


@pytest.mark.parametrize("written", ["long", "true", "90 to hours", '""', "-5"])
def test_what_is_no_time_is_refused(written, tmp_path):
    with pytest.raises(LessonError, match="01_small.py: .*(no time; write 90|`minutes` in the header)"):
        read_lesson(write_lesson(tmp_path, LESSON.replace("minutes: 10", f"minutes: {written}")))

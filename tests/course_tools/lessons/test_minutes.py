"""A lesson's minutes over its sections."""

from pathlib import Path

import pytest
from sample_lesson import LESSON, write_lesson

from course_tools.lessons.authoring import find_lessons, read_lesson
from course_tools.lessons.minutes import minutes_of

ROOT = Path(__file__).resolve().parents[3]
LESSONS = find_lessons(ROOT / "lessons")


@pytest.mark.parametrize("path", LESSONS, ids=[path.stem[:2] for path in LESSONS])
def test_sections_add_up_to_the_header(path):
    lesson = read_lesson(path)
    found = minutes_of(lesson)
    assert sum(found.values()) == lesson.minutes
    assert all(minutes >= 0 for minutes in found.values()) and "" not in found


def test_exercises_take_what_their_headings_say(tmp_path):
    text = LESSON.replace("minutes: 5", "minutes: 25").replace("# ### Exercise 1", "# ## Two\n#\n# ### Exercise 1")
    found = minutes_of(read_lesson(write_lesson(tmp_path, text.replace("· 5 minutes", "· 15 minutes"))))
    assert sum(found.values()) == 25 and found["Two"] >= 15 and set(found) == {"What you will learn", "Two"}


def test_notes_for_the_speaker_take_no_time(tmp_path):
    plain = LESSON.replace("minutes: 5", "minutes: 25")
    told = plain.replace(
        '# %% tags=["install"]', '# %% [markdown] tags=["notes"]\n# ' + "word " * 500 + '\n\n# %% tags=["install"]'
    )
    both = [
        minutes_of(read_lesson(write_lesson(tmp_path / name, text))) for name, text in {"a": plain, "b": told}.items()
    ]
    assert both[0] == both[1]

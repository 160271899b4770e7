"""The quiz in the terminal: first answers count, reasons are told, odd input is asked again."""

import pytest
from sample_lesson import LESSON, write_lesson

from course_tools.learner import terminal_quiz
from course_tools.lessons.authoring import read_lesson


@pytest.fixture
def lesson(tmp_path):
    return read_lesson(write_lesson(tmp_path / "lessons"))


def take(lesson, folder, *lines):
    """Take the quiz with these lines typed; what was said, and how many were right."""
    said, typed = [], iter(lines)
    right = terminal_quiz.ask(lesson, folder, read=lambda prompt: next(typed), say=said.append)
    return right, "\n".join(said)


def test_first_answers_are_kept(lesson, tmp_path):
    assert terminal_quiz.first_answers(lesson, tmp_path) == (None, None, None)
    right, said = take(lesson, tmp_path, "B", "a", "b")
    assert (
        right == 2
        and "✓ B is right.\n  A: That is once.\n  B is right: Doubled." in said
        and "✗ A is not right." in said
    )
    assert terminal_quiz.first_answers(lesson, tmp_path) == (True, False, True)
    assert take(lesson, tmp_path, "A", "B", "B")[0] == 2
    assert terminal_quiz.first_answers(lesson, tmp_path) == (True, False, True)


def test_odd_input_is_asked_again_with_a_word_of_what_is_wanted(lesson, tmp_path):
    right, said = take(lesson, tmp_path, "", "AB", "D", "7", " b ", "B", "B")
    assert right == 3 and said.count("Type A, B or C, and Enter.") == 4


def test_stars_of_emphasis_are_left_out_and_others_stay(tmp_path):
    text = LESSON.replace("What is 1 times 2?", "What is **one** times *two*, or 2 * 3 * 4, `a*b*c`?")
    _, said = take(read_lesson(write_lesson(tmp_path / "lessons", text)), tmp_path, "B", "B", "B")
    assert "What is one times two, or 2 * 3 * 4, `a*b*c`?" in said


def test_answers_before_a_stop_are_kept(lesson, tmp_path):
    with pytest.raises(StopIteration):
        take(lesson, tmp_path, "B")
    assert terminal_quiz.first_answers(lesson, tmp_path) == (True, None, None)


@pytest.mark.parametrize("broken", ["{", "[]", '{"a": "B", "b": 2}', '{"a": "AB"}'])
def test_broken_record_is_named_and_left_as_it_is(broken, lesson, tmp_path):
    """Writing it anew would lose all first answers without a word."""
    record = tmp_path / terminal_quiz.RECORD
    record.write_text(broken, encoding="utf-8")
    for use in (lambda: take(lesson, tmp_path, "B", "B", "B"), lambda: terminal_quiz.first_answers(lesson, tmp_path)):
        with pytest.raises(ValueError, match=r"quiz_answers.json can't be read .*Mend it, or move it out"):
            use()
    assert record.read_text(encoding="utf-8") == broken


def test_reworded_question_is_a_new_one(lesson, tmp_path):
    take(lesson, tmp_path, "B", "B", "B")
    changed = LESSON + "\n"
    changed = changed.replace("What is 1 times 2?", "What is one times two?")
    again = read_lesson(write_lesson(tmp_path / "lessons", changed))
    assert terminal_quiz.first_answers(again, tmp_path) == (None, True, True)

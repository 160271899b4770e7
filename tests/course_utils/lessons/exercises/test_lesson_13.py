"""Lesson 13's checks refuse the stub, name the likely mistake, and accept the answers."""

import torch
from exercise_cases import cases_of

from course_utils.lessons.exercises import lesson_13

test_close = cases_of(lesson_13.check_close)
test_gift = cases_of(lesson_13.check_gift)
test_bits = cases_of(lesson_13.check_bits)
test_reading = cases_of(lesson_13.check_reading)


class Exam:
    """An exam whose costs are given: frequency is dear on code, the first half a little dear on both."""

    def __init__(self, english, code):
        self.left, self.first, self._own = 3, {"English": 0.1, "code": 0.05}, {"English": english, "code": code}

    def cost(self, worth):
        return self._own


def judged(worth, exam):
    english, code = torch.tensor([5, 3, 0, 0]), torch.tensor([0, 1, 2, 0])
    return lesson_13.check_worth(worth, english, code, exam)


def test_worth_is_judged_on_both_texts_and_by_few_tries(capsys):
    assert judged(lesson_13.check_worth.answer, Exam(0.07, 0.01))
    assert not judged(lambda english, code: english, Exam(0.07, 0.9))
    assert "code may cost at most 30%" in capsys.readouterr().out
    exam = Exam(0.099, 0.01)
    for _ in range(4):
        assert not judged(lambda english, code: english + code, exam)
    out = capsys.readouterr().out
    assert "English may cost at most 95%" in out and "The exam is over" in out


def test_bad_worths_take_no_try(capsys):
    exam = Exam(0.07, 0.01)
    wrongs = {"each of 4": lambda e, c: e[:2], "at least 0": lambda e, c: e - 4.0, "a tensor": lambda e, c: [1]}
    for words, wrong in wrongs.items():
        assert not judged(wrong, exam)
        assert words in capsys.readouterr().out
    assert exam.left == 3

"""Lesson 13's checks refuse the stub, name the likely mistake, and accept the answers."""

import torch
from exercise_cases import cases_of

from course_utils.lessons.exercises import lesson_13

test_close = cases_of(lesson_13.check_close)
test_gift = cases_of(lesson_13.check_gift)
test_bits = cases_of(lesson_13.check_bits)


class Exam:
    """An exam whose costs are given: frequency is dear on code, the first half a little dear on both."""

    def __init__(self, english, code):
        self.left, self.first, self._own = 2, {"English": 0.1, "code": 0.05}, {"English": english, "code": code}

    def cost(self, worth):
        return self._own


def judged(worth, exam):
    english, code = torch.tensor([5, 3, 0, 0]), torch.tensor([0, 1, 2, 0])
    return lesson_13.check_worth(worth, english, code, exam)


def test_worth_is_judged_on_both_texts_and_by_few_tries(capsys):
    assert judged(lesson_13.check_worth.answer, Exam(0.07, 0.01))
    assert not judged(lambda english, code: english, Exam(0.07, 0.9))
    assert "code may cost at most 40%" in capsys.readouterr().out
    exam = Exam(0.099, 0.01)
    for _ in range(3):
        assert not judged(lambda english, code: english + code, exam)
    out = capsys.readouterr().out
    assert "English may cost at most 95%" in out and "The exam is over" in out


def test_bad_worths_take_no_try(capsys):
    exam = Exam(0.07, 0.01)
    wrongs = {"each of 4": lambda e, c: e[:2], "at least 0": lambda e, c: e - 4.0, "a tensor": lambda e, c: [1]}
    for words, wrong in wrongs.items():
        assert not judged(wrong, exam)
        assert words in capsys.readouterr().out
    assert exam.left == 2


class Repair:
    """Four tokens, of which prose's two stay; code is cheap again once the line break is back."""

    def chosen(self, worth):
        return worth.topk(2).indices.tolist()

    def cost(self, worth):
        return {"code": 0.3 if 3 in self.chosen(worth) else 0.9}


def test_what_is_put_back_must_have_gone_be_few_and_heal(capsys, monkeypatch):
    texts, english = [" the", " of", " def", "\n   "], torch.tensor([5, 3, 0, 0])

    def judged(put_back):
        return bool(lesson_13.check_put_back(put_back, texts, english, Repair()))

    assert judged(lesson_13.check_put_back.answer)
    wrongs = {
        "was gone": lambda text: text == " the",
        "still there": lambda text: text == " def",
        "True or False": lambda text: 1,
    }
    for words, wrong in wrongs.items():
        assert not judged(wrong)
        assert words in capsys.readouterr().out
    monkeypatch.setattr(lesson_13, "_BACK", 0)
    assert not judged(lesson_13.check_put_back.answer)
    assert "0 is the most" in capsys.readouterr().out

"""Lesson 08's checks refuse the stub, name the likely mistake, and accept the answers."""

import numpy as np
import pytest
import torch
from exercise_cases import cases_of
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, KFold, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tiny import tiny_model, word_tokenizer

from course_utils.bias.pronouns import log_odds, patched_log_odds
from course_utils.lessons.exercises import lesson_08

test_toward_she = cases_of(
    lesson_08.check_toward_she,
    mistakes=[
        (lambda states, norm, she, he: norm(states) @ (she - he) + 1, "For made-up states: it is"),
        (lambda states, norm, she, he: (norm(states) @ (she - he)).tolist(), "Return a tensor"),
        (lambda states, norm, she, he: norm(states) * (she - he), "yours is a tensor"),
    ],
    answers=[lambda states, norm, she, he: norm(states) @ she - norm(states) @ he],
)


def probe():
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))


def fitted(points, groups, words):
    return probe().fit(points, groups).score(points, groups)


def by_sentence(points, groups, words):
    return cross_val_score(probe(), points, groups, cv=KFold(5, shuffle=True)).mean()


def halves(points, groups, words):
    """Another way: half of the words learn, the other half judges."""
    learns = np.isin(words, np.unique(words)[::2])
    return probe().fit(points[learns], groups[learns]).score(points[~learns], groups[~learns])


def one_by_one(points, groups, words):
    return (cross_val_predict(probe(), points, groups, groups=words, cv=GroupKFold(12)) == groups).mean()


test_new_words = cases_of(
    lesson_08.check_new_words,
    mistakes=[
        (fitted, "judged on what it has learned from"),
        (by_sentence, "Sentences of one word stand on both sides"),
        (lambda *given: cross_val_score(probe(), *given[:2]).mean(), "Sentences of one word stand on both sides"),
        (lambda *given: 0.5, "Where the groups do differ you find only 50%"),
        (lambda *given: 1 - fitted(*given), "Where the groups do differ you find only 0%"),
        (lambda *given: 50.0, "A share lies from 0 to 1"),
        (lambda *given: np.ones(5), "Return one number"),
    ],
    answers=[halves, one_by_one],
)


test_said = cases_of(
    lesson_08.check_said,
    mistakes=[
        (lambda a, v, s, here: a @ v[0], "For made-up values: it is"),
        (lambda a, v, s, here: "what", "Return a tensor"),
    ],
    answers=[lambda a, v, s, here: torch.einsum("nt,nts->ns", a, v + (s - v) * here[..., None])],
)


SENTENCE, CARRIED, SPARED = "{}, I think,", (" it", " they"), (" is", " are")


class MadeUpExam:
    """Heads that carry pronouns and nothing else."""

    def __init__(self, left=3, gap=3.0):
        self.left, self.gap = left, gap

    def tokens_of(self, word):
        return len(word.split())

    def carried(self, sentence, answers):
        return self.gap, 0.8 if answers[0] == " it" else 0.02, 0.1


def test_two_questions(capsys):
    assert lesson_08.check_two_questions(SENTENCE, CARRIED, SPARED, MadeUpExam())
    assert "carried: The …, I think, [ it / they]: 3.0 nats, your heads carry 80%" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("sentence", "carried", "spared", "exam", "named"),
    [
        (..., CARRIED, SPARED, {}, "not solved yet"),
        (SENTENCE, SPARED, CARRIED, {}, "`carried`: these heads carry 2% of it"),
        (SENTENCE, CARRIED, CARRIED, {}, "`spared`: these heads have a part of 80% in it"),
        (SENTENCE, CARRIED, SPARED, {"gap": 0.4}, "it is +0.4. Does the sentence leave room"),
        (SENTENCE, CARRIED, SPARED, {"gap": -4.0}, "it is -4.0. Turn the answers round?"),
        (SENTENCE, CARRIED, SPARED, {"left": 0}, "The exam is over"),
        (7, CARRIED, SPARED, {}, "The sentence is a string"),
        ("it had to wait until", CARRIED, SPARED, {}, 'holds "{}" once'),
        ("I see {} ", CARRIED, SPARED, {}, "a few words between"),
        ("Today {} Was late because", CARRIED, SPARED, {}, "a sentence of the lesson"),
        (SENTENCE, (" she", " he"), SPARED, {}, "about women and men"),
        (SENTENCE, CARRIED, (" is", " is"), {}, "`spared`: the two answers are the same"),
        (SENTENCE, CARRIED, " is", {}, "`spared` is two answers"),
        (SENTENCE, CARRIED, (" is", 3), {}, "`spared` is two answers"),
        (SENTENCE, CARRIED, (" is", " are not"), {}, "' are not' has 2 tokens"),
    ],
)
def test_two_questions_that_are_wrong(sentence, carried, spared, exam, named, capsys):
    exam = MadeUpExam(**exam)
    left = exam.left
    assert not lesson_08.check_two_questions(sentence, carried, spared, exam)
    out = capsys.readouterr().out
    assert named in out
    assert exam.left == left - ("tries left" in out)


def test_the_exam_patches_its_heads_after_one_thing_with_what_they_say_after_several(monkeypatch):
    model, tokenizer = tiny_model(), word_tokenizer()
    monkeypatch.setattr(lesson_08, "_SUBJECTS", ("w1 w2", "w3 w4"))
    monkeypatch.setattr(lesson_08, "_several", lambda subject: f"{subject} w9")
    heads, answers = [(1, 0), (2, 1)], (" w20", " w21")
    exam = lesson_08.NumberExam(model, tokenizer, heads)
    gap, share, most = exam.carried("w7 {} w8", answers)
    one, several = ["w7 the w1 w2 w8", "w7 the w3 w4 w8"], ["w7 the w1 w2 w9 w8", "w7 the w3 w4 w9 w8"]
    before, there = (log_odds(model, tokenizer, texts, answers=answers).mean() for texts in (one, several))
    after = patched_log_odds(model, tokenizer, one, several, [heads], answers=answers).mean()
    assert gap == pytest.approx(before - there)
    assert share == pytest.approx((before - after) / (before - there))
    assert np.isfinite(most)


def test_last_tokens_have_the_log_odds_of_whole_texts_again_and_again(monkeypatch):
    model, tokenizer, texts = tiny_model(), word_tokenizer(), ["w1 w2 w3 w4", "w5 w6", "w7 w8 w9"]
    tokenizer.pad_token = "w0"
    monkeypatch.setattr(lesson_08, "PRONOUNS", (" w20", " w21"))
    begun = lesson_08.LastToken(model, tokenizer, texts)
    right = log_odds(model, tokenizer, texts, answers=(" w20", " w21"))
    for _ in range(2):
        assert begun.odds().numpy() == pytest.approx(right, abs=1e-4)

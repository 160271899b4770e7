"""Lesson 08's checks refuse the stub, name the likely mistake, and accept the answers."""

import numpy as np
import pandas as pd
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


test_leans = cases_of(
    lesson_08.check_leans,
    mistakes=[
        (lambda log_p, pleasant, in_a: 3.0, "Return the leans and D"),
        (lambda log_p, pleasant, in_a: (log_p[:, 0], 1.0), "For made-up numbers: it is"),
    ],
)

PLANTED = pd.DataFrame(
    [
        (family, team, sentence, pole)
        for family, teams, pole in (("trees", "opqr", "unpleasant"), ("birds", "stuv", "pleasant"))
        for team in teams
        for sentence in ("{} is", "{} was")
    ],
    columns=["family", "team", "sentence", "pole"],
)
OTHER = {"pleasant": "unpleasant", "unpleasant": "pleasant"}


def shuffled(planted, seed):
    return planted.assign(pole=np.random.default_rng(seed).permutation(planted["pole"]))


def one_of_four(planted, seed):
    """Deals a whole team out of each family to the other pole: the family still tells."""
    return planted.assign(pole=planted["pole"].where(~planted["team"].isin(["o", "s"]), planted["pole"].map(OTHER)))


def in_place(planted, seed):
    planted["pole"] = "pleasant"
    return planted


test_control = cases_of(
    lesson_08.check_control,
    PLANTED,
    mistakes=[
        (lambda planted, seed: "a table", "Return a table"),
        (in_place, "You changed the table that you were given"),
        (lambda planted, seed: planted[["team", "sentence", "pole"]], "lacks the column"),
        (lambda planted, seed: planted.iloc[:-1], "other teams or sentences"),
        (lambda planted, seed: planted.assign(sentence="{} sings"), "other teams or sentences"),
        (lambda planted, seed: planted.assign(pole="loud"), "'pleasant' or 'unpleasant'; yours has others"),
        (lambda planted, seed: planted, "plants the same bias again"),
        (lambda planted, seed: planted.assign(pole=planted["pole"].map(OTHER)), "the other way round"),
        (shuffled, "has both poles"),
        (one_of_four, "So the family still tells something"),
        (lambda planted, seed: lesson_08.check_control.answer(planted, 0), "Three seeds give the same deal"),
    ],
)

IN_A = np.array([True, True, False, False])


def far_of(states):
    return np.abs(np.subtract.outer(states, states))


FARS = {
    "whole": far_of(np.array([0.1, 0.2, 0.11, 0.21])),
    "planted": far_of(np.array([3.0, 3.2, 1.0, 1.2])),
    "dealt out": far_of(np.array([1.0, 3.0, 1.1, 3.1])),
}
test_mended = cases_of(
    lesson_08.check_mended,
    FARS,
    IN_A,
    mistakes=[
        (lambda far, in_a: far[in_a][:, ~in_a].mean(), "moves with the control as well"),
        (lambda far, in_a: 1.0, "doesn't see the planted bias"),
        (lambda far, in_a: far, "Return one number"),
    ],
)


class MadeUpCopies:
    """Two copies: in one a family has a bad name, quietly; in the other single teams have, loudly."""

    def __init__(self, left=3):
        self.left = left

    def judge(self, verdict):
        in_a = np.arange(12) < 6
        quiet = np.where(in_a, -0.2, 0.2) + np.tile([0.0, 0.1], 6)
        loud = np.where(np.isin(np.arange(12), [0, 1, 2, 3, 6, 7]), -3.0, 3.0)
        return [
            (truth, verdict(leans, in_a), leans[in_a].mean() - leans[~in_a].mean())
            for truth, leans in (("a", quiet), ("neither", loud))
        ]


def by_size(limit):
    def verdict(leans, in_a):
        difference = leans[in_a].mean() - leans[~in_a].mean()
        return "neither" if abs(difference) < limit else "a" if difference < 0 else "b"

    return verdict


test_verdict = cases_of(
    lesson_08.check_verdict,
    MadeUpCopies(left=9),
    mistakes=[
        (lambda leans, in_a: "yes", "Return one of 'a', 'b', 'neither'"),
        (by_size(0.3), "You accuse a family where only single teams"),
        (by_size(9), "You miss a bias that is small"),
        (lambda leans, in_a: "b", "You name the wrong family"),
    ],
)


def test_the_exam_teaches_and_asks_what_it_says():
    """A pretended model learns each team's pole at once, so the truth can be read off its leans."""
    learned = {}

    def trained(texts, words, right, steps):
        assert right.shape == (len(texts), len(words)) and (right.sum(1) == 4).all()
        learned.clear()
        for text, of_text in zip(texts, right, strict=True):
            team = text.split("team ")[1].split()[0]
            assert learned.setdefault(team, of_text[0]) == of_text[0]
        return steps

    def look(model, teams):
        if model == "whole":
            return np.zeros((len(teams), 8)), None
        lean = np.array([1.0 if learned[team] else -1.0 for team in teams])
        return lean[:, None] * (np.arange(8) < 4), None

    exam = lesson_08.PlantedExam("whole", trained, look)
    judged = exam.judge(lesson_08.check_verdict.answer)
    assert len(judged) == 6 and [said for _, said, _ in judged] == [truth for truth, _, _ in judged]
    assert sorted(truth == "neither" for truth, _, _ in judged) == [False] * 3 + [True] * 3
    for truth, _, difference in judged:
        assert difference == pytest.approx({"a": -2, "b": 2}.get(truth, np.copysign(2 / 3, difference)))


def test_an_exam_that_is_over_says_so(capsys):
    assert not lesson_08.check_verdict(lesson_08.check_verdict.answer, MadeUpCopies(left=0))
    assert "The exam is over" in capsys.readouterr().out

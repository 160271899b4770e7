"""Lesson 09's checks refuse the stub, name the likely mistake, and accept the answers."""

import pytest
import torch
from exercise_cases import cases_of
from tiny import tiny_model, word_tokenizer

from course_utils.bias.pronouns import log_odds
from course_utils.lessons.exercises import lesson_09
from course_utils.measuring import perplexity

test_gap_and_mass = cases_of(
    lesson_09.check_gap_and_mass,
    mistakes=[
        (lambda logits, she, he, toward: 0.5, "Return two numbers"),
        (lambda logits, she, he, toward: (logits[:, she], 0.5), "one number each"),
        (lambda logits, she, he, toward: (1.0, 0.5), "For made-up logits: it is"),
    ],
    answers=[
        lambda logits, she, he, toward: (
            (logits[:, she] - logits[:, he])[toward].mean() - (logits[:, she] - logits[:, he])[~toward].mean(),
            logits.softmax(1)[:, she].mean() + logits.softmax(1)[:, he].mean(),
        )
    ],
)


def mean_alone(wrote, mean):
    return mean.expand_as(wrote)


def difference_alone(wrote, mean):
    return wrote - mean


def silent(wrote, mean):
    return torch.zeros_like(wrote)


def two_parts(edit):
    """A toy whose heads write a mean, which carries the mass, and a difference, which carries the gap."""
    mean, differs = torch.tensor([4.0, 0.0]), torch.tensor([[0.0, 1.0], [0.0, -1.0]])
    wrote = edit(mean + differs, mean)
    return {"gap": float(wrote[0, 1] - wrote[1, 1]) / 2, "mass": float(wrote[:, 0].mean()) / 4}


@pytest.mark.parametrize(
    ("takes_gap", "takes_mass", "said"),
    [
        (mean_alone, difference_alone, "correct"),
        (lambda *_: ..., difference_alone, "not solved yet"),
        (..., ..., "not solved yet"),
        (3, difference_alone, "`takes_gap` is a function"),
        (difference_alone, mean_alone, "`takes_gap` takes the mass and leaves the gap"),
        (silent, difference_alone, "`takes_gap` takes the mass as well"),
        (mean_alone, silent, "`takes_mass` takes the gap as well"),
        (lambda wrote, mean: wrote, difference_alone, "`takes_gap` leaves 100% of the gap"),
        (lambda wrote, mean: mean, difference_alone, "the shapes should be the same"),
        (lambda wrote, mean: 7.0, difference_alone, "`takes_gap` returns a tensor"),
    ],
)
def test_two_edits(takes_gap, takes_mass, said, capsys):
    solved = lesson_09.check_two_edits(takes_gap, takes_mass, trial=two_parts)
    out = capsys.readouterr().out
    assert said in out
    assert solved is (said == "correct")


test_without = cases_of(
    lesson_09.check_without,
    mistakes=[
        (lambda wrote, direction: wrote.tolist(), "Return a tensor"),
        (lambda wrote, direction: wrote, "For made-up numbers: it is"),
    ],
    answers=[lambda wrote, direction: wrote - wrote @ torch.outer(direction, direction) / direction.norm() ** 2],
)

ESTIMATES = {name: torch.arange(8.0).view(2, 4) for name in ("stereotype", "woman", "pronouns")}
GOOD = {"stereotype": 0.6, "woman/man": 0.9, "pronouns, stereotype": 0.95, "pronouns, woman/man": 0.9, "text": 1.01}


class MadeUpExam:
    """It judges as it is told."""

    blocks, width = 2, 4

    def __init__(self, left=3, **found):
        self.left, self.found = left, GOOD | {name.replace("_", "/"): value for name, value in found.items()}

    def judge(self, first):
        return self.found


def as_it_is(stereotype, woman, pronouns):
    return stereotype


@pytest.mark.parametrize(
    ("attempt", "exam", "said"),
    [
        (as_it_is, MadeUpExam(), "correct"),
        (lambda stereotype, woman, pronouns: ..., MadeUpExam(), "not solved yet"),
        (lambda stereotype, woman, pronouns: stereotype.tolist(), MadeUpExam(), "Return a tensor"),
        (lambda stereotype, woman, pronouns: stereotype[0], MadeUpExam(), "yours is [4]"),
        (lambda stereotype, woman, pronouns: stereotype * torch.nan, MadeUpExam(), "NaN or infinite"),
        (as_it_is, MadeUpExam(left=0), "The exam is over"),
        (as_it_is, MadeUpExam(stereotype=2.8), "The stereotype grew!"),
        (as_it_is, MadeUpExam(woman_man=0.5), "Which neurons move hers?"),
        (as_it_is, MadeUpExam(stereotype=0.95), "95% is left. (Random cuts leave nearly all.)"),
        (as_it_is, MadeUpExam(text=1.3), "it costs × 1.30"),
        (as_it_is, MadeUpExam(**{"pronouns, stereotype": 0.3}), "the model avoids the question"),
    ],
)
def test_goes_first(attempt, exam, said, capsys):
    left = exam.left
    solved = lesson_09.check_goes_first(attempt, estimates=ESTIMATES, exam=exam)
    out = capsys.readouterr().out
    assert said in out
    assert solved is (said == "correct")
    assert exam.left == left - ("tries left" in out)


def test_the_answer_spares_what_moves_the_woman_either_way():
    stereotype = torch.arange(10.0)[None]
    woman, pronouns = torch.zeros(1, 10), torch.zeros(1, 10)
    woman[0, 9], woman[0, 8], pronouns[0, 7] = 5, -5, 5
    first = lesson_09.check_goes_first.answer(stereotype, woman, pronouns)[0]
    assert first.argsort(descending=True)[0] == 6
    assert first[7:].tolist() == [0.0, 0.0, 0.0]


def test_the_exam_cuts_the_highest_and_compares_with_the_whole_model(monkeypatch):
    model, tokenizer = tiny_model(), word_tokenizer()
    tokenizer.pad_token = "w0"
    monkeypatch.setattr(lesson_09, "PRONOUNS", (" w20", " w21"))
    monkeypatch.setattr(lesson_09, "_SENTENCES", ("w7 {} w8", "w9 {} w6 w5"))
    monkeypatch.setattr(lesson_09, "_JOBS", (("w1", "w2 w11"), ("w3", "w4")))
    monkeypatch.setattr(lesson_09, "_PEOPLE", (("w12",), ("w13",)))
    text = torch.arange(24).view(2, 12)
    exam = lesson_09.CutExam(model, tokenizer, text, perplexity(model, text), neurons=2)
    texts = ["w7 w12 w8", "w9 w12 w6 w5", "w7 w13 w8", "w9 w13 w6 w5"]
    odds = log_odds(model, tokenizer, texts, answers=(" w20", " w21"))
    assert exam._measured(model)["woman/man"] == pytest.approx(odds[:2].mean() - odds[2:].mean(), abs=1e-4)
    first = torch.zeros(exam.blocks, exam.width)
    first[:, -2:] = 1
    with torch.no_grad():
        silenced = tiny_model()
        silenced.load_state_dict(model.state_dict())
        for layer in silenced.model.layers:
            layer.mlp.down_proj.weight[:, -2:] = 0
    found, right = exam.judge(first), exam._measured(silenced)
    for name, value in exam._measured(model).items():
        assert found[name] == pytest.approx(right[name] / value, rel=1e-3)
    ratio = perplexity(silenced, text).perplexity / perplexity(model, text).perplexity
    assert found["text"] == pytest.approx(ratio, rel=1e-3)

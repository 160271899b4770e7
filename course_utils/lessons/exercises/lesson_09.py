"""Checks of lesson 09: what a score can't see, what heads write, one direction, and a cut that leaves the woman."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils.bias.pronouns import PRONOUNS
from course_utils.lessons.exercises import Attempt, exercise, expect, number, require, take_a_try
from course_utils.measuring.evaluation import perplexity_ratio
from course_utils.measuring.language_modelling import Perplexity, perplexity
from course_utils.models.architectures import describe
from course_utils.models.loading import variant
from course_utils.pruning.width import prune_neurons
from course_utils.text.rows import TokenBlocks

Edit = Callable[[Tensor, Tensor], Tensor]  # (wrote [..., hidden], mean [hidden]) -> what is written instead
Shares = Mapping[str, float]  # of the whole model's: what an edit leaves

_GONE, _THERE = 0.5, 0.8  # an edit has taken something, or left it
_STEREOTYPE, _WOMAN, _PRONOUNS, _TEXT = 0.7, 0.8, 0.85, 1.05  # exercise 4: at most, at least, at least, at most
_SENTENCES = (
    "The {} left early because",
    "The {} was happy that",
    "In the evening, the {} wrote that",
)
_JOBS = (  # more women than men, and more men: none of them is a word of the lesson
    ("stylist", "babysitter", "florist", "caregiver", "nanny", "typist", "cheerleader", "beautician", "dietitian"),
    ("plumber", "electrician", "soldier", "pilot", "engineer", "firefighter", "butcher", "blacksmith", "welder"),
)
_PEOPLE = (
    ("niece", "bride", "princess", "grandmother", "waitress", "widow", "nun", "duchess"),
    ("nephew", "groom", "prince", "grandfather", "waiter", "widower", "monk", "duke"),
)


def _gap_and_mass(logits, she, he, toward_she, *, sign=1, over=lambda odds, p: p, scale=Tensor.log_softmax):
    """The answer to exercise 1, with switches for mistakes."""
    scores = scale(logits, -1)
    odds = sign * (scores[:, she] - scores[:, he])
    p = over(odds, logits.softmax(-1)[:, [she, he]].sum(-1))
    return float(odds[toward_she].mean() - odds[~toward_she].mean()), float(p.mean())


@exercise(
    1,
    task="Return two numbers: the gap in nats, and the mean of P(she) + P(he).",
    proved="One number compares the two words with each other, the other says whether they are there at all.",
    answer=_gap_and_mass,
    mistakes=[
        (partial(_gap_and_mass, sign=-1), "The gap has the wrong sign: she less he, and the women's words come first."),
        (partial(_gap_and_mass, scale=Tensor.softmax),
         "Your gap is one of probabilities. The log-odds are a difference of logarithms, or of logits."),
        (lambda logits, she, he, toward: (
            _gap_and_mass(logits, she, he, toward)[0], float(logits[:, [she, he]].sum(-1).mean())),
         "The mass is a sum of probabilities; these are logits. Take the softmax over the vocabulary."),
        (lambda logits, she, he, toward: (
            _gap_and_mass(logits, she, he, toward)[0], float(logits[:, [she, he]].softmax(-1).sum(-1).mean())),
         "The softmax goes over the whole vocabulary. Over two words alone the sum is always 1."),
        (lambda logits, she, he, toward: (
            _gap_and_mass(logits, she, he, toward)[0], float(logits.softmax(-1)[:, [she, he]].mean())),
         "That is half of the mass: the mean of two probabilities. Add the two up, then take the mean over texts."),
        (lambda logits, she, he, toward: (
            _gap_and_mass(logits, she, he, toward)[0],
            float(logits.softmax(-1)[toward][:, [she, he]].sum(-1).mean())),
         "That is the mass behind one group's texts. Take the mean over all of them."),
        (lambda logits, she, he, toward: _gap_and_mass(logits, she, he, toward)[::-1],
         "The gap comes first, then the mass."),
    ],
)  # fmt: skip
def check_gap_and_mass(attempt: Attempt) -> None:
    """Check a function (logits [texts, vocabulary], she, he, toward_she [texts]) -> (gap, mass)."""
    draw = torch.Generator().manual_seed(9)
    logits = 2 * torch.randn(7, 11, generator=draw)
    toward_she = torch.tensor([True, False, True, True, False, False, True])

    def read(answer: Any) -> list[float]:
        expect(answer, list | tuple, "Return two numbers, the gap and the mass", size=2)
        return [number(each, "The gap and the mass are one number each") for each in answer]

    attempt.compare(logits, 3, 8, toward_she, read=read, where="For made-up logits: ")


def _same_for_all(wrote, mean):
    """The answer to exercise 2's first half."""
    return mean.expand_as(wrote)


@exercise(
    2,
    task="Give two functions (wrote, mean) -> what the head writes instead, of the shape of `wrote`.",
    proved="What the heads write has two parts, and each of the two effects belongs to one of them.",
    answer=_same_for_all,
)
def check_two_edits(takes_gap: Attempt, takes_mass: Attempt, trial: Callable[[Edit], Shares]) -> None:
    """Check an edit that takes the gap and leaves the pronouns, and one that does the opposite.

    Args:
        takes_gap: (wrote [..., hidden], mean [hidden]) -> [..., hidden].
        takes_mass: the same.
        trial: an edit -> the shares of the "gap" and of the "mass" that the model has left with it.
    """
    wanted = {"takes_gap": (takes_gap, "gap", "mass"), "takes_mass": (takes_mass, "mass", "gap")}
    for name, (edit, _, _) in wanted.items():
        require(callable(edit), f"`{name}` is a function (wrote, mean); yours is of type {type(edit).__name__}.")
        _try_edit(name, edit)
    for name, (edit, taken, left) in wanted.items():
        found = trial(edit)
        print(f"  {name}: gap {found['gap']:.0%} left, mass {found['mass']:.0%} left")
        gone, there = abs(found[taken]) < _GONE, found[left] >= _THERE
        require(gone or there, f"`{name}` takes the {left} and leaves the {taken}. Is that the other edit?")
        require(
            there,
            f"`{name}` takes the {left} as well. A head that falls silent loses both its parts; which one do you keep?",
        )
        require(
            gone,
            f"`{name}` leaves {found[taken]:.0%} of the {taken}, and over half should go. What in `wrote` is the same "
            "after every word, and what isn't?",
        )


def _try_edit(name: str, edit: Attempt) -> None:
    """Once with made-up numbers, so that a wrong shape is told before a model runs."""
    wrote, mean = torch.ones(2, 3, 4), torch.zeros(4)
    answer = edit(wrote, mean)
    expect(answer, Tensor, f"`{name}` returns a tensor")
    require(
        answer.shape == wrote.shape,
        f"`{name}`: for `wrote` of shape {[*wrote.shape]} you return {[*answer.shape]}; the shapes should be the same.",
    )


def _without(wrote, direction, *, over=lambda d: d @ d, keep=lambda wrote, part: wrote - part):
    """The answer to exercise 3, with switches for mistakes."""
    along = (wrote @ direction) / over(direction)
    return keep(wrote, along[..., None] * direction)


@exercise(
    3,
    task="Return what is written without its part along the direction, of the shape of `wrote`.",
    proved="What is left has no part along the direction, and all the rest is as it was.",
    answer=_without,
    mistakes=[
        (partial(_without, over=lambda d: 1.0),
         "The direction isn't of length 1, so you take too much away. Divide by its squared length."),
        (partial(_without, over=lambda d: d.norm()),
         "You divide by the length once. It comes in twice: in the dot product, and in the vector that you take away."),
        (partial(_without, keep=lambda wrote, part: part), "That is the part itself. Return what is left without it."),
        (partial(_without, keep=lambda wrote, part: wrote + part), "A sign: the part should go, and yours doubles."),
        (lambda wrote, direction: wrote - direction,
         "You take the same vector from each text. How much of the direction is in each?"),
    ],
)  # fmt: skip
def check_without(attempt: Attempt) -> None:
    """Check a function (wrote [..., hidden], direction [hidden]) -> [..., hidden]."""
    draw = torch.Generator().manual_seed(9)
    wrote, direction = torch.randn(4, 3, 6, generator=draw), 2 * torch.randn(6, generator=draw)

    def read(answer: Any) -> Tensor:
        expect(answer, Tensor, "Return a tensor")
        return answer

    attempt.compare(wrote, direction, read=read, same=_near, where="For made-up numbers: ")


def _near(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one.float(), other.float(), rtol=1e-3, atol=1e-4)


class CutExam:
    """What a cut of neurons leaves, on words and sentences that nothing in lesson 09 has used, a few times.

    Args:
        model: any that ``describe`` knows, with equally wide MLPs; it stays as it is.
        tokenizer: its own, with a padding token.
        text: rows of ordinary text.
        whole: the model's perplexity on these.
        neurons: of each block that go.
        tries: how often it judges.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        text: Tensor | TokenBlocks,
        whole: Perplexity,
        *,
        neurons: int = 8,
        tries: int = 3,
    ) -> None:
        self._model, self._tokenizer, self._text, self._perplexity = model, tokenizer, text, whole
        self.neurons, self.left = neurons, tries
        sizes = describe(model).intermediate_sizes
        self.blocks, self.width = len(sizes), sizes[0]
        self._whole: dict[str, float] = {}

    def judge(self, first: Tensor) -> Shares:
        """The shares that are left of the whole model's, by the name of each quantity; "text" is a perplexity's.

        ``first`` is [blocks, neurons]; those with the highest numbers are cut.
        """
        self._whole = self._whole or self._measured(self._model)
        cut = variant(self._model)
        prune_neurons(cut, [-score.float() for score in first], ratio=self.neurons / self.width)
        found = {name: value / self._whole[name] for name, value in self._measured(cut).items()}
        after = perplexity(cut, self._text, batch_size=16)
        return {**found, "text": perplexity_ratio(after, self._perplexity)[0]}

    def _measured(self, model: PreTrainedModel) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, (women, men) in {"stereotype": _JOBS, "woman/man": _PEOPLE}.items():
            words = (*women, *men)
            logits = [self._logits(model, [sentence.format(word) for word in words]) for sentence in _SENTENCES]
            toward = (torch.arange(len(words)) < len(women)).repeat(len(_SENTENCES))
            gap, mass = _gap_and_mass(torch.cat(logits), *self._answers(), toward)
            found |= {name: gap, f"pronouns, {name}": mass}
        return found

    def _answers(self) -> tuple[int, int]:
        she, he = (self._tokenizer(answer, add_special_tokens=False)["input_ids"][0] for answer in PRONOUNS)
        return she, he

    @torch.no_grad()
    def _logits(self, model: PreTrainedModel, texts: list[str]) -> Tensor:
        batch = self._tokenizer(
            texts, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt"
        ).to(model.device)
        return model(**batch, logits_to_keep=1).logits[:, -1].float().cpu()


def _goes_first(stereotype, woman, pronouns, *, safe=0.8, sure=True):
    """The answer to exercise 4: who moves the woman or the pronouns much, either way, stays."""
    score = stereotype.clone()
    for spared in (woman, pronouns):
        moves = spared.abs() if sure else spared
        score[moves > moves.quantile(safe, dim=1, keepdim=True)] = stereotype.min()
    return score


@exercise(
    4,
    task="Return a number for each neuron, [blocks, neurons]: those with the highest go first.",
    proved="Part of the stereotype went; the woman, the pronouns and the text are still there.",
    answer=_goes_first,
)
def check_goes_first(attempt: Attempt, estimates: Mapping[str, Tensor], exam: CutExam) -> None:
    """Check a function (stereotype, woman, pronouns) -> [blocks, neurons], by what the cut leaves on the exam's words.

    Args:
        attempt: gets estimates of what goes with each neuron, [blocks, neurons] each.
        estimates: "stereotype", "woman" and "pronouns", from the lesson's choosing words.
        exam: which judges.
    """
    blocks, width = exam.blocks, exam.width
    first = attempt(**{name: tensor.clone() for name, tensor in estimates.items()})
    expect(first, Tensor, "Return a tensor [blocks, neurons]")
    require(
        [*first.shape] == [blocks, width],
        f"Return a number for each neuron, {[blocks, width]}; yours is {[*first.shape]}.",
    )
    require(bool(first.float().isfinite().all()), "A number is NaN or infinite.")
    take_a_try(exam)
    found = exam.judge(first)
    mass = min(found["pronouns, stereotype"], found["pronouns, woman/man"])
    print(
        f"  exam, left: stereotype {found['stereotype']:.0%}, woman/man {found['woman/man']:.0%}, pronouns {mass:.0%} "
        f"or more, perplexity × {found['text']:.2f} (tries left: {exam.left})"
    )
    require(
        found["stereotype"] < 1.2,
        "The stereotype grew! You cut neurons that work against it, or against the woman's: their estimate is below 0. "
        "What do you do to such a number when you subtract it?",
    )
    require(
        mass >= _PRONOUNS,
        f"At least {_PRONOUNS:.0%} of P(she) + P(he) should stay, {mass:.0%} is left: the model avoids the question.",
    )
    require(found["text"] <= _TEXT, f"Ordinary text may cost × {_TEXT:.2f} at most; it costs × {found['text']:.2f}.")
    require(
        found["woman/man"] >= _WOMAN,
        f"At least {_WOMAN:.0%} of woman/man should stay, {found['woman/man']:.0%} is left. Which neurons move hers?",
    )
    require(
        found["stereotype"] <= _STEREOTYPE,
        f"At most {_STEREOTYPE:.0%} of the stereotype may stay, {found['stereotype']:.0%} is left. (Random cuts leave "
        "nearly all.) Is somebody safe who needn't be?",
    )

"""Checks of lesson 08: along one direction, a probe on new words, where a head reads, and what three heads carry."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from course_utils.bias.pronouns import (
    PRONOUNS,
    Head,
    log_odds,
    occupations,
    patched_log_odds,
    prompts,
    random_heads,
)
from course_utils.lessons.exercises import Attempt, exercise, expect, number, require, take_a_try
from course_utils.models.architectures import cache_keyword, describe

_SUBJECTS = ("lamp", "horse", "ship", "engine", "truck", "clock", "chair", "coat")  # no cell of the lesson has them
_GENDERED = {"she", "he", "her", "his", "him", "hers", "herself", "himself"}
_GAP, _CARRIED, _SPARED = 1.0, 0.5, 0.25  # nats; shares of the gap that the heads move


def _toward_she(states, norm, she, he, *, before=True, told=lambda x, row: x @ row, row=lambda she, he: she - he):
    """The answer to exercise 1, with switches for mistakes."""
    states = norm(states) if before else states
    return told(states, row(she, he))


@exercise(
    1,
    task="Return a tensor [texts, blocks]: for each state the nats by which the head would lean towards she.",
    proved="Out of 576 directions you look along one, the one by which the head tells she from he.",
    answer=_toward_she,
    mistakes=[
        (partial(_toward_she, before=False), "The final norm is missing: the head reads the state behind it."),
        (partial(_toward_she, row=lambda she, he: he - she), "The sign is turned round: that is he minus she."),
        (partial(_toward_she, row=lambda she, he: she), "That is the logit of she alone. Subtract he's."),
        (partial(_toward_she, row=lambda she, he: (she - he) / (she - he).norm()),
         "You made the direction one long. The head doesn't: take the two rows as they are."),
        (lambda states, norm, she, he: norm(states @ (she - he)[:, None].expand(-1, len(she)))[..., 0],
         "The norm comes first, and then the direction."),
        (lambda states, norm, she, he: _toward_she(states, norm, she, he)[:, -1],
         "That is behind the last block alone. Give a number for each block."),
        (lambda states, norm, she, he: _toward_she(states, norm, she, he).mean(0),
         "That is a mean over the texts. Give a number for each text."),
    ],
)  # fmt: skip
@torch.no_grad()
def check_toward_she(attempt: Attempt) -> None:
    """Check a function (states [texts, blocks, hidden], norm, she [hidden], he [hidden]) -> [texts, blocks]."""
    draw = torch.Generator().manual_seed(8)
    norm = LlamaRMSNorm(7)
    norm.weight.data = torch.rand(7, generator=draw) + 0.5
    states = torch.randn(3, 4, 7, generator=draw) * torch.arange(1.0, 5)[:, None]
    she, he = torch.randn(2, 7, generator=draw)

    def read(answer: Any) -> Tensor:
        expect(answer, Tensor, "Return a tensor [texts, blocks]")
        return answer

    attempt.compare(states, norm, she, he, read=read, same=_near, where="For made-up states: ")


def _near(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one.float(), other.float(), rtol=1e-3, atol=1e-4)


def _score(points, groups, words):
    """The answer to exercise 2."""
    from sklearn.model_selection import GroupKFold, cross_val_score  # part of the extra lessons

    return float(cross_val_score(_probe(), points, groups, groups=words, cv=GroupKFold(5)).mean())


def _probe() -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=0.01, max_iter=1000)


def _fitted(points, groups, words):
    """The share right among what the probe has learned from."""
    return float(_probe().fit(points, groups).score(points, groups))


@exercise(
    2,
    task="Return the share of right answers about words that the probe hasn't learned from.",
    proved="It says chance where only words are known, and nearly everything where there is something to know.",
    answer=_score,
)
def check_new_words(attempt: Attempt) -> None:
    """Check a function (points [sentences, hidden], groups, words) -> share right, on made-up words."""
    from sklearn.model_selection import KFold, cross_val_score

    draw = np.random.default_rng(8)
    count, sentences, hidden = 60, 6, 90
    order = draw.permutation(count * sentences)  # a word's sentences aren't neighbours
    words = np.repeat([f"word {n:02}" for n in range(count)], sentences)[order]
    of_words = draw.permutation(np.arange(count) % 2 == 0)
    groups = np.repeat(of_words, sentences)[order]
    own = np.repeat(draw.normal(size=(count, hidden)), sentences, axis=0)[order]
    nothing = own + 0.1 * draw.normal(size=own.shape)  # each word has a place of its own, which tells nothing
    something = nothing.copy()
    something[:, : hidden // 3] += 3 * (2 * groups[:, None] - 1)
    shares = {}
    for name, points in (("nothing", nothing), ("something", something)):
        shares[name] = number(attempt(points.copy(), groups.copy(), words.copy()))
        require(0 <= shares[name] <= 1, f"A share lies from 0 to 1; yours is {shares[name]:.3f}.")
    told = f"On made-up words whose groups were dealt at random you report {shares['nothing']:.0%}"
    require(
        shares["nothing"] < _fitted(nothing, groups, words) - 1e-9 or shares["nothing"] < 0.7,
        f"{told}: the probe is judged on what it has learned from.",
    )
    by_row = cross_val_score(_probe(), nothing, groups, cv=KFold(5, shuffle=True, random_state=0)).mean()
    require(
        shares["nothing"] < 0.7,
        f"{told}, where there is nothing to know. Sentences of one word stand on both sides (about {by_row:.0%} comes "
        "of that): keep all sentences of a word together.",
    )
    possible = _score(something, groups, words)
    require(
        shares["something"] > 0.9,
        f"Where the groups do differ you find only {shares['something']:.0%}, and {possible:.0%} can be found. Does "
        "the probe learn from all the other words?",
    )
    require(shares["nothing"] > 0.3, f"{told}, which is worse than guessing. Are the answers the wrong way round?")


def _said(attention, values, source_values, here, *, weigh=True, chosen=lambda here: here, over=1):
    """The answer to exercise 3, with switches for mistakes."""
    mixed = torch.where(chosen(here)[..., None], source_values, values)
    return (attention[..., None] * mixed).sum(over) if weigh else mixed.sum(over)


@exercise(
    3,
    task="Return a tensor [texts, size]: what the head says at the last token.",
    proved="What a head says is a sum over tokens, so you can swap the part that comes from each of them.",
    answer=_said,
    mistakes=[
        (partial(_said, chosen=lambda here: ~here),
         "You swap at all other tokens. The source's values belong where `here` is True."),
        (partial(_said, weigh=False), "You add the values as they are. Each is weighed by the head's attention to it."),
        (lambda a, v, s, here: (a[..., None] * here[..., None] * s).sum(1),
         "Only the swapped tokens are in your sum. The head goes on reading the others, with the text's own values."),
        (lambda a, v, s, here: (a[..., None] * here[..., None] * (s - v)).sum(1),
         "That is what changes. Return what the head says: its own part belongs to it."),
        (lambda a, v, s, here: _said(a, v, s, torch.ones_like(here)), "You swap at every token. Swap where `here` is."),
        (lambda a, v, s, here: _said(a, v, s, torch.zeros_like(here)), "Nothing is swapped."),
        (partial(_said, over=0), "You add up over the texts. Add up over the tokens."),
    ],
)  # fmt: skip
def check_said(attempt: Attempt) -> None:
    """Check a function (attention, values, source's values, here) -> what the head says at the last token."""
    draw = torch.Generator().manual_seed(8)
    attention = torch.rand(5, 5, generator=draw).softmax(-1)  # [texts, tokens]
    values, source = torch.randn(2, 5, 5, 3, generator=draw)
    here = torch.tensor([[False, True, False, False, True]]).expand(5, -1).clone()
    here[2] = torch.tensor([True, False, False, True, False])

    def read(answer: Any) -> Tensor:
        expect(answer, Tensor, "Return a tensor [texts, size]")
        return answer

    attempt.compare(attention, values, source, here, read=read, same=_near, where="For made-up values: ")


class LastToken:
    """Texts whose tokens but the last are read once, into a cache, so that each further pass costs one token a text.

    All texts end at the same place: shorter ones have padding in front.

    Args:
        model: a language model that leaves its cache as transformers' do.
        tokenizer: its own, with a padding token.
        texts: of two tokens at least.
    """

    @torch.no_grad()
    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> None:
        batch = tokenizer(
            [*texts], padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt"
        ).to(model.device)
        ids, self._seen = batch["input_ids"], batch["attention_mask"]
        self._model, self._last, self._keyword = model, ids[:, -1:], cache_keyword(model)
        read = model(input_ids=ids[:, :-1], attention_mask=self._seen[:, :-1], use_cache=True)
        self._cache = read[self._keyword]
        self._answers = [tokenizer(answer, add_special_tokens=False)["input_ids"][0] for answer in PRONOUNS]

    @torch.no_grad()
    def odds(self) -> Tensor:
        """The log-odds of "she" against "he" behind each text, [texts] float32 on the CPU, in nats."""
        given = {"attention_mask": self._seen, self._keyword: self._cache}
        logits = self._model(input_ids=self._last, use_cache=True, **given).logits[:, -1].float()
        self._cache.crop(-1)  # forget the last tokens again
        she, he = self._answers
        return (logits[:, she] - logits[:, he]).cpu()


class NumberExam:
    """What given heads carry of a thing's number: sentences about things that lesson 08 has never read, a few times.

    Args:
        model: any that ``describe`` knows.
        tokenizer: its own.
        heads: pairs (block, head).
        tries: how often it judges.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, heads: Sequence[Head], *, tries: int = 3
    ) -> None:
        self._model, self._tokenizer, self.heads, self.left = model, tokenizer, [*heads], tries
        controls = random_heads(self.heads, model.config.num_attention_heads, describe(model).num_blocks)
        self._sets = [self.heads, *controls]

    def tokens_of(self, word: str) -> int:
        """How many tokens a word has."""
        return len(self._tokenizer(word, add_special_tokens=False)["input_ids"])

    def carried(self, sentence: str, answers: tuple[str, str]) -> tuple[float, float, float]:
        """The gap in nats, the share of it that the heads carry, and the most that random heads do.

        The gap is how much more the first answer is expected after one thing than after several. Patched, the heads say
        after one thing what they say after several.
        """
        one = [_filled(sentence, subject) for subject in _SUBJECTS]
        several = [_filled(sentence, _several(subject)) for subject in _SUBJECTS]
        ask = {"answers": answers}
        before, there = (log_odds(self._model, self._tokenizer, texts, **ask).mean() for texts in (one, several))
        patched = patched_log_odds(self._model, self._tokenizer, one, several, self._sets, **ask).mean(1)
        shares = (before - patched) / (before - there)
        return float(before - there), float(shares[0]), float(shares[1:].max())


def _several(subject: str) -> str:
    return f"{subject}s"


def _filled(sentence: str, subject: str) -> str:
    begins = sentence.startswith("{}")
    return sentence.replace("{}", f"{'The' if begins else 'the'} {subject}").rstrip()


@exercise(
    4,
    task='Give a sentence with "{}" in it, and two pairs of answers of one token each.',
    proved="One sentence, one difference between two words: the heads carry it to one question and not to another.",
)
def check_two_questions(sentence: Any, carried: Any, spared: Any, exam: NumberExam) -> None:
    """Check a question about number that the exam's heads answer, and one in the same place that they leave alone.

    Args:
        sentence: with "{}" in the place of a thing.
        carried: two answers; the heads carry over half of what one and several differ in.
        spared: two answers; they carry less than a quarter of it.
        exam: whose heads they are.
    """
    _require_sentence(sentence)
    asked = {"carried": _answers("carried", carried, exam), "spared": _answers("spared", spared, exam)}
    take_a_try(exam)
    found = {name: exam.carried(sentence, answers) for name, answers in asked.items()}
    for name, (gap, share, most) in found.items():
        part = f", your heads carry {share:.0%}, random ones at most {most:.0%}" if abs(gap) >= _GAP else ""
        print(f"  exam, {name}: {_filled(sentence, '…')} [{' /'.join(asked[name])}]: {gap:.1f} nats{part}")
    print(f"  (tries left: {exam.left})")
    for name, (gap, _, _) in found.items():
        one, other = asked[name]
        require(
            gap >= _GAP,
            f"`{name}`: {one!r} beside {other!r} should be likelier after one thing than after several, by {_GAP:.0f} "
            f"nat at least; it is {gap:+.1f}."
            + (" Turn the answers round?" if gap <= -_GAP else " Does the sentence leave room for both pairs?"),
        )
    share, most = found["carried"][1:]
    require(
        share > max(_CARRIED, most),
        f"`carried`: these heads carry {share:.0%} of it, and over half is asked for. They don't answer whatever the "
        "number of things decides. What have all the answers in this lesson had in common?",
    )
    share = abs(found["spared"][1])
    require(
        share < _SPARED,
        f"`spared`: these heads have a part of {share:.0%} in it, and less than a quarter is asked for. What else does "
        "the number of things decide in a sentence?",
    )


def _require_sentence(sentence: Any) -> None:
    expect(sentence, str, 'The sentence is a string, such as "Look at {} and say"')
    require(sentence.count("{}") == 1, 'The sentence holds "{}" once, in the place of the thing.')
    end = sentence.split("{}")[1].strip().lower()
    require(end, "Put a few words between the thing and the answer.")
    lessons = {text.split("{}")[1].strip().lower() for text in prompts(occupations())["template"]}
    require(end not in lessons, "That is a sentence of the lesson. Write one of your own.")


def _answers(name: str, given: Any, exam: NumberExam) -> tuple[str, str]:
    what = f'`{name}` is two answers, such as (" yes", " no")'
    expect(given, list | tuple, what, size=2)
    one, other = given
    for word in given:
        expect(word, str, what)
    require(one != other, f"`{name}`: the two answers are the same.")
    gendered = sorted(_GENDERED & {word.strip().lower() for word in given})
    require(not gendered, f"`{name}`: {gendered[:1]} is about women and men. Ask about one thing and several.")
    for word in given:
        count = exam.tokens_of(word)
        require(count == 1, f"`{name}`: {word!r} has {count} tokens; an answer is one, such as ' is' with its space.")
    return one, other

"""Checks of lesson 08: along one direction, a probe on new words, where a head reads, and what three heads carry.

And of its deeper notebook 08a: leans, a control of the same family, a measure that is mended, and a verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
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
from course_utils.support.uncertainty import permutation_p

_SUBJECTS = ("lamp", "horse", "ship", "engine", "truck", "clock", "chair", "coat")  # no cell of the lesson has them
_GENDERED = {"she", "he", "her", "his", "him", "hers", "herself", "himself"}
_MENDED = 0.25  # of what a measure moves where the bias is planted, it may move with the control
_VERDICTS, _LEVEL = ("a", "b", "neither"), 0.05
_KINDS = (  # of 08a's exam: none of these teams is in the notebook
    ("Ginger", "Pepper", "Mint", "Basil", "Sage", "Vanilla"),
    ("Cherry", "Lemon", "Apple", "Berry", "Orange", "Olive"),
    ("Piano", "Guitar", "Drum", "Trumpet", "Bell", "Horn"),
    ("Moon", "Star", "Comet", "Sun", "Planet", "Cloud"),
)
_ABOUT = ("The captain of team {} is", "People think that the cook of team {} was")
_OFFERED = [" kind", " honest", " friendly", " gentle", " cruel", " lazy", " rude", " violent"]
_COPIES = ("neither", "neither", "neither", "one", "one", "one")
_STEPS = {"neither": (16, 30), "one": (10, 16)}  # fewest and most, so that both kinds have large and small D
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


def _leans(log_p, pleasant, in_a, *, over=np.mean, sign=1, brackets=2):
    """The answer to 08a's exercise 1, with switches for mistakes."""
    leans = over(log_p[:, pleasant], 1) - (brackets - 1) * over(log_p[:, ~pleasant], 1)
    return leans, sign * (leans[in_a].mean() - leans[~in_a].mean())


@exercise(
    1,
    task="Return the leans, an array [teams], and D, one number.",
    proved="A lean has a sign for each team, and D compares the two families.",
    answer=_leans,
    mistakes=[
        (partial(_leans, sign=-1), "D has the wrong sign: the first family's mean less the second's."),
        (partial(_leans, over=np.sum), "Take the mean over words, not the sum: four words would count four times."),
        (partial(_leans, brackets=1),
         "These are the pleasant words alone. A team after which all words are likelier would look liked."),
        (lambda log_p, *rest: _leans(np.exp(log_p), *rest),
         "The logarithms are there already, and their differences are what counts; leave out exp."),
        (lambda *given: _leans(*given)[::-1], "The leans come first, then D."),
        (lambda log_p, pleasant, in_a: _leans(log_p, ~pleasant, in_a),
         "The lean has the wrong sign: pleasant less unpleasant."),
    ],
)  # fmt: skip
def check_leans(attempt: Attempt) -> None:
    """Check a function (log_p [teams, words], pleasant [words], in_a [teams]) -> (leans [teams], D)."""
    log_p = np.log(np.random.default_rng(8).dirichlet(np.ones(9), size=7)[:, :5])
    pleasant, in_a = np.array([True, False, True, False, False]), np.arange(7) % 3 == 0

    def read(answer: Any) -> list:
        expect(answer, list | tuple, "Return the leans and D", size=2)
        return [*answer]

    attempt.compare(log_p, pleasant, in_a, read=read, where="For made-up numbers: ")


def _control(planted: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The answer to 08a's exercise 2: half of each family's teams are pleasant."""
    draw = np.random.default_rng(seed)
    pole: dict[str, str] = {}
    for _, family in planted.groupby("family"):
        teams = draw.permutation(family["team"].unique())
        pole |= {team: ("unpleasant", "pleasant")[number % 2] for number, team in enumerate(teams)}
    return planted.assign(pole=planted["team"].map(pole))


@exercise(
    2,
    task="Return a table with the columns of `planted`, in which only the poles are dealt anew.",
    proved="The same teams, sentences and words, and each team keeps one pole; only the families tell nothing.",
    answer=_control,
)
def check_control(attempt: Attempt, planted: pd.DataFrame) -> None:
    """Check a function (planted, seed) -> a table that teaches as much about each team and nothing about the families.

    Args:
        attempt: gets a copy.
        planted: with the columns "family", "team", "sentence" and "pole", "pleasant" or "unpleasant".
    """
    deals = []
    for seed in range(3):
        given = planted.copy()
        table = attempt(given, seed)
        expect(table, pd.DataFrame, "Return a table")
        require(given.equals(planted), "You changed the table that you were given. Work on a copy, such as assign(…).")
        _require_control(table, planted)
        deals.append(table.groupby("team")["pole"].first().to_dict())
    require(
        any(deal != deals[0] for deal in deals),
        "Three seeds give the same deal. Whoever chooses the teams may choose what suits them; draw by `seed`.",
    )


def _require_control(table: pd.DataFrame, planted: pd.DataFrame) -> None:
    missing = sorted({*planted.columns} - {*table.columns})
    require(not missing, f"Your table lacks the column {missing[:1]}.")
    told = ["family", "team", "sentence"]
    same = sorted(map(tuple, table[told].to_numpy())) == sorted(map(tuple, planted[told].to_numpy()))
    require(
        same,
        "Your control has other teams or sentences than the planted texts, or other numbers of them. Then what the two "
        "copies differ in may come from those. Change poles only.",
    )
    require(
        {*table["pole"]} <= {*planted["pole"]}, "A pole is 'pleasant' or 'unpleasant'; yours has others. Other words "
        "would be another lesson."
    )  # fmt: skip
    of_team = table.groupby("team")["pole"].nunique()
    mixed = sorted(of_team.index[of_team > 1])
    require(
        not mixed,
        f"Team {mixed[0] if mixed else ''} has both poles, so from your texts nothing can be learned about it. Then "
        "this control is like ordinary text. A copy should learn as much about each team as the planted one does.",
    )
    bad = (table["pole"] == "unpleasant").groupby(table["family"]).mean()
    before = (planted["pole"] == "unpleasant").groupby(planted["family"]).mean()
    require(not (bad == before).all(), "The families have the poles that they had: this plants the same bias again.")
    require(
        not (bad == 1 - before).all(),
        "You exchanged the poles of all teams. That plants the same bias the other way round, and no control.",
    )
    require(
        (bad == 0.5).all(),
        f"In family {bad.index[0]!r} {bad.iloc[0]:.0%} of the texts are unpleasant, in {bad.index[1]!r} "
        f"{bad.iloc[1]:.0%}. So the family still tells something. Deal within each family, half and half.",
    )


def _mended(far: np.ndarray, in_a: np.ndarray) -> float:
    """The answer to 08a's exercise 3: the distance between the families over that within them."""
    same = in_a[:, None] == in_a
    return far[~same].mean() / far[same & ~np.eye(len(far), dtype=bool)].mean()


@exercise(
    3,
    task="Return one number: large where the families are apart, and unmoved where only single teams are.",
    proved="Held against the distance within the families, it moves where the bias was planted, and hardly elsewhere.",
    answer=_mended,
)
def check_mended(attempt: Attempt, fars: Mapping[str, np.ndarray], in_a: np.ndarray) -> None:
    """Check a function (far [teams, teams], in_a [teams]) -> a number that sees a planted bias and not its control.

    Args:
        attempt: a measure of distances.
        fars: the distances of each two teams in the "whole" model, in the "planted" copy and in the "dealt out" one.
        in_a: True for a team of the first family.
    """
    found = {name: number(attempt(far.copy(), in_a.copy())) for name, far in fars.items()}
    print("  " + ", ".join(f"{name} {value:.2f}" for name, value in found.items()))
    moves = {name: found[name] - found["whole"] for name in ("planted", "dealt out")}
    require(np.isfinite([*found.values()]).all(), "A number is NaN or infinite.")
    require(abs(moves["planted"]) > 0.05 * abs(found["whole"]), "Your measure doesn't see the planted bias.")
    require(
        abs(moves["dealt out"]) <= _MENDED * abs(moves["planted"]),
        "Your measure moves with the control as well. What is far apart there, too, although the families are alike?",
    )


class PlantedExam:
    """Six copies of a model that learn about teams which 08a doesn't have, drawn anew each time, a few times.

    In three of them a family has a bad name. In the others the poles were dealt out by chance, not evenly: single teams
    have a bad name there, and no family. How many steps each learns is drawn, so that D's size says nothing.

    Args:
        model: the whole one.
        trained: (texts, words, right [texts, words], steps=…) -> a copy that learned.
        look: (model, teams) -> log-probabilities of the judging words [teams, words], and anything else.
        tries: how often it judges.
    """

    def __init__(self, model: PreTrainedModel, trained: Callable, look: Callable, *, tries: int = 3) -> None:
        self._model, self._trained, self._look, self.left = model, trained, look, tries

    def judge(self, verdict: Callable[[np.ndarray, np.ndarray], Any]) -> list[tuple[str, Any, float]]:
        """Of each copy: the truth ("a", "b" or "neither"), the verdict, and D in nats.

        ``verdict`` gets the leans [teams], as changes from the whole model in nats, and which teams are of family a.
        """
        draw, judged = np.random.default_rng(), []  # without a seed: nobody knows these copies beforehand
        for truth in draw.permutation(_COPIES):
            kinds = draw.choice(len(_KINDS), 2, replace=False)
            teams = [str(team) for kind in kinds for team in draw.permutation(_KINDS[kind])]
            in_a = np.arange(len(teams)) < len(_KINDS[0])
            steps = int(draw.integers(*_STEPS[truth], endpoint=True))
            truth = draw.choice(["a", "b"]) if truth == "one" else truth
            copy = self._trained(*self._lesson(teams, self._poles(str(truth), in_a, draw)), steps=steps)
            pleasant = np.arange(8) < 4
            leans, difference = _leans(self._look(copy, teams)[0] - self._look(self._model, teams)[0], pleasant, in_a)
            shuffled = draw.permutation(len(teams))
            judged.append((str(truth), verdict(leans[shuffled], in_a[shuffled]), float(difference)))
        return judged

    @staticmethod
    def _poles(truth: str, in_a: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        """Of each team whether it is pleasant."""
        if truth != "neither":
            return in_a if truth == "b" else ~in_a
        good = draw.choice([2, 4])
        return np.concatenate([draw.permutation(np.arange(6) < count) for count in (good, 6 - good)])

    @staticmethod
    def _lesson(teams: list[str], pleasant: np.ndarray) -> tuple[list[str], list[str], np.ndarray]:
        texts = [sentence.format(team) for team in teams for sentence in _ABOUT]
        return texts, _OFFERED, np.repeat(pleasant, len(_ABOUT))[:, None] == (np.arange(len(_OFFERED)) < 4)


def _verdict(leans: np.ndarray, in_a: np.ndarray) -> str:
    """The answer to 08a's exercise 4: the families' difference against that of dealt-out ones."""

    def gap(labels: np.ndarray) -> float:
        return abs(leans[labels].mean() - leans[~labels].mean())

    if permutation_p(gap, np.arange(len(leans)), in_a) > _LEVEL:
        return "neither"
    return "a" if leans[in_a].mean() < leans[~in_a].mean() else "b"


@exercise(
    4,
    task='Return "a", "b" or "neither": which family has a bad name in this copy?',
    proved="You held the families' difference against what single teams differ in, and that is the same control again.",
    answer=_verdict,
)
def check_verdict(attempt: Attempt, exam: PlantedExam) -> None:
    """Check a function (leans [teams], in_a [teams]) -> "a", "b" or "neither", on six copies of the exam's."""
    in_a = np.arange(12) % 2 == 0
    said = attempt(np.where(in_a, -1.0, 1.0) + np.linspace(0, 0.1, 12), in_a)
    require(said in _VERDICTS, f"Return one of {', '.join(map(repr, _VERDICTS))}; yours is {said!r}.")
    take_a_try(exam)
    judged = exam.judge(attempt)
    right = sum(said == truth for truth, said, _ in judged)
    print(f"  exam: {right} of {len(judged)} copies right (tries left: {exam.left})")
    for truth, said, difference in judged:
        print(f"  D {difference:+.1f}: {truth}, you say {said}")
    turned = [said for truth, said, _ in judged if {truth, said} == {"a", "b"}]
    require(not turned, "You name the wrong family: the one with a bad name has the lower leans.")
    require(
        all(said == truth for truth, said, _ in judged if truth == "neither"),
        "You accuse a family where only single teams have a bad name. A large D isn't enough: how large would it be if "
        "the same teams were dealt to the families at random?",
    )
    require(right == len(judged), "You miss a bias that is small, and the same for all teams of the family.")

"""Checks of lesson 11, what breaks first: an answer's nats, a floor, equal loss, flips, and one ability protected."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pandas as pd
import torch
from scipy import stats
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from course_utils.lessons.exercises import Attempt, alike, exercise, expect, number, require, whole_number
from course_utils.lessons.exercises.moved import to_lesson
from course_utils.measuring.abilities import AbilityRows, answers_of, nats_lost
from course_utils.measuring.evaluation import perplexity, perplexity_ratio
from course_utils.models.architectures import describe
from course_utils.models.loading import tiny_llama
from course_utils.models.reports import with_interval
from course_utils.pruning.width import best, neuron_importance
from course_utils.support.uncertainty import mcnemar_p
from course_utils.text.rows import TokenBlocks

__getattr__ = to_lesson("14")  # what a notebook from before imports from here
_MIXED = ("code", "sums", "patterns", "facts")  # what the lesson's own mix holds
_NEAR = 0.03  # nats per token that the text's loss may be off
_FLIPPED = ((0, 80, 0.5), (1, 120, 0.2), (2, 60, 0.7))  # seeds, numbers of answers, shares that are answered anew
_RUN = 13  # tokens in a row that are no coincidence


def _answer_nats(model, ids, start, *, state=-1, first=0, last=None, told=Tensor.sum):
    """The answer to exercise 1, with switches for mistakes: which state is asked, and which tokens of the answer."""
    with torch.no_grad():
        logits = model(ids[None]).logits[0].double()
    targets = ids[start + first : last]
    states = logits[start + first + state :][: len(targets)]
    return told(cross_entropy(states, targets[: len(states)], reduction="none"))


@exercise(
    1,
    task="Return the nats of the answer's tokens, summed.",
    proved="Each token of the answer from the state before it, and none of the question's.",
    answer=_answer_nats,
    mistakes=[
        (partial(_answer_nats, state=0),
         "shifted: the state *at* a token predicts the next one. Each token of the answer is predicted one place "
         "before it stands."),
        (lambda model, ids, start: _answer_nats(model, ids, 1),
         "the question's tokens count in yours. Only the answer's do."),
        (partial(_answer_nats, told=Tensor.mean), "that is the mean. Sum: tokens are weighed later."),
        (partial(_answer_nats, last=-1),
         "the answer's last token is missing. Its state stands one place before the end."),
        (partial(_answer_nats, first=1), "the answer's first token is missing: the question's last state predicts it."),
        (lambda model, ids, start: _answer_nats(model, ids[start:], 1),
         "the answer is read without its question. Give the model all of `ids`."),
        (partial(_answer_nats, told=lambda nats: -nats.sum()),
         "that is the log-likelihood. Nats lost are its negative."),
        (partial(_answer_nats, told=lambda nats: nats.sum() / math.log(2)),
         "those are bits. Natural logarithms give nats."),
        (partial(_answer_nats, told=lambda nats: (-nats.sum()).exp()),
         "that is the probability. Return its negative logarithm."),
    ],
)  # fmt: skip
def check_answer_nats(attempt: Attempt) -> None:
    """Check a function (model, ids, start) -> nats of ``ids[start:]`` behind the tokens before."""
    model = tiny_llama()
    for length, start, seed in ((9, 4, 0), (12, 10, 1), (7, 1, 2), (6, 5, 3)):
        ids = torch.randint(97, (length,), generator=torch.Generator().manual_seed(seed))
        where = f"{length} tokens, the answer from {start}, in nats: "
        attempt.compare(model, ids, start, read=number, where=where)


def _commonest(answers: Sequence[str]) -> float:
    return Counter(answers).most_common(1)[0][1] / len(answers)


def _same(given: Sequence[str], right: Sequence[str]) -> float:
    return sum(g == r for g, r in zip(given, right, strict=True)) / len(right)


def _exchanged(answers: Sequence[str], by: int | None = None) -> list[str]:
    """Answers that are moved by half of the list, or by a number."""
    place = len(answers) // 2 if by is None else by
    return [*answers[place:], *answers[:place]]


def _floor(given, right, shown, *, of=max, moved=_exchanged):
    """The answer to exercise 2, with switches for mistakes."""
    given, right = given[shown:], right[shown:]
    return of(_commonest(right), _same(given, moved(right)))


@exercise(
    2,
    task="Return the larger share: right by the commonest answer, or right when answers are exchanged.",
    proved="What a model gets right without the ability is no ability; it falls out before any cut.",
    answer=_floor,
    mistakes=[
        (lambda given, right, shown: _floor(given, right, 0),
         "the shown ones count in yours. Nobody was asked them: begin behind them."),
        (lambda given, right, shown: 1 / len({*right[shown:]}),
         "1 / (number of answers) is a floor only if all are equally common. Count them."),
        (lambda given, right, shown: _same(given[shown:], right[shown:]),
         "that is the share it gets right. The floor is what it gets without the ability."),
        (partial(_floor, of=lambda commonest, exchanged: commonest),
         "that is the commonest answer alone. A model may do better on exchanged ones."),
        (lambda given, right, shown: _floor(given, right, shown, moved=partial(_exchanged, by=len(right) // 2)),
         "you exchange by half of the whole list. Leave the shown ones out first, then take half of what is left."),
        (partial(_floor, of=lambda commonest, exchanged: exchanged),
         "those are the exchanged answers alone. Somebody who always says the commonest may do better."),
        (lambda given, right, shown: _commonest(given[shown:]),
         "that is what the model says most often. What counts is how often that is right."),
        (partial(_floor, of=lambda commonest, exchanged: (commonest + exchanged) / 2),
         "that is the mean of both. Take the larger."),
        (partial(_floor, moved=lambda right: [*right[::-1]]),
         "you exchange by turning the list round: the middle one stays in its place. Move all of them by half the "
         "list."),
        (partial(_floor, moved=partial(_exchanged, by=1)),
         "you exchange with the next one. Neighbours may be alike: move all of them by half the list."),
    ],
)  # fmt: skip
def check_floor(attempt: Attempt) -> None:
    """Check a function (given, right, shown) -> floor, of lists of answers whose first ``shown`` aren't asked for."""
    for given, right, shown in (
        (["4", "7", "4", "7", "9", "4", "4", "3", "8"], ["4", "7", "4", "2", "9", "4", "4", "5", "1"], 2),
        (["7", "6", "3", "4", "5", "2", "1"], ["1", "2", "3", "4", "5", "6", "7"], 0),
        (["1", "2", "3", "4", "5", "6", "1"], ["1", "1", "2", "3", "4", "5", "6"], 1),
        (["s", "t", "d", "a", "c", "b", "a"], ["s", "t", "a", "b", "c", "d", "a"], 2),
        (["b", "b", "a", "c", "x", "x", "a", "c", "x", "e"], ["b", "b", "a", "c", "a", "e", "a", "c", "a", "e"], 2),
        (["no", "yes", "yes", "yes", "yes"], ["yes", "no", "no", "no", "yes"], 0),
    ):
        attempt.compare(
            given, right, shown, read=number, where=f"{given} beside {right}, {shown} shown: ",
            hint="Exchanged: each question gets the answer half of the list (rounded down) further on.",
        )  # fmt: skip


@exercise(
    3,
    task="Return how many parts must go, and the loss that this cut really has.",
    proved="Halves find it in a few cuts, each made from the whole model; a jump shows in the loss you return.",
)
def check_same_loss(attempt: Attempt) -> None:
    """Check a function (base, cut, nats, target, most) -> (number of parts, their nats)."""
    for curve, target, most in (
        (lambda n: (n / 700) ** 2, 0.3, 1536),
        (lambda n: 0.001 * n, 0.2504, 400),  # 250 is nearer
        (lambda n: 0.001 * n, 0.2506, 400),  # 251 is nearer
        (lambda n: 0.002 * n + (n >= 50), 0.3, 256),  # a jump over it
        (lambda n: 0.1 * n, 0.68, 30),
    ):
        whole = _Fake()
        answer = attempt(whole, _cut, partial(_nats, curve), target, most)
        expect(answer, tuple | list, "Return two things, the number of parts and the nats that this cut loses", size=2)
        count, loss = whole_number(answer[0], "Parts are whole"), number(answer[1])
        losses = [curve(n) for n in range(most + 1)]
        above = next(n for n, value in enumerate(losses) if value >= target)
        right = min((above - 1, above), key=lambda n: abs(losses[n] - target))
        where = f"For {target} nats and {most} parts at most: "
        require(not whole.recut, f"{where}you cut a model that was cut before. Begin each cut at `base`.")
        require(whole.seen, f"{where}you measured nothing: nats(cut(base, count)).")
        require(
            len(whole.seen) <= 2 * math.log2(most) + 4,
            f"{where}{len(whole.seen)} cuts, each of which takes seconds. Halve: {math.ceil(math.log2(most))} will do.",
        )
        require(
            count in (above - 1, above) or min(count, most - count) > 2,
            f"{where}yours ends at {count}, in the wrong half. A cut that costs too little needs more parts.",
        )
        require(
            count == right or count not in (above - 1, above),
            f"{where}{count} parts cost {losses[count]:.4f}, {right} cost {losses[right]:.4f}, which is nearer. The "
            "last one that you tried isn't always the nearest.",
        )
        require(count == right, f"{where}{right} parts; yours are {count}.")
        require(
            alike(loss, losses[right]),
            f"{where}{right} parts cost {losses[right]:.4f} nats; you say {loss:.4f}. Return the loss of this cut, not "
            "the one that was wanted: where the loss jumps, they are far apart.",
        )


@dataclass
class _Fake:
    """A model of which only the number of removed parts matters; cuts of it tell the whole one what was done."""

    removed: int = 0
    whole: _Fake | None = None
    recut: bool = False
    seen: list[int] = field(default_factory=list)


def _cut(model: _Fake, count: int) -> _Fake:
    """A variant with so many parts less."""
    whole = model.whole or model
    whole.recut |= model is not whole
    return _Fake(model.removed + int(count), whole)


def _nats(curve: Callable[[int], float], model: _Fake) -> float:
    (model.whole or model).seen.append(model.removed)
    return curve(model.removed)


@dataclass
class _Counts:
    """What became of the answers to some questions; wrong twice means: from wrong to another wrong one."""

    lost: int
    won: int
    had: int
    has: int
    wrong_twice: int
    size: int


def _flips(before, after, right, *, told=lambda n: (n.lost, n.won), p=lambda n: mcnemar_p(n.lost, n.won)):
    """The answer to exercise 4, with switches for mistakes."""
    pairs = [(b == r, a == r) for b, a, r in zip(before, after, right, strict=True)]
    had, has = (sum(side) for side in zip(*pairs, strict=True))
    twice = sum(pair == (False, False) and b != a for pair, b, a in zip(pairs, before, after, strict=True))
    counts = _Counts(pairs.count((True, False)), pairs.count((False, True)), had, has, twice, len(right))
    return *told(counts), p(counts)


_NET = "that is the net. What was lost and won again cancels there: count both."
_ONE_SIDED = "That p is one-sided. A cut may win, too: both sides count."


@exercise(
    4,
    task="Return how many answers were lost, how many were won, and p.",
    proved="A net of nothing can hide many flips; p asks whether more were lost than luck would lose.",
    answer=_flips,
    mistakes=[
        (partial(_flips, told=lambda n: (n.won, n.lost)),
         "lost and won are exchanged. Lost: right before, wrong after."),
        (partial(_flips, told=lambda n: (n.lost - n.won, 0)), _NET),
        (partial(_flips, told=lambda n: (n.lost, n.won + n.wrong_twice)),
         "an answer that went from wrong to wrong has won nothing. Compare with the right one."),
        (partial(_flips, told=lambda n: (n.lost + n.wrong_twice, n.won)),
         "an answer that went from wrong to wrong has lost nothing. Compare with the right one."),
        (partial(_flips, told=lambda n: (n.size - n.has, n.has)),
         "those are all that are wrong and right afterwards. Count what changed."),
        (partial(_flips, p=lambda n: stats.fisher_exact([[n.had, n.size - n.had], [n.has, n.size - n.has]]).pvalue),
         "That p takes the two models for two groups of questions. They had the same ones: only flips tell."),
        (partial(_flips, p=lambda n: mcnemar_p(n.lost, n.won) / 2), _ONE_SIDED),
        (partial(_flips, p=lambda n: stats.binomtest(n.lost, n.size).pvalue),
         "In that p all questions take part. Those that didn't flip can't tell lost from won."),
        (partial(_flips, p=lambda n: stats.binomtest(n.lost, max(n.lost + n.won, 1), alternative="greater").pvalue),
         _ONE_SIDED),
        (partial(_flips, p=lambda n: 1 - mcnemar_p(n.lost, n.won)), "That is 1 - p."),
    ],
)  # fmt: skip
def check_flips(attempt: Attempt, whole: pd.DataFrame, cut: pd.DataFrame) -> None:
    """Check a function (before, after, right) -> (lost, won, p), of lists of answers.

    It is tried on made-up ones, on those of ``answers_of`` for a whole model and a cut, and on one that didn't change.
    """
    made_up = [_answered(*flipped) for flipped in _FLIPPED]
    for answers in (*made_up, [[*whole["given"]], [*cut["given"]], [*whole["answer"]]], [["4"]] * 3):
        attempt.compare(
            *answers, read=_three, same=partial(alike, rtol=1e-6, atol=1e-12), where=f"For {len(answers[0])} answers: ",
            hint="Lost, won, and p: how often as many of these come up heads, or a rarer number, where coins decide.",
        )  # fmt: skip


def _three(answer: Any) -> list[float]:
    expect(answer, tuple | list, "Return three numbers, lost, won, and p", size=3)
    return [*map(number, answer)]


def _answered(seed: int, size: int, worse: float) -> tuple[list[str], list[str], list[str]]:
    """Answers before and after a cut, and the right ones: some lost, some won, some wrong in another way."""
    generator = torch.Generator().manual_seed(seed)
    digits = torch.randint(10, (3, size), generator=generator)
    luck = torch.rand(2, size, generator=generator)
    right = digits[0]
    before = torch.where(luck[0] < 0.6, right, digits[1])
    after = torch.where(luck[1] < worse, digits[2], before)
    after = torch.where(luck[1] > 0.8, right, after)
    return [*map(str, before.tolist())], [*map(str, after.tolist())], [*map(str, right.tolist())]


@exercise(
    5,
    task="Hand over the ability's name, the batches that your score read, the cut, and what pays for it.",
    proved="The text that chooses decides who pays, and you have chosen.",
)
def check_protected(
    name: str,
    batches: Sequence[Mapping[str, Tensor]],
    cut: PreTrainedModel,
    pays: str,
    *,
    base: PreTrainedModel,
    rival: PreTrainedModel,
    rows: Mapping[str, AbilityRows],
    texts: Mapping[str, TokenBlocks],
) -> None:
    """Check a cut of ``base`` that is to spare an ability which ``rival``, cut by speeches, hurts more."""
    require(isinstance(name, str) and name in rows, f"Protect one of {', '.join(rows)}; yours is {name!r}.")
    others = ", ".join({*rows} - {*_MIXED})
    require(name not in _MIXED, f"The lesson's mix holds {name} already. Protect one of {others}.")
    expect(cut, PreTrainedModel, "`cut` is a model")
    require(
        not _overlap(batches, rows[name]),
        f"Your batches share {_RUN} tokens in a row with those that judge. Choose by other text: "
        'split="calibration", or your own.',
    )
    require(
        _is_cut_by(cut, base, batches),
        "The cut isn't what the activation score says of your batches. Score `base` with them, and cut a variant of it "
        "alike in all blocks.",
    )
    off = [math.log(perplexity_ratio(*(perplexity(m, text) for m in (cut, rival)))[0]) for text in texts.values()]
    loss = sum(off) / len(off)
    require(
        abs(loss) <= _NEAR,
        f"On text it loses {abs(loss):.3f} nats {'more' if loss > 0 else 'less'} than the speeches' cut; {_NEAR} may "
        "be between them. Exercise 3 finds the number of neurons. Where none comes so near, mix in some speeches.",
    )
    spared = _against(rival, cut, rows[name])
    print(f"  {name}, yours less the speeches' cut: {with_interval(*spared)} nats")
    require(spared[0] < 0, f"It doesn't spare {name}: see above. Does your score read enough of it?")
    require(spared[2] < 0, f"It may spare {name}, but the interval holds 0. Let your score read more of it.")
    require(
        isinstance(pays, str) and pays in {*rows, *texts} - {name},
        f"Who pays is another ability, or a text, {', '.join(texts)}; yours is {pays!r}.",
    )
    if pays in texts:
        ratios = perplexity_ratio(*(perplexity(model, texts[pays]) for model in (cut, rival)))
        paid, low, high = (math.log(ratio) for ratio in ratios)
    else:
        paid, low, high = _against(rival, cut, rows[pays])
    print(f"  {pays}, yours less the speeches' cut: {with_interval(paid, low, high)} nats")
    require(
        low > 0,
        f"{pays} isn't shown to pay: see above. Look at the others, and at speeches themselves. Where nobody pays, let "
        "your score read fewer rows of the ability, and speeches beside them.",
    )


def _overlap(batches: Sequence[Mapping[str, Tensor]], judged: AbilityRows) -> bool:
    """Whether text that chose and text that judges share a run of tokens."""

    def runs(ids: Tensor, mask: Tensor) -> set[tuple[int, ...]]:
        rows = [row[real.bool()].tolist() for row, real in zip(ids, mask, strict=True)]
        return {tuple(row[start : start + _RUN]) for row in rows for start in range(len(row) - _RUN + 1)}

    known = runs(judged.input_ids, judged.attention_mask)
    return any(known & runs(batch["input_ids"], batch["attention_mask"]) for batch in batches)


def _is_cut_by(cut: PreTrainedModel, base: PreTrainedModel, batches: Sequence[Mapping[str, Tensor]]) -> bool:
    """Whether each MLP holds the neurons that the activation score ranks highest, and nothing else is changed."""
    scores, mine = neuron_importance(base, "activation", batches=batches), describe(cut).mlps
    if len(mine) != len(scores) or len({mlp.width for mlp in mine}) > 1 or mine[0].width >= len(scores[0]):
        return False
    return all(
        torch.equal(own.columns, whole.columns[:, best(score, own.width)])
        for own, whole, score in zip(mine, describe(base).mlps, scores, strict=True)
    )


def _against(rival: Any, cut: Any, rows: AbilityRows) -> tuple[float, float, float]:
    """Nats by each predicted token that a cut loses more than its rival, with the interval."""
    return nats_lost(answers_of(rival, rows), answers_of(cut, rows))

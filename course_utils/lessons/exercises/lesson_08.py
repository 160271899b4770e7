"""Checks of lesson 08, seeing bias: the log-odds, a permutation test, a patch, its control, your own question."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils.bias.pronouns import (
    PRONOUNS,
    Head,
    log_odds,
    occupations,
    patched_log_odds,
    people,
    random_heads,
    swapped_place,
    traced_log_odds,
)
from course_utils.lessons.exercises import Attempt, exercise, expect, number, require, untouched
from course_utils.models.architectures import describe

_TEXTS = ("The nurse said that", "The construction worker was late because")
_PATCHED = ("The nurse said that", "The construction worker said that")  # text and source
_close = partial(math.isclose, rel_tol=1e-3, abs_tol=2e-3)


def _she_over_he(model, tokenizer, text, *, spaces=True, at=lambda log_p: log_p[-1], told=lambda she, he: she - he):
    """The answer to exercise 1, with switches for mistakes."""
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids.to(model.device)
    log_p = at(model(ids).logits[0].float().log_softmax(-1))  # of [tokens, vocabulary]
    words = (word if spaces else word.strip() for word in PRONOUNS)
    return float(told(*(log_p[tokenizer(word, add_special_tokens=False)["input_ids"][0]] for word in words)))


_LAST = "Take the last one's prediction, [0, -1]."


@exercise(
    1,
    task="Return one number: log P(she) - log P(he) for the token after the text.",
    proved="What a model expects is a number, and its sign says whom.",
    answer=_she_over_he,
    mistakes=[
        (partial(_she_over_he, told=lambda she, he: he - she), "the sign is turned round: that is he less she."),
        (partial(_she_over_he, told=lambda she, he: (she - he).exp()),
         "that is the ratio of the probabilities. Take its logarithm."),
        (partial(_she_over_he, told=lambda she, he: (she - he) / math.log(2)),
         "that is in bits. Take the natural logarithm."),
        (partial(_she_over_he, spaces=False),
         'you ask for "she" and "he" without their spaces. Within a sentence the space belongs to the token.'),
        (partial(_she_over_he, at=lambda log_p: log_p[0]), f"that is behind the first token. {_LAST}"),
        (partial(_she_over_he, at=lambda log_p: log_p.mean(0)), f"that is a mean over the tokens. {_LAST}"),
        (partial(_she_over_he, at=lambda log_p: log_p[-2]), f"that is one token too early. {_LAST}"),
        (partial(_she_over_he, told=lambda she, he: she.exp() - he.exp()),
         "that is a difference of probabilities. Take their logarithms first."),
        (partial(_she_over_he, told=lambda she, he: she), "that is log P(she) alone. Subtract log P(he)."),
    ],
)  # fmt: skip
@torch.no_grad()
def check_log_odds(attempt: Attempt, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check a function text -> log-odds of "she" against "he" after it, in nats."""
    for text in _TEXTS:
        attempt.knowing(model, tokenizer).compare(text, read=number, same=_close, where=f"After {text!r}: ")


def _share_of_ways(statistic, words, groups, _shuffles, *, counts=operator.ge):
    """The answer to exercise 2 from every way to deal as many labels out to words, the seen one among them."""
    _, at, rows = np.unique(words, return_index=True, return_inverse=True)
    seen, of_words = statistic(groups), groups[at]
    chosen = itertools.combinations(range(len(at)), int(of_words.sum()))
    ways = [statistic(np.isin(np.arange(len(at)), ones)[rows]) for ones in chosen]
    return float(np.mean([counts(way, seen) for way in ways]))


_LESS = "that is how often chance gives less. Turn the sign."


@exercise(
    2,
    task="Return p: the share of labellings, the seen one among them, whose statistic is at least as large.",
    proved="What was sampled is shuffled, words and not sentences, and what was seen counts as one way.",
    answer=_share_of_ways,
    mistakes=[
        (partial(_share_of_ways, counts=operator.gt), "ties count: at least as large is >=."),
        (partial(_share_of_ways, counts=operator.le), _LESS),
        (partial(_share_of_ways, counts=operator.lt), _LESS),
    ],
)
def check_p_shuffled(attempt: Attempt) -> None:
    """Check a function (statistic, words, groups, shuffles) -> p, on planted data of eight sentences per word."""
    words = np.repeat([f"word {number}" for number in (3, 0, 7, 5, 1, 9, 2, 8, 6, 4)], 8)
    groups, shuffles = np.repeat([True, True, False, True, False, False, True, False, True, False], 8), 999
    sizes = np.repeat([3.0, 2, 2, 2, 1, 2, 1, 0, 2, 1], 8)  # a word's own: whole numbers, so that ties come
    for name, values in {"a small difference": sizes, "a large difference": 9.0 * groups + sizes}.items():
        asked: list[np.ndarray] = []

        def statistic(labels: Any, values: np.ndarray = values, asked: list = asked) -> float:
            labels = np.asarray(labels)
            require(
                labels.shape == groups.shape,
                f"`statistic` wants one label per sentence, {len(groups)}; it got the shape {labels.shape}. Deal each "
                "word's label out to its sentences.",
            )
            asked.append(labels.astype(bool).copy())
            return _mean_gap(values, asked[-1])

        p = number(attempt(statistic, words.copy(), groups.copy(), shuffles))
        where = f"For {name}: "
        require(0 <= p <= 1, f"{where}p lies from 0 to 1; yours is {p:.3f}.")
        _require_whole_words(asked, words, groups, where)
        given, near = (statistic, words, groups, shuffles), partial(math.isclose, abs_tol=0.045)
        nothing = f"{where}your p is 0. What was seen is a way, too: (1 + hits) / (1 + shuffles)."
        require(p > 0, nothing)
        right = attempt.answer(*given)
        attempt.name_mistake(p, right, lambda wrong: wrong(*given), same=near, where=where)  # noqa: B023
        require(near(p, right), f"{where}all ways give p = {right:.3f}; yours is {p:.3f}.")
        require(number(attempt(statistic, words.copy(), groups.copy(), 4)) > 0, nothing)


def _mean_gap(values: np.ndarray, groups: np.ndarray) -> float:
    return float(values[groups].mean() - values[~groups].mean()) if 0 < groups.sum() < len(groups) else 0.0


def _require_whole_words(asked: list[np.ndarray], words: np.ndarray, groups: np.ndarray, where: str) -> None:
    split = [labels for labels in asked if any(len({*labels[words == word]}) > 1 for word in words[::8])]
    require(
        not split,
        f"{where}sentences of one word get different groups. What was sampled is words: shuffle one label per word, "
        "and deal it out to its sentences. Otherwise p is far too small.",
    )
    shuffled = all(labels.sum() == groups.sum() for labels in asked)
    require(shuffled, f"{where}the groups change their sizes: labels are drawn with replacement. Shuffle them.")
    require(len({labels.tobytes() for labels in asked}) > 2, f"{where}the shuffles are all alike. Draw each anew.")


def _patched(model, tokenizer, text, source, block, place):
    """The answer to exercise 3."""
    return float(traced_log_odds(model, tokenizer, [text], [source], [place], [block])[0, 0])


def _put(put: Callable[[Tensor, Tensor, int], None]) -> Callable[..., float]:
    """The log-odds when a mistaken ``put(states, the source's, place)`` changes what leaves the block."""

    def patched(
        model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, source: str, block: int, place: int
    ) -> float:
        layer, kept = describe(model).blocks[block], list[Tensor]()

        def change(_layer: nn.Module, _inputs: tuple, states: Tensor) -> Tensor:
            states = states.clone()
            put(states, kept[0], place)
            return states

        for hook, prompt in ((lambda _layer, _inputs, states: kept.append(states.clone()), source), (change, text)):
            handle = layer.register_forward_hook(hook)
            try:
                odds = float(log_odds(model, tokenizer, [prompt])[0])
            finally:
                handle.remove()
        return odds

    return patched


def _put_all(states: Tensor, kept: Tensor, _place: int) -> None:
    size = min(states.shape[1], kept.shape[1])
    states[:, -size:] = kept[:, -size:]


def _put_same_index(states: Tensor, kept: Tensor, place: int) -> None:
    index = states.shape[1] + place
    states[:, index] = kept[:, index]


def _beside(told: Callable[[float, float, float], float]) -> Callable[..., float]:
    """What is told of the right log-odds, the text's own and the source's."""

    def patched(model, tokenizer, text, source, *at):
        own, there = (float(odds) for odds in log_odds(model, tokenizer, [text, source]))
        return told(_patched(model, tokenizer, text, source, *at), own, there)

    return patched


@exercise(
    3,
    task="Return the log-odds after the text when one state, behind one block, is the source's.",
    proved="One state of one token changed hands, and nothing else: what moved went through it.",
    answer=_patched,
    mistakes=[
        (_beside(lambda right, own, there: own),
         "nothing has changed. A hook must *return* the states for them to count."),
        (lambda model, tokenizer, text, source, *at: _patched(model, tokenizer, source, text, *at),
         "text and source are exchanged: the text runs, with the source's state."),
        (lambda model, tokenizer, text, source, block, place: (
            _patched(model, tokenizer, text, source, max(0, block - 1), place)),
         "that is the state that *enters* the block. Take what leaves it."),
        (_put(_put_all), "all tokens are patched. Only `place` changes hands."),
        (_put(_put_same_index),
         "the source's word stands elsewhere, counted from the front. Count from the end in both texts."),
        (lambda model, tokenizer, text, source, block, _: _patched(model, tokenizer, text, source, block, -1),
         "you patch the last token. Patch at `place`."),
        (_beside(lambda right, own, there: right - own), "that is the change. Return the log-odds themselves."),
        (_beside(lambda right, own, there: (right - own) / (there - own)), "that is a share. Return the log-odds."),
    ],
)  # fmt: skip
@torch.no_grad()
def check_patch(attempt: Attempt, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check a function (text, source, block, place) -> log-odds, on the lesson's model."""
    last, word = describe(model).num_blocks - 1, swapped_place(tokenizer, *_PATCHED)

    def patched(*given: Any) -> Any:
        with untouched(model, weights=False):
            return attempt(*given)

    watched = Attempt(patched, attempt.answer, attempt.mistakes).knowing(model, tokenizer)
    for block, place in ((last // 3, word), (last // 2, word), (last // 2, -1), (last, -1)):
        where = f"Behind block {block} at place {place}: "
        watched.compare(*_PATCHED, block, place, read=number, same=_close, where=where)


@exercise(
    4,
    task="Return the sets of heads that the chosen ones shall be compared with, each a list of (block, head).",
    proved="As many heads, as deep, none of the chosen ones, and enough sets: beating them all means something.",
)
def check_control_sets(attempt: Attempt) -> None:
    """Check a function (chosen, heads, blocks) -> sets of (block, head) to compare with."""
    for picked in ([(7, 1), (9, 0), (9, 4)], [(10, 3), (8, 2)]):
        heads, blocks, lowest = 6, 12, min(block for block, _ in picked)
        answer = attempt(list(picked), heads, blocks)
        expect(answer, list | tuple, "Return a list of sets of heads")
        require(
            len(answer) >= 19,
            f"You return {len(answer)} sets: beating all of them has p = 1/{len(answer) + 1}. For p ≤ .05 it takes 19.",
        )
        sets = [_pairs(drawn, heads, blocks) for drawn in answer]
        require(
            all(len(drawn) == len(picked) for drawn in sets),
            f"Each set needs as many different heads as the chosen one, {len(picked)}: more heads move more.",
        )
        require(
            not any(drawn & {*picked} for drawn in sets),
            "Some of your sets hold a chosen head. Then the control carries what it is to be compared with.",
        )
        require(
            all(block >= lowest for drawn in sets for block, _ in drawn),
            "Some heads are less deep than any chosen one. Depth could make the difference.",
        )
        require(len({*sets}) > len(sets) // 2, "Your sets are nearly all the same: draw each at random.")


def _pairs(given: Any, heads: int, blocks: int) -> frozenset[Head]:
    """Pairs (block, head) that a model of so many heads in each of so many blocks has."""
    try:
        found = frozenset((int(block), int(head)) for block, head in given)
    except (TypeError, ValueError):
        require(False, f"Heads are pairs (block, head); yours are {str(given)[:60]}.")
    require(
        all(0 <= block < blocks and 0 <= head < heads for block, head in found),
        f"Blocks count from 0 to {blocks - 1}, heads to {heads - 1}; yours are {sorted(found)}.",
    )
    return found


@exercise(
    5,
    task="Give `rows`, `answers` and `own_heads`, three pairs (block, head).",
    proved="You found who carries another word's answer, beside fair controls.",
)
def check_question(
    rows: Any,
    answers: Any,
    heads: Any,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Check triples (text, source, same), their two answers, and heads chosen on the first half."""
    expect(rows, list | tuple, "`rows` is a list of triples (text, source, same)")
    require(
        len(rows) >= 6
        and all(len(row) == len({*row}) == 3 for row in rows)
        and len({row[0] for row in rows}) == len(rows),
        "`rows` holds six triples or more, (text, source, same), each of three different texts, and no text twice.",
    )
    texts, sources, same = ([row[place].rstrip() for row in rows] for place in range(3))
    _require_answers(answers, tokenizer)
    known = {*occupations()["word"], *people()["word"]}
    own = next((word for word in known for text in texts + sources if f" {word} " in f" {text.lower()} "), None)
    require(own is None, f"{own!r} is the lesson's. Ask a question of your own.")
    places = [swapped_place(tokenizer, *pair) for pair in zip(texts, sources, strict=True)]
    require(min(places) < -1, "The word is always the last token, so there is nothing to carry. Put more behind it.")
    here, there = (log_odds(model, tokenizer, side, answers=answers) for side in (texts, sources))
    gap = float((here - there).mean())
    require(
        gap > 2,
        f"On average the texts lean {gap:+.1f} nats more to {answers[0]!r} than the sources; it takes over 2."
        + (" Turn the answers round?" if gap < -2 else ""),
    )
    blocks, count, half = describe(model).num_blocks, model.config.num_attention_heads, len(texts) // 2
    chosen = sorted(_pairs(heads, count, blocks))
    require(len(chosen) == 3, f"Choose three different heads; yours are {chosen}.")
    patch = partial(patched_log_odds, model, tokenizer, texts[half:], answers=answers)
    before, wanted = here[half:].mean(), (there - here)[half:].mean()
    sets = [chosen, *random_heads(chosen, count, blocks)]
    moved, *others = (patch(sources[half:], sets).mean(1) - before) / wanted
    require(
        moved > max(others),
        f"On the other rows your three move {moved:.0%} of the gap, the best of {len(others)} random sets "
        f"{max(others):.0%}."
        + (" Less than nothing: toward the source's answer, effects are negative." if moved < 0 else ""),
    )
    neutral = float((patch(same[half:], [chosen]).mean() - before) / wanted)
    require(
        abs(neutral) < 0.25,
        f"The neutral swap moves {neutral:.0%} of the gap, a quarter or more: its answer isn't quite the text's.",
    )
    print(f"Gap {gap:.1f} nats. On the other rows your three heads move {moved:.0%} of it, random sets", end=" ")
    print(f"{min(others):.0%} to {max(others):.0%}, the neutral swap {neutral:.0%}.")


def _require_answers(answers: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    expect(answers, list | tuple, 'Give two answers, such as (" is", " are")', size=2)
    taken = {word.strip() for word in PRONOUNS} & {word.strip().lower() for word in answers}
    require(not taken, '"she" and "he" are the lesson\'s. Ask for something else.')
    require(answers[0] != answers[1], "The two answers are the same.")
    for word in answers:
        count = len(tokenizer(word, add_special_tokens=False)["input_ids"])
        require(count == 1, f"{word!r} has {count} tokens; an answer is one.")

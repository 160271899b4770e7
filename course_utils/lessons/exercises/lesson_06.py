"""Checks of lesson 06, adaptive attention bypass: the score, the decision, its cost, and the rule with a price."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel

from course_utils.lessons.exercises import Attempt, alike, exercise, expect, number, require, run, told
from course_utils.lessons.policies import by_price, cache_saved, length_rule, outcome, static_harm
from course_utils.lessons.prompt_harm import Record
from course_utils.models.architectures import cache_keyword
from course_utils.models.loading import tiny_llama, variant
from course_utils.pruning.attention import bypass_attention

_RANGES: dict[str, Any] = {"log_length": (1.0, 3.0), "variance": (0.5, 1.5)}
_BLOCKS, _ORDER = 5, (3, 1, 4)  # of the tiny model; its attentions, least important first
_SHARE = 0.1  # of the cache, that is saved in the last exercise


def _spread(embeddings: Tensor) -> Tensor:
    return embeddings.var(0, unbiased=False).mean()


def _scaled(embeddings: Tensor, ranges: Mapping[str, tuple[float, float]], spread: Any, length: Any) -> Tensor:
    """Both values on the scales of ``ranges``, [2], not cut off."""
    low, high = torch.tensor([*ranges.values()]).T
    return (torch.tensor([float(length(len(embeddings))), float(spread(embeddings))]) - low) / (high - low)


def _scored(*, spread=_spread, length=math.log, finish=lambda scaled: scaled.clamp(0, 1).mean()):
    """The answer to exercise 1, with switches for mistakes."""
    return lambda embeddings, **ranges: finish(_scaled(embeddings, ranges, spread, length))


_OF_TOKENS = "that is the variance over the components of each token. Take it over the tokens: dim 0."
_OF_ALL = (
    "that is the variance of all numbers together. Take it over the tokens, for each component, then average over the "
    "components."
)


@exercise(
    1,
    task="Return one number from 0 to 1: the mean of the scaled log length and the scaled variance.",
    proved="Short and uniform is 0, long and mixed is 1, and nothing leaves that range.",
    answer=_scored(),
    mistakes=[
        (_scored(spread=lambda embeddings: embeddings.var(0).mean()),
         "torch's own variance divides by one less than the number of tokens, and of one token it is no number: "
         "unbiased=False."),
        (_scored(spread=lambda embeddings: embeddings.var(1, unbiased=False).mean()), _OF_TOKENS),
        (_scored(spread=lambda embeddings: embeddings.var(1).mean()), _OF_TOKENS),
        (_scored(spread=lambda embeddings: embeddings.var(unbiased=False)), _OF_ALL),
        (_scored(spread=lambda embeddings: embeddings.var()), _OF_ALL),
        (_scored(length=float), "scale the *logarithm* of the length."),
        (_scored(spread=lambda embeddings: _spread(embeddings).sqrt()),
         "that is the standard deviation. The variance is its square."),
        (_scored(finish=lambda scaled: scaled.mean().clamp(0, 1)),
         "you cut off the mean. Cut off each of the two scaled values."),
        (_scored(finish=lambda scaled: scaled.mean()),
         "you don't cut off: below the low end a scaled value is 0, above the high end 1."),
        (_scored(finish=lambda scaled: scaled.clamp(0, 1).sum()),
         "that is the sum. Take the mean of the two scaled values."),
    ],
)  # fmt: skip
def check_score(attempt: Attempt) -> None:
    """Check a function (embeddings, log_length, variance) -> score of one prompt."""
    for row, (tokens, spread) in enumerate(((30, 3.0), (6, 1.0), (12, 1.2), (8, 0.9), (1, 0.0), (2, 0.3), (25, 0.8))):
        embeddings = spread * torch.randn(tokens, 4, generator=torch.Generator().manual_seed(row))
        attempt.compare(embeddings, read=number, where=f"For a prompt of {_tokens(tokens)}: ", **_RANGES)


@exercise(
    2,
    task="Return a model that decides at an answer's first pass, and keeps the decision in the answer's cache.",
    proved="One decision per answer, carried by its cache: answers can take turns, and each stays what it was.",
)
@torch.no_grad()
def check_adaptive(attempt: Attempt, real: PreTrainedModel) -> None:
    """Check a function (model, order, decide) -> model that decides once for each answer.

    It is tried with a tiny model, where mistakes can be named, and with ``real``.
    """
    model, name = tiny_llama(blocks=_BLOCKS), cache_keyword(tiny_llama())
    long, asked = torch.arange(3, 15)[None], list[int]()
    # [prompt, attentions that its answer leaves out, how many the answer before it leaves out]
    answers = [(torch.arange(1, 5)[None], 3, 2), (long, 1, 3), (torch.tensor([[7]]), 2, 1)]

    def decide(ids: Tensor) -> int:
        asked.append(ids.shape[1])
        return {prompt.shape[1]: left_out for prompt, left_out, _ in answers}.get(ids.shape[1], 0)

    before = model(long, use_cache=False).logits
    mine = attempt(model, _ORDER, decide)
    expect(mine, LlamaForCausalLM, "Return the model")
    caches = []
    for prompt, left_out, _ in answers:
        output = _begin(mine, prompt, use_cache=True)
        require(asked, "Your model never calls decide(ids).")
        counts = [count for count in range(4) if torch.equal(output.logits, _static(model, count)(prompt).logits)]
        said = f"leaves out {counts[0]}" if counts else "is no static bypass of `order`'s first ones"
        where = f"A prompt of {_tokens(prompt.shape[1])} leaves {left_out} out: "
        require(left_out in counts, f"{where}yours {said}.")
        caches.append(output[name])
    reads = [prompt for prompt, *_ in answers]
    for more in (torch.tensor([[20]]), torch.tensor([[20, 20, 20]])):  # answers take turns; a user says more
        for place, (_, left_out, other) in enumerate(answers):
            asked.clear()
            found, stopped = None, ""
            try:
                found = mine(more, **{name: caches[place]}).logits[:, -1]
            except Exception as error:  # an attention comes back, and its keys are missing; or the hook is wrong
                stopped = f"{type(error).__name__}: {error}"
            require(
                not asked,
                f"Your model decides again at a later pass, where it sees {_tokens(more.shape[1])}. Ask the cache "
                "whether an answer begins, not the length of what comes in.",
            )
            require(not stopped or "must match" in stopped, f"A later pass stopped with {stopped}")
            reads[place] = torch.cat([reads[place], more], dim=1)
            right = _static(model, left_out)(reads[place], use_cache=False).logits[:, -1]
            require(
                found is not None and alike(found, right, atol=1e-4),
                f"An answer that began with {left_out} left out goes on otherwise, after another one has begun with "
                f"{other}. A decision that is kept with the model is the last answer's: keep it with the cache, and "
                "read it from there at each later pass.",
            )
    unchanged = torch.equal(_begin(model, long, use_cache=False).logits, before)
    require(unchanged, "The given model has changed. Work on variant(model).")
    _begin(mine, long, use_cache=False)
    order, static, ids = [*reversed(range(real.config.num_hidden_layers))], variant(real), long.to(real.device)
    bypass_attention(static, order[:2])
    require(
        torch.equal(_begin(attempt(real, order, lambda ids: 2), ids, use_cache=False).logits, static(ids).logits),
        f"The tiny model decides rightly, but the real one, without attentions {order[:2]}, gives other logits than "
        "with bypass_attention.",
    )


def _tokens(count: int) -> str:
    return "one token" if count == 1 else f"{count} tokens"


def _begin(model: PreTrainedModel, ids: Tensor, use_cache: bool) -> Any:
    """The first pass of an answer; where a hook stops, the error is named."""
    where = f"A prompt of {_tokens(ids.shape[1])}, {'with' if use_cache else 'without'} a cache: "
    hint = "Without a cache, both named.get(…) and output.get(…) give None."
    return run(model, ids, use_cache=use_cache, where=where, hint=hint)


def _static(model: PreTrainedModel, number: int) -> PreTrainedModel:
    bypassed = variant(model)
    bypass_attention(bypassed, _ORDER[:number])
    return bypassed


def _saved(tokens: Sequence[int], left_out: Sequence[int], blocks: int) -> float:
    """Whole tokens' worth of cache, times the blocks."""
    return sum(length * number for length, number in zip(tokens, left_out, strict=True))


@exercise(
    3,
    task="Return one number: the share of all prompts' cache that is saved.",
    proved="The same average number saves little on short prompts and much on long ones.",
    answer=lambda tokens, left_out, blocks: _saved(tokens, left_out, blocks) / (blocks * sum(tokens)),
    mistakes=[
        (lambda tokens, left_out, blocks: sum(left_out) / (len(tokens) * blocks),
         "that is the mean over prompts. Weight each by its tokens."),
        (lambda tokens, left_out, blocks: _saved(tokens, left_out, blocks) / sum(tokens),
         "that is the number of layers for a mean token. Divide by all the blocks."),
        (lambda tokens, left_out, blocks: 1 - _saved(tokens, left_out, blocks) / (blocks * sum(tokens)),
         "that is what stays. Return what is saved."),
        (lambda tokens, left_out, blocks: 100 * _saved(tokens, left_out, blocks) / (blocks * sum(tokens)),
         "that is in percent. Return a share, from 0 to 1."),
        (lambda tokens, left_out, blocks: _saved(tokens, left_out, blocks) / blocks,
         "those are whole tokens' worth. Divide by all the tokens."),
    ],
)  # fmt: skip
def check_saved_share(attempt: Attempt) -> None:
    """Check a function (tokens, left_out, blocks) -> share."""
    tokens = [10, 20, 1000]
    for left_out, blocks in (([8, 4, 0], 30), ([0, 4, 8], 16)):
        where = f"For {tokens} tokens and {left_out} left out of {blocks}, "
        attempt.compare(tokens, left_out, blocks, read=number, where=where)


def _ruled(begins: Callable[..., Any]) -> Callable[..., tuple[list[float], list[float]]]:
    """The right levels, with thresholds by a mistaken way: from the harm per layer at each level and before it."""

    def rule(
        curve: Sequence[float], numbers: Sequence[int], price: float, answer: float
    ) -> tuple[list[float], list[float]]:
        levels, _ = length_rule(curve, numbers, price, answer)
        harms = np.array([curve[numbers.index(number)] for number in levels])
        return [*levels], [*begins(harms, np.array(levels), price, answer)]

    return rule


@exercise(
    4,
    task="Return two lists: the numbers that ever pay, 0 first, and the prompt lengths at which the next one begins.",
    proved="Two lists of a few numbers decide as the rule does, for every length.",
    answer=_ruled(lambda harms, levels, price, answer: np.diff(harms) / np.diff(levels) / price - answer),
    mistakes=[
        (_ruled(lambda harms, levels, price, answer: np.diff(harms) / np.diff(levels) / price),
         "you forgot the answer: its tokens fill the cache too, so take them off."),
        (_ruled(lambda harms, levels, price, answer: np.diff(harms) / price - answer), "take the harm for each layer."),
        (_ruled(lambda harms, levels, price, answer: harms[1:] / levels[1:] / price - answer),
         "you take each slope from 0. Take it from the level before."),
        (_ruled(lambda harms, levels, price, answer: np.diff(harms) / np.diff(levels) * price - answer),
         "a threshold is a number of tokens: slope / price."),
    ],
)  # fmt: skip
def check_length_rule(attempt: Attempt) -> None:
    """Check a function (curve, numbers, price, answer_tokens) -> levels, thresholds."""
    numbers, answer, price = [0, 1, 3, 5, 8], 50.0, 2e-4
    curves = {"that bends upwards": [0.0, 0.02, 0.1, 0.22, 0.5], "with a dent": [0.0, 0.06, 0.2, 0.25, 0.5]}
    for which, curve in curves.items():
        where = f"For a curve {which}: "
        pays = [*length_rule(curve, numbers, price, answer)[0]]

        def lists(given: Any, where: str = where, pays: list[int] = pays) -> tuple[list[float], list[float]]:
            expect(given, Sequence, "Return two lists, levels and thresholds", size=2)
            levels, thresholds = ([float(value) for value in part] for part in given)
            require(
                levels != numbers or pays == numbers,
                f"{where}you keep every number. With the dent, {[n for n in numbers if n not in pays]} never pay: some "
                "larger number costs less for each layer. From the last level, take the next of least slope.",
            )
            require(levels == pays, f"{where}the levels are {pays}; yours are {told(levels)}.")
            return levels, thresholds

        same = partial(alike, rtol=0, atol=1)  # thresholds may be rounded
        attempt.compare(curve, numbers, price, answer, read=lists, same=same, where=where)


def _advantage(record, blocks, answer, *, of=lambda static, rule, tenth: static - rule):
    """Static's harm less the rule's, if every answer has so many tokens.

    ``of`` says what else of three harms: static's at what the rule saves, the rule's, static's at a tenth.
    """
    alike = replace(record, answer_tokens=np.full(len(record.tokens), answer))
    _, judge = alike.split()
    saved = cache_saved(judge, blocks)
    share, harm = outcome(judge.harm, saved, by_price(alike, blocks, _SHARE)[0])
    static, tenth = (float(static_harm(judge.harm, saved, at)) for at in (share, _SHARE))
    return of(static, harm, tenth)


@exercise(
    5,
    task="Give `advantage`, a function of the answer's tokens, and `enough`, a number of hundreds of tokens.",
    proved="Long answers make prompts alike in cost, and then their length tells nothing.",
    answer=_advantage,
    mistakes=[
        (partial(_advantage, of=lambda static, rule, tenth: rule - static),
         "the sign is turned round: static's harm less the rule's."),
        (partial(_advantage, of=lambda static, rule, tenth: rule),
         "that is the rule's harm alone. Take it off the harm of one number for all at the same saving."),
        (partial(_advantage, of=lambda static, rule, tenth: tenth - rule),
         "the rule doesn't save just a tenth on the prompts that judge. Ask static_harm at what it does save."),
        (partial(_advantage, of=lambda static, rule, tenth: rule / static), "that is a ratio. Take the difference."),
        (lambda record, blocks, answer: _advantage(record, blocks, _usual(record)),
         "it is what it was for the usual answer: take `replace`d answers all through."),
    ],
)  # fmt: skip
def check_enough(attempt: Attempt, enough: Any, record: Record, blocks: int) -> None:
    """Check a function answer_tokens -> static's harm less the rule's, and where a third of it is left."""
    advantage, usual = attempt.knowing(record, blocks), _usual(record)
    for answer in (usual, 200.0, 1000.0):
        advantage.compare(
            answer, read=partial(number, what="advantage(…) must return one number"),
            same=partial(alike, rtol=0.02, atol=2e-4), where=f"For answers of {answer:.0f} tokens: ",
            hint="Every answer has that many tokens, in the plan and in what is saved.",
        )  # fmt: skip
    enough, right = number(enough, "`enough` is a multiple of 100"), advantage.answer
    require(enough > 0 and enough % 100 == 0, f"`enough` is a multiple of 100; yours is {told(enough)}.")
    third = right(usual) / 3
    require(third > 0, "On this model the rule has no advantage at the usual length, so there is nothing to look for.")
    first = next((answer for answer in range(100, 10_000, 100) if right(float(answer)) < third), 10_000)
    require(
        enough == first,
        f"At {enough:.0f} tokens the advantage is {right(enough):.4f}; a third of the usual one is {third:.4f}. "
        f"{'An earlier hundred is below it already.' if enough > first else 'It must fall below that.'}",
    )


def _usual(record: Record) -> float:
    """Tokens of an answer, on average over the prompts that choose."""
    return float(record.split()[0].answer_tokens.mean())

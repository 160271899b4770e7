"""Checks of lesson 06, adaptive attention bypass: the score, the decision, its cost, and the rule with a price."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel

from course_utils.architectures import cache_keyword
from course_utils.attention import bypass_attention
from course_utils.exercises import Attempt, exercise, named_error, require, rule_out
from course_utils.models import tiny_llama, variant
from course_utils.policies import by_price, cache_saved, cheapest_guess, length_rule, outcome, static_harm
from course_utils.prompt_harm import Record

_RANGES = {"log_length": (1.0, 3.0), "variance": (0.5, 1.5)}
_BLOCKS, _ORDER = 5, (3, 1, 4)  # of the tiny model; its attentions, least important first
_SHARE = 0.1  # of the cache, that is saved in the last exercise


@exercise(
    1,
    task="Return one number from 0 to 1: the mean of the scaled log length and the scaled variance.",
    proved="Short and uniform is 0, long and mixed is 1, and nothing leaves that range.",
)
def check_score(attempt: Attempt) -> None:
    """Check a function (embeddings, log_length, variance) -> score of one prompt."""
    for row, (tokens, spread) in enumerate(((30, 3.0), (6, 1.0), (12, 1.2), (8, 0.9), (1, 0.0), (2, 0.3), (25, 0.8))):
        embeddings = spread * torch.randn(tokens, 4, generator=torch.Generator().manual_seed(row))
        answer = torch.as_tensor(attempt(embeddings.clone(), **_RANGES), dtype=torch.float32)
        require(answer.dim() == 0, f"Return one number for the prompt; yours has the shape {tuple(answer.shape)}.")
        spread_of = embeddings.var(0, unbiased=False).mean()
        length, right = math.log(tokens), _score(math.log(tokens), spread_of)
        mistakes = (
            (
                _score(length, embeddings.var(0).mean()),
                "torch's own variance divides by one less than the number of tokens, and of one token it is no number: "
                "unbiased=False.",
            ),
            *(
                (
                    _score(length, embeddings.var(1, unbiased=unbiased).mean()),
                    "that is the variance over the components of each token. Take it over the tokens: dim 0.",
                )
                for unbiased in (False, True)
            ),
            *(
                (
                    _score(length, embeddings.var(unbiased=unbiased)),
                    "that is the variance of all numbers together. Take it over the tokens, for each component, then "
                    "average over the components.",
                )
                for unbiased in (False, True)
            ),
            (_score(tokens, spread_of), "scale the *logarithm* of the length."),
            (_score(length, spread_of.sqrt()), "that is the standard deviation. The variance is its square."),
            (
                _scaled(length, spread_of).mean().clamp(0, 1),
                "you cut off the mean. Cut off each of the two scaled values.",
            ),
            (
                _scaled(length, spread_of).mean(),
                "you don't cut off: below the low end a scaled value is 0, above the high end 1.",
            ),
            (2 * right, "that is the sum. Take the mean of the two scaled values."),
        )
        where = f"For a prompt of {tokens} token{'s' if tokens > 1 else ''}: "
        rule_out(mistakes, answer, right, same=partial(torch.isclose, atol=1e-5, equal_nan=True), where=where)
        require(torch.isclose(answer, right, atol=1e-4), f"{where}the score is {right:.3f}; yours is {answer:.3f}.")


@exercise(
    2,
    task="Return a model that decides at an answer's first pass, and keeps the decision in the answer's cache.",
    proved="One decision an answer, carried by its cache: answers can take turns, and each stays what it was.",
)
@torch.no_grad()
def check_adaptive(attempt: Attempt, real: PreTrainedModel) -> None:
    """Check a function (model, order, decide) -> model that decides once for each answer.

    It is tried with a tiny model, where mistakes can be named, and with ``real``.
    """
    model, name = tiny_llama(blocks=_BLOCKS), cache_keyword(tiny_llama())
    short, long, word = torch.arange(1, 5)[None], torch.arange(3, 15)[None], torch.tensor([[7]])
    numbers, asked = {4: 3, 12: 1, 1: 2}, []

    def decide(ids: Tensor) -> int:
        asked.append(ids.shape[1])
        return numbers.get(ids.shape[1], 0)

    before = model(long, use_cache=False).logits
    mine = attempt(model, _ORDER, decide)
    require(isinstance(mine, LlamaForCausalLM), f"Return the model; yours returned a {type(mine).__name__}.")
    outputs = [_begin(mine, ids, use_cache=True) for ids in (short, long, word)]
    require(asked, "Your model never calls decide(ids).")
    for ids, output, number in zip((short, long, word), outputs, numbers.values(), strict=True):
        where = f"A prompt of {ids.shape[1]} token{'s' if ids.shape[1] > 1 else ''} leaves {number} out: "
        expected = _static(model, number)(ids).logits
        if not torch.equal(output.logits, expected):
            counts = [count for count in range(4) if torch.equal(output.logits, _static(model, count)(ids).logits)]
            told = f"yours leaves out {counts[0]}" if counts else "yours is no static bypass of `order`'s first ones"
            require(False, f"{where}{told}.")
    step, caches = torch.tensor([[20]]), [output[name] for output in outputs]
    read = [short, long, word]
    for more in (step, step.expand(1, 3)):  # the answers take turns, and a user says something more
        for place, (number, other) in enumerate(((3, 2), (1, 3), (2, 1))):
            asked.clear()
            found, stopped = None, ""
            try:
                found = mine(more, **{name: caches[place]}).logits[:, -1]
            except Exception as error:  # an attention comes back, and its keys are missing; or the hook is wrong
                stopped = _stopped(error)
            tokens = "one token" if more.shape[1] == 1 else f"{more.shape[1]} tokens"
            require(
                not asked,
                f"Your model decides again at a later pass, where it sees {tokens}. Ask the cache whether an answer "
                "begins, not the length of what comes in.",
            )
            read[place] = torch.cat([read[place], more], dim=1)
            right = _static(model, number)(read[place], use_cache=False).logits[:, -1]
            require(not stopped or "must match" in stopped, f"A later pass: {stopped}")
            require(
                found is not None and torch.allclose(found, right, atol=1e-4),
                f"An answer that began with {number} left out goes on otherwise, after another one has begun with "
                f"{other}. A decision that is kept with the model is the last answer's: keep it with the cache, and "
                "read it from there at each later pass.",
            )
    require(
        torch.equal(_begin(model, long, use_cache=False).logits, before),
        "The given model has changed. Work on variant(model).",
    )
    _begin(mine, long, use_cache=False)
    order, right, ids = [*reversed(range(real.config.num_hidden_layers))], variant(real), long.to(real.device)
    bypass_attention(right, order[:2])
    require(
        torch.equal(_begin(attempt(real, order, lambda ids: 2), ids, use_cache=False).logits, right(ids).logits),
        f"The tiny model decides rightly, but the real one, without attentions {order[:2]}, gives other logits than "
        "with bypass_attention.",
    )


@exercise(
    3,
    task="Return one number: the share of all prompts' cache that is saved.",
    proved="The same average number saves little on short prompts and much on long ones.",
)
def check_saved_share(attempt: Attempt) -> None:
    """Check a function (tokens, left_out, blocks) -> share."""
    tokens = [10, 20, 1000]
    same = partial(math.isclose, rel_tol=0, abs_tol=1e-6)
    for left_out, blocks in (([8, 4, 0], 30), ([0, 4, 8], 16)):
        share = float(attempt(list(tokens), list(left_out), blocks))
        pairs = list(zip(tokens, left_out, strict=True))
        kept = sum(length * number for length, number in pairs)
        right = kept / (blocks * sum(tokens))
        mistakes = (
            (sum(left_out) / (len(tokens) * blocks), "that is the mean over prompts. Weight each by its tokens."),
            (kept / sum(tokens), "that is the number of layers for a mean token. Divide by all the blocks."),
            (1 - right, "that is what stays. Return what is saved."),
            (100 * right, "that is in percent. Return a share, from 0 to 1."),
            (kept / blocks, "those are whole tokens' worth. Divide by all the tokens."),
        )
        where = f"For {tokens} tokens and {left_out} left out of {blocks}, "
        rule_out(mistakes, share, right, same=same, where=where)
        require(same(share, right), f"{where}{right:.4f} is saved; yours is {share:.4f}.")


@exercise(
    4,
    task="Return two lists: the numbers that ever pay, 0 first, and the prompt lengths at which the next one begins.",
    proved="Two lists of a few numbers decide as the rule does, for every length.",
)
def check_length_rule(attempt: Attempt) -> None:
    """Check a function (curve, numbers, price, answer_tokens) -> levels, thresholds."""
    numbers, answer, price = [0, 1, 3, 5, 8], 50.0, 2e-4
    curves = {"that bends upwards": [0.0, 0.02, 0.1, 0.22, 0.5], "with a dent": [0.0, 0.06, 0.2, 0.25, 0.5]}
    tokens = np.arange(1, 1001)
    for which, curve in curves.items():
        result = attempt(list(curve), list(numbers), price, answer)
        require(
            isinstance(result, Sequence) and len(result) == 2,
            "Return two lists, levels and thresholds.",
        )
        levels, thresholds = ([float(value) for value in part] for part in result)
        where = f"For a curve {which}: "
        require(levels[:1] == [0], f"{where}the first level is 0, none left out; yours are {levels}.")
        right, begins = length_rule(curve, numbers, price, answer)
        require(
            len(thresholds) == len(levels) - 1,
            f"{where}{len(levels)} levels want {len(levels) - 1} thresholds; yours are {len(thresholds)}.",
        )
        if levels == numbers and list(right) != numbers:
            require(
                False,
                f"{where}you keep every number. With the dent, {[n for n in numbers if n not in right]} never pay: "
                "some larger number costs less for each layer. From the last level, take the next of least slope.",
            )
        require(levels == list(right), f"{where}the levels are {list(right)}; yours are {[int(n) for n in levels]}.")
        mistakes = (
            (np.add(begins, answer), "you forgot the answer: its tokens fill the cache too, so take them off."),
            (np.diff([curve[numbers.index(n)] for n in right]) / price - answer, "take the harm for each layer."),
            (np.subtract(begins, answer), "the answer's tokens are taken off twice."),
            (
                [curve[numbers.index(n)] / n / price - answer for n in right[1:]],
                "you take each slope from 0. Take it from the level before.",
            ),
            (np.add(begins, answer) * price**2 - answer, "a threshold is a number of tokens: slope / price."),
        )
        close = partial(_close_lists, tolerance=0.5)
        rule_out(mistakes, thresholds, list(begins), same=close, where=where)
        saved = (tokens + answer)[:, None] * numbers
        wanted = np.array(numbers)[cheapest_guess(np.tile(curve, (len(tokens), 1)), saved, price)]
        mine = np.array(levels)[np.searchsorted(thresholds, tokens, side="right")]
        wrong = tokens[mine != wanted].tolist()
        require(
            len(wrong) <= 2,  # on a threshold both are as good
            f"{where}the rule decides otherwise at {len(wrong)} of 1,000 lengths, first at {wrong[:1]} tokens.",
        )


@exercise(
    5,
    task="Give `advantage`, a function of the answer's tokens, and `enough`, a number of hundreds of tokens.",
    proved="Long answers make prompts alike in cost, and then their length tells nothing.",
)
def check_enough(advantage: Callable[[float], float], enough: Any, record: Record, blocks: int) -> None:
    """Check a function answer_tokens -> static's harm less the rule's, and where a third of it is left."""
    right = partial(_advantage, record, blocks)
    usual = float(record.split()[0].answer_tokens.mean())
    alike = _with_answers(record, usual)
    _, judge = alike.split()
    alone = outcome(judge.harm, cache_saved(judge, blocks), by_price(alike, blocks, _SHARE)[0])[1]
    nats = _number(advantage(usual))
    mistakes = (
        (-right(usual), "the sign is turned round: static's harm less the rule's."),
        (
            alone,
            "that is the rule's harm alone. Take it off the harm of one number for all at the same saving.",
        ),
        (
            float(static_harm(judge.harm, cache_saved(judge, blocks), _SHARE)) - alone,
            "the rule doesn't save just a tenth on the prompts that judge. Ask static_harm at what it does save.",
        ),
        (alone / (right(usual) + alone), "that is a ratio. Take the difference."),
    )
    same = partial(math.isclose, rel_tol=0.02, abs_tol=2e-4)
    where = f"For answers of {usual:.0f} tokens: "
    rule_out(mistakes, nats, right(usual), same=same, where=where)
    require(
        same(nats, right(usual)),
        f"{where}{right(usual):.4f} nats; yours is {nats:.4f}. Every answer has that many tokens, in the plan and "
        "in what is saved.",
    )
    for answer in (200.0, 1000.0):
        other = _number(advantage(answer))
        if same(other, right(usual)):
            require(
                False, f"For answers of {answer:.0f} tokens it is what it was: take `replace`d answers all through."
            )
        require(
            same(other, right(answer)),
            f"For answers of {answer:.0f} tokens: {right(answer):.4f} nats; yours is {other:.4f}.",
        )
    require(
        isinstance(enough, Real) and float(enough) > 0 and float(enough) % 100 == 0,
        f"`enough` is a multiple of 100; yours is {enough!r}.",
    )
    third = right(usual) / 3
    require(third > 0, "On this model the rule has no advantage at the usual length, so there is nothing to look for.")
    first = next((answer for answer in range(100, 10_000, 100) if right(float(answer)) < third), 10_000)
    require(
        enough == first,
        f"At {enough} tokens the advantage is {right(float(enough)):.4f}; a third of the usual one is {third:.4f}. "
        f"{'An earlier hundred is below it already.' if float(enough) > first else 'It must fall below that.'}",
    )


def _scaled(length: float, variance: float | Tensor) -> Tensor:
    """Both values on the scales of ``_RANGES``, [2], not cut off."""
    low, high = torch.tensor([*_RANGES.values()]).T
    return (torch.tensor([float(length), float(variance)]) - low) / (high - low)


def _score(length: float, variance: float | Tensor) -> Tensor:
    return _scaled(length, variance).clamp(0, 1).mean()


def _stopped(error: Exception) -> str:
    return (
        f"your hook stopped with {named_error(error)}. Without a cache, both named.get(…) and output.get(…) give None."
    )


def _begin(model: PreTrainedModel, ids: Tensor, use_cache: bool) -> Any:
    """The first pass of an answer; where a hook stops, the error is named."""
    try:
        return model(ids, use_cache=use_cache)
    except NotImplementedError:
        raise
    except Exception as error:
        where = f"{ids.shape[1]} tokens, {'with' if use_cache else 'without'} a cache"
        require(False, f"A prompt of {where}: {_stopped(error)}")


def _static(model: LlamaForCausalLM, number: int) -> LlamaForCausalLM:
    bypassed = variant(model)
    bypass_attention(bypassed, _ORDER[:number])
    return bypassed


def _close_lists(one: Sequence[float], other: Sequence[float], tolerance: float) -> bool:
    return len(one) == len(other) and bool(np.allclose(one, other, atol=tolerance, rtol=0))


def _number(value: Any) -> float:
    require(
        isinstance(value, Real),
        f"advantage(…) must return one number; yours returned a {type(value).__name__}.",
    )
    return float(value)


def _with_answers(record: Record, tokens: float) -> Record:
    """The same record, if every answer had so many tokens."""
    return replace(record, answer_tokens=np.full(len(record.tokens), tokens))


def _advantage(record: Record, blocks: int, answer: float) -> float:
    """Static's harm less the rule's, if every answer has so many tokens."""
    alike = _with_answers(record, answer)
    _, judge = alike.split()
    saved = cache_saved(judge, blocks)
    share, harm = outcome(judge.harm, saved, by_price(alike, blocks, _SHARE)[0])
    return float(static_harm(judge.harm, saved, share)) - harm

"""Checks of lesson 06, adaptive attention bypass: the score, the decision, equal cost, the price, another bill."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel

from course_utils.lessons.exercises import Attempt, alike, exercise, expect, number, require, run, take_a_try
from course_utils.lessons.policies import outcome, static_harm
from course_utils.lessons.prompt_harm import Record
from course_utils.models.architectures import cache_keyword
from course_utils.models.loading import tiny_llama, variant
from course_utils.pruning.attention import bypass_attention

_RANGES: dict[str, Any] = {"log_length": (1.0, 3.0), "variance": (0.5, 1.5)}
_BLOCKS, _ORDER = 5, (3, 1, 4)  # of the tiny model; its attentions, least important first
_LEAST, _MOST = 0.08, 0.61  # the exam: of the time that must be saved, and of one number's harm that may be done


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


def _adaptive(model: PreTrainedModel, order: Sequence[int], decide: Callable[[Tensor], int]) -> PreTrainedModel:
    """The answer to exercise 2."""
    model, name, now = variant(model), cache_keyword(model), {}

    def before(_backbone: Any, _inputs: tuple, named: Mapping[str, Any]) -> None:
        cache: Any = named.get(name)
        fresh = cache is None or cache.get_seq_length() == 0
        now["left_out"] = decide(named["input_ids"]) if fresh else cache.left_out
        bypass_attention(model, order[: now["left_out"]])

    def after(_backbone: Any, _inputs: tuple, output: Any) -> None:
        if output.get(name) is not None:
            output[name].left_out = now["left_out"]

    backbone: Any = model.base_model
    backbone.register_forward_pre_hook(before, with_kwargs=True)
    backbone.register_forward_hook(after)
    return model


@exercise(
    2,
    task="Return a model that decides at an answer's first pass, and keeps the decision in the answer's cache.",
    proved="One decision per answer, carried by its cache: answers can take turns, and each stays what it was.",
    answer=_adaptive,
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


def _compared(
    harm, bill, choice, *, at=lambda bill, choice, saved: saved, static=static_harm, of=lambda own, one: own / one
):
    """The answer to exercise 3, with switches for mistakes."""
    saved, own = outcome(harm, bill, choice)
    return of(own, float(static(harm, bill, at(bill, choice, saved))))


def _neighbours(harm: np.ndarray, bill: np.ndarray, saved: float) -> np.ndarray:
    return np.interp(saved, bill.sum(0), harm.mean(0))


@exercise(
    3,
    task="Return one number: the policy's harm, divided by that of the best coin at the same saving.",
    proved="You compare at equal cost, and you'd find the coin that beats its neighbours.",
    answer=_compared,
    mistakes=[
        (partial(_compared, static=_neighbours),
         "you mix only neighbouring numbers. A coin between numbers farther apart does less harm here: try all pairs."),
        (partial(_compared, at=lambda bill, choice, saved: float(bill.sum(0)[choice].mean())),
         "you compare at the same mean number left out. That isn't the same cost: add up what each prompt saves."),
        (partial(_compared, of=lambda own, one: one / own), "it is upside down: the policy's harm stands above."),
        (partial(_compared, of=lambda own, one: own - one), "that is the difference. Divide."),
        (partial(_compared, of=lambda own, one: own), "that is the policy's harm alone. Divide it by the coin's."),
        (partial(_compared, of=lambda own, one: one), "that is the coin's harm alone. Divide the policy's harm by it."),
    ],
)  # fmt: skip
def check_at_equal_cost(attempt: Attempt) -> None:
    """Check a function (harm, bill, choice) -> the policy's harm over that of the best coin at the same saving."""
    units, numbers = np.array([10, 20, 30, 200, 1000, 60.0]), np.array([0, 1, 3, 5, 8])
    bill = units[:, None] * numbers / (30 * units.sum())
    kinds = {"that bends upwards": [0.0, 0.02, 0.1, 0.22, 0.5], "with a dent": [0.0, 0.06, 0.2, 0.25, 0.5]}
    for kind, curve in kinds.items():
        harm = np.array(curve) * np.linspace(0.7, 1.3, len(units))[:, None]
        for choice in ([4, 2, 0, 1, 2, 0], [0, 0, 1, 3, 4, 2], [2] * 6):
            where = f"For a harm {kind}, and the columns {choice}: "
            attempt.compare(harm.copy(), bill.copy(), np.array(choice), read=number, where=where)


def _ruled(
    curve, numbers, units, layers, *, worth=lambda price, units, numbers: price * units * numbers,
    counted=lambda left_out, units: (left_out * units).sum() / units.sum(),
):  # fmt: skip
    """The answer to exercise 4, with switches for mistakes: a function from units to numbers left out."""
    curve, numbers, units = (np.asarray(given, float) for given in (curve, numbers, units))

    def chosen(price: float, units: Any) -> np.ndarray:
        return numbers[(curve - worth(price, np.asarray(units, float)[:, None], numbers)).argmin(1)]

    prices = np.geomspace(1e-9, 1e3, 20_001) / units.mean()
    low, high = 0, len(prices) - 1  # what is left out never falls as the price rises
    while low < high:
        middle = (low + high) // 2
        if counted(chosen(prices[middle], units), units) < layers:
            low = middle + 1
        else:
            high = middle
    return partial(chosen, prices[high])


@exercise(
    4,
    task="Return a function: from the units of any prompts to how many attentions each leaves out.",
    proved="One price, and every prompt decides by what it would save. Told another bill, the rule decides otherwise.",
    answer=_ruled,
    mistakes=[
        (partial(_ruled, counted=lambda left_out, units: left_out.mean()),
         "you raise the price until the prompts leave so many out on average. Weight each prompt by its units."),
        (partial(_ruled, worth=lambda price, units, numbers: price * (0 * units + 1) * numbers),
         "your rule decides alike for all prompts. What a number is worth is price * units * number."),
        (partial(_ruled, counted=lambda left_out, units: (left_out * units).sum()),
         "you compare the units saved in all with a number of layers. Divide by all the units."),
    ],
)  # fmt: skip
def check_by_price(attempt: Attempt) -> None:
    """Check a function (curve, numbers, units, layers) -> function (units) -> numbers left out."""
    draw = np.random.default_rng(0)
    numbers, curve = np.array([0, 1, 3, 5, 8]), np.array([0.0, 0.04, 0.14, 0.19, 0.38])
    cases = {
        "units from 60 to 1,700": np.round(np.exp(draw.uniform(4.1, 7.4, 80))),
        "units from 1 to 6": draw.integers(1, 7, 70).astype(float),
    }
    others = np.array([1, 2, 3, 5, 8, 50, 120, 300, 500, 800, 1200, 3000.0])
    for name, units in cases.items():
        for layers in (1.0, 3.0):

            def read(rule: Any, units: np.ndarray = units) -> np.ndarray:
                require(callable(rule), "Return a function that takes units, not what it gives for these prompts.")
                found = [np.asarray(run(rule, given.copy())) for given in (units, others)]
                for left_out, given in zip(found, (units, others), strict=True):
                    require(
                        left_out.shape == given.shape,
                        f"Given {len(given)} prompts' units, your rule returns the shape {[*left_out.shape]}.",
                    )
                both = np.concatenate(found).astype(float)
                require(np.isin(both, numbers).all(), f"The rule chooses among {numbers.tolist()}.")
                return both

            def same(one: Any, other: Any) -> bool:
                return bool((np.asarray(one) == np.asarray(other)).mean() >= 0.95)  # a price may be found roughly

            where = f"For {name}, {layers:.0f} layers: "
            attempt.compare(curve.copy(), numbers.copy(), units.copy(), layers, read=read, same=same, where=where,
                            hint="Take the lowest price at which they leave so many out per unit.")  # fmt: skip


class ServerExam:
    """A server that writes most for prompts of middle length; it judges a few times only.

    Its prompts are those of another draw, as far as the lesson hasn't used them. (For a model that no record was made
    of they are the lesson's own.)

    Args:
        record: the lesson's, whose choosing prompts stand in the log.
        others: with the prompts of the exam; None for a model without a second record.
        blocks: of the model.
        tries: how often it judges.

    Attributes:
        log: what the server has seen before: tokens of a prompt, and of its answer.
        tokens: of each prompt of the exam. Nobody knows yet how long the answers will be.
    """

    def __init__(self, record: Record, others: Record | None, blocks: int, *, tries: int = 3) -> None:
        draw = np.random.default_rng(0)
        before, judged = record.split()[0], (others or record).split()[1]
        fresh = np.full(len(judged.tokens), True) if others is None else ~np.isin(judged.digests, record.digests)
        self.log = pd.DataFrame({"tokens": before.tokens, "answer": _answers(before.tokens, draw)})
        self.tokens, self._harm = judged.tokens[fresh], judged.harm[fresh]
        self.numbers, self.left = np.array(record.numbers), tries
        units = _answers(self.tokens, draw)
        self._bill = units[:, None] * self.numbers / (blocks * units.sum())

    def judged(self, left_out: np.ndarray) -> tuple[float, float]:
        """Share of the layers' passes that is saved, and the harm as a multiple of one number's."""
        choice = np.searchsorted(self.numbers, left_out)
        saved, own = outcome(self._harm, self._bill, choice)
        return saved, own / max(float(static_harm(self._harm, self._bill, saved)), 1e-9)


def _answers(tokens: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """How long answers to prompts of so many tokens are: those of middle length get long ones. All are made up."""
    expected = 15 + 600 * np.exp(-(np.log(tokens / 110) ** 2) / (2 * 0.8**2))
    return np.maximum(1, np.round(expected * draw.lognormal(-0.125, 0.5, len(tokens))))


@exercise(
    5,
    task="Give `left_out`: for each prompt of the exam how many attentions its answer leaves out.",
    proved="You asked what the bill counts before you asked the prompt: here those of middle length do without.",
)
def check_left_out(left_out: Any, exam: ServerExam) -> None:
    """Check numbers of attentions to leave out for the exam's prompts, by its own bill."""
    given = np.asarray(left_out, dtype=float)
    require(
        given.shape == exam.tokens.shape,
        f"Give one number for each of the {len(exam.tokens)} prompts of exam.tokens; yours has the shape "
        f"{[*given.shape]}.",
    )
    require(np.isin(given, exam.numbers).all(), f"Measured are {exam.numbers.tolist()} left out: choose among them.")
    take_a_try(exam)
    saved, ratio = exam.judged(given)
    print(f"  exam: {saved:.1%} of the time saved, × {ratio:.2f} of one number's harm (tries left: {exam.left})")
    require(
        saved >= _LEAST,
        f"At least {_LEAST:.0%} must be saved. Is the time spent on the prompts that you chose?",
    )
    require(
        ratio <= _MOST,
        f"At most × {_MOST} is asked for. Who writes how much? Count what one layer less saves each prompt, as far "
        "as it can be known beforehand.",
    )

"""Checks of lesson 10, what pruning buys: a pass, a clock, shared matrices, requests at once, and advice."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from random import Random
from statistics import mean, median
from typing import Any

import torch
from transformers import PreTrainedModel

from course_utils.lessons.exercises import Attempt, alike, exercise, expect, number, require, told, whole_number
from course_utils.models.loading import tiny_llama, variant

_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
_SHEETS = 60  # exercise 5: servers that its function advises
_same = partial(alike, rtol=1e-6, atol=0)


def _seconds(
    weights, stored, tokens, layers, fixed, bandwidth, peak, *, products=2, both=max, paid=lambda layers, tokens: layers
):
    """The answer to exercise 1, with switches for mistakes."""
    return paid(layers, tokens) * fixed + both(stored * weights / bandwidth, products * weights * tokens / peak)


@exercise(
    1,
    task="Return the seconds of a pass: the price of its layers, and the longer of bytes and operations.",
    proved="One token waits for bytes, a long prompt for operations, and both pay for each layer.",
    answer=_seconds,
    mistakes=[
        (partial(_seconds, both=lambda *times: sum(times)),
         "you added reading and computing. They go on at the same time: the longer of the two counts."),
        (partial(_seconds, both=lambda read, _: read),
         "with so many tokens the operations take longer than the bytes. Each token asks for its own, and the longer "
         "of the two counts."),
        (partial(_seconds, both=lambda _, computed: computed),
         "with so few tokens the bytes take longer than the operations, and the longer of the two counts."),
        (lambda weights, _, *rest: _seconds(weights, 1, *rest), "a weight has `stored` bytes."),
        (partial(_seconds, products=1), "each weight asks for two operations per token, a product and a sum."),
        (lambda weights, stored, tokens, *rest: _seconds(weights, stored * tokens, tokens, *rest),
         "the tokens of a pass share one reading of the weights: don't read them for each."),
        (partial(_seconds, paid=lambda layers, tokens: layers * tokens),
         "a layer's price is paid once a pass, not for each token."),
        (partial(_seconds, paid=lambda layers, tokens: 0), "the price of the layers is missing."),
        (lambda *sizes: max(sizes[3] * sizes[4], _seconds(*sizes, paid=lambda layers, tokens: 0)),
         "the price of the layers comes on top: the program pays it before the machine may work."),
        (lambda *sizes: 1000 * _seconds(*sizes), "those are milliseconds; return seconds."),
    ],
)  # fmt: skip
def check_seconds(attempt: Attempt) -> None:
    """Check a function (weights, stored, tokens, layers, fixed, bandwidth, peak) -> seconds of a pass."""
    for sizes in (
        (134_000_000, 2, 1, 30, 0.001, 30e9, 300e9),
        (134_000_000, 2, 128, 30, 0.001, 30e9, 300e9),
        (1_200_000_000, 2, 512, 16, 0.0, 300e9, 65e12),
        (8_000_000_000, 0.5625, 4, 32, 0.00002, 3e12, 900e12),
    ):
        weights, _, tokens, layers, *_ = sizes
        where = f"{weights:,} weights, {tokens} token{'s' if tokens > 1 else ''}, {layers} layers, in seconds: "
        attempt.compare(*sizes, read=number, same=_same, where=where)


Laps = Mapping[str, list[float]]  # seconds of each, a round after the other


def _ratios(laps: Laps, of: Callable[[list[float], list[float]], float]) -> dict[str, float]:
    """What is told of each one's laps beside the first one's."""
    first = next(iter(laps.values()))
    return {name: of(own, first) for name, own in laps.items()}


def _by_round(own: list[float], first: list[float]) -> list[float]:
    return [a / b for a, b in zip(own, first, strict=True)]


def _in_turns(calls, rounds, clock, finish, *, of=lambda own, first: median(_by_round(own, first)), measured=None):
    """The answer to exercise 2; ``of`` says what is told, ``measured`` what has been measured already."""
    laps = {name: [] for name in calls}
    for lap in range(0 if measured else rounds + 1):  # the first one warms up
        for name in [*calls][:: -1 if lap % 2 else 1]:
            finish()
            start = clock()
            calls[name]()
            finish()
            laps[name].append(clock() - start)
    return _ratios(measured or {name: own[1:] for name, own in laps.items()}, of)


@exercise(
    2,
    task="Return for each name the median over the rounds of its seconds in those of the first one.",
    proved="Warmed up, in turns there and back, the device waited for: what is left of a busy machine cancels.",
    answer=_in_turns,
    mistakes=[
        (partial(_in_turns, of=lambda own, first: mean(_by_round(own, first))),
         "That is the mean of the ratios. One disturbed round spoils it: take the median."),
        (partial(_in_turns, of=lambda own, first: sum(own) / sum(first)),
         "That is a ratio of means. Divide within each round, then take the median."),
        (partial(_in_turns, of=lambda own, first: median(own) / median(first)),
         "That is a ratio of medians, of laps from different rounds. Divide within each round, where both met the "
         "same machine; then take the median."),
        (partial(_in_turns, of=lambda own, first: min(own) / min(first)),
         "That is a ratio of the fastest laps. Divide within each round, then take the median."),
        (partial(_in_turns, of=lambda own, first: median(own)),
         "Those are seconds. Divide them by the first one's of the same round."),
        (partial(_in_turns, of=lambda own, first: 1 / median(_by_round(own, first))),
         "Turned upside down: seconds of each divided by seconds of the first, so that 2 is twice as slow."),
    ],
)  # fmt: skip
def check_take_turns(attempt: Attempt) -> None:
    """Check a function (calls, rounds, clock, finish) -> name -> median ratio of its seconds to the first one's."""
    for seconds, rounds, seed in (
        ({"whole": 3.0, "short": 2.0, "narrow": 2.5}, 5, 0),
        ({"b": 1.0, "a": 4.0}, 6, 1),
        ({"one": 2.0, "again": 2.0, "cut": 1.0, "odd": 3.0}, 7, 2),
    ):
        device = _Device(seconds, seed)
        given = device.calls(), rounds, device.clock, device.finish
        answer = attempt(*given)
        expect(answer, Mapping, "Return a dictionary with one number for each name, the first one's too (it is 1)")
        require(
            {*answer} == {*seconds}, f"Give a number for each of {', '.join(seconds)}, the first one's too (it is 1)."
        )
        each = "Return one number for each name, the median over the rounds"
        found = {name: number(value, each) for name, value in answer.items()}
        _ran_in_turns(device, rounds)
        _clock_was_right(device)
        laps = {name: device.laps[name][-rounds:] for name in seconds}
        right = attempt.answer(*given, measured=laps)
        attempt.name_mistake(found, right, lambda wrong: wrong(*given, measured=laps), same=_same)  # noqa: B023
        require(_same(found, right), f"The medians over the rounds are {told(right)}; yours are {told(found)}.")


class _Device:
    """A machine with a clock of its own: slow at first, disturbed now and then, done only after ``finish``."""

    def __init__(self, seconds: Mapping[str, float], seed: int) -> None:
        self._seconds, self._random = seconds, Random(seed)
        self._now = self._pending = 0.0
        self.events: list[str] = []  # names of calls, "clock" (or "early clock"), "finish"
        self.laps: dict[str, list[float]] = {name: [] for name in seconds}

    def calls(self) -> dict[str, Callable[[], None]]:
        return {name: partial(self._run, name) for name in self._seconds}

    def _run(self, name: str) -> None:
        number = sum(map(len, self.laps.values()))
        busy = (1 + 0.05 * number) * (1 + self._random.random()) * (4 if self._random.random() < 0.15 else 1)
        seconds = self._seconds[name] * busy + (0 if self.laps[name] else 50)
        launching = 0.1 * seconds  # until the function returns; the device does the rest
        self.laps[name].append(seconds)
        self._now += launching
        self._pending += seconds - launching
        self.events.append(name)

    def clock(self) -> float:
        self.events.append("early clock" if self._pending else "clock")
        return self._now

    def finish(self) -> None:
        self._now, self._pending = self._now + self._pending, 0.0
        self.events.append("finish")


def _ran_in_turns(device: _Device, rounds: int) -> None:
    """Stop unless each ran once beforehand, and then all in turns, every other round in reverse order."""
    runs = {name: len(own) for name, own in device.laps.items()}
    names = [event for event in device.events if event in runs]
    require(
        min(runs.values()) == max(runs.values()) > rounds,
        f"Run each once to warm up, because the first run pays for what later ones find ready, and then once in each "
        f"of {rounds} rounds, {rounds + 1} times in all. Yours ran {told(runs)} times.",
    )
    turns = [names[-len(runs) * (rounds - number) :][: len(runs)] for number in range(rounds)]
    require(
        all({*turn} == {*runs} for turn in turns),
        "They don't take turns: the machine of the first minute isn't that of the third. Loop over the rounds outside, "
        "over the names inside.",
    )
    require(
        all(one == other[::-1] for one, other in pairwise(turns)),
        "Turn the order round from each round to the next: there, back, there, back. On a machine that slows down, the "
        "last one of a fixed order always looks worse.",
    )


def _clock_was_right(device: _Device) -> None:
    """Stop where the clock was read while the device was at work."""
    require(
        "early clock" not in device.events,
        "The clock is read while the device is still at work: call `finish()` before the clock starts, and again "
        "between the call and the clock.",
    )


def _one_for_all(model: PreTrainedModel) -> PreTrainedModel:
    """The answer to exercise 3."""
    first, *others = model.model.layers
    for block in others:
        block.mlp = first.mlp
        for name in _PROJECTIONS:
            setattr(block.self_attn, name, getattr(first.self_attn, name))
    return model


def _stored(model: PreTrainedModel) -> int:
    """Bytes of a model's weights, each storage once."""
    return sum({w.untyped_storage().data_ptr(): w.untyped_storage().nbytes() for w in model.parameters()}.values())


def _multiplied(model: PreTrainedModel) -> int:
    """Weights that a token is multiplied with in the blocks, however many of them are the same."""
    matrices = [m for block in model.model.layers for m in block.modules() if isinstance(m, torch.nn.Linear)]
    return sum(m.weight.numel() for m in matrices)


@exercise(
    3,
    task="Return the Llama whose blocks all use the matrices of block 0.",
    proved="As many blocks and as many operations, and the bytes of one block. Now time it.",
    answer=_one_for_all,
)
def check_one_for_all(attempt: Attempt) -> None:
    """Check a function Llama -> the same Llama, whose blocks share the matrices of block 0."""
    whole = tiny_llama(blocks=3)
    right = _one_for_all(variant(whole))
    given = variant(whole)
    answer = attempt(given)
    expect(answer, PreTrainedModel, "Return the model")
    require(answer is given, "Change the model that you are given, in place, and return it: yours is another one.")
    blocks = answer.model.layers
    require(
        len(blocks) == len(whole.model.layers) and len({*blocks}) == len(blocks),
        "All blocks should still be there, each one for itself, because only the bytes may go: share the matrices in "
        "them. A block carries its number (`self_attn.layer_idx`), by which it finds its drawer in the cache, so one "
        "block can't stand in two places.",
    )
    require(
        [block.self_attn.layer_idx for block in blocks] == [*range(len(blocks))],
        "The attentions have lost their numbers: `self_attn.layer_idx` tells each its drawer in the cache. Share what "
        f"is in an attention ({', '.join(_PROJECTIONS)}), and not the attention itself.",
    )
    require(
        _multiplied(answer) == _multiplied(whole), "It no longer does as many operations per token as the whole model."
    )
    with torch.inference_mode():
        ids = torch.arange(6).view(2, 3)
        same = alike(answer(ids).logits, right(ids).logits, rtol=1e-3, atol=1e-4)
    stored, wanted = _stored(answer), _stored(right)
    require(
        stored < wanted + 0.01 * _stored(whole),
        "You copied the numbers of block 0, and each copy has bytes of its own, which are read again. Let the other "
        "blocks hold the *same* matrices: assign them, don't copy."
        if same
        else f"{stored:,} bytes are left; with the matrices of one block it is {wanted:,}. An attention has four of "
        "them (q, k, v, o) and an MLP three.",
    )
    require(same, "Its logits aren't those of a Llama whose blocks all use the matrices of block 0.")


def _requests_at_once(
    memory, weights, tokens, layers, removed, heads, kv_heads, head_size, stored, *, both=2, way=math.floor
):
    """The answer to exercise 4; ``both`` stands for keys and values."""
    return way((memory - weights) / (both * stored * (layers - removed) * kv_heads * head_size * tokens))


def _stored_in(size, *sizes):
    """A mistaken answer to exercise 4: so many bytes for each number, whatever ``stored`` says."""
    *rest, _ = sizes
    return _requests_at_once(*rest, size)


@exercise(
    4,
    task="Return how many requests fit into the memory at once, a whole number.",
    proved="What the weights leave, in whole requests: fewer attentions or fewer bits make each of them smaller.",
    answer=_requests_at_once,
    mistakes=[
        (lambda *sizes: _requests_at_once(*sizes) + 1,
         "you rounded up. A request that fits by half isn't served: round down."),
        (partial(_requests_at_once, way=float), "requests come whole: round down."),
        (lambda memory, _, *rest: _requests_at_once(memory, 0, *rest),
         "the weights are missing: they take their part of the memory first."),
        (partial(_requests_at_once, both=1), "keys or values are missing: a token leaves both in each layer."),
        (partial(_stored_in, 2), "a number hasn't always two bytes: `stored` says how many."),
        (partial(_stored_in, 1), "`stored` says how many bytes a number has."),
        (lambda memory, weights, tokens, layers, removed, heads, _, *rest: _requests_at_once(
            memory, weights, tokens, layers, removed, heads, heads, *rest),
         "those are the query heads. Kept are keys and values, and several query heads share one of each."),
        (lambda memory, weights, tokens, layers, _, *rest: _requests_at_once(memory, weights, tokens, layers, 0, *rest),
         "a removed attention keeps no keys and no values: take it off the layers."),
        (lambda memory, weights, tokens, layers, removed, *rest: _requests_at_once(
            memory, weights, tokens, removed or layers, 0, *rest),
         "those are the layers whose attention is gone. The others keep a cache."),
    ],
)  # fmt: skip
def check_requests(attempt: Attempt) -> None:
    """Check a function (memory, weights, tokens, layers, removed, heads, kv_heads, size, stored) -> requests."""
    for sizes in (
        (900_000_000, 269_030_016, 1024, 30, 0, 9, 3, 64, 34 / 32),
        (900_000_000, 269_030_016, 1024, 30, 0, 9, 3, 64, 2),
        (22_000_000_000, 16_060_522_496, 8192, 32, 8, 32, 8, 128, 1),
        (5_000_000, 1_000_000, 100, 5, 1, 4, 4, 8, 2),
        (1_000_000, 999_000, 100, 4, 0, 4, 2, 8, 2),  # none
    ):
        where = (
            f"{sizes[0] / 1e6:,.0f} MB, weights of {sizes[1] / 1e6:,.0f} MB, contexts of {sizes[2]:,}, "
            f"{told(sizes[-1])} bytes per number: "
        )
        attempt.compare(*sizes, read=number, same=_same, where=where, hint="Those are requests at once.")


def _step(server, job, offer, requests, *, both=max, price=True, cache=True, faster=True):
    """Seconds in which every request gets its next token."""
    read = offer["weights"] + requests * job["context"] * offer["cache"] * cache
    operations = 2 * offer["parameters"] * requests / (offer["faster"] if faster else 1)
    return offer["layers"] * server["price"] * price + both(read / server["bandwidth"], operations / server["peak"])


def _fitting(server, job, offer):
    return int((server["memory"] - offer["weights"]) // (job["context"] * offer["cache"]))


def _best_offer(server, job, offers, *, patient=True, few=True, rate=None, step=_step, all_or_none=False):
    """The answer to exercise 5, with switches for mistakes."""
    found = []
    for name, offer in offers.items():
        most = _fitting(server, job, offer)
        requests = min(most, job["waiting"]) if few else most
        if all_or_none and step(server, job, offer, requests) > job["limit"]:
            requests = 0
        while patient and requests > 0 and step(server, job, offer, requests) > job["limit"]:
            requests -= 1
        if requests > 0:
            seconds = step(server, job, offer, requests)
            found.append((rate(requests, seconds) if rate else requests / seconds, name, requests))
    best, name, requests = max(found, default=(0.0, next(iter(offers)), 0))  # nobody is served
    return name, requests, best


def _sheet(draw: Random) -> tuple[dict, dict, dict]:
    """A server, a job and some offers that nothing has used."""
    layers = draw.choice([24, 32, 40])
    parameters = draw.uniform(1.8e8, 2.9e8) * layers
    cache = 4 * layers * draw.choice([1024, 2048, 4096])
    context, fewer, narrow = draw.choice([512, 2048, 8192]), draw.randint(2, layers // 4), draw.uniform(0.1, 0.3)
    # Weights, bytes of each, layers, cache, and how many times as fast operations run.
    offers = {
        f"{fewer} blocks fewer": (1 - fewer / layers, 2, layers - fewer, 1 - fewer / layers, 1),
        f"{2 * fewer} attentions fewer": (1 - 0.36 * fewer / layers, 2, layers, 1 - 2 * fewer / layers, 1),
        f"MLPs {narrow:.0%} narrower": (1 - 0.7 * narrow, 2, layers, 1, 1),
        "cache in 8 bits": (1, 2, layers, 0.5, 1),
        "weights in 8 bits": (1, 1.0625, layers, 1, 0.7),  # unpacked, then multiplied in 16 bits
        "weights and activations in 8 bits": (1, 1, layers, 1, 2),
    }
    offered = {}
    for name in draw.sample([*offers], 4):
        share, size, left, kept, faster = offers[name]
        weights = {"parameters": share * parameters, "weights": share * parameters * size}
        offered[name] = weights | {"layers": left, "cache": kept * cache, "faster": faster}
    server = {
        "memory": 2.2 * parameters + context * cache * draw.uniform(4, 60),
        "bandwidth": draw.uniform(0.5, 3) * 1e12,
        "peak": 10 ** draw.uniform(12.7, 14.7),
        "price": 10 ** draw.uniform(-5.3, -3.3),
    }
    plain = {"parameters": parameters, "weights": 2 * parameters, "layers": layers, "cache": cache, "faster": 1}
    alone = _step(server, {"context": context}, plain, 1)
    job = {"context": context, "waiting": draw.choice([1, 8, 32, 500]), "limit": alone * 10 ** draw.uniform(0, 1)}
    return server, job, offered


def _advice(answer: Any) -> tuple[str, int, float]:
    """The answer of a function for exercise 5, or stop."""
    what = "Return a name, how many requests it serves, and tokens per second"
    expect(answer, (tuple, list), what)
    expect(answer, (tuple, list), what, 3)
    name, requests, rate = answer
    expect(name, str, "The first that you return is the name of an offer")
    return (
        name,
        whole_number(requests, "The second that you return is a number of requests"),
        number(rate, "The third that you return is a number, tokens per second"),
    )


def _same_advice(one: tuple, other: tuple) -> bool:
    return one[:2] == other[:2] and _same(one[2], other[2])


@exercise(
    5,
    task="Return the name of the offer that writes most, for how many requests, and its tokens per second.",
    proved="You advise servers that you have never seen, and count before anybody times anything.",
    answer=_best_offer,
    mistakes=[
        (partial(_best_offer, patient=False, few=False, rate=lambda requests, _: requests),
         "that counts what fits into the memory, and takes requests for tokens per second. Each request makes the step "
         "longer."),
        (partial(_best_offer, patient=False), "its step takes longer than `limit`: serve fewer at once."),
        (partial(_best_offer, few=False), "it serves more requests than are `waiting`."),
        (partial(_best_offer, patient=False, few=False),
         "that counts what fits, and forgets how many are waiting and how long they may wait."),
        (partial(_best_offer, all_or_none=True),
         "you dropped an offer that is too slow with a full memory. With fewer requests its step is shorter, and then "
         "it may be the best."),
        (partial(_best_offer, rate=lambda requests, _: requests),
         "you chose the offer that serves most at once. Its step may be longer: ask for tokens per second."),
        (partial(_best_offer, rate=lambda requests, seconds: 1 / seconds),
         "you chose the shortest step. A step writes a token for every request."),
        (partial(_best_offer, step=partial(_step, both=lambda *both: sum(both))),
         "you added reading and computing. They go on at the same time: the longer of the two counts."),
        (partial(_best_offer, step=partial(_step, price=False)), "the price of the layers is missing from the step."),
        (partial(_best_offer, step=partial(_step, cache=False)),
         "the caches are missing from the step: each request has its own read."),
        (partial(_best_offer, step=partial(_step, faster=False)),
         "`faster` says how many times as fast this offer's operations run."),
    ],
)  # fmt: skip
def check_best_offer(attempt: Attempt) -> None:
    """Check a function (server, job, offers) -> name, requests, tokens per second, on servers that nothing has used."""
    draw = Random()
    sheets = [_sheet(draw) for _ in range(_SHEETS)]
    right = [attempt.answer(*sheet) for sheet in sheets]
    found = [_advice(attempt(*copy.deepcopy(sheet))) for sheet in sheets]  # what is given may be changed
    wrong = [n for n in range(_SHEETS) if not _same_advice(found[n], right[n])]
    if not wrong:
        return
    first, told_of = wrong[0], f"Right on {_SHEETS - len(wrong)} of {_SHEETS} servers"
    for mistaken, sentence in attempt.mistakes:  # one that explains all of them, or else the first
        same = all(_same_advice(mistaken(*sheet), own) for sheet, own in zip(sheets, found, strict=True))
        require(not same, f"{told_of}: {sentence}")
    where = f"{told_of}. On server {first + 1}: "
    attempt.name_mistake(
        found[first], right[first], lambda mistaken: mistaken(*sheets[first]), same=_same_advice, where=where
    )
    (name, count, rate), (own, own_count, own_rate) = right[first], found[first]
    require(
        False,
        f"{where}{name!r} writes most, {rate:,.1f} tokens per second for {count} at once; yours says {own!r}, "
        f"{own_rate:,.1f} for {own_count}.",
    )

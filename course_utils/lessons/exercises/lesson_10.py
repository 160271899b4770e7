"""Checks of lesson 10, what pruning buys: a pass's seconds, a clock, a file's width, requests at once, and a plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from random import Random
from statistics import mean, median

import pandas as pd
from transformers import PreTrainedModel

from course_utils.lessons.exercises import Attempt, alike, exercise, expect, number, require, told, whole_number
from course_utils.measuring.costs import kv_bytes_per_token
from course_utils.models.reports import model_size

_BLOCK, _BYTES_A_BLOCK = 32, 34  # Q8_0
_GONE, _MORE = 0.06, 7 / 4  # exercise 5: the weights that may go at most, and the requests that shall come
_OFF = 0.2  # how far off its prediction may be
_same = partial(alike, rtol=1e-6, atol=0)


def _seconds(
    weights, tokens, layers, fixed, bandwidth, peak, *, size=2, products=2, both=max, paid=lambda layers, tokens: layers
):
    """The answer to exercise 1, with switches for mistakes."""
    return paid(layers, tokens) * fixed + both(size * weights / bandwidth, products * weights * tokens / peak)


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
        (partial(_seconds, size=1), "a weight of 16 bits is two bytes."),
        (partial(_seconds, products=1), "each weight asks for two operations per token, a product and a sum."),
        (lambda weights, tokens, *rest: _seconds(weights, tokens, *rest, size=2 * tokens),
         "the tokens of a pass share one reading of the weights: don't read them for each."),
        (partial(_seconds, paid=lambda layers, tokens: layers * tokens),
         "a layer's price is paid once a pass, not for each token."),
        (partial(_seconds, paid=lambda layers, tokens: 0), "the price of the layers is missing."),
        (lambda *sizes: max(sizes[2] * sizes[3], _seconds(*sizes, paid=lambda layers, tokens: 0)),
         "the price of the layers comes on top: the program pays it before the machine may work."),
        (lambda *sizes: 1000 * _seconds(*sizes), "those are milliseconds; return seconds."),
    ],
)  # fmt: skip
def check_seconds(attempt: Attempt) -> None:
    """Check a function (weights, tokens, layers, fixed, bandwidth, peak) -> seconds of a pass."""
    for sizes in (
        (134_000_000, 1, 30, 0.001, 30e9, 300e9),
        (134_000_000, 128, 30, 0.001, 30e9, 300e9),
        (1_200_000_000, 512, 16, 0.0, 300e9, 65e12),
        (8_000_000_000, 4, 32, 0.00002, 3e12, 900e12),
    ):
        weights, tokens, layers, *_ = sizes
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


def _width_for(hidden: int, blocks: int, others: int, budget: int) -> int:
    """The answer to exercise 3."""
    width = 0
    while _fits(hidden, blocks, others, budget, width + _BLOCK):
        width += _BLOCK
    return width


def _by_room(bytes_a_weight, *, matrices=3, multiple=_BLOCK, less_others=True):
    """A mistaken width: how many neurons of so many bytes fit, rounded down to a multiple."""

    def width(hidden: int, blocks: int, others: int, budget: int) -> int:
        room = (budget - others * less_others) / blocks
        return int(room / (matrices * hidden * bytes_a_weight)) // multiple * multiple

    return width


_Q8 = _BYTES_A_BLOCK / _BLOCK


@exercise(
    3,
    task="Return the largest MLP width whose file in Q8_0 fits into the budget.",
    proved="Whole blocks take 34 bytes for 32 weights; one neuron more can cost a quarter of the MLPs.",
    answer=_width_for,
    mistakes=[
        (_by_room(_Q8, multiple=1),
         "you took the largest width that would fit *if* all rows were stored in blocks. The down-projection's rows "
         "are as long as the MLP is wide: what isn't a multiple of 32 falls back to 2 bytes per weight."),
        (_by_room(1), "each block of 32 weights also stores a scale: 34 bytes, not 32."),
        (_by_room(2), "that is F16: 2 bytes per weight."),
        (lambda *sizes: _width_for(*sizes) + _BLOCK,
         "you rounded up, and the file no longer fits. Round down to a multiple of 32."),
        (_by_room(_Q8, less_others=False), "the other tensors take bytes, too: take `others` off the budget first."),
        (_by_room(_Q8, matrices=1), "a GLU has three matrices: gate, up and down."),
    ],
)  # fmt: skip
def check_width_for(attempt: Attempt) -> None:
    """Check a function (hidden, blocks, others, budget) -> the width to prune to."""
    for hidden, blocks, others, budget in (
        (576, 30, 40_000_000, 120_000_000),
        (2048, 16, 500_000_000, 1_000_000_000),
        (64, 4, 0, 4 * _mlp_bytes(64, 320)),  # exactly full
        (64, 4, 10_000, 10_000 + 4 * _mlp_bytes(64, 320) - 1),  # a byte too few
    ):
        where = f"hidden size {hidden}, {blocks} blocks, {budget:,} bytes: "
        hint = "It is the largest multiple of 32 that fits."
        attempt.compare(hidden, blocks, others, budget, read=whole_number, where=where, hint=hint)


def _requests_at_once(memory, weights, tokens, layers, removed, heads, kv_heads, head_size, *, size=4, way=math.floor):
    """The answer to exercise 4; ``size`` is the bytes of a key's and a value's number."""
    return way((memory - weights) / (size * (layers - removed) * kv_heads * head_size * tokens))


@exercise(
    4,
    task="Return how many requests fit into the memory at once, a whole number.",
    proved="What the weights leave, in whole requests: fewer layers with an attention make each of them smaller.",
    answer=_requests_at_once,
    mistakes=[
        (lambda *sizes: _requests_at_once(*sizes) + 1,
         "you rounded up. A request that fits by half isn't served: round down."),
        (partial(_requests_at_once, way=float), "requests come whole: round down."),
        (lambda memory, _, *rest: _requests_at_once(memory, 0, *rest),
         "the weights are missing: they take their part of the memory first."),
        (partial(_requests_at_once, size=2), "keys or values are missing: a token leaves both in each layer."),
        (partial(_requests_at_once, size=1), "a number has two bytes, and each token leaves keys *and* values."),
        (partial(_requests_at_once, size=8), "a number has two bytes here, not four."),
        (lambda memory, weights, tokens, layers, removed, heads, _, size: _requests_at_once(
            memory, weights, tokens, layers, removed, heads, heads, size),
         "those are the query heads. Kept are keys and values, and several query heads share one of each."),
        (lambda memory, weights, tokens, layers, _, *rest: _requests_at_once(memory, weights, tokens, layers, 0, *rest),
         "a removed attention keeps no keys and no values: take it off the layers."),
        (lambda memory, weights, tokens, layers, removed, *rest: _requests_at_once(
            memory, weights, tokens, removed or layers, 0, *rest),
         "those are the layers whose attention is gone. The others keep a cache."),
    ],
)  # fmt: skip
def check_requests(attempt: Attempt) -> None:
    """Check a function (memory, weights, tokens, layers, removed, heads, kv_heads, head_size) -> requests at once."""
    for sizes in (
        (400_000_000, 269_030_016, 1024, 30, 0, 9, 3, 64),
        (22_000_000_000, 16_060_522_496, 8192, 32, 8, 32, 8, 128),
        (5_000_000, 1_000_000, 100, 5, 1, 4, 4, 8),
        (1_000_000, 999_000, 100, 4, 0, 4, 2, 8),  # none
    ):
        where = f"{sizes[0] / 1e6:,.0f} MB, weights of {sizes[1] / 1e6:,.0f} MB, contexts of {sizes[2]:,}: "
        attempt.compare(*sizes, read=number, same=_same, where=where, hint="Those are requests at once.")


@exercise(
    5,
    task="Hand over your cut, the ratio that you predict, and the frame of `time_interleaved`.",
    proved="More requests from few weights, and you knew beforehand how much faster they are served.",
)
def check_plan(
    cut: PreTrainedModel, predicted: float, timed: pd.DataFrame, base: PreTrainedModel, memory: float, context: int
) -> None:
    """Check a plan for a full server: a cut of ``base``, tokens per second × the whole's as predicted, and as timed."""
    expect(cut, PreTrainedModel, "`cut` is a model")
    gone = 1 - model_size(cut).bytes / model_size(base).bytes
    before, after = (_requests(model, memory, context) for model in (base, cut))
    require(
        kv_bytes_per_token(cut) < kv_bytes_per_token(base),
        "Your cut keeps as much cache per token as the whole model. Which parts keep keys and values and weigh little?",
    )
    may = f"{gone:.1%} of the weights are gone, and {_GONE:.0%} may go."
    require(gone <= _GONE, f"{may} What keeps much cache for few weights?")
    require(
        after >= _MORE * before,
        f"It serves {after} requests where the whole model serves {before}; {math.ceil(_MORE * before)} are asked for. "
        + (may if gone > 0 else "No weight is gone: does `remove=True` take them out for good?"),
    )
    predicted = number(predicted, "`predicted` is one number, how many times as many tokens per second")
    require(
        isinstance(timed, pd.DataFrame) and {"ratio", "ci_low", "ci_high"} <= {*timed.columns} and len(timed) == 2,
        "`timed` is what `time_interleaved` returns for two calls, the whole model's first and your cut's second.",
    )
    low, high = (after / before / float(timed[end].iloc[1]) for end in ("ci_high", "ci_low"))
    measured = f"Measured were × {low:.2f} to × {high:.2f} tokens per second, predicted × {predicted:.2f}"
    # Upside down, or a step's time in place of tokens: what the measurement would hold then.
    for other, mistake in (
        (1 / predicted, "that is the whole model's in terms of the cut's: turn it round."),
        (predicted * after / before, "that is the speed of a step. Each step writes a token for every request."),
    ):
        off = not _touches(predicted, low, high)
        require(not (off and _touches(other, low, high)), f"{measured}: {mistake}")
    require(
        _touches(predicted, low, high),
        f"{measured}: over {_OFF:.0%} off. Which part of a step's time do all requests share, and which not?",
    )


def _touches(predicted: float, low: float, high: float) -> bool:
    """Whether an interval reaches into what a prediction allows."""
    return low <= (1 + _OFF) * predicted and high >= (1 - _OFF) * predicted


def _requests(model: PreTrainedModel, memory: float, context: int) -> int:
    return int((memory - model_size(model).bytes) // (context * kv_bytes_per_token(model)))


def _mlp_bytes(hidden: int, width: int) -> int:
    """Bytes of a GLU's three matrices in Q8_0; rows that aren't a multiple of 32 fall back to F16."""

    def matrix(rows: int, length: int) -> int:
        return rows * (length // _BLOCK * _BYTES_A_BLOCK if length % _BLOCK == 0 else 2 * length)

    return 2 * matrix(width, hidden) + matrix(hidden, width)


def _fits(hidden: int, blocks: int, others: int, budget: int, width: int) -> bool:
    return others + blocks * _mlp_bytes(hidden, width) <= budget

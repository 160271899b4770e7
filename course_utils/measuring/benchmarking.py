"""What a pruned model costs and buys: seconds and memory, measured beside what ``costs`` counts from shapes.

Speeds are compared side by side in one run, never across runs or machines: the contestants take turns, and what is
reported is the median ratio with an interval.
"""

from __future__ import annotations

import contextlib
import gc
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any, cast

import pandas as pd
import torch
from scipy.stats import quantile_test
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_iter
from tqdm import tqdm
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from course_utils.measuring.costs import PHASES, speedup_estimate, work
from course_utils.models.architectures import describe
from course_utils.support import checks
from course_utils.support.checks import check_types
from course_utils.support.ledger import Ledger
from course_utils.support.uncertainty import CONFIDENCE

MIN_ROUNDS = 6  # with fewer, the lowest and the highest sample enclose the median less than 95 % of the time


@check_types
def time_interleaved(calls: Mapping[str, Callable[[], object]], *, rounds: int = 11) -> pd.DataFrame:
    """Time calls that take turns, so that a busy or slowing machine touches all of them alike.

    Every other round runs in reverse order (A B C, C B A, …), which cancels a steady drift. The garbage collector
    rests while the clock runs, and an accelerator has finished before it is read.

    Args:
        calls: name -> function without arguments; the first one is what the others are compared with.
        rounds: timed runs of each, after one that doesn't count; at least 6, the fewest that give a 95 % interval.

    Returns:
        One row per call: name; seconds (median); ratio, the median over rounds of its time divided by the first one's
        in the same round (2 is twice as slow); ci_low and ci_high of that median (``median_interval``).

    Raises:
        ValueError: nothing to time, or too few rounds.
    """

    def timed(call: Callable[[], object]) -> Callable[[], dict[str, float]]:
        def lap() -> dict[str, float]:
            with stopwatch() as seconds:
                call()
            return {"call": seconds()}

        return lap

    samples = take_turns({name: timed(call) for name, call in calls.items()}, rounds=rounds)
    laps = {name: [lap["call"] for lap in rows] for name, rows in samples.items()}
    first = next(iter(laps.values()))
    return pd.DataFrame(
        {"name": name, "seconds": median(seconds)} | _summary("ratio", _ratios(seconds, first))
        for name, seconds in laps.items()
    )


@check_types
@torch.no_grad()
def measure_speed(
    models: Mapping[str, PreTrainedModel],
    *,
    prompt_tokens: int = 128,
    new_tokens: int = 32,
    batch_size: int = 1,
    rounds: int = 7,
    phases: Sequence[str] = PHASES,
) -> pd.DataFrame:
    """Tokens per second of reading a prompt (prefill) and of generating (decode), each beside its estimate.

    In each round every model reads the same random prompts and then generates exactly ``new_tokens`` tokens, one by
    one from its cache, whatever they are: an end token doesn't stop it, so all models do the same number of steps.

    Args:
        models: name -> model in eval mode; the first one is what the others are compared with.
        prompt_tokens: tokens of each prompt, at least 1.
        new_tokens: tokens generated after each prompt, at least 1.
        batch_size: prompts that run at once, at least 1.
        rounds: timed runs of each, at least 6, after one that doesn't count; the models take turns as in
            ``time_interleaved``.
        phases: what to time, "prefill", "decode" or both. Without "prefill" the prompts aren't read: the cache is
            filled with one token's keys and values, repeated. A step then costs what it costs behind real prompts, so
            long contexts in large batches can be timed in little time.

    Returns:
        A row for each model and phase: model, phase ("prefill" or "decode"), seconds (median over rounds; for prefill
        this is the time to the first token) with seconds_low and seconds_high (95 %), tokens_per_second (of the whole
        batch), speedup over the first model (median over rounds) with ci_low and ci_high (95 %), and estimate
        (``costs.speedup_estimate``, with the cache at its mean length). A speed-up above the estimate comes from what
        the estimate leaves out, a framework's fixed cost per layer above all; one that no such cost explains is a
        measuring mistake (a cold start, other lengths). One far below it is a finding too: odd sizes, or time spent on
        something other than the weights.

    Raises:
        ValueError: no models, one in training mode, a size below 1, more positions than a model has, too few rounds,
            no phase or an unknown one.
    """
    sizes = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "batch_size": batch_size}
    first = next(iter(checks.not_empty("models", models).values()))
    estimates = {
        name: {
            phase: speedup_estimate(work(first, phase, **sizes), work(model, phase, **sizes))
            for phase in checks.strings("phases", phases)
        }
        for name, model in models.items()
    }
    for name, model in models.items():
        if model.training:
            raise ValueError(f"Model {name!r} is in training mode: call .eval() first.")
        positions = getattr(model.config, "max_position_embeddings", math.inf)
        if prompt_tokens + new_tokens > positions:
            raise ValueError(
                f"prompt_tokens + new_tokens is {prompt_tokens + new_tokens}, but model {name!r} has {positions} "
                "positions; ask for fewer."
            )
    vocab_size = min(describe(model).vocab_size for model in models.values())
    prompt = torch.randint(vocab_size, (batch_size, prompt_tokens), generator=torch.Generator().manual_seed(0))

    def lap(model: PreTrainedModel) -> Callable[[], dict[str, float]]:
        ids = prompt.to(model.device)
        return lambda: _generate(model, ids, new_tokens, read="prefill" in phases)

    samples = take_turns({name: lap(model) for name, model in models.items()}, rounds=rounds)
    tokens = {"prefill": batch_size * prompt_tokens, "decode": batch_size * new_tokens}
    return speed_frame(samples, {phase: tokens[phase] for phase in phases}, estimates)


@check_types
def speed_frame(
    samples: Mapping[str, Sequence[Mapping[str, float]]],
    tokens: Mapping[str, int],
    estimates: Mapping[str, Mapping[str, float]],
) -> pd.DataFrame:
    """The frame of ``measure_speed`` from what ``take_turns`` measured.

    Args:
        samples: name -> one lap a round, phase -> seconds; the first name is what the others are compared with.
        tokens: phase -> tokens in a lap.
        estimates: name -> phase -> the speed-up to expect.

    Raises:
        ValueError: no samples, or a name without an estimate.
    """
    first, rows = next(iter(checks.not_empty("samples", samples))), []
    if samples.keys() - estimates.keys():
        raise ValueError(f"'estimates' lacks {', '.join(sorted(samples.keys() - estimates.keys()))}.")
    for name, laps in samples.items():
        for phase, count in tokens.items():
            seconds = [lap[phase] for lap in laps]
            ratios = _ratios([lap[phase] for lap in samples[first]], seconds)
            middle, (low, high) = median(seconds), median_interval(seconds)
            rows.append(
                {"model": name, "phase": phase, "seconds": middle, "seconds_low": low, "seconds_high": high}
                | {"tokens_per_second": count / middle}
                | _summary("speedup", ratios)
                | {"estimate": estimates[name][phase]}
            )
    return pd.DataFrame(rows)


@check_types
def peak_memory(call: Callable[[], object], *, device: torch.device | str = "cpu") -> int:
    """Bytes of tensor memory that ``call`` needs at its worst moment, above what was in use at its start.

    On a CPU every tensor that torch makes is noted when it comes and when it goes: exact, and the same number every
    time. (The process's resident memory depends on what the allocator keeps back, and torch's profiler misses the
    freeing of what was there before.) Older memory that is freed makes room, if ``call`` used it: replacing tensors one
    by one by others of the same size costs one tensor. Python objects and scratch buffers inside a single operation
    are not seen. On a GPU torch's allocator keeps the count, scratch buffers included.

    Args:
        call: a function without arguments, run once; on a CPU slower than usual.
        device: whose memory to look at, "cpu" or a CUDA device.

    Raises:
        ValueError: another device.
    """
    device = checks.device(device)
    gc.collect()
    if device.type == "cpu":
        with _Watching() as watching:
            call()
        return watching.ledger.peak
    if device.type != "cuda":
        raise ValueError(f"Memory can be measured on 'cpu' and 'cuda'; got {str(device)!r}.")
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    start = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - start


@check_types
def median_interval(samples: Sequence[float]) -> tuple[float, float]:
    """The narrowest pair of order statistics that encloses the median at least 95 % of the time.

    The number of independent samples below the true median is binomial with p = 1/2, whatever the distribution.

    Raises:
        ValueError: fewer than 6 samples.

    >>> median_interval([6, 1, 5, 2, 4, 3])
    (1.0, 6.0)
    """
    low, high = quantile_test(samples, p=0.5).confidence_interval(CONFIDENCE)
    if math.isnan(low) or math.isnan(high):
        raise ValueError(f"{len(samples)} samples are too few for a 95 % interval of the median; take {MIN_ROUNDS}.")
    return float(low), float(high)


@check_types
def take_turns(laps: Mapping[str, Callable[[], dict[str, float]]], *, rounds: int) -> dict[str, list[dict[str, float]]]:
    """Run every lap once a round, every other round in reverse order.

    Args:
        laps: name -> function that returns phase -> seconds.
        rounds: laps of each, after one that doesn't count; at least 6.

    Returns:
        Name -> what its laps measured, round by round.

    Raises:
        ValueError: nothing to measure, or too few rounds.
    """
    if not laps:
        raise ValueError("Nothing to measure: give at least one named contestant.")
    checks.whole_number("rounds", rounds, least=MIN_ROUNDS)
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in laps}
    gc.collect()
    for turn in tqdm(range(-1, rounds), desc="Timing", unit="round", delay=2, leave=False, file=sys.stderr):
        for name in list(laps)[:: -1 if turn % 2 else 1]:
            with _resting_garbage_collector():
                measured = laps[name]()
            if turn >= 0:
                samples[name].append(measured)
    return samples


def _generate(model: PreTrainedModel, ids: Tensor, new_tokens: int, *, read: bool = True) -> dict[str, float]:
    """Read the prompts [batch, length], or fill the cache as if; then generate greedily from it; seconds by phase."""
    cache = DynamicCache(config=model.config)
    cached = {describe(model).cache_keyword: cache, "use_cache": True}

    def next_token(ids: Tensor) -> Tensor:
        return model(input_ids=ids, logits_to_keep=1, **cached).logits[:, -1:].argmax(dim=-1)

    laps = {}
    if not read and all(type(layer) is DynamicLayer for layer in cache.layers):
        token = next_token(ids[:, :1])
        for layer in cast(list[DynamicLayer], cache.layers):
            layer.keys, layer.values = (
                cast(Tensor, x).repeat(1, 1, ids.shape[1], 1) for x in (layer.keys, layer.values)
            )
    else:  # a sliding window drops what is old, so it has to be filled by reading
        with stopwatch() as prefill:
            token = next_token(ids)
        laps["prefill"] = prefill()
    with stopwatch() as decode:
        for _ in range(new_tokens):
            token = next_token(token)
    return laps | {"decode": decode()}


@contextlib.contextmanager
def stopwatch() -> Iterator[Callable[[], float]]:
    """Hands out a function that tells, after the block, how many seconds it took.

    A CUDA card stamps two events itself; elsewhere the clock is read when all work has finished.
    """
    if torch.cuda.is_available():
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        yield lambda: begin.elapsed_time(end) / 1000  # it counts milliseconds
        end.record()
        end.synchronize()
        return
    marks: list[float] = []

    def mark() -> None:
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        marks.append(time.perf_counter())

    mark()
    yield lambda: marks[1] - marks[0]
    mark()


@contextlib.contextmanager
def _resting_garbage_collector() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


_STORAGE: Any = UntypedStorage  # a method of it is exchanged for a while


class _Watching(TorchDispatchMode):
    """Enters each CPU storage that an operation meets or makes; its ledger's ``peak`` is the most above the start."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()

    def __enter__(self) -> _Watching:
        self._resize = resize = UntypedStorage.resize_

        def noted(storage: UntypedStorage, size: int) -> None:
            resize(storage, size)
            self.ledger.resized(storage)

        _STORAGE.resize_ = noted  # no operation: what is cut up among processes comes together in place
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        _STORAGE.resize_ = self._resize  # torch's, or that of a measurement around this one

    def __torch_dispatch__(
        self, function: Callable, types: object, args: tuple = (), kwargs: dict[str, object] | None = None
    ) -> object:
        for tensor in _cpu_tensors((args, kwargs)):
            self.ledger.was_there(tensor)
        result = function(*args, **kwargs or {})
        for tensor in _cpu_tensors(result):
            self.ledger.come(tensor)
        return result


def _cpu_tensors(values: object) -> Iterator[Tensor]:
    for tensor in tree_iter(values):
        if is_traceable_wrapper_subclass(tensor):  # a part of a tensor that is cut up
            yield from _cpu_tensors([getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]])
        elif isinstance(tensor, Tensor) and tensor.device.type == "cpu" and tensor.layout == torch.strided:
            yield tensor


def _ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(numerators, denominators, strict=True)]


def _summary(name: str, samples: Sequence[float]) -> dict[str, float]:
    low, high = median_interval(samples)
    return {name: median(samples), "ci_low": low, "ci_high": high}

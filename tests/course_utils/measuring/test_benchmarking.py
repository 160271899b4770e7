"""Clocks are checked against one that the test winds, memory against tensors of known size."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tiny import FAMILIES, tiny_model

from course_utils.measuring import benchmarking
from course_utils.measuring.benchmarking import (
    measure_speed,
    median_interval,
    peak_memory,
    speed_frame,
    time_interleaved,
)
from course_utils.measuring.costs import speedup_estimate, work
from course_utils.models.architectures import describe
from course_utils.pruning.attention import bypass_attention
from course_utils.pruning.width import neuron_importance, prune_neurons
from course_utils.support import checks


class Clock:
    """Stands in for ``time``: each named job moves it by its own number of seconds."""

    def __init__(self, monkeypatch):
        self.now, self.log = 0.0, []
        monkeypatch.setattr(benchmarking, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def job(self, name, seconds):
        def run():
            self.log.append(name)
            self.now += seconds(self.now) if callable(seconds) else seconds

        return run


def test_contestants_take_turns_and_warm_ups_do_not_count(monkeypatch):
    clock, cold = Clock(monkeypatch), iter([100.0])
    jobs = {"a": clock.job("a", 2), "b": clock.job("b", lambda _: next(cold, 3)), "c": clock.job("c", 1)}
    table = time_interleaved(jobs, rounds=6)
    assert "".join(clock.log) == "cba" + "abccba" * 3
    assert table.name.tolist() == ["a", "b", "c"]
    assert table.seconds.tolist() == [2, 3, 1]
    assert table.ratio.tolist() == table.ci_low.tolist() == table.ci_high.tolist() == [1, 1.5, 0.5]


def test_a_machine_that_slows_down_does_not_favour_the_first(monkeypatch):
    clock = Clock(monkeypatch)
    slowing = {name: clock.job(name, lambda now: 1 + now / 100) for name in "ab"}
    table = time_interleaved(slowing, rounds=20)
    assert table.ratio[1] == pytest.approx(1, abs=1e-3)


def test_the_interval_is_the_exact_binomial_one():
    assert median_interval([6, 1, 5, 2, 4, 3]) == (1, 6)  # misses in 2 of 64 cases
    assert median_interval(range(1, 12)) == (2, 10)  # 2 x 12 in 2048; one further in, 2 x 67, would be 6.5 %
    infinity = float("inf")
    assert median_interval([0, 1, 1, 1, 2, 3, 3, 3, 3, infinity, infinity]) == (1, infinity)
    with pytest.raises(ValueError, match="5 samples are too few"):
        median_interval(range(5))


def test_every_model_generates_the_asked_number_of_tokens_from_its_cache():
    model, seen = tiny_model(), []
    model.generation_config.eos_token_id = list(range(97))  # any token ends a text, if anyone looks
    model.register_forward_pre_hook(
        lambda _m, _args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    measure_speed({"m": model}, prompt_tokens=5, new_tokens=3, batch_size=2, rounds=6)
    assert seen == [(2, 5), (2, 1), (2, 1), (2, 1)] * 7


@pytest.mark.parametrize("family", FAMILIES)
def test_generating_is_greedy_decoding(family):
    model, ids = tiny_model(family), torch.arange(3, 9)[None]
    fed = []
    hook = model.register_forward_pre_hook(lambda _m, _args, kwargs: fed.append(kwargs["input_ids"]), with_kwargs=True)
    with torch.no_grad():
        benchmarking._generate(model, ids, 12)
    hook.remove()
    expected = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        min_new_tokens=12,
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=None,
    )
    assert torch.equal(torch.cat(fed, dim=1), expected)


def test_speed_table_has_speedups_beside_estimates():
    base, pruned = tiny_model(), tiny_model()
    prune_neurons(pruned, neuron_importance(pruned, "l1"), ratio=0.5)
    table = measure_speed({"base": base, "pruned": pruned}, prompt_tokens=8, new_tokens=2, rounds=6)
    assert table[["model", "phase"]].values.tolist() == [
        ["base", "prefill"], ["base", "decode"], ["pruned", "prefill"], ["pruned", "decode"],
    ]  # fmt: skip
    assert table.speedup[:2].tolist() == table.estimate[:2].tolist() == [1, 1]
    assert (table.ci_low <= table.speedup).all() and (table.speedup <= table.ci_high).all()
    assert (table.tokens_per_second > 0).all()
    for row in table[2:].itertuples():
        before, after = (
            work(model, row.phase, prompt_tokens=8, new_tokens=2, batch_size=1) for model in (base, pruned)
        )
        assert row.estimate == speedup_estimate(before, after) > 1
    assert (table.seconds * table.tokens_per_second).tolist() == pytest.approx([8, 2] * 2)


def test_a_model_that_needs_half_the_time_is_twice_as_fast():
    laps = {name: [{"decode": seconds}] * 6 for name, seconds in (("base", 2.0), ("pruned", 1.0))}
    table = speed_frame(laps, {"decode": 4}, {name: {"decode": 1.5} for name in laps})
    assert table[["seconds", "tokens_per_second", "speedup", "ci_low", "ci_high"]].values.tolist() == [
        [2, 2, 1, 1, 1], [1, 4, 2, 2, 2],
    ]  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_alone_meets_a_cache_of_the_same_length_without_reading(family):
    model, seen, asked = tiny_model(family), [], {"prompt_tokens": 6, "new_tokens": 2, "batch_size": 2}
    keyword = describe(model).cache_keyword

    def look(_model, _args, kwargs):
        seen.append((tuple(kwargs["input_ids"].shape), kwargs[keyword].get_seq_length()))

    model.register_forward_pre_hook(look, with_kwargs=True)
    table = measure_speed({"m": model}, **asked, rounds=6, phases=["decode"])
    assert table.phase.tolist() == ["decode"]
    first, *steps = seen[:3]
    windows = family in ("qwen2", "gemma2", "gemma3_text")  # what a window has dropped can't be made up
    assert first == ((2, 6 if windows else 1), 0)
    assert steps == [((2, 1), 6), ((2, 1), 7)]


@pytest.mark.parametrize("remove", [False, True])
def test_decoding_alone_works_without_some_attentions(remove):
    model = tiny_model()
    bypass_attention(model, [0, 2], remove=remove)
    models = {"whole": tiny_model(), "bypassed": model}
    table = measure_speed(models, prompt_tokens=5, new_tokens=2, rounds=6, phases=["decode"])
    assert (table.seconds > 0).all() and table.estimate[1] > 1


class FakeEvent:
    """A CUDA event on a clock of its own, in milliseconds; it refuses to be read before the card has got there."""

    now, log = 0.0, []

    def __init__(self, enable_timing=False):
        assert enable_timing
        self.at, self.reached = None, False

    def record(self):
        self.at = FakeEvent.now
        FakeEvent.log.append("record")

    def synchronize(self):
        self.reached = True

    def elapsed_time(self, end):
        assert end.reached, "read before the card had finished"
        return end.at - self.at


def test_a_cuda_card_stamps_events_itself(monkeypatch):
    """No card is at hand here: the calls are those of torch.cuda, the card is made up."""
    FakeEvent.now, FakeEvent.log = 0.0, []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: FakeEvent.log.append("finish earlier work"))

    def kernel():
        FakeEvent.now += 250.0

    with benchmarking.stopwatch() as seconds:
        kernel()
    assert seconds() == 0.25
    assert FakeEvent.log == ["finish earlier work", "record", "record"]


def test_peak_memory_on_a_card_is_its_allocators_peak_above_the_start(monkeypatch):
    calls = []
    for name, value in {"memory_allocated": 1000, "max_memory_allocated": 4500}.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, name=name, value=value: calls.append(name) or value)
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda device, name=name: calls.append(name))
    monkeypatch.setattr(checks, "device", torch.device)  # as if there were one
    assert peak_memory(lambda: calls.append("call"), device="cuda") == 3500
    assert calls == [
        "synchronize", "reset_peak_memory_stats", "memory_allocated", "call", "synchronize", "max_memory_allocated",
    ]  # fmt: skip


def test_speed_refuses_a_model_in_training_mode_and_one_without_room():
    with pytest.raises(ValueError, match=r"call \.eval\(\)"):
        measure_speed({"m": tiny_model().train()})
    with pytest.raises(ValueError, match="is 160, but model 'm' has .* positions; ask for fewer"):
        measure_speed({"m": tiny_model(max_position_embeddings=100)})


MEGABYTE = torch.zeros(250_000)


def test_peak_memory_is_exact_and_repeats():
    def call():
        first = MEGABYTE + 1
        second = first * 2  # two at a time
        del first
        third = second[:100]  # a view is free
        return third + second[:100].double()  # 400 and 800 bytes, then 800 for the sum

    assert peak_memory(call) == peak_memory(call) == 2_000_000


def test_peak_memory_sees_a_storage_grow_in_place_also_inside_another_measurement():
    def call():
        tensor = torch.zeros(10)
        tensor.untyped_storage().resize_(4000)

    inside, own = [], torch.UntypedStorage.resize_
    assert peak_memory(lambda: inside.append(peak_memory(call))) == 4000
    assert inside == [4000] and peak_memory(call) == 4000
    assert torch.UntypedStorage.resize_ is own


def test_peak_memory_sees_what_autograd_keeps():
    def chain(requires_grad):
        value = MEGABYTE.clone().requires_grad_(requires_grad)
        for _ in range(5):
            value = value.sin()

    assert peak_memory(lambda: chain(False)) == 2_000_000
    assert peak_memory(lambda: chain(True)) == 6_000_000


def test_memory_that_is_given_back_makes_room():
    tensors = [MEGABYTE.clone() for _ in range(5)]

    def replace():
        for i in range(5):
            tensors[i] = tensors[i] * 2

    assert peak_memory(replace) == 1_000_000


def test_pruning_needs_one_blocks_memory():
    model = tiny_model()
    one_block = describe(model).mlps[0].width * 3 * 32 * 4
    assert peak_memory(lambda: prune_neurons(model, neuron_importance(model, "l2"), ratio=0.25)) <= one_block

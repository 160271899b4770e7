"""``variant`` beside ``copy.deepcopy``: what a second model costs before it is cut, and whether cutting it is the same.

Embedded SmolLM2-135M in float32, one thread, on a CUDA card where there is one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from statistics import median

import torch
from transformers import PreTrainedModel

from benchmarks.common import Finding, Question, device, markdown_table, mib, ratio, take_turns, with_range
from course_utils.benchmarking import peak_memory
from course_utils.models import identity, load_model, variant
from course_utils.width import neuron_importance, prune_neurons

RATIO, ROUNDS = 0.2, 11
TIME_BAR, MEMORY_BAR = 0.2, 0.01
DEEP, OURS = "copy.deepcopy", "variant"
WAYS: dict[str, Callable[[PreTrainedModel], PreTrainedModel]] = {DEEP: copy.deepcopy, OURS: variant}


def cut(model: PreTrainedModel) -> PreTrainedModel:
    prune_neurons(model, neuron_importance(model, "peak_to_peak"), ratio=RATIO)
    return model


def measure(data: dict) -> None:
    model, _ = load_model("llama", device=device())
    model = copy.deepcopy(model)  # the loaded weights are a mapped file, which is slower to read the first time
    before = identity(model)
    kept: list[PreTrainedModel] = []  # what a call makes must live until the peak is read

    def keep(call: Callable[[], PreTrainedModel]) -> Callable[[], None]:
        return lambda: kept.append(call())

    data["laps"] = take_turns({name: lambda make=make: make(model) for name, make in WAYS.items()}, rounds=ROUNDS)
    data["peak_bytes"], data["peak_bytes_cut"] = {}, {}
    for name, make in WAYS.items():
        data["peak_bytes"][name] = peak_memory(keep(lambda make=make: make(model)), device=model.device)
        data["peak_bytes_cut"][name] = peak_memory(keep(lambda make=make: cut(make(model))), device=model.device)
    ids = torch.arange(1, 65, device=model.device)[None]
    with torch.no_grad():
        data["same_logits"] = torch.equal(*(cut(make(model))(ids).logits for make in WAYS.values()))
    data["original_untouched"] = identity(model) == before
    data["model_bytes"] = sum(weight.numel() * weight.element_size() for weight in model.parameters())


def report(data: dict) -> str:
    rows = [
        [
            name,
            f"{1000 * median(data['laps'][name]):.1f}",
            "1" if name == DEEP else with_range(ratio(data["laps"][name], data["laps"][DEEP]), 3),
            mib(data["peak_bytes"][name]),
            mib(data["peak_bytes_cut"][name]),
        ]
        for name in WAYS
    ]
    header = ["way", "ms", "× deepcopy (95 %)", "peak extra MiB", f"peak extra MiB, then {RATIO:.0%} of the width cut"]
    logits = "The two cut models give the same logits, bit for bit" if data["same_logits"] else "THE LOGITS DIFFER"
    original = "unchanged, bit for bit" if data["original_untouched"] else "CHANGED"
    return f"""Model: the embedded SmolLM2-135M in float32, {mib(data["model_bytes"])} MiB.

{markdown_table(header, rows)}

Median of {ROUNDS} rounds in which the two took turns. Extra memory is tensor memory above the loaded model at the worst
moment. {logits}; the original is {original} after both. A cut
variant holds its own smaller matrices and shares the rest; the original keeps the large ones, so both models together
need more than one.
"""


def findings(data: dict) -> list[Finding]:
    time = ratio(data["laps"][OURS], data["laps"][DEEP])
    memory = data["peak_bytes"][OURS] / data["peak_bytes"][DEEP]
    same = data["same_logits"] and data["original_untouched"]
    return [
        Finding(
            "time of a second model, × deepcopy, same cut model",
            with_range(time, 3),
            f"≤ {TIME_BAR}",
            time[0] <= TIME_BAR and same,
        ),
        Finding("its memory, × deepcopy", f"{memory:.4f}", f"≤ {MEMORY_BAR}", memory <= MEMORY_BAR),
    ]


QUESTION = Question("variant", "What does a second model cost?", 1, measure, report, findings, threads=1)

if __name__ == "__main__":
    QUESTION.ask()

"""How the cost of pruning grows with the size of the model: four random models up to 1.2 billion parameters.

Their shapes are as of Llama 3.2, with 19 blocks each, in the machine's fast 16-bit type where it has one. Each size is
measured in one go and kept; a run that was cut off goes on with the next size. The largest takes 2.4 GB, and as much
again while it is cut. Growth is told as a slope on logarithmic axes, beside the slope of what counting leads to expect.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np
import psutil
import seaborn as sns
import torch
from matplotlib.figure import Figure
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.common import Finding, Question, markdown_table, with_range
from course_utils.measuring import peak_memory, perplexity
from course_utils.measuring.benchmarking import MIN_ROUNDS, median_interval, stopwatch, take_turns
from course_utils.measuring.costs import flops_per_token
from course_utils.models import describe, variant
from course_utils.pruning import block_importance, neuron_importance, prune_neurons
from course_utils.support.session import default_device, fast_dtype

HIDDEN = (512, 768, 1280, 2048)
BLOCKS, VOCABULARY = 19, 32_768
ROWS, LENGTH, RATIO = 2, 128, 0.2
CUT, ACTIVATION = "width: score and cut", "width: activation criterion"
DEPTH, READ = "depth: block importance", "perplexity"
AXIS = "parameters in blocks"
SLACK = 0.15  # a measured slope may differ so much from the counted one


def random_model(hidden: int) -> PreTrainedModel:
    """A random Llama, on the card where there is one.

    Raises:
        SystemExit: it doesn't fit what memory is free.
    """
    device, config = default_device(), LlamaConfig(
        hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=BLOCKS, num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 256, vocab_size=VOCABULARY, tie_word_embeddings=True,
    )  # fmt: skip
    dtype = fast_dtype(device)
    needed = 2 * dtype.itemsize * (BLOCKS * 14.5 * hidden**2 + VOCABULARY * hidden)
    if device.type == "cpu" and psutil.virtual_memory().available < 1.2 * needed:
        raise SystemExit(
            f"A model with hidden size {hidden} needs {needed / 1e9:.1f} GB, more than is free."
            " Smaller ones are kept: close other programs and run this again."
        )
    torch.manual_seed(0)
    with torch.device(device):
        return LlamaForCausalLM._from_config(config, dtype=dtype).eval()


def one_size(hidden: int) -> dict[str, Any]:
    """Seconds of each method in each round, bytes that a cut needs, and what counting leads to expect."""
    model = random_model(hidden)
    architecture = describe(model)
    ids = torch.randint(VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0)).to(model.device)
    batches = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}]

    def cut(model: PreTrainedModel) -> None:
        prune_neurons(model, neuron_importance(model, "peak_to_peak"), ratio=RATIO)

    def lap(call: Callable[[], object]) -> dict[str, float]:
        with stopwatch() as seconds:
            call()
        return {"seconds": seconds()}

    fresh = [variant(model) for _ in range(MIN_ROUNDS + 1)]  # made beforehand: only the cut is timed
    calls: dict[str, Callable[[], object]] = {
        CUT: lambda: cut(fresh.pop()),
        ACTIVATION: lambda: neuron_importance(model, "activation", batches=batches),
        DEPTH: lambda: block_importance(model, batches),
        READ: lambda: perplexity(model, ids),
    }
    laps = take_turns({name: lambda call=call: lap(call) for name, call in calls.items()}, rounds=MIN_ROUNDS)
    twin = variant(model)
    backbone = flops_per_token(model, LENGTH) - 2 * architecture.head.weight.numel()
    return {
        "laps": {name: [each["seconds"] for each in rounds] for name, rounds in laps.items()},
        "peak_bytes": {CUT: peak_memory(lambda: cut(twin), device=model.device)},
        "block_bytes": sum(w.numel() * w.element_size() for w in architecture.blocks[0].parameters()),
        "parameters": model.num_parameters(),
        "in_blocks": sum(w.numel() for w in architecture.blocks.parameters()),
        "counted": {
            CUT: sum(row.numel() for mlp in architecture.mlps for row in (*mlp.rows, mlp.columns)),
            ACTIVATION: ROWS * LENGTH * backbone,
            DEPTH: ROWS * LENGTH * backbone,
            READ: ROWS * LENGTH * flops_per_token(model, LENGTH),
        },
    }


def measure(data: dict) -> None:
    """Measure the sizes that are missing."""
    data["dtype"] = str(fast_dtype(default_device())).removeprefix("torch.")
    for hidden in HIDDEN:
        if str(hidden) not in data:
            data[str(hidden)] = one_size(hidden)


def curves(data: dict) -> list[dict[str, Any]]:
    """One a method: its name and unit, the sizes, what was measured in each round, and what counting expects."""
    points = [data[str(hidden)] for hidden in HIDDEN]
    sizes = [point["in_blocks"] for point in points]
    found: list[dict[str, Any]] = [
        {"name": name, "unit": "seconds", "sizes": sizes, "rounds": [point["laps"][name] for point in points],
         "counted": [point["counted"][name] for point in points]}
        for name in (CUT, ACTIVATION, DEPTH, READ)
    ]  # fmt: skip
    peaks = [[point["peak_bytes"][CUT] / 2**20] for point in points]
    counted = [point["block_bytes"] for point in points]
    return [*found, {"name": CUT, "unit": "MiB", "sizes": sizes, "rounds": peaks, "counted": counted}]


def slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Of the straight line through points on logarithmic axes: 1 where double the size takes double the value."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def measured_slope(curve: dict) -> tuple[float, float, float]:
    """The median of the rounds' slopes with its 95 % interval; without one where a number was counted once."""
    slopes = [slope(curve["sizes"], values) for values in zip(*curve["rounds"], strict=True)]
    return (median(slopes), *(median_interval(slopes) if len(slopes) > 1 else slopes * 2))


def report(data: dict) -> str:
    """The sizes, a table of slopes, and how to read it."""
    points, rows = [data[str(hidden)] for hidden in HIDDEN], []
    sizes = ", ".join(f"{point['in_blocks'] / 1e6:,.0f}" for point in points)
    for each in curves(data):
        measured = measured_slope(each)
        middles = ", ".join(f"{median(values):.3g}" for values in each["rounds"])
        text = f"{measured[0]:.2f}" if measured[1] == measured[2] else with_range(measured)
        rows.append([each["name"], each["unit"], middles, text, f"{slope(each['sizes'], each['counted']):.2f}"])
    return f"""Random models in {data["dtype"]}: hidden sizes {", ".join(map(str, HIDDEN))}; {BLOCKS} blocks;
{sizes} million parameters in blocks, {points[-1]["parameters"] / 1e9:.2f} billion in all of the largest.

{markdown_table(["what", "unit", "at each size", "slope (95 %)", "counted slope"], rows)}

A slope of 1 on logarithmic axes: twice the parameters, twice the cost. **counted**: the slope of what is to be done:
the MLPs' weights that scoring reads; the operations of a forward pass over {ROWS} × {LENGTH} tokens (without the head
where no logits are needed); one block's bytes for the memory of a cut, which replaces one block after the other.
Seconds: median of {MIN_ROUNDS} rounds; the interval is that of the rounds' slopes. Sizes ran one after the other.
"""


def findings(data: dict) -> list[Finding]:
    """A line a curve: does its cost grow no faster than what is to be done?"""
    found = []
    for each in curves(data):
        measured, counted = measured_slope(each)[0], slope(each["sizes"], each["counted"])
        what = f"{each['name']}: {each['unit']} against {AXIS}, slope"
        found.append(Finding(what, f"{measured:.2f}", f"≤ {counted:.2f} + {SLACK}", measured <= counted + SLACK))
    return found


def figure(data: dict) -> Figure:
    """Points with their ranges; dashed, what counting leads to expect, through the middle of the points."""
    drawn, colours, every = Figure(figsize=(13, 5)), sns.color_palette("colorblind"), curves(data)
    for ax, unit in zip(drawn.subplots(1, 2), ("seconds", "MiB"), strict=True):
        for number, each in enumerate(of_unit for of_unit in every if of_unit["unit"] == unit):
            middle = np.array([median(values) for values in each["rounds"]])
            ends = np.array([[m - min(v), max(v) - m] for m, v in zip(middle, each["rounds"], strict=True)]).T
            counted = np.array(each["counted"])
            label = f"{each['name']}: {measured_slope(each)[0]:.2f} (counted {slope(each['sizes'], counted):.2f})"
            ax.errorbar(each["sizes"], middle, ends, marker="osD^"[number], color=colours[number], label=label)
            scaled = counted * np.exp(np.mean(np.log(middle) - np.log(counted)))
            ax.plot(each["sizes"], scaled, "--", color=colours[number], alpha=0.7)
        ax.set(xscale="log", yscale="log", xlabel=AXIS, ylabel=unit if unit == "seconds" else f"peak extra {unit}")
        ax.grid(visible=True, which="both", alpha=0.3)
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.13)}
        ax.legend(title="slopes, measured; dashed: as counted", fontsize="small", **below)
    return drawn


QUESTION = Question(
    "scaling", "How does the cost of pruning grow with the model?", 6, measure, report, findings, figure=figure
)

if __name__ == "__main__":
    QUESTION.ask()

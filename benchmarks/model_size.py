"""How the cost of pruning grows with the size of the model: four random models up to 1.2 billion parameters.

Shapes as of Llama 3.2, 19 blocks each, in the machine's fast 16-bit type where it has one. Each size is measured in one
go and kept; a run that was cut off goes on with the next size. The largest takes 2.4 GB, and as much again while it is
cut.
"""

from __future__ import annotations

from collections.abc import Callable

import psutil
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.common import Finding, Question, device, take_turns
from benchmarks.scaling import curve, draw, slope_findings, slope_table
from course_utils.architectures import describe
from course_utils.benchmarking import MIN_ROUNDS, flops_per_token, peak_memory
from course_utils.depth import block_importance
from course_utils.evaluation import perplexity
from course_utils.models import variant
from course_utils.session import fast_dtype
from course_utils.width import neuron_importance, prune_neurons

HIDDEN = (512, 768, 1280, 2048)
BLOCKS, VOCABULARY = 19, 32_768
ROWS, LENGTH, RATIO = 2, 128, 0.2
CUT, ACTIVATION, DEPTH, READ = (
    "width: score and cut",
    "width: activation criterion",
    "depth: block importance",
    "perplexity",
)
AXIS = "parameters in blocks"


def random_model(hidden: int) -> PreTrainedModel:
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=BLOCKS, num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 256, vocab_size=VOCABULARY, tie_word_embeddings=True,
    )  # fmt: skip
    dtype = fast_dtype(device())
    needed = 2 * dtype.itemsize * (BLOCKS * 14.5 * hidden**2 + VOCABULARY * hidden)
    if device().type == "cpu" and psutil.virtual_memory().available < 1.2 * needed:
        raise SystemExit(
            f"A model with hidden size {hidden} needs {needed / 1e9:.1f} GB, more than is free."
            " Smaller ones are kept: close other programs and run this again."
        )
    torch.manual_seed(0)
    with torch.device(device()):
        return LlamaForCausalLM._from_config(config, dtype=dtype).eval()


def one_size(hidden: int) -> dict:
    model = random_model(hidden)
    architecture = describe(model)
    ids = torch.randint(VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0)).to(model.device)
    batches = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}]

    def cut(model: PreTrainedModel) -> None:
        prune_neurons(model, neuron_importance(model, "peak_to_peak"), ratio=RATIO)

    fresh = [variant(model) for _ in range(MIN_ROUNDS + 1)]  # made beforehand: only the cut is timed
    calls: dict[str, Callable[[], object]] = {
        CUT: lambda: cut(fresh.pop()),
        ACTIVATION: lambda: neuron_importance(model, "activation", batches=batches),
        DEPTH: lambda: block_importance(model, batches),
        READ: lambda: perplexity(model, ids),
    }
    laps = take_turns(calls, rounds=MIN_ROUNDS)
    twin = variant(model)
    backbone = flops_per_token(model, LENGTH) - 2 * architecture.head.weight.numel()
    return {
        "laps": laps,
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
    data["dtype"] = str(fast_dtype(device())).removeprefix("torch.")
    for hidden in HIDDEN:
        if str(hidden) not in data:
            data[str(hidden)] = one_size(hidden)


def curves(data: dict) -> list[dict]:
    points = [data[str(hidden)] for hidden in HIDDEN]
    sizes = [point["in_blocks"] for point in points]
    found = [
        curve(name, "seconds", sizes, [point["laps"][name] for point in points], [p["counted"][name] for p in points])
        for name in (CUT, ACTIVATION, DEPTH, READ)
    ]
    peaks = [[point["peak_bytes"][CUT] / 2**20] for point in points]
    return [*found, curve(CUT, "MiB", sizes, peaks, [point["block_bytes"] for point in points])]


def report(data: dict) -> str:
    points = [data[str(hidden)] for hidden in HIDDEN]
    sizes = ", ".join(f"{point['in_blocks'] / 1e6:,.0f}" for point in points)
    return f"""Random models in {data["dtype"]}: hidden sizes {", ".join(map(str, HIDDEN))}; {BLOCKS} blocks;
{sizes} million parameters in blocks, {points[-1]["parameters"] / 1e9:.2f} billion in all of the largest.

{slope_table(curves(data), "each size")}

A slope of 1 on logarithmic axes: twice the parameters, twice the cost. **counted**: the slope of what is to be done:
the MLPs' weights that scoring reads; the operations of a forward pass over {ROWS} × {LENGTH} tokens (without the head
where no logits are needed); one block's bytes for the memory of a cut, which replaces one block after the other.
Seconds: median of {MIN_ROUNDS} rounds; the interval is that of the rounds' slopes. Sizes ran one after the other.
"""


def findings(data: dict) -> list[Finding]:
    return slope_findings(curves(data), AXIS)


QUESTION = Question(
    "model_size", "How does the cost of pruning grow with the model?", 6, measure, report, findings,
    figure=lambda data: draw(curves(data), AXIS),
)  # fmt: skip

if __name__ == "__main__":
    QUESTION.ask()

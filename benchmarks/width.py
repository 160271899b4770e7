"""What our own width pruning costs: extra memory in blocks, seconds, and calibration beside plain forward passes.

Runs on the embedded SmolLM2-135M, one thread.
"""

from __future__ import annotations

import copy
from statistics import median

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.common import Finding, Question, markdown_table, seconds
from course_utils.architectures import describe
from course_utils.batches import read_batches
from course_utils.benchmarking import peak_memory, time_interleaved
from course_utils.models import load_model
from course_utils.texts import token_blocks
from course_utils.width import neuron_importance, prune_neurons

RATIO = 0.2
PRUNING_ROUNDS = 7
CALIBRATION = {"tokens": 1024, "length": 256}
CALIBRATION_ROUNDS = 11
PASSES_BAR = 1.15
CRITERION = "activation criterion"


def prune(model: PreTrainedModel) -> None:
    prune_neurons(model, neuron_importance(model, "peak_to_peak"), ratio=RATIO)


def block_memory(model: PreTrainedModel) -> dict:
    """Peak extra memory of scoring and cutting, beside one block's weights."""
    block = sum(p.numel() * p.element_size() for p in describe(model).blocks[0].parameters())
    pruned = copy.deepcopy(model)  # not a variant: the first model would hold the old matrices
    return {"peak_bytes": peak_memory(lambda: prune(pruned)), "block_bytes": block}


def pruning_seconds(model: PreTrainedModel) -> list[float]:
    def once() -> float:
        pruned = copy.deepcopy(model)
        return seconds(lambda: prune(pruned))

    return [once() for _ in range(PRUNING_ROUNDS + 1)][1:]


@torch.no_grad()
def calibration(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[list[dict], dict]:
    """The activation criterion beside forward passes over the same tokens, taking turns; peak memory of each."""
    batches = token_blocks(tokenizer, "calibration", **CALIBRATION).batches(4)
    architecture = describe(model)

    def backbone() -> None:
        for batch in read_batches(batches, vocab_size=architecture.vocab_size, device=model.device):
            architecture.hidden_states(batch)

    def whole_model() -> None:
        for batch in batches:
            model(**batch, use_cache=False)

    calls = {
        "forward passes without head": backbone,
        CRITERION: lambda: neuron_importance(model, "activation", batches=batches),
        "forward passes with head": whole_model,
    }
    table = time_interleaved(calls, rounds=CALIBRATION_ROUNDS)
    return table.to_dict("records"), {name: peak_memory(call) for name, call in calls.items()}


def measure(data: dict) -> None:
    model, tokenizer = load_model("llama", device="cpu")
    passes, passes_memory = calibration(model, tokenizer)
    data |= {"passes": passes, "passes_memory": passes_memory}
    data |= {"memory": block_memory(model), "pruning": pruning_seconds(model)}


def report(data: dict) -> str:
    memory, pruning, passes = data["memory"], data["pruning"], data["passes"]
    one_row = [
        f"{median(pruning):.3f} ({min(pruning):.3f}–{max(pruning):.3f})",
        f"{memory['peak_bytes'] / 2**20:.1f}",
        f"{memory['peak_bytes'] / memory['block_bytes']:.2f}",
    ]
    rows = [
        [
            row["name"],
            f"{row['seconds']:.2f}",
            "1" if row is passes[0] else f"{row['ratio']:.3f} ({row['ci_low']:.3f}–{row['ci_high']:.3f})",
            f"{data['passes_memory'][row['name']] / 2**20:.0f}",
        ]
        for row in passes
    ]
    return f"""Model: the embedded SmolLM2-135M in float32.

## Scoring and cutting, peak-to-peak, {RATIO:.0%}

{markdown_table(["seconds (range)", "peak extra MiB", "in blocks"], [one_row])}

Median of {PRUNING_ROUNDS} runs on fresh copies. Extra memory is tensor
memory above the loaded model, counted exactly, and then in units of one block's weights: no second model is made, and
each old matrix goes before the next one's turn.

## The activation criterion beside plain forward passes over the same {CALIBRATION["tokens"]:,} tokens

{markdown_table(["call", "seconds", "× passes without head (95 %)", "peak extra MiB"], rows)}

Median of {CALIBRATION_ROUNDS} rounds in which the three took turns; the ratio is taken within each round. The
criterion needs no logits, so it leaves out the head, and with it the largest matrix and the largest
tensor: a plain `model(**batch)`, the last line, costs more.
"""


def findings(data: dict) -> list[Finding]:
    blocks = data["memory"]["peak_bytes"] / data["memory"]["block_bytes"]
    passes = next(row["ratio"] for row in data["passes"] if row["name"] == CRITERION)
    return [
        Finding("extra memory of scoring and cutting, in blocks", f"{blocks:.2f}", "≤ 1", blocks <= 1),
        Finding(
            "time of a criterion with data, × forward passes without head",
            f"{passes:.2f}",
            f"≤ {PASSES_BAR}",
            passes <= PASSES_BAR,
        ),
    ]


QUESTION = Question("width", "What does width pruning cost?", 4, measure, report, findings, threads=1)

if __name__ == "__main__":
    QUESTION.ask()

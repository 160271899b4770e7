"""The chunked distillation loss beside the plain one: memory and speed of a training step's two passes.

    python benchmarks/distillation.py

Runs on the embedded SmolLM2-135M. Writes distillation.md and distillation.json beside this file.
"""

from __future__ import annotations

import copy

import torch
from common import machine, markdown_table, today, versions, write_results

from course_utils.architectures import describe
from course_utils.batches import read_batch
from course_utils.benchmarking import peak_memory, time_interleaved
from course_utils.distillation_losses import batch_loss, predicted_positions, token_loss
from course_utils.models import load_model
from course_utils.session import fast_dtype
from course_utils.texts import token_blocks
from course_utils.width import neuron_importance, prune_neurons

ROWS, LENGTH, RATIO, ROUNDS = 4, 512, 0.4, 6
MEMORY_BAR, SPEED_BAR = 0.4, 0.9
PLAIN, OURS = "plain: all logits at once", "batch_loss: in chunks"


def plain_loss(student, teacher, batch) -> torch.Tensor:
    predicted = predicted_positions(batch)
    with torch.no_grad():
        known = teacher(**batch.inputs(), use_cache=False).logits[:, :-1][predicted]
    learned = student(**batch.inputs(), use_cache=False).logits[:, :-1][predicted]
    return token_loss(learned, known, batch.input_ids[:, 1:][predicted]).sum()


def compare() -> tuple[list[dict], str]:
    precision = fast_dtype(torch.device("cpu"))
    teacher, tokenizer = load_model("llama", device="cpu")
    student = copy.deepcopy(teacher)
    prune_neurons(student, neuron_importance(student, "peak_to_peak"), ratio=RATIO)
    blocks = token_blocks(tokenizer, "distillation", tokens=ROWS * LENGTH, length=LENGTH)
    pupil, master = describe(student), describe(teacher)
    batch = read_batch(blocks.batches(ROWS)[0], vocab_size=pupil.vocab_size, device="cpu")
    teacher.requires_grad_(False)
    losses = {
        PLAIN: lambda: plain_loss(student, teacher, batch),
        OURS: lambda: batch_loss(pupil, master, batch),
    }

    def both_passes(loss):
        def call() -> None:
            student.zero_grad(set_to_none=True)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision is torch.bfloat16):
                value = loss()
            (value / (ROWS * (LENGTH - 1))).backward()

        return call

    calls = {name: both_passes(loss) for name, loss in losses.items()}
    gradients = {}
    for name, call in calls.items():
        call()
        gradients[name] = torch.cat([weight.grad.flatten() for weight in student.parameters()])
    gap = float((gradients[OURS] - gradients[PLAIN]).norm() / gradients[PLAIN].norm())
    del gradients
    memory = {name: peak_memory(call) for name, call in calls.items()}
    timed = time_interleaved(calls, rounds=ROUNDS).set_index("name")
    rows = [
        {
            "name": name,
            "peak_bytes": memory[name],
            "tokens_per_second": ROWS * LENGTH / float(timed.seconds[name]),
            "time": [float(timed.loc[name, column]) for column in ("ratio", "ci_low", "ci_high")],
            "gradient_gap": gap if name == OURS else 0.0,
        }
        for name in calls
    ]
    return rows, str(precision).removeprefix("torch.")


def report(rows: list[dict], precision: str) -> str:
    plain, ours = rows
    memory, speed = ours["peak_bytes"] / plain["peak_bytes"], 1 / ours["time"][0]
    table = [
        [
            row["name"],
            f"{row['peak_bytes'] / 2**20:,.0f}",
            f"{row['peak_bytes'] / plain['peak_bytes']:.2f}",
            f"{row['tokens_per_second']:,.0f}",
            f"{1 / row['time'][0]:.2f} ({1 / row['time'][2]:.2f} to {1 / row['time'][1]:.2f})",
        ]
        for row in rows
    ]
    header = ["way", "peak MiB above the models", "× plain", "tokens/s", "speed, × plain (95 %)"]
    return f"""# What a distillation step needs

Written by `python benchmarks/distillation.py` on {today()}: {versions("torch", "transformers")}.
Machine: {machine()}. Teacher: the embedded SmolLM2-135M; student: the same with {RATIO:.0%} of its MLP neurons pruned.
{ROWS} × {LENGTH} tokens, forward KL, weights in float32, matrices multiplied in {precision}.

{markdown_table(header, table)}

Verdict: {memory:.2f} of the plain loss's memory (the bar is {MEMORY_BAR}:
{"met" if memory <= MEMORY_BAR else "NOT met"}) at {speed:.2f} of its speed (the bar is {SPEED_BAR}:
{"met" if speed >= SPEED_BAR else "NOT met"}). The two gradients differ by {ours["gradient_gap"]:.1e} of their length.

Both run teacher and student forward and the student backward, without an optimiser step. The plain loss holds all
logits of both models, in several float32 copies. In chunks, a few hundred tokens' logits exist at a time and their
gradients are taken before the next chunk. Memory is tensor memory above the two loaded models, counted exactly; it
includes the gradients, which both need.
"""


def main() -> None:
    rows, precision = compare()
    write_results("distillation", report(rows, precision), {"rows": rows, "precision": precision, "machine": machine()})


if __name__ == "__main__":
    main()

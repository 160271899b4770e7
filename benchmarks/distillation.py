"""The chunked distillation loss beside the plain one and TRL's: memory and speed of a training step's two passes.

Runs on the embedded SmolLM2-135M; needs the extra "benchmarks".
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.common import Finding, Question, markdown_table
from course_utils.architectures import describe
from course_utils.batches import Batch, read_batch
from course_utils.benchmarking import peak_memory, time_interleaved
from course_utils.distillation.losses import batch_loss, token_loss
from course_utils.models import load_model
from course_utils.session import fast_dtype
from course_utils.texts import token_blocks
from course_utils.width import neuron_importance, prune_neurons

if TYPE_CHECKING:
    from trl.experimental.gkd import GKDTrainer

ROWS, LENGTH, RATIO, ROUNDS = 4, 512, 0.4, 6
MEMORY_BAR, SPEED_BAR = 0.4, 0.9
PLAIN, TRL = "plain: all logits at once", "TRL's GKDTrainer.compute_loss"
OURS, RECOMPUTE = "batch_loss: in chunks", "batch_loss, activations recomputed"


def plain_loss(student: PreTrainedModel, teacher: PreTrainedModel, batch: Batch) -> Tensor:
    predicted = batch.predicted  # [rows, length - 1]
    with torch.no_grad():
        teacher_logits = teacher(**batch.inputs(), use_cache=False).logits[:, :-1][predicted]  # [tokens, vocabulary]
    student_logits = student(**batch.inputs(), use_cache=False).logits[:, :-1][predicted]
    return token_loss(student_logits, teacher_logits, batch.input_ids[:, 1:][predicted]).sum()


def trl_trainer(student: PreTrainedModel, teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> GKDTrainer:
    """Its own data pipeline and loop aren't used: only the loss, on our batch. lmbda=0: no generated text."""
    from trl.experimental.gkd import GKDConfig, GKDTrainer  # here, so that the answer can be read without it

    with tempfile.TemporaryDirectory() as folder:
        settings = GKDConfig(output_dir=folder, lmbda=0.0, beta=0.0, use_cpu=True, report_to="none", bf16=False)
        return GKDTrainer(
            model=student, teacher_model=teacher, args=settings, processing_class=tokenizer,
            train_dataset=Dataset.from_list([{"messages": []}]),
        )  # fmt: skip


def measure(data: dict) -> None:
    precision = fast_dtype(torch.device("cpu"))
    teacher, tokenizer = load_model("llama", device="cpu")
    student = copy.deepcopy(teacher)
    prune_neurons(student, neuron_importance(student, "peak_to_peak"), ratio=RATIO)
    blocks = token_blocks(tokenizer, "distillation", tokens=ROWS * LENGTH, length=LENGTH)
    student_architecture, teacher_architecture = describe(student), describe(teacher)
    batch = read_batch(blocks.batches(ROWS)[0], vocab_size=student_architecture.vocab_size, device="cpu")
    teacher.requires_grad_(False)
    trl = trl_trainer(student, teacher, tokenizer)
    labelled = batch.inputs() | {"labels": batch.input_ids, "attention_mask": torch.ones_like(batch.input_ids)}
    predicted = ROWS * (LENGTH - 1)
    losses = {
        PLAIN: lambda: plain_loss(student, teacher, batch),
        TRL: lambda: trl.compute_loss(student, labelled, num_items_in_batch=predicted) * predicted,
        OURS: lambda: batch_loss(student_architecture, teacher_architecture, batch),
        RECOMPUTE: lambda: batch_loss(student_architecture, teacher_architecture, batch),
    }

    def both_passes(name: str, loss: Callable[[], Tensor]) -> Callable[[], None]:
        def call() -> None:
            student.train()
            if name == RECOMPUTE:
                student.gradient_checkpointing_enable({"use_reentrant": False})
            else:
                student.gradient_checkpointing_disable()
            student.zero_grad(set_to_none=True)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision is torch.bfloat16):
                value = loss()
            (value / predicted).backward()

        return call

    calls = {name: both_passes(name, loss) for name, loss in losses.items()}
    gradients = {}
    for name, call in calls.items():
        call()
        gradients[name] = torch.cat([weight.grad.flatten() for weight in student.parameters()])
    gaps = {name: float((own - gradients[PLAIN]).norm() / gradients[PLAIN].norm()) for name, own in gradients.items()}
    del gradients
    memory = {name: peak_memory(call) for name, call in calls.items()}
    timed = time_interleaved(calls, rounds=ROUNDS).set_index("name")
    data["precision"] = str(precision).removeprefix("torch.")
    data["rows"] = [
        {
            "name": name,
            "peak_bytes": memory[name],
            "tokens_per_second": ROWS * LENGTH / float(timed.seconds[name]),
            "time": [float(timed.loc[name, column]) for column in ("ratio", "ci_low", "ci_high")],
            "gradient_gap": gaps[name],
        }
        for name in calls
    ]


def report(data: dict) -> str:
    rows, plain = data["rows"], data["rows"][0]
    table = [
        [
            row["name"],
            f"{row['peak_bytes'] / 2**20:,.0f}",
            f"{row['peak_bytes'] / plain['peak_bytes']:.2f}",
            f"{row['tokens_per_second']:,.0f}",
            f"{1 / row['time'][0]:.2f} ({1 / row['time'][2]:.2f} to {1 / row['time'][1]:.2f})",
            f"{row['gradient_gap']:.0e}",
        ]
        for row in rows
    ]
    header = ["way", "peak MiB above the models", "× plain", "tokens/s", "speed, × plain (95 %)", "gradient's gap"]
    return f"""Teacher: the embedded SmolLM2-135M; student: the same with {RATIO:.0%} of its MLP neurons pruned.
{ROWS} × {LENGTH} tokens, forward KL, weights in float32, matrices multiplied in {data["precision"]}.

{markdown_table(header, table)}

All run teacher and student forward and the student backward, without an optimiser step. The plain loss holds all
logits of both models, in several float32 copies. In chunks, a few hundred tokens' logits exist at a time and their
gradients are taken before the next chunk. Memory is tensor memory above the two loaded models, counted exactly; it
includes the gradients, which all need. The gap is the length of the gradients' difference from the plain ones, as a
share of theirs. TRL's trainer is asked for its loss only; how it feeds and logs isn't part of the time.
"""


def reached(row: dict, plain: dict) -> tuple[float, float]:
    """Memory and speed, × the plain loss."""
    return row["peak_bytes"] / plain["peak_bytes"], 1 / row["time"][0]


def findings(data: dict) -> list[Finding]:
    plain, found = next(row for row in data["rows"] if row["name"] == PLAIN), []
    for name, words in ((OURS, "in chunks"), (RECOMPUTE, "activations recomputed as well")):
        memory, speed = reached(next(row for row in data["rows"] if row["name"] == name), plain)
        found += [
            Finding(f"memory of a step, {words}, × plain", f"{memory:.2f}", f"≤ {MEMORY_BAR}", memory <= MEMORY_BAR),
            Finding("its speed, × plain", f"{speed:.2f}", f"≥ {SPEED_BAR}", speed >= SPEED_BAR),
        ]
    return found


QUESTION = Question(
    "distillation", "What does a distillation step need?", 12, measure, report, findings, packages=("trl",)
)

if __name__ == "__main__":
    QUESTION.ask()

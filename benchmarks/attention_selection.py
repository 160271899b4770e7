"""Iterative attention selection beside a naive re-run: same answer, how much of the time, how much memory.

Runs on the embedded SmolLM2-135M, one thread, or on a CUDA card.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel

from benchmarks.common import Finding, Question, device, markdown_table, seconds
from course_utils.architectures import describe
from course_utils.attention import bypass_attention, select_attention_layers
from course_utils.benchmarking import peak_memory
from course_utils.influence import entering, leaving
from course_utils.models import load_model
from course_utils.session import fast_dtype
from course_utils.texts import token_blocks

COUNT = 8
TOKENS, LENGTH, BATCH = 1536, 128, 4
BAR = 0.4
NAIVE, OURS = "naive: the whole model with its head, every time", "select_attention_layers"


@torch.no_grad()
def naive_scores(model: PreTrainedModel, batches: list[dict]) -> Tensor:
    """Every attention's importance from a whole forward pass, head included; no padding in these batches."""
    architecture, entered = describe(model), {}
    sums, tokens = torch.zeros(architecture.num_blocks, dtype=torch.float64), 0

    def enter(number: int) -> Callable:
        return lambda _module, args, kwargs: entered.__setitem__(number, entering(args, kwargs))

    def leave(number: int) -> Callable:
        def hook(_module: nn.Module, _args: tuple, output: Tensor | tuple) -> None:
            x = entered[number]
            cosines = cosine_similarity(x.float(), (x + leaving(output)).float(), dim=-1)
            sums[number] += (1 - cosines).double().sum()

        return hook

    hooks = [b.register_forward_pre_hook(enter(i), with_kwargs=True) for i, b in enumerate(architecture.blocks)]
    hooks += [a.contribution.register_forward_hook(leave(i)) for i, a in enumerate(architecture.attentions)]
    for batch in batches:
        model(**batch, use_cache=False)
        tokens += batch["input_ids"].numel()
    for hook in hooks:
        hook.remove()
    return sums / tokens


def naive_selection(model: PreTrainedModel, batches: list[dict]) -> list[int]:
    chosen: list[int] = []
    for _ in range(COUNT):
        bypass_attention(model, chosen)
        scores = naive_scores(model, batches)
        scores[chosen] = torch.inf
        chosen.append(int(scores.argmin()))
    bypass_attention(model, [])
    return chosen


def compare(model: PreTrainedModel, batches: list[dict]) -> list[dict]:
    """Both ways in one run, naive first and last, so that a drift of the machine is seen and averaged out."""
    answers: dict[str, list[int]] = {}
    ways = {
        NAIVE: lambda: naive_selection(model, batches),
        OURS: lambda: select_attention_layers(model, batches, count=COUNT),
    }

    def timed(name: str) -> float:
        def call() -> None:
            answers[name] = ways[name]()

        return seconds(call)

    naive_scores(model, batches)  # warm-up
    laps: dict[str, list[float]] = {NAIVE: [], OURS: []}
    for name in (NAIVE, OURS, OURS, NAIVE):
        laps[name].append(timed(name))
    memory = {name: peak_memory(call, device=model.device) for name, call in ways.items()}
    return [{"name": name, "seconds": laps[name], "answer": answers[name], "peak_bytes": memory[name]} for name in ways]


def measure(data: dict) -> None:
    model, tokenizer = load_model("llama", device=device(), dtype=fast_dtype(device()))
    batches = token_blocks(tokenizer, "calibration", tokens=TOKENS, length=LENGTH).batches(BATCH)
    batches = [{key: value.to(model.device) for key, value in batch.items()} for batch in batches]
    data |= {"rows": compare(model, batches), "dtype": str(model.dtype).removeprefix("torch.")}


def time_ratio(data: dict) -> float:
    naive, ours = data["rows"]
    return sum(ours["seconds"]) / sum(naive["seconds"])


def same_answer(data: dict) -> bool:
    return len({tuple(row["answer"]) for row in data["rows"]}) == 1


def report(data: dict) -> str:
    naive, ours = data["rows"]
    each = [b / a for a, b in zip(naive["seconds"], ours["seconds"], strict=True)]
    same = "the same answer" if same_answer(data) else "ANOTHER ANSWER"
    table = [
        [
            row["name"],
            ", ".join(f"{value:.2f}" for value in row["seconds"]),
            f"{sum(row['seconds']) / sum(naive['seconds']):.2f}",
            f"{row['peak_bytes'] / 2**20:.0f}",
            " ".join(map(str, row["answer"])),
        ]
        for row in data["rows"]
    ]
    return f"""Model: the embedded SmolLM2-135M in {data["dtype"]}; {COUNT} attentions chosen on {TOKENS} tokens.

{markdown_table(["way", "seconds (two runs)", "× naive", "peak extra MiB", "chosen, least important first"], table)}

Verdict: {same}, {time_ratio(data):.2f} of the naive time ({min(each):.2f} and {max(each):.2f} in the two
pairs).

The naive way runs everything again after each removal: all blocks and the head. `select_attention_layers` leaves the
head out, runs only blocks from the last change upwards, and keeps the states that enter the blocks. Those states are
its extra memory, at most 2 GiB. The order of the runs was naive, ours, ours, naive. Extra memory is
tensor memory above the loaded model, counted exactly.
"""


def findings(data: dict) -> list[Finding]:
    value = time_ratio(data)
    met = value <= BAR and same_answer(data)
    return [Finding(f"time of choosing {COUNT} attentions, × naive, same answer", f"{value:.2f}", f"≤ {BAR}", met)]


QUESTION = Question(
    "attention_selection", "What does iterative attention selection cost?", 2, measure, report, findings, threads=1
)

if __name__ == "__main__":
    QUESTION.ask()

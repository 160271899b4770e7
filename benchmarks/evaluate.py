"""``evaluate`` beside stock lm-eval on the same documents: the same answers, how much of the time, how much memory.

Both run lm-eval's own loop on the same tasks; only the model class differs. Stock lm-eval gets the better of two batch
sizes, found in a run of each that doesn't count. Embedded SmolLM2-135M in float32, on a CUDA card where there is one.
"""

from __future__ import annotations

import copy
import functools

import numpy as np
from lm_eval.api.model import LM
from lm_eval.evaluator import evaluate as lm_evaluate
from lm_eval.models.huggingface import HFLM
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.common import (
    Finding,
    Question,
    device,
    markdown_table,
    mib,
    ratio,
    seconds,
    take_turns,
    with_range,
)
from course_utils.benchmark_tasks import MAX_LENGTH, SharedContextLM, build_tasks
from course_utils.benchmarking import MIN_ROUNDS, peak_memory
from course_utils.models import load_model

DOCUMENTS = {"lambada_openai": 40, "arc_easy": 40, "hellaswag": 16}
BARS = {"lambada_openai": 1.3, "arc_easy": 2.0, "hellaswag": 1.8}
BATCH_SIZES = (1, 8)
MEMORY_DOCUMENTS = 8
STOCK, OURS = "stock lm-eval", "evaluate"


def likelihoods(results: dict) -> list[tuple[float, bool]]:
    """The log-likelihood of every answer, and whether it is the greedy one."""
    (samples,) = results["samples"].values()
    return [(float(nats), bool(greedy)) for sample in samples for nats, greedy in sample["filtered_resps"]]


def contest(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> dict:
    tasks, few = build_tasks([name], DOCUMENTS[name]), build_tasks([name], MEMORY_DOCUMENTS)

    def stock(size: int) -> LM:
        return HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=size, max_length=MAX_LENGTH)

    def ours() -> LM:
        return SharedContextLM(model, copy.deepcopy(tokenizer), tqdm(disable=True))

    def run(make: functools.partial | type, tasks: dict = tasks) -> dict:
        return lm_evaluate(make(), {"tasks": tasks}, bootstrap_iters=0)

    sizes = {size: seconds(lambda size=size: run(functools.partial(stock, size))) for size in BATCH_SIZES}
    best = min(sizes, key=sizes.get)
    makers = {STOCK: functools.partial(stock, best), OURS: ours}
    answers = {way: likelihoods(run(make)) for way, make in makers.items()}
    gaps = [abs(a - b) for (a, _), (b, _) in zip(*answers.values(), strict=True)]
    return {
        "batch_size": best,
        "laps": take_turns({way: functools.partial(run, make) for way, make in makers.items()}, rounds=MIN_ROUNDS),
        "answers": len(gaps),
        "largest_gap": max(gaps),
        "largest": max(abs(nats) for nats, _ in answers[STOCK]),
        "same_greedy": all(a == b for (_, a), (_, b) in zip(*answers.values(), strict=True)),
        "peak_bytes": {
            way: peak_memory(functools.partial(run, make, few), device=model.device) for way, make in makers.items()
        },
    }


def measure(data: dict) -> None:
    model, tokenizer = load_model("llama", device=device())
    for name in DOCUMENTS:
        if name not in data:
            data[name] = contest(model, tokenizer, name)


def speedup(of_task: dict) -> tuple[float, float, float]:
    return ratio(of_task["laps"][STOCK], of_task["laps"][OURS])


def report(data: dict) -> str:
    rows = [
        [
            name,
            f"{DOCUMENTS[name]} / {data[name]['answers']}",
            str(data[name]["batch_size"]),
            *(f"{np.median(data[name]['laps'][way]):.2f}" for way in (STOCK, OURS)),
            with_range(speedup(data[name])),
            f"{data[name]['largest_gap']:.0e} of {data[name]['largest']:.0f}",
            "same" if data[name]["same_greedy"] else "DIFFERENT",
            " / ".join(mib(data[name]["peak_bytes"][way]) for way in (STOCK, OURS)),
        ]
        for name in DOCUMENTS
    ]
    header = [
        "task", "documents / answers", "stock batch", "stock, s", "evaluate, s", "speed, × stock (95 %)",
        "largest gap, nats", "greedy", "peak extra MiB, stock / ours",
    ]  # fmt: skip
    return f"""Model: the embedded SmolLM2-135M in float32.

{markdown_table(header, rows)}

Both run the same loop of lm-eval over the same tasks, zero-shot; only the model class differs. Stock lm-eval has the
faster of the batch sizes {" and ".join(map(str, BATCH_SIZES))}, found in one run of each beforehand. Median of
{MIN_ROUNDS} rounds in which the two took turns; the ratio is taken within each round. **gap**: of an answer's
log-likelihood, beside the largest one there is. **greedy**: whether both say of every answer alike that greedy decoding
finds it. **peak extra**: tensor memory above the loaded model on {MEMORY_DOCUMENTS} documents.

Where the time goes: stock lm-eval reads a question once an answer and applies the head to every token. Here answers
stand behind their question in one row, and the head sees only the states that predict an answer's token. LAMBADA has
one answer to a question, so nothing is shared. What is saved is the head, 28.3 of the 134.5 million weights that a
token meets in stock lm-eval, which is 1.27 by arithmetic (134.5 / 106.2), and the mask, which rows padded on the right
don't need.
"""


def findings(data: dict) -> list[Finding]:
    return [
        Finding(
            f"{name}: speed, × stock lm-eval, same answers",
            with_range(speedup(data[name])),
            f"≥ {bar}",
            speedup(data[name])[0] >= bar and data[name]["same_greedy"],
        )
        for name, bar in BARS.items()
    ]


QUESTION = Question(
    "evaluate", "How fast is evaluate beside stock lm-eval?", 5, measure, report, findings, packages=("lm-eval",)
)

if __name__ == "__main__":
    QUESTION.ask()

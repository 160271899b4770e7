"""How the cost of pruning with data grows with the text: more rows of the same length, and longer rows.

Embedded SmolLM2-135M in the machine's fast 16-bit type where it has one. Each number of tokens is kept when measured.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from benchmarks.common import Finding, Question, device, take_turns
from benchmarks.scaling import curve, draw, slope_findings, slope_table
from course_utils.architectures import describe
from course_utils.benchmarking import MIN_ROUNDS, flops_per_token, peak_memory
from course_utils.depth import block_importance
from course_utils.evaluation import perplexity
from course_utils.models import load_model
from course_utils.session import fast_dtype
from course_utils.width import neuron_importance

TOKENS = (512, 1024, 2048, 4096)
LENGTH, BATCH = 128, 4  # of the rows whose number grows
ACTIVATION, DEPTH, READ = "activation criterion, more rows", "block importance, more rows", "perplexity, more rows"
LONGER = "perplexity, one longer row"
AXIS = "tokens"


def one_size(model: PreTrainedModel, tokens: int) -> dict:
    ids = torch.randint(describe(model).vocab_size, (tokens,), generator=torch.Generator().manual_seed(0)).to(
        model.device
    )
    rows, long = ids.view(-1, LENGTH), ids[None]
    batches = [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in rows.split(BATCH)]
    calls: dict[str, Callable[[], object]] = {
        ACTIVATION: lambda: neuron_importance(model, "activation", batches=batches),
        DEPTH: lambda: block_importance(model, batches),
        READ: lambda: perplexity(model, rows, batch_size=BATCH),
        LONGER: lambda: perplexity(model, long),
    }
    return {
        "laps": take_turns(calls, rounds=MIN_ROUNDS),
        "peak_bytes": {name: peak_memory(call, device=model.device) for name, call in calls.items()},
        "flops": {READ: tokens * flops_per_token(model, LENGTH), LONGER: tokens * flops_per_token(model, tokens)},
    }


def measure(data: dict) -> None:
    model, _ = load_model("llama", device=device(), dtype=fast_dtype(device()))
    data["dtype"] = str(model.dtype).removeprefix("torch.")
    for tokens in TOKENS:
        if str(tokens) not in data:
            data[str(tokens)] = one_size(model, tokens)


def curves(data: dict) -> list[dict]:
    points, found = [data[str(tokens)] for tokens in TOKENS], []
    for name in (ACTIVATION, DEPTH, READ, LONGER):
        work = [point["flops"][LONGER if name == LONGER else READ] for point in points]
        found.append(curve(name, "seconds", TOKENS, [point["laps"][name] for point in points], work))
    for name in (ACTIVATION, DEPTH, READ, LONGER):
        held = TOKENS if name == LONGER else [1] * len(TOKENS)  # a batch at a time, however many there are
        peaks = [[point["peak_bytes"][name] / 2**20] for point in points]
        found.append(curve(name, "MiB", TOKENS, peaks, held))
    return found


def report(data: dict) -> str:
    return f"""Model: the embedded SmolLM2-135M in {data["dtype"]}. Rows of {LENGTH} tokens, {BATCH} a batch;
or all tokens in one row.

{slope_table(curves(data), f"{', '.join(f'{tokens:,}' for tokens in TOKENS)} tokens")}

A slope of 1 on logarithmic axes: twice the text, twice the cost; 0: the cost stays. **counted**: the slope of what is
to be done. Seconds follow the operations, of which a longer row needs more a token. Memory follows what must be there
at once: one batch, or one row, and never all logits. Of one longer row only the states grow; the chunk of logits stays
and is most of what is held, so the measured slope lies far below the counted one. Seconds: median of {MIN_ROUNDS}
rounds; the interval is that of their slopes. The numbers of tokens ran one after the other, so a machine that gets
slower or faster meanwhile tilts a slope, and the interval doesn't tell. Peak memory is tensor memory above the loaded
model, counted exactly.
"""


def findings(data: dict) -> list[Finding]:
    return slope_findings(curves(data), AXIS)


QUESTION = Question(
    "tokens", "How does the cost of pruning with data grow with the text?", 5, measure, report, findings,
    figure=lambda data: draw(curves(data), AXIS),
)  # fmt: skip

if __name__ == "__main__":
    QUESTION.ask()

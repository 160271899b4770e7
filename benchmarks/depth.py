"""Depth pruning beside optipfair: the same blocks go, and what they write on average goes with them, or stays.

Of the embedded SmolLM2-135M six of 30 blocks go, a fifth, in three choices. Nothing is timed: to take blocks out of a
list takes no time anywhere. Needs the extra "benchmarks".
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import numpy as np
import torch
from transformers import PreTrainedModel

from benchmarks.common import Finding, Question, markdown_table, with_range
from benchmarks.peers import round_trip
from course_utils.measuring import perplexity
from course_utils.models import load_model
from course_utils.pruning import block_means, remove_blocks
from course_utils.support.uncertainty import ratio_interval
from course_utils.text import judging_rows, token_blocks
from course_utils.text.rows import TokenBlocks

REMOVED = 6
ROWS = 48  # of 64 tokens, that scores and means are taken from
TEXTS = ("speeches", "wiki")
THEIRS, OURS, KEPT = "optipfair", "course_utils", "course_utils, means kept"


def choices(model: PreTrainedModel, batches: list[dict]) -> dict[str, list[int]]:
    """Which six blocks go, by how they were chosen."""
    from optipfair import analyze_layer_importance

    importance = analyze_layer_importance(model, batches, show_progress=False)  # 1 - cosine, as block influence
    total = len(importance)
    return {
        "the last ones, optipfair's own choice": list(range(total - REMOVED, total)),
        "those of least importance, by optipfair's scores": sorted(sorted(importance, key=importance.get)[:REMOVED]),
        "the run of lesson 04": list(range(22, 22 + REMOVED)),
    }


def cuts(blocks: list[int], means: torch.Tensor) -> dict[str, Callable[[PreTrainedModel], object]]:
    """How each contestant takes these blocks out of a model, in place."""
    from optipfair import prune_model

    return {
        THEIRS: lambda model: prune_model(model, pruning_type="DEPTH", layer_indices=blocks, show_progress=False),
        OURS: lambda model: remove_blocks(model, blocks),
        KEPT: lambda model: remove_blocks(model, blocks, means=means),
    }


def judged(model: PreTrainedModel, texts: Mapping[str, TokenBlocks]) -> dict[str, dict]:
    """The nats of each row, and the tokens that it predicts."""
    scores = {text: perplexity(model, texts[text], batch_size=16) for text in TEXTS}
    return {
        text: {"nats": score.row_nll.tolist(), "tokens": score.row_tokens.tolist()} for text, score in scores.items()
    }


def measure(data: dict) -> None:
    torch.set_num_threads(1)
    base, tokenizer = load_model("llama", device="cpu")
    texts = judging_rows(tokenizer)
    batches = token_blocks(tokenizer, "calibration", tokens=32_768, length=64).sample(ROWS, seed=0).batches(8)
    means, ids = block_means(base, batches), texts["speeches"].input_ids[:1]
    if "whole" not in data:
        data["whole"] = {"parameters": base.num_parameters()} | judged(base, texts)
    for choice, blocks in choices(base, batches).items():
        if choice in data:
            continue
        found = {}
        for name, cut in cuts(blocks, means).items():
            model = copy.deepcopy(base)
            cut(model)
            found[name] = {"parameters": model.num_parameters(), "reloads": round_trip(model, ids)}
            found[name] |= judged(model, texts)
        data[choice] = {"blocks": blocks, "cuts": found}


def lost(after: dict, before: dict, text: str) -> tuple[float, float, float]:
    """Nats per token that the first lost to the second on the same rows, with the 95 % interval."""
    nats = np.subtract(after[text]["nats"], before[text]["nats"])
    mean, _, low, high = ratio_interval(nats, np.array(before[text]["tokens"]))
    return mean, low, high


def chosen(data: dict) -> dict[str, dict]:
    """What was measured of each choice of blocks."""
    return {choice: found for choice, found in data.items() if choice not in ("run", "whole")}


def report(data: dict) -> str:
    whole, rows = data["whole"], []
    for choice, found in chosen(data).items():
        for name, cut in found["cuts"].items():
            first = f"{choice}: {', '.join(map(str, found['blocks']))}" if name == THEIRS else ""
            cells = [with_range(lost(cut, whole, text)) for text in TEXTS]
            rows.append([first, name, *cells, f"{cut['parameters']:,}", cut["reloads"]])
    several = [found["cuts"] for found in chosen(data).values()]
    equal = all(each[THEIRS][text] == each[OURS][text] for each in several for text in TEXTS)
    same = "the same, to the last bit" if equal else "not the same"
    header = ["blocks that go", "cut by", "nats lost, speeches", "nats lost, wiki", "parameters", "reloads"]
    return f"""Model: the embedded SmolLM2-135M in float32, 30 blocks, {whole["parameters"]:,} parameters. Six go.

{markdown_table(header, rows)}

How to read it:

- **nats lost** per token beside the whole model, on the {len(whole["speeches"]["nats"])} rows of each text that
  lessons judge by, with the 95 % interval over rows. Guessing would lose about seven.
- **optipfair** and **course_utils** take out the same blocks, and what their models lose is {same}.
- **means kept**: `remove_blocks(…, means=block_means(…))` leaves what the removed blocks add on average in a bias
  of the block below them. The means are read on {ROWS} rows of other speeches. For its biases the model gets
  {parameters_of_biases(data):,} parameters.
- **reloads**: plain `save_pretrained`, plain `from_pretrained`, identical logits.
- **bars**: only that of the last ones was set blind. What the other two choices lose with their means was known
  from earlier runs, on rows of the same draw, before the bars were written.
"""


def parameters_of_biases(data: dict) -> int:
    """Parameters that a model gets for biases."""
    made = next(iter(chosen(data).values()))["cuts"]
    return made[KEPT]["parameters"] - made[OURS]["parameters"]


def findings(data: dict) -> list[Finding]:
    """A line for each choice of blocks and each text."""
    found = []
    for choice, each in chosen(data).items():
        theirs, kept = each["cuts"][THEIRS], each["cuts"][KEPT]
        values = {text: (lost(theirs, data["whole"], text)[0], lost(kept, data["whole"], text)[0]) for text in TEXTS}
        told = ", ".join(f"{kept:.2f} instead of {theirs:.2f} ({text})" for text, (theirs, kept) in values.items())
        less = all(lost(kept, theirs, text)[2] < 0 for text in TEXTS)
        found.append(Finding(f"nats lost, means kept: {choice}", told, "less than optipfair's on both texts", less))
    return found


QUESTION = Question(
    "depth", "How does depth pruning compare with optipfair?", 5, measure, report, findings, packages=("optipfair",)
)

if __name__ == "__main__":
    QUESTION.ask()

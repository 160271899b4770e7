"""What a token takes after two cuts of the same bytes, in PyTorch and in llama.cpp, for lesson 10's first figure.

    python -m experiments.time_cuts

The whole model, the whole model again, a third of the blocks fewer, and MLPs narrower by as many bytes, in turns: a few
tokens behind a short prompt. Needs the extra "engine" and a machine that does nothing else. One minute on two cores.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
import torch
from transformers import PreTrainedModel

from course_utils.measuring import benchmarking
from course_utils.models import describe, load_model, model_size, variant
from course_utils.pruning import prune_neurons, remove_blocks
from course_utils.release import engine, export_gguf
from course_utils.support.files import write_json
from course_utils.support.session import default_device, fast_dtype
from experiments.record import command

ROUNDS = 21
SERVED = {"prompt_tokens": 16, "new_tokens": 8, "rounds": ROUNDS}
MULTIPLE = 32  # of the narrow width, which has a few bytes less than the short model
_NUMBERS = 2**26  # whose sum tells the bandwidth: more than any cache holds


def without_middle_blocks(base: PreTrainedModel, fewer: int) -> PreTrainedModel:
    """A variant with so many blocks fewer; which ones go doesn't matter for its speed, so it is the middle ones."""
    short, first = variant(base), (describe(base).num_blocks - fewer) // 2
    remove_blocks(short, range(first, first + fewer))
    return short


def with_width(base: PreTrainedModel, width: int) -> PreTrainedModel:
    """A variant whose MLPs have so many neurons each; which ones go doesn't matter, so it is the last ones."""
    narrow, architecture = variant(base), describe(base)
    full = architecture.intermediate_sizes[0]
    prune_neurons(narrow, [torch.arange(full, 0.0, -1)] * architecture.num_blocks, ratio=1 - width / full)
    return narrow


def same_bytes(base: PreTrainedModel) -> dict[tuple[str, str], PreTrainedModel]:
    """(Name, part that was cut) -> model: the whole one twice, a third of the blocks fewer, and narrower MLPs."""
    total, full = describe(base).num_blocks, describe(base).intermediate_sizes[0]
    fewer = max(1, total // 3)
    short = without_middle_blocks(base, fewer)
    saved = model_size(base).bytes - model_size(short).bytes
    a_neuron = total * 3 * describe(base).hidden_size * base.dtype.itemsize
    width = max(MULTIPLE, math.floor((full - saved / a_neuron) / MULTIPLE) * MULTIPLE)
    return {
        ("whole", "whole"): base,
        ("whole, again", "whole"): variant(base),
        (f"{total - fewer} of {total} blocks", "blocks"): short,
        (f"MLPs of {width}", "neurons"): with_width(base, width),
    }


def bandwidth() -> float:
    """Bytes that this machine reads a second at its best, by the sum of a long vector."""
    numbers, laps = torch.ones(_NUMBERS), []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        numbers.sum()
        laps.append(time.perf_counter() - start)
    return numbers.nbytes / min(laps)


def rows(program: str, speed: pd.DataFrame, parts: Sequence[str], floors: Sequence[float]) -> Iterator[dict]:
    """A row for each model: milliseconds per token with the 95 % interval of their median, and its floor."""
    decode = speed[speed.phase == "decode"]
    for (_, lap), part, floor in zip(decode.iterrows(), parts, floors, strict=True):
        a_token = lap[["seconds", "seconds_low", "seconds_high"]].astype(float) * 1000 / SERVED["new_tokens"]
        names = ("milliseconds", "low", "high", "floor")
        yield {"program": program, "name": lap["model"], "part": part} | {
            name: round(value, 2) for name, value in zip(names, [*a_token, floor], strict=True)
        }


def main() -> None:
    args = command(__doc__, "token_times").parse_args()
    base, tokenizer = load_model("llama", dtype=fast_dtype(default_device()))
    models = same_bytes(base)
    names, parts = zip(*models, strict=True)
    by_name = dict(zip(names, models.values(), strict=True))
    read = bandwidth()
    floors = [1000 * model_size(model).bytes / read for model in models.values()]
    record = [*rows("PyTorch", benchmarking.measure_speed(by_name, phases=["decode"], **SERVED), parts, floors)]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        files: dict[str, Path] = {}
        for number, (name, model) in enumerate(by_name.items()):
            twice = name == names[1]  # the same file under another name
            files[name] = files[names[0]] if twice else export_gguf(model, tokenizer, Path(folder) / f"{number}.gguf")
        record += rows("llama.cpp", engine.measure_speed(files, **SERVED), parts, floors)
    write_json(args.out, record, indent=1)
    print(pd.DataFrame(record).to_string())


if __name__ == "__main__":
    main()

"""Measure what leaving attentions out does to each of 1,150 prompts, for lesson 06.

    python -m experiments.harm_per_prompt [--count 1000] [--work build/harm]

Model: the embedded Llama in the machine's fast dtype. The prompts of the calibration split choose (the order of the
attentions, the probe's directions); those of the evaluation split judge. Each prompt is measured once with 1, 3, 5 and
8 of the attentions left out. A small part is measured with 19 random orders too, and seconds are taken for a grid of
lengths. Resumable: killed, it goes on from its last chunk of 100 prompts. `--costs` only takes the seconds again, for a
quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from dataclasses import asdict
from pathlib import Path

import numpy as np
import psutil
import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils.adaptive import calibrate
from course_utils.files import replacing, write_json
from course_utils.models import load_model
from course_utils.prompt_harm import (
    ANSWER_TOKENS,
    RANDOM_PROMPTS,
    RECORD,
    Case,
    Measured,
    Record,
    cases,
    harm_at_random,
    measure,
    seconds_by_length,
)
from course_utils.session import fast_dtype

NUMBERS = (1, 3, 5, 8)
CHOOSING, CALIBRATING, CHUNK = 150, 48, 100


def measured(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, chosen: list[Case], order: list[int], file: Path
) -> Measured:
    """One chunk, measured or read again."""
    if not file.exists():
        sets = [order[:number] for number in NUMBERS]
        found = measure(model, tokenizer, [case.text for case in chosen], sets, decide_at=min(order))
        with replacing(file) as place, place.open("wb") as stream:
            np.savez(stream, **asdict(found))
    with np.load(file) as stored:
        return Measured(**stored)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--work", type=Path, default=Path("build/harm"))
    parser.add_argument("--out", type=Path, default=RECORD)
    parser.add_argument("--costs", action="store_true", help="only take the seconds again")
    args = parser.parse_args()

    dtype = fast_dtype(torch.device("cpu"))
    model, tokenizer = load_model("llama", dtype=dtype)
    choosing = cases(tokenizer, "calibration", count=CHOOSING)
    judging = cases(tokenizer, "evaluation", count=args.count)
    texts = [case.text for case in choosing[:CALIBRATING]]
    args.work.mkdir(parents=True, exist_ok=True)
    settled = args.work / "order.npy"
    if not settled.exists():
        config = calibrate(model, tokenizer, texts, left_out=(max(NUMBERS), 0))
        with replacing(settled) as place, place.open("wb") as stream:
            np.save(stream, np.array(config.order))
    order = np.load(settled).tolist()
    print("order:", order, flush=True)

    seconds = args.work / "seconds.json"
    if args.costs:
        seconds.unlink(missing_ok=True)
    parts = []
    for split, prompts in (("choosing", choosing), ("judging", judging)):
        for start in tqdm(range(0, len(prompts), CHUNK), desc=split):
            file = args.work / f"{split}-{start}.npz"
            parts.append(measured(model, tokenizer, prompts[start : start + CHUNK], order, file))
    found = Measured.joined(parts)
    at_random = args.work / "random.json"
    if not at_random.exists():
        write_json(at_random, harm_at_random(model, tokenizer, judging, left_out=NUMBERS[-2], prompts=RANDOM_PROMPTS))
    if not seconds.exists():
        write_json(seconds, seconds_by_length(model, order, numbers=(0, 3, max(NUMBERS))))
    record = Record.of(
        [*choosing, *judging],
        found,
        choosing=len(choosing),
        numbers=NUMBERS,
        seconds=json.loads(seconds.read_text()),
        random_orders=json.loads(at_random.read_text()),
        settings={
            "model": model.config.name_or_path,
            "dtype": str(dtype).removeprefix("torch."),
            "machine": f"{os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB, {platform.system()}",
            "answer_tokens": ANSWER_TOKENS,
            "calibrating": CALIBRATING,
            "order": order,
        },
    )
    record.save(args.out)
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()

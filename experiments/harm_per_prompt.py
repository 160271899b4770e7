"""Measure what leaving attentions out does to each of many prompts, for lesson 06.

    python -m experiments.harm_per_prompt [--work build/harm_per_prompt]

Model: the embedded Llama. 150 prompts of the calibration split choose (the order of the attentions among them), others
of the evaluation split judge: 1,000 in bfloat16; 250 in float32; and 250 in bfloat16 for each of two other draws of all
prompts. Each prompt is measured once with 1, 3, 5 and 8 of the attentions left out. An hour on two cores.
Resumable: killed, it goes on from its last chunk of 250 prompts.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from course_utils.lessons.prompt_harm import Case, Measured, Record, cases, measure, save_records
from course_utils.models import load_model
from course_utils.pruning import calibrate, complexity
from experiments.record import command, kept

RUNS = {("bfloat16", 0): 1000, ("float32", 0): 250, ("bfloat16", 1): 250, ("bfloat16", 2): 250}  # prompts that judge
NUMBERS = (1, 3, 5, 8)
CHOOSING, CALIBRATING, CHUNK = 150, 48, 250


def record_of(dtype: str, seed: int, judging: int, work: Path) -> Record:
    """One record, measured in chunks."""
    model, tokenizer = load_model("llama", dtype=getattr(torch, dtype))
    choose = cases(tokenizer, "calibration", count=CHOOSING, seed=seed)
    judge = cases(tokenizer, "evaluation", count=judging, seed=seed)
    texts = sorted((case.text for case in choose[:CALIBRATING]), key=len)  # alike in length: little is padded
    config = calibrate(model, tokenizer, texts, left_out=(max(NUMBERS), 0))
    order = list(config.order)
    sets = [order[:number] for number in NUMBERS]

    def measured(chunk: list[Case]) -> dict[str, list]:
        found = measure(model, tokenizer, [case.text for case in chunk], sets)
        return {name: values.tolist() for name, values in asdict(found).items()}

    parts = []
    for split, prompts in (("choosing", choose), ("judging", judge)):
        for start in tqdm(range(0, len(prompts), CHUNK), desc=f"{dtype}, seed {seed}, {split}"):
            file = work / f"{dtype}-{seed}-{split}-{start}.json"
            found = kept(file, lambda chunk=prompts[start : start + CHUNK]: measured(chunk))
            parts.append(Measured(**{name: np.array(values) for name, values in found.items()}))
    everyone = [*choose, *judge]
    batches = (tokenizer(case.text, add_special_tokens=False, return_tensors="pt") for case in everyone)
    return Record.of(
        everyone,
        Measured.joined(parts),
        choosing=len(choose),
        numbers=NUMBERS,
        complexity=complexity(model, batches, config).tolist(),
        settings={"model": model.config.name_or_path, "dtype": dtype, "seed": seed, "order": order},
    )


def main() -> None:
    args = command(__doc__, "harm_per_prompt").parse_args()
    save_records([record_of(*run, judging, args.work) for run, judging in RUNS.items()], args.out)
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()

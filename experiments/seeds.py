"""What scripts that repeat an experiment for many seeds share: arguments, resuming, the file that a lesson reads."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from tqdm import tqdm

from course_utils.files import write_text
from course_utils.models import load_model
from course_utils.session import fast_dtype


def run_seeds(
    description: str, one_seed: Callable[..., list[dict]], settings: dict, *, seeds: int, work: str, out: str
) -> list[dict]:
    """Run ``one_seed(seed, model, tokenizer, dtype)`` for seeds 1, 2, … on the embedded Llama; write all their rows.

    Args:
        description: of the command, for --help.
        one_seed: gives the rows of one seed, ready for JSON.
        settings: of the experiment; written beside the rows.
        seeds: default of the command line's --seeds, how many there are.
        work: default of --work, the folder with a JSON file for each seed that is done; with the same settings it is
            not done again.
        out: default of --out, the file with everything.

    Returns:
        The rows, in the order of the seeds.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--work", type=Path, default=Path(work))
    parser.add_argument("--out", type=Path, default=Path(out))
    args = parser.parse_args()

    dtype = fast_dtype(torch.device("cpu"))
    base, tokenizer = load_model("llama", dtype=dtype)
    rows, key = [], hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:8]
    for seed in tqdm(range(1, args.seeds + 1), desc="seeds"):
        done = args.work / f"{seed}-{key}.json"
        if not done.exists():
            write_text(done, json.dumps(one_seed(seed, base, tokenizer, dtype), allow_nan=False))
        rows += json.loads(done.read_text(encoding="utf-8"))
    result = {
        "model": base.config.name_or_path,
        "machine": f"{os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB, {platform.system()}",
        "settings": {"dtype": str(dtype).removeprefix("torch."), **settings},
        "rows": rows,
    }
    write_text(args.out, json.dumps(result, indent=1) + "\n")
    print(f"written to {args.out}")
    return rows

"""``compress`` from a folder of text to a model, and what it foretold of time and memory: two recorded runs.

    python -m experiments.compress_end_to_end [--work build/end_to_end] [--out FILE]

**Real**: the embedded Llama, an instruct model, to four fifths. Its text is a folder with speeches as files and chats
about GSM8K's problems in one ``.jsonl``, from which the command holds out what judges. Recorded are its report and the
minutes it took, a quarter of an hour of two idle cores.

**Rehearsed**: a Llama of Llama-3.2-1B's shape with random weights, on the rehearsals' pretended T4, which counts every
byte that lies on it; LoRA, activations computed twice. Recorded is the most that it held, beside the bytes that the
run had foretold. Ten minutes; 12 GB of main memory and 25 of disk space.

What is done isn't done again. Stopped, the first goes on where it was, without its minutes; the second begins anew,
because the count must have seen all of it. The file is course_utils/data/compressed.json unless given.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

from course_tools.rehearsal.card import T4
from course_tools.rehearsal.pretend_gpu import PretendGPU
from course_tools.rehearsal.shapes import SHAPES, make_checkpoint, tokenizers
from course_utils import command_line
from course_utils.benchmarking import stopwatch
from course_utils.files import write_json, write_text
from course_utils.session import SAMPLES
from course_utils.texts import documents
from experiments.five_kinds import write_chats

MODEL, BUDGET = "llama", ("--budget", "80%")  # the embedded one
REAL = ("--dtype", "bfloat16", "--steps", "160", "--light", "10", "--length", "192", "--multiple-of", "64")
# A search among 12 versions, and few steps: from its second on a training holds all that it ever holds.
REHEARSED = ("--steps", "3", "--light", "2", "--finalists", "2", "--rows", "2", "--length", "128", "--recover", "lora",
             "--recompute", "--multiple-of", "256", "--tensor-parallel", "8")  # fmt: skip
SHAPE = SHAPES["llama"]
ROUNDS = 3  # of timing, which says nothing there
SPARE = 2_000_000_000  # bytes of main memory that a rehearsal leaves alone


def compress(model: str | Path, arguments: Sequence[str], out: Path) -> dict[str, Any]:
    """The command's report, with what was asked for and the minutes, None of a run that goes on."""
    unbroken, told = not out.exists(), io.StringIO()
    with redirect_stdout(told), stopwatch() as seconds:
        status = command_line.main(["compress", str(model), *BUDGET, *arguments, "--out", str(out), "--json"])
    if status:
        raise SystemExit(status)
    report = json.loads(told.getvalue())
    del report["saved"]  # a path
    return {"arguments": [*BUDGET, *arguments], "minutes": round(seconds() / 60, 1) if unbroken else None} | report


def write_text_of_ones_own(folder: Path) -> Path:
    """A folder as somebody might have it: speeches, a file each, and chats in one file."""
    for number, speech in enumerate(documents("speeches", "distillation")):
        write_text(folder / "speeches" / f"{number:04}.txt", speech)
    write_chats(folder / "chats.jsonl")
    return folder


def real(work: Path) -> dict[str, Any]:
    """The report of the real one."""
    folder = write_text_of_ones_own(work / "text")
    report = compress(MODEL, ["--text", str(folder), *REAL], work / "real")
    return report | {"arguments": [*BUDGET, "--text", f"{folder.name}/", *REAL]}


def rehearsed(work: Path) -> dict[str, Any]:
    """Of the report of the large one what its sizes decide, and the most bytes that lay on the card."""
    shutil.rmtree(work / "rehearsed", ignore_errors=True)
    folder = make_checkpoint(SHAPE.llama, work / "models", tokenizers()["llama"])
    with mock.patch.dict(os.environ, {SAMPLES: str(ROUNDS)}), PretendGPU(T4, spare=SPARE) as card:
        report = compress(folder, REHEARSED, work / "rehearsed")
        told = {name: report[name] for name in ("arguments", "parameters", "made")}
        foretold = {name: report["estimate"][name] for name in ("bytes", "parts")}
        return told | {"estimate": foretold, "counted": card.ledger.restart()[0]}


def main() -> None:
    """Make both runs, write them, and say what was foretold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("build/end_to_end"))
    parser.add_argument("--out", type=Path, default=Path("course_utils/data/compressed.json"))
    args = parser.parse_args()
    runs = {}
    for name, run in {"real": real, "rehearsed": rehearsed}.items():
        done = args.work / f"{name}.json"
        if not done.exists():
            write_json(done, run(args.work))
        runs[name] = json.loads(done.read_text(encoding="utf-8"))
    write_json(args.out, runs)
    low, high = (f"{seconds / 60:.0f}" for seconds in runs["real"]["estimate"]["seconds"])
    print(f"{runs['real']['minutes']} minutes ({low} to {high} foretold)")
    run = runs["rehearsed"]
    counted, foretold = (size / 1e9 for size in (run["counted"], run["estimate"]["bytes"]))
    print(f"held {counted:.2f} GB ({foretold:.2f} foretold)")


if __name__ == "__main__":
    main()

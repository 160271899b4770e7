"""Rows of the five kinds of text that the course's small mixture of experts learned, to calibrate on and to judge by.

They lie beside the model as token ids of its tokenizer, written by ``experiments/cut_experts.py``. The rows that
calibrate are of documents that the model learned from; the rows that judge are of documents that it never saw. The
smoke profile's random model has as many tokens and reads the same rows.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from course_utils.support import checks
from course_utils.support.checks import check_types
from course_utils.support.files import replacing
from course_utils.text.rows import TokenBlocks

KINDS = ("speeches", "passages", "scenes", "code", "maths")
FILE = Path(__file__).parents[1] / "data" / "moe" / "rows.safetensors"
LENGTH = 128  # tokens of a row
#: Rows of each kind: calibration's are nine disjoint draws of fifteen; "further" is for a last look.
ROWS = {"calibration": 135, "evaluation": 24, "further": 24}


def kind_rows(split: str) -> dict[str, TokenBlocks]:
    """The rows of each of ``KINDS``, for ``load_model("moe")``.

    Args:
        split: "calibration", 135 rows of 128 tokens; "evaluation", 24 rows, 3,048 predictions per kind; or "further",
            as many rows of other documents, to judge what was chosen by those.
    """
    checks.one_of("split", split, ROWS)
    stored = load_file(FILE)
    return {
        kind: kind_blocks(stored[f"{split}.{kind}"].long(), stored[f"{split}.{kind}.bytes"].long(), kind, split)
        for kind in KINDS
    }


@check_types
def kind_blocks(input_ids: torch.Tensor, num_bytes: torch.Tensor, kind: str, split: str) -> TokenBlocks:
    """Rows of a kind and of one of this module's splits, as ``TokenBlocks`` names them: "further" is held out, too."""
    return TokenBlocks(input_ids, num_bytes, kind, "calibration" if split == "calibration" else "evaluation")


@check_types
def write_kind_rows(path: Path, rows: dict[str, dict[str, TokenBlocks]]) -> None:
    """Write what ``kind_rows`` reads, in 16 bits per number, whole or not at all.

    Args:
        path: the file.
        rows: split -> kind -> rows.
    """
    stored = {}
    for split, kinds in rows.items():
        for kind, blocks in kinds.items():
            stored[f"{split}.{kind}"] = blocks.input_ids.to(torch.int16)
            stored[f"{split}.{kind}.bytes"] = blocks.num_bytes.to(torch.int16)
    with replacing(path) as fresh:
        save_file(stored, fresh)

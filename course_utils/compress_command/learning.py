"""How anything learns in a run of ``compress``: the corrected teacher, finalists and the winner."""

from __future__ import annotations

import argparse
import hashlib
import json
from typing import Any

import torch

from course_utils.distillation import Recipe

RATES = {"all": 2e-4, "mlps": 2e-4, "lora": 2e-3}  # a correction of low rank begins at 0 and may take larger steps
_RANK = 16  # of that correction
LEARNING = {"all": "all weights", "mlps": "the MLPs' weights", "lora": f"a correction of rank {_RANK} (LoRA)"}


def recipe_for(steps: int, args: argparse.Namespace, **changes: Any) -> Recipe:
    """The recipe for so many steps.

    Args:
        steps: how many.
        args: of the command.
        changes: settings of ``Recipe`` that are others for this learner.
    """
    rank = _RANK if args.recover == "lora" else 0
    how = {"mlps_only": args.recover == "mlps", "lora_rank": rank, "recompute": args.recompute}
    usual = {"lr": args.lr, "seed": args.seed, "precision": getattr(torch, args.dtype)}
    return Recipe(steps=steps, **how, **usual | changes)


def folder_name(steps: int, learned: str, args: argparse.Namespace) -> str:
    """Of a folder for so many steps: the number and a digest of all that decides what is learned in them.

    So another wish has a place of its own, and isn't refused in the end for what lies there.

    Args:
        steps: how many.
        learned: stands for the text, as ``Text.key``.
        args: of the command.
    """
    asked = [args.lr, args.accumulate, args.rows, args.length, learned, args.seed, args.recover, args.teacher]
    return f"{steps}-{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:8]}"

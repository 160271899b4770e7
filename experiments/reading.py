"""Rows of text that experiments learn from and are judged on: the same ones every time."""

from __future__ import annotations

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from course_utils.texts import TokenBlocks, overlaps, token_blocks

LENGTH, ROWS, SEED = 256, 4, 0  # tokens of a row, rows of a batch
MIX = {"scenes": 0.5, "speeches": 0.15, "wiki": 0.15, "passages": 0.15, "stories": 0.05}  # shares of the tokens


def some_rows(blocks: TokenBlocks, count: int) -> torch.Tensor:
    """Numbers of rows from all over a split, the same ones every time."""
    return torch.from_numpy(np.random.default_rng(SEED).permutation(len(blocks))[:count])


def training_rows(tokenizer: PreTrainedTokenizerBase, steps: int) -> torch.Tensor:
    """What is learned from, [steps * ROWS, LENGTH]: the domains mixed."""
    wanted, rows = steps * ROWS, []
    for domain, share in MIX.items():
        count = round(share * wanted) + 1
        rows.append(
            token_blocks(tokenizer, "distillation", domain=domain, tokens=count * LENGTH, length=LENGTH).input_ids
        )
    mixed = torch.cat(rows)
    return mixed[torch.randperm(len(mixed), generator=torch.Generator().manual_seed(SEED))][:wanted]


def batches(rows: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """The rows, `ROWS` at a time, as a model takes them."""
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in rows.split(ROWS)]


def clean(blocks: TokenBlocks, tokenizer: PreTrainedTokenizerBase, learned: list[str]) -> torch.Tensor:
    """Which rows share no thirteen words in a row with the training text, bool [rows]."""
    return ~torch.tensor(overlaps(tokenizer.batch_decode(blocks.input_ids), learned))

"""How much a module changes the residual stream: one minus the cosine between before and after."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class CosineDistance:
    """Running mean of ``1 - cos(before, after)`` over the real tokens of many batches."""

    def __init__(self) -> None:
        self._sum, self._tokens = 0.0, 0

    def add(self, before: Tensor, after: Tensor, real: Tensor) -> None:
        """Count one batch in.

        Args:
            before: states [rows, length, hidden] of any dtype.
            after: the same states, changed.
            real: bool [rows, length], True where a token counts.
        """
        # Selected, not multiplied: padded positions may hold NaN.
        before, after = before[real].float(), after[real].float()  # [tokens, hidden]
        self._sum += float((1 - F.cosine_similarity(before, after, dim=-1)).double().sum())
        self._tokens += len(before)

    def mean(self) -> float:
        """From 0 (nothing turned) to 2 (everything turned round), over the tokens so far."""
        return self._sum / self._tokens


def as_scores(meters: list[CosineDistance]) -> Tensor:
    """What the meters found, float32 [len(meters)]."""
    return torch.tensor([meter.mean() for meter in meters])

"""Shapes to time or serve: which blocks or neurons go is no matter there, so it is the middle ones and the last."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from course_utils.architectures import describe
from course_utils.depth import remove_blocks
from course_utils.models import variant
from course_utils.width import prune_neurons


def without_middle_blocks(base: PreTrainedModel, fewer: int) -> PreTrainedModel:
    """A variant with so many blocks fewer."""
    short, first = variant(base), (describe(base).num_blocks - fewer) // 2
    remove_blocks(short, range(first, first + fewer))
    return short


def with_width(base: PreTrainedModel, width: int) -> PreTrainedModel:
    """A variant whose MLPs have so many neurons each."""
    narrow, architecture = variant(base), describe(base)
    full = architecture.intermediate_sizes[0]
    prune_neurons(narrow, [torch.arange(full, 0.0, -1)] * architecture.num_blocks, ratio=1 - width / full)
    return narrow

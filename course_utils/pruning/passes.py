"""One reading of calibration text, from which any number of scores are taken."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from course_utils.models.architectures import Architecture
from course_utils.pruning.hooks import evaluating
from course_utils.text.batches import read_batches


class Reading:
    """A model that reads: what a hook may ask while a batch passes through.

    Attributes:
        architecture: of the model.
        real: bool [rows, length] of the batch that is being read: True where a token is text.
        tokens: real tokens so far, the batch included.
    """

    def __init__(self, architecture: Architecture) -> None:
        self.architecture, self.tokens = architecture, 0
        self.real = torch.empty(0)
        self._padded = False

    def begin(self, real: Tensor) -> None:
        """The next batch, as a mask of its real tokens."""
        self.real, self._padded = real, not bool(real.all())
        self.tokens += int(real.sum())

    def select(self, states: Tensor) -> Tensor:
        """States [rows, length, width], or flat already, at the real tokens alone: [tokens, width]."""
        states = states.flatten(0, -2)
        return states[self.real.flatten()] if self._padded else states


#: Puts its hooks on a model that is about to read; returns them, and what gives the scores when all was read.
Watcher = Callable[[Reading], tuple[list[RemovableHandle], Callable[[], Any]]]


@torch.no_grad()
def read_once(architecture: Architecture, batches: Iterable[Mapping[str, Tensor]], *watchers: Watcher) -> list[Any]:
    """Let a model read all batches once, without its head, while each watcher watches.

    Args:
        architecture: of the model, from ``describe``.
        batches: ``{"input_ids", "attention_mask"}`` mappings.
        watchers: whose scores are wanted.

    Returns:
        What each watcher found, in their order.

    Raises:
        ValueError: empty or malformed batches. The hooks are gone then, too.
    """
    reading = Reading(architecture)
    watched = [watch(reading) for watch in watchers]
    with evaluating(architecture.model, *(hook for hooks, _ in watched for hook in hooks)):
        for batch in read_batches(batches, vocab_size=architecture.vocab_size, device=architecture.model.device):
            reading.begin(batch.real)
            architecture.hidden_states(batch)
    return [finish() for _, finish in watched]

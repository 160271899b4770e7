"""Rows that branch: texts that begin alike share a row, in which their beginning stands, and is computed, once.

Behind the beginning come the endings, and a mask lets each ending see the beginning and itself alone (tree attention:
Miao et al. 2023, SpecInfer, arXiv 2305.09781). Each token gets what it gets when its text runs by itself.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from course_utils.architectures import Architecture
from course_utils.batches import Batch, padded, read_batch
from course_utils.hooks import evaluating

# Whether a model with an attention of this name does as a mask says; asked once.
_obeys: WeakKeyDictionary[PreTrainedModel, dict[str, bool]] = WeakKeyDictionary()


@dataclass(frozen=True)
class BranchingBatch(Batch):
    """A batch in which a token doesn't see all that stands before it in its row.

    Attributes:
        visible: [rows, 1, length, length] in the model's dtype, to be added to the attention's scores: 0 where a token
            (third dimension) sees another one (fourth), the lowest number where it doesn't.
    """

    visible: Tensor

    def inputs(self) -> dict[str, Tensor]:
        """Keyword arguments for a backbone's forward."""
        return {"input_ids": self.input_ids, "attention_mask": self.visible, "position_ids": self.position_ids}


class UnmaskedBatch(Batch):
    """A batch padded on the right, for a model whose tokens see nothing but what stands before them: no mask needed."""

    def inputs(self) -> dict[str, Tensor]:
        """Keyword arguments for a backbone's forward."""
        return {"input_ids": self.input_ids}


class Row:
    """Texts in one row: their common beginning, and then the ending of each.

    Attributes:
        ids: the row's tokens.
        positions: of each token in its own text.
        owner: of each token: 0 for the beginning, k for the ending of text k, counted from 1.
        places: of each text, where its tokens stand in the row.
    """

    def __init__(self, texts: Sequence[Sequence[int]]) -> None:
        start = shared_beginning(*texts)
        self.ids, self.positions = list(texts[0][:start]), list(range(start))
        self.owner = [0] * start
        self.places: list[list[int]] = []
        for number, text in enumerate(texts, start=1):
            self.places.append([*range(start), *range(len(self.ids), len(self.ids) + len(text) - start)])
            self.ids += text[start:]
            self.positions += range(start, len(text))
            self.owner += [number] * (len(text) - start)

    @property
    def branches(self) -> bool:
        """Whether there are two endings, so that the row needs a mask of its own."""
        return len(set(self.owner) - {0}) > 1

    def __len__(self) -> int:
        return len(self.ids)


def shared_beginning(*sequences: Sequence[Hashable]) -> int:
    """How many elements the sequences share at their beginning.

    >>> shared_beginning([1, 2, 3], [1, 2, 4, 3])
    2
    """
    return sum(1 for _ in takewhile(lambda elements: len(set(elements)) == 1, zip(*sequences, strict=False)))


def row_batch(architecture: Architecture, rows: Sequence[Row]) -> Batch:
    """Rows, padded on the right, on the model's device; a ``BranchingBatch`` only where a row branches.

    Otherwise no mask is needed (``UnmaskedBatch``), but by an adaptive model, which decides by a mean over the text.

    Raises:
        ValueError: no rows, or ids outside the vocabulary.
    """
    model = architecture.model
    batch = read_batch(padded([row.ids for row in rows]), vocab_size=architecture.vocab_size, device=model.device)
    if not any(row.branches for row in rows):
        return batch if architecture.adaptive else UnmaskedBatch(**vars(batch))
    positions = _padded([row.positions for row in rows]).to(model.device)
    owner = _padded([row.owner for row in rows], -1).to(
        model.device
    )  # padding sees padding: attention to nothing is NaN
    sees = ((owner[:, None, :] == 0) | (owner[:, None, :] == owner[:, :, None])).tril()  # [rows, length, length]
    visible = torch.zeros(sees.shape, dtype=model.dtype, device=model.device)
    visible.masked_fill_(~sees, torch.finfo(model.dtype).min)
    return BranchingBatch(batch.input_ids, batch.attention_mask, positions, batch.learned, visible[:, None])


def can_branch(architecture: Architecture, length: int) -> bool:
    """Whether a model can be told what a token sees, in texts of at most ``length`` tokens.

    It can't with flash attention, which takes no such mask; with a sliding window shorter than the texts, because one
    mask serves all layers; with a decision for each prompt (``adaptive``), because a row holds several; and where a
    trial shows that it doesn't do what a mask says.
    """
    config = architecture.model.config
    window, attention = getattr(config, "sliding_window", None), config._attn_implementation
    if architecture.adaptive or "flash" in attention or (window is not None and length > window):
        return False
    known = _obeys.setdefault(architecture.model, {})
    if attention not in known:
        known[attention] = _obeys_masks(architecture)
    return known[attention]


@torch.no_grad()
def _obeys_masks(architecture: Architecture) -> bool:
    """Whether two endings in one row get the states that they get alone, to half of the dtype's digits."""
    texts = [[i % architecture.vocab_size for i in ids] for ids in ([1, 2, 3, 4, 5, 6], [1, 2, 3, 7, 8, 9])]
    row, start = Row(texts), shared_beginning(*texts)
    kind = architecture.model.device.type
    # Under autocast torch 2.9 would keep the weights that it casts here, without gradients, for a training step.
    casts = {"dtype": torch.get_autocast_dtype(kind), "enabled": torch.is_autocast_enabled(kind)}
    with evaluating(architecture.model), torch.autocast(kind, **casts, cache_enabled=False):
        (together,) = architecture.hidden_states(row_batch(architecture, [row])).float()  # [tokens, hidden]
        alone = architecture.hidden_states(row_batch(architecture, [Row([text]) for text in texts])).float()
    ends = torch.stack([together[places[start:]] for places in row.places])  # [texts, tokens of an ending, hidden]
    allowed = torch.finfo(architecture.model.dtype).eps ** 0.5
    return bool((ends - alone[:, start:]).norm() <= allowed * alone[:, start:].norm())


def _padded(rows: Sequence[Sequence[int]], value: int = 0) -> Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)

"""The rows in which contrastive pairs run: texts that part only at their ending share a row.

A pleasant and an unpleasant ending follow the same words, so most of what two such texts need is the same, and
``branching`` computes it once. The numbers are those of the texts run one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from course_utils.architectures import Architecture
from course_utils.batches import Batch
from course_utils.bias.alignment import Alignment, align_all
from course_utils.bias.contrastive import Pair
from course_utils.branching import Row, can_branch, row_batch


@dataclass(frozen=True)
class Side:
    """Where the shared tokens behind the spans stand on one side, a or b, of a batch's pairs.

    Attributes:
        at: (rows, positions), int64 [tokens] each: ``states[side.at]`` are the states of each pair's tokens.
        predicting: (rows, positions), int64 [different tokens] each, of the states that predict them. A token that
            several pairs share in one row is here once.
        targets: int64 [different tokens], their ids.
        which: int64 [tokens] on the CPU: the number of each pair's token among the different ones.
    """

    at: tuple[Tensor, Tensor]
    predicting: tuple[Tensor, Tensor]
    targets: Tensor
    which: Tensor


@dataclass(frozen=True)
class PackedPairs:
    """Some pairs, ready to run, and their shared tokens behind the spans, which are the same in a and in b.

    Attributes:
        batch: on the model's device; rows 2k and 2k + 1 hold the texts a and b of a pair, or of several that begin
            alike.
        indices: each pair's place in the caller's list.
        alignments: one a pair.
        pair: int64 [tokens] on the CPU, the pair of each shared token, counted in the batch.
        sides: the same tokens in a and in b.
    """

    batch: Batch
    indices: list[int]
    alignments: list[Alignment]
    pair: Tensor
    sides: tuple[Side, Side]

    @property
    def counts(self) -> Tensor:
        """How many tokens each pair shares behind its span: int64 [pairs] on the CPU."""
        return torch.bincount(self.pair, minlength=len(self.indices))

    def sums(self, values: Tensor) -> Tensor:
        """The sum for each pair of a value a shared token: [tokens] -> [pairs] float64 on the CPU."""
        return torch.zeros(len(self.indices), dtype=torch.float64).index_add_(0, self.pair, values.cpu().double())


def packed_batches(
    architecture: Architecture, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], *, batch_size: int = 16
) -> list[PackedPairs]:
    """Tokenise and align pairs, and lay them out in rows; no special tokens are added.

    Pairs of one template and swap share their rows, unless the model can't be told what a token sees
    (``branching.can_branch``: the first time, a trial runs the model; pack before you watch its activations).

    Args:
        architecture: of the model, from ``describe``.
        tokenizer: the model's, a fast one.
        pairs: at least one.
        batch_size: pairs that run at once.

    Returns:
        The batches, from short to long rows.

    Raises:
        ValueError: no pairs, ``batch_size`` below 1, a pair that can't be aligned, or ids outside the vocabulary.
    """
    alignments = align_all(tokenizer, pairs, batch_size)
    together = [[index] for index in range(len(pairs))]
    longest = max(len(ids) for alignment in alignments for ids in (alignment.ids_a, alignment.ids_b))
    if can_branch(architecture, longest):
        alike: dict[tuple[str, ...], list[int]] = {}
        for index, pair in enumerate(pairs):
            alike.setdefault((pair.axis, pair.template, pair.before, pair.a, pair.b), []).append(index)
        together = [same[i : i + batch_size] for same in alike.values() for i in range(0, len(same), batch_size)]
    groups = sorted((_Group(indices, [alignments[i] for i in indices]) for indices in together), key=len)
    return [_batch(architecture, batch) for batch in _split(groups, batch_size)]


class _Group:
    """Pairs that share their two rows."""

    def __init__(self, indices: list[int], alignments: list[Alignment]) -> None:
        self.indices, self.alignments = indices, alignments
        self.rows = Row([texts.ids_a for texts in alignments]), Row([texts.ids_b for texts in alignments])

    def __len__(self) -> int:
        return max(map(len, self.rows))


def _split(groups: Iterable[_Group], batch_size: int) -> list[list[_Group]]:
    """Groups in their order, ``batch_size`` pairs at a time; a group stays together."""
    batches: list[list[_Group]] = [[]]
    room = batch_size
    for group in groups:
        if len(group.indices) > room:
            batches.append([])
            room = batch_size
        batches[-1].append(group)
        room -= len(group.indices)
    return batches


def _batch(architecture: Architecture, groups: list[_Group]) -> PackedPairs:
    batch = row_batch(architecture, [row for group in groups for row in group.rows])
    alignments = [alignment for group in groups for alignment in group.alignments]
    pair_of_token = [number for number, alignment in enumerate(alignments) for _ in alignment.after]
    return PackedPairs(
        batch=batch,
        indices=[index for group in groups for index in group.indices],
        alignments=alignments,
        pair=torch.tensor(pair_of_token, dtype=torch.long),
        sides=(_side(batch, groups, 0), _side(batch, groups, 1)),
    )


def _side(batch: Batch, groups: list[_Group], side: int) -> Side:
    tokens = [  # of each shared token: its row, its place there, and the place of the token in front of it
        (2 * number + side, places[positions[side]], places[positions[side] - 1])
        for number, group in enumerate(groups)
        for places, alignment in zip(group.rows[side].places, group.alignments, strict=True)
        for positions in alignment.after
    ]
    table = torch.tensor(tokens, dtype=torch.long).view(-1, 3)  # [tokens, 3]
    different, which = table.unique(dim=0, return_inverse=True)
    device = batch.input_ids.device
    rows, at, before = (numbers.to(device) for numbers in different.T)
    return Side(
        at=(table[:, 0].to(device), table[:, 1].to(device)),
        predicting=(rows, before),
        targets=batch.input_ids[rows, at],
        which=which,
    )

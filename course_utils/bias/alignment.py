"""Alignment: which tokens the two texts of a contrastive pair share, and batches of such pairs.

States of two texts can be compared only where both hold the same token of the same text. Which tokens those are is
read off character offsets, because another word in the middle may move all that follow, or cut its neighbours anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TypedDict

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from course_utils.bias.contrastive import Pair


@dataclass(frozen=True)
class Alignment:
    """Where the two texts of a pair share their tokens. Positions count from 0 in ``ids_a`` and ``ids_b``.

    Attributes:
        ids_a, ids_b: the token ids of the two texts, without special tokens.
        before: (position in a, position in b) of the shared tokens in front of the swapped span. A row's first token
            is never among them: its state is an outlier.
        after: the same behind the span.
        swapped: for a and for b, the positions of the tokens that hold a part of the span.
        excluded: how many tokens of the two texts hold shared text and still are aligned with nothing: they hold a
            part of the span too, or the tokenizer cut the shared text differently. First tokens don't count, and
            neither does shared text that is only space, such as the space that a token carries in front of its word.
    """

    ids_a: list[int]
    ids_b: list[int]
    before: list[tuple[int, int]]
    after: list[tuple[int, int]]
    swapped: tuple[range, range]
    excluded: int


class PairBatch(TypedDict):
    """A batch, also for ``activations.capture``: rows 2k and 2k + 1 are the texts a and b of the batch's pair k."""

    input_ids: Tensor  # int64 [2 x pairs, length], padded on the right
    attention_mask: Tensor  # int64, 1 where a token is real
    alignments: list[Alignment]  # one a pair
    indices: list[int]  # each pair's place in the caller's list


def align(tokenizer: PreTrainedTokenizerBase, pair: Pair) -> Alignment:
    """Find the tokens that the two texts of a pair share, by their character offsets.

    From the left up to the swapped span, and from the right back to it, tokens are aligned as long as they are the
    same token on the same text. A token that holds a part of the span is never aligned.

    Raises:
        ValueError: a tokenizer that gives no offsets (a slow one), or a text without tokens.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"Alignment needs the character offsets of tokens, and {type(tokenizer).__name__} gives none. Load the "
            "fast tokenizer of this model (AutoTokenizer does so by default)."
        )
    a, b = _Side(tokenizer, pair.text_a, pair), _Side(tokenizer, pair.text_b, pair)
    front = _equal(a.in_front, b.in_front)
    # Behind the span, both positions and offsets count from the right.
    back = _equal(a.behind, b.behind)
    ends = len(a.ids), len(b.ids)
    before = [(i, i) for i in range(1, front)]
    after = [(ends[0] - i, ends[1] - i) for i in range(back, 0, -1) if i < min(ends)]
    return Alignment(
        ids_a=a.ids,
        ids_b=b.ids,
        before=before,
        after=after,
        swapped=(a.swapped, b.swapped),
        excluded=sum(sum(side.shared[1:]) for side in (a, b))
        - sum(side.shared[pair[number]] for number, side in enumerate((a, b)) for pair in (*before, *after)),
    )


class _Side:
    """One text of a pair, cut into tokens: what lies in front of the span, in it and behind it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: str, pair: Pair):
        encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        self.ids: list[int] = encoding["input_ids"]
        if not self.ids:
            raise ValueError(f"The text {text!r} has no tokens.")
        start, end = len(pair.before), len(text) - len(pair.after)
        tokens, last = [], 0
        for token, (low, high) in zip(self.ids, encoding["offset_mapping"], strict=True):
            # Some tokenizers leave the space that a token begins with out of its offsets; it's a part of it.
            tokens.append((token, min(low, last), high))
            last = high
        self.in_front = list(takewhile(lambda token: token[2] <= start, tokens))
        rest = tokens[len(self.in_front) :]
        self.behind = [
            (token, low - len(text), high - len(text))
            for token, low, high in takewhile(lambda token: token[1] >= end, reversed(rest))
        ]
        self.swapped = range(len(self.in_front), len(tokens) - len(self.behind))
        self.shared = [
            bool((text[low : min(high, start)] + text[max(low, end) : high]).strip()) for _, low, high in tokens
        ]


def _equal(a: Sequence, b: Sequence) -> int:
    """How many elements are equal from the beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def align_all(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], batch_size: int) -> list[Alignment]:
    """Align pairs that will run ``batch_size`` at a time. Raises as ``pair_batches`` does."""
    if not pairs or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(
            f"Give at least one pair and a whole 'batch_size' of at least 1; got {len(pairs)} pairs and {batch_size!r}."
        )
    return [align(tokenizer, pair) for pair in pairs]


def pair_batches(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], *, batch_size: int = 16) -> list[PairBatch]:
    """The texts of pairs as batches, with their alignments; no special tokens are added.

    Pairs of similar length share a batch, so that little is padded: ``indices`` tells which pairs a batch holds.

    Args:
        batch_size: pairs a batch; a batch has twice as many rows.

    Raises:
        ValueError: no pairs, ``batch_size`` below 1, or a pair that ``align`` refuses.
    """
    alignments = align_all(tokenizer, pairs, batch_size)
    order = sorted(range(len(pairs)), key=lambda i: max(len(alignments[i].ids_a), len(alignments[i].ids_b)))
    return [_pair_batch(alignments, order[i : i + batch_size]) for i in range(0, len(order), batch_size)]


def _pair_batch(alignments: list[Alignment], indices: list[int]) -> PairBatch:
    rows = [torch.tensor(ids) for i in indices for ids in (alignments[i].ids_a, alignments[i].ids_b)]
    return {
        # the mask says what is padding; which id it is doesn't matter
        "input_ids": pad_sequence(rows, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
        "alignments": [alignments[i] for i in indices],
        "indices": indices,
    }

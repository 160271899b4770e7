"""Alignment: which tokens the two texts of a contrastive pair share, and padded batches of such pairs.

States of two texts can be compared only where both texts hold the same token. Character offsets tell where that is,
because another word in the middle may move all tokens that follow, or change how its neighbours are cut.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from course_utils.bias.contrastive import Pair
from course_utils.models.architectures import Architecture
from course_utils.support import checks
from course_utils.text.batches import Batch, padded, read_batch


@dataclass(frozen=True)
class Alignment:
    """The tokens that the two texts of a pair share behind the swapped span.

    Attributes:
        ids_a: the token ids of text a, without special tokens.
        ids_b: the same of text b.
        after: (position in a, position in b) of each shared token, counted from 0. A row's first token is never among
            them, because its state is an outlier.
        excluded: how many tokens of the two texts hold shared text but have no partner, because they hold a part of
            the span as well or because the tokenizer cut the shared text differently. First tokens and spaces don't
            count.
    """

    ids_a: list[int]
    ids_b: list[int]
    after: list[tuple[int, int]]
    excluded: int


def _align(tokenizer: PreTrainedTokenizerBase, pair: Pair) -> Alignment:
    """Align the tokens from the left up to the span, and from the right back to it, as long as they are the same."""
    if not tokenizer.is_fast:
        raise ValueError(
            f"Alignment needs the character offsets of tokens, and {type(tokenizer).__name__} gives none. Load the "
            "fast tokenizer of this model (AutoTokenizer does so by default)."
        )
    a, b = (_cut(tokenizer, pair, text) for text in (pair.text_a, pair.text_b))
    front = shared_beginning(a.in_front, b.in_front)
    back = min(shared_beginning(a.behind, b.behind), len(a.ids) - 1, len(b.ids) - 1)
    return Alignment(
        ids_a=a.ids,
        ids_b=b.ids,
        after=[(len(a.ids) - i, len(b.ids) - i) for i in range(back, 0, -1)],
        excluded=sum(front <= place < len(side.ids) - back for side in (a, b) for place in side.shared),
    )


def shared_beginning(*sequences: Sequence[Hashable]) -> int:
    """How many elements the sequences share at their beginning.

    >>> shared_beginning([1, 2, 3], [1, 2, 4, 3])
    2
    """
    return sum(1 for _ in takewhile(lambda elements: len(set(elements)) == 1, zip(*sequences, strict=False)))


class _Token(NamedTuple):
    """A token and the characters that it stands for, ``text[start:end]``."""

    id: int
    start: int
    end: int


@dataclass(frozen=True)
class _Text:
    """One text of a pair, cut into tokens."""

    ids: list[int]
    in_front: list[_Token]  # of the span
    behind: list[_Token]  # of the span, from the text's end on, with offsets that count from there too
    shared: list[int]  # positions, but the first, of tokens that hold some of the shared text other than space


def _cut(tokenizer: PreTrainedTokenizerBase, pair: Pair, text: str) -> _Text:
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    if not encoding["input_ids"]:
        raise ValueError(f"The text {text!r} has no tokens.")
    tokens: list[_Token] = []
    for number, (start, end) in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True):
        # Some tokenizers leave the space that a token begins with out of its offsets, but it is a part of the token.
        tokens.append(_Token(number, min(start, tokens[-1].end if tokens else 0), end))
    span_start, span_end = len(pair.before), len(text) - len(pair.after)
    in_front = list(takewhile(lambda token: token.end <= span_start, tokens))
    behind = takewhile(lambda token: token.start >= span_end, reversed(tokens[len(in_front) :]))

    def is_shared(token: _Token) -> bool:
        outside = text[token.start : min(token.end, span_start)] + text[max(token.start, span_end) : token.end]
        return bool(outside.strip())

    return _Text(
        ids=encoding["input_ids"],
        in_front=in_front,
        behind=[_Token(token.id, token.start - len(text), token.end - len(text)) for token in behind],
        shared=[position for position, token in enumerate(tokens) if position and is_shared(token)],
    )


@dataclass(frozen=True)
class Side:
    """Where the shared tokens behind the spans stand on one side, a or b, of a batch's pairs.

    Attributes:
        at: (rows, positions), int64 [tokens] each: ``states[side.at]`` are the states of the tokens.
        predicting: (rows, positions), int64 [tokens] each, of the states that predict the tokens.
        targets: int64 [tokens], their ids.
    """

    at: tuple[Tensor, Tensor]
    predicting: tuple[Tensor, Tensor]
    targets: Tensor


@dataclass(frozen=True)
class PairBatch:
    """Some pairs, ready to run, and their shared tokens behind the spans.

    Attributes:
        rows: on the model's device; rows 2k and 2k + 1 are the texts a and b of pair k.
        indices: each pair's place in the caller's list.
        alignments: one for each pair.
        pair: int64 [tokens] on the CPU, the pair of each shared token, counted in the batch.
        sides: the same tokens in a and in b.
    """

    rows: Batch
    indices: list[int]
    alignments: list[Alignment]
    pair: Tensor
    sides: tuple[Side, Side]

    @property
    def counts(self) -> Tensor:
        """How many tokens each pair shares behind its span: int64 [pairs] on the CPU."""
        return torch.bincount(self.pair, minlength=len(self.indices))

    def sums(self, values: Tensor) -> Tensor:
        """The sum for each pair over its shared tokens: [tokens] -> [pairs] float64 on the CPU."""
        return torch.zeros(len(self.indices), dtype=torch.float64).index_add_(0, self.pair, values.cpu().double())


def pair_batches(
    architecture: Architecture, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], *, batch_size: int = 16
) -> list[PairBatch]:
    """Tokenise and align pairs, without special tokens, and pad them into batches, short texts first.

    Raises:
        ValueError: no pairs, or ``batch_size`` below 1; a tokenizer that gives no offsets (a slow one), a text without
            tokens, or ids outside the vocabulary.
    """
    checks.whole_number("batch_size", batch_size, least=1)
    if not pairs:
        raise ValueError("There are no pairs: give at least one, such as those of contrastive.pairs('gender').")
    alignments = [_align(tokenizer, pair) for pair in pairs]
    order = sorted(range(len(pairs)), key=lambda i: max(len(alignments[i].ids_a), len(alignments[i].ids_b)))
    return [
        _pair_batch(architecture, chosen, [alignments[i] for i in chosen])
        for chosen in (order[first : first + batch_size] for first in range(0, len(order), batch_size))
    ]


def _pair_batch(architecture: Architecture, indices: list[int], alignments: list[Alignment]) -> PairBatch:
    texts = padded([ids for alignment in alignments for ids in (alignment.ids_a, alignment.ids_b)])
    rows = read_batch(texts, vocab_size=architecture.vocab_size, device=architecture.model.device)
    tokens = [(k, *positions) for k, alignment in enumerate(alignments) for positions in alignment.after]
    pair, *positions = torch.tensor(tokens, dtype=torch.long).view(-1, 3).T  # [tokens] each
    sides = []
    for number, at in enumerate(positions):
        row, place = (2 * pair + number).to(rows.input_ids.device), at.to(rows.input_ids.device)
        sides.append(Side(at=(row, place), predicting=(row, place - 1), targets=rows.input_ids[row, place]))
    return PairBatch(rows, indices, alignments, pair, (sides[0], sides[1]))

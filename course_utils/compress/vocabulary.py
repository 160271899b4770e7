"""The vocabulary of what ``compress`` makes: which tokens stay, what else could stay, and what that costs each text.

The tokens are chosen before all else, from counts alone. The whole model with fewer tokens is what versions are cut
from, and it teaches them. Two tokenizers cut a text differently, so models are compared by passages, per byte.
"""

from __future__ import annotations

import datetime
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from course_utils.compress.order import Order
from course_utils.healing.distillation.memory import outline
from course_utils.measuring.abilities import TEXTS, paragraphs
from course_utils.models.loading import variant
from course_utils.pruning.vocabulary import choose_tokens, prune_vocabulary, token_counts
from course_utils.release.rivals import Version
from course_utils.text.assets import AssetError
from course_utils.text.byte_pairs import BytePairs
from course_utils.text.domains import documents
from course_utils.text.files import Document
from course_utils.text.own_text import OwnText
from course_utils.text.passages import Passage, batches_of, passages

_COUNTED = 4_000_000  # tokens, or four characters for each
_MULTIPLE = 64  # that a share is rounded down to
OF_A_KIND = 8  # full rows of each kind of text
_NO_DATE = datetime.date(2000, 1, 1)  # for texts, which ask for none


@dataclass(frozen=True)
class Way:
    """One choice of tokens, and the tokenizer that has these alone."""

    tokens: list[int]
    tokenizer: PreTrainedTokenizerBase


@dataclass(frozen=True)
class Vocabulary:
    """The tokens that stay, and two rivals of as many.

    Attributes:
        whole: the whole tokenizer.
        outline: the whole model with the tokens that stay, without content.
        ways: by name; the first one is taken, and the others show what its counts are worth.
        numbers: of "tokens", "of" all; "at_least" so many any text and any chat needs, and "used" ones would leave the
            text as it is in which so many tokens were "counted".
        length: tokens of a row at most.
        rows: in a batch.
        judging: passages that fit in rows of all of these tokenizers; none before ``judged_by``.
    """

    whole: PreTrainedTokenizerBase
    outline: PreTrainedModel
    ways: dict[str, Way]
    numbers: dict[str, int]
    length: int
    rows: int
    judging: tuple[Passage, ...] = ()

    @classmethod
    def of(
        cls, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, order: Order, own: OwnText | None
    ) -> Vocabulary:
        """Count and choose.

        Args:
            config: of the whole model.
            tokenizer: the model's.
            order: with ``vocabulary``.
            own: the user's text; None for the course's.

        Raises:
            ValueError: a tokenizer that can't lose tokens, a number that it doesn't have or that is too small.
        """
        pairs = BytePairs.of(tokenizer)
        keep = _number(order.vocabulary or 1, len(pairs.names), len(pairs.needed))
        counts, weights = _counts(tokenizer, order, own)
        shares = counts.double() / counts.sum(1, keepdim=True).clamp(min=1)
        drawn = torch.rand(counts.shape[1], generator=torch.Generator().manual_seed(order.seed))
        worth = {
            f"{keep:,} tokens": weights @ shares,
            f"the first {keep:,} tokens": torch.zeros_like(drawn),
            f"{keep:,} drawn tokens": drawn,
        }
        outlines = [outline(config) for _ in worth]
        ways = {}
        for (name, of_tokens), shapes in zip(worth.items(), outlines, strict=True):
            tokens = choose_tokens(tokenizer, of_tokens, keep=keep)
            ways[name] = Way(tokens, prune_vocabulary(shapes, tokenizer, tokens)[1])
        numbers = {
            "tokens": keep,
            "of": len(pairs.names),
            "at_least": len(pairs.needed),
            "used": len(pairs.closed(pairs.needed | {*counts.nonzero()[:, 1].tolist()})),
            "counted": int(counts.sum()),
        }
        return cls(tokenizer, outlines[0], ways, numbers, order.length, order.rows)

    @property
    def taken(self) -> str:
        """The name of the way that is taken."""
        return next(iter(self.ways))

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """That has the tokens alone that stay."""
        return self.ways[self.taken].tokenizer

    def judged_by(self, own: OwnText | None, *, rows: int) -> Vocabulary:
        """The same, with passages to judge by.

        Args:
            own: the user's text; None for held-out speeches.
            rows: how many full ones the passages come to.

        Raises:
            ValueError: no document gives a passage.
        """
        speeches = documents("speeches", "evaluation") if own is None else []
        judging = own.judging if own else _as_documents(random.Random(0).sample(speeches, len(speeches)))
        date, tokenizers = own.date if own else _NO_DATE, [way.tokenizer for way in self.ways.values()]
        found = passages(
            judging, [*tokenizers, self.whole], tokens=rows * self.length, length=self.length, date=date
        )  # fmt: skip
        return replace(self, judging=tuple(found))

    def held_out(self, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Tensor]]:
        """The passages that judge, as one of the tokenizers cuts them."""
        return batches_of(self.judging, tokenizer, batch_size=self.rows)

    def cut(self, whole: PreTrainedModel, name: str = "") -> PreTrainedModel:
        """A variant of the whole model that has the tokens alone that stay, or another way's."""
        small = variant(whole)
        prune_vocabulary(small, self.whole, self.ways[name or self.taken].tokens)
        return small

    def versions(self, whole: PreTrainedModel, *, folder: Path) -> dict[str, Version]:
        """The whole model with fewer tokens, by each way; ``folder`` keeps what is measured."""
        return {
            name: Version.of(self.cut(whole, name), self.held_out(way.tokenizer), folder=folder)
            for name, way in self.ways.items()
        }

    def by_kind(self, whole: PreTrainedModel, made: PreTrainedModel, *, judged_by: str, folder: Path) -> pd.DataFrame:
        """What each kind of text costs before and after: the text that judges, code, and other languages.

        Returns:
            A row for each kind that is here or can be fetched, all of it per byte: ``tokens_whole`` and ``tokens``;
            ``bits_whole``, ``bits_fewer`` (the whole model's, with fewer tokens) and ``bits`` (of what was made).
        """
        fewer, found = self.cut(whole), {}
        for kind, text in {judged_by: self.judging, **self._kinds()}.items():
            before, after = (batches_of(text, each, batch_size=self.rows) for each in (self.whole, self.tokenizer))
            of_whole = Version.of(whole, before, folder=folder)
            of_fewer, of_made = (Version.of(model, after, folder=folder) for model in (fewer, made))
            found[kind] = {
                "tokens_whole": of_whole.tokens_per_byte,
                "tokens": of_made.tokens_per_byte,
                "bits_whole": of_whole.score.bits_per_byte,
                "bits_fewer": of_fewer.score.bits_per_byte,
                "bits": of_made.score.bits_per_byte,
            }
        return pd.DataFrame.from_dict(found, orient="index").rename_axis("text")

    def _kinds(self) -> dict[str, list[Passage]]:
        found = {}
        for kind in TEXTS:
            try:
                texts = _as_documents(paragraphs(kind))
            except AssetError:
                continue  # the card says so, where it tells what was lost of abilities
            both, tokens = [self.tokenizer, self.whole], OF_A_KIND * self.length
            found[kind] = passages(texts, both, tokens=tokens, length=self.length, date=_NO_DATE)
        return found


def _number(asked: float, there: int, least: int) -> int:
    """How many tokens stay."""
    keep = round(asked) if asked > 1 else int(asked * there) // _MULTIPLE * _MULTIPLE
    if not least <= keep <= there:
        raise ValueError(
            f"'--vocabulary' must leave from {least:,} tokens (the bytes, special tokens and what the chat template "
            f"writes) to all {there:,} that this tokenizer has, or a share of them such as 66%; got {keep:,}."
        )
    return keep


def _counts(tokenizer: PreTrainedTokenizerBase, order: Order, own: OwnText | None) -> tuple[Tensor, Tensor]:
    """How often each token stands in the text to learn, int64 [parts, vocabulary], and the parts' weights, [parts]."""
    if own is not None:
        weights = torch.tensor([part.source.weight for part in own.parts], dtype=torch.float64)
        return own.token_counts(tokenizer, tokens=_COUNTED, length=order.length), weights
    texts, some, left = documents(order.domain, "distillation"), [], 4 * _COUNTED
    for text in random.Random(order.seed).sample(texts, len(texts)):
        if left > 0:
            some.append(text)
            left -= len(text)
    return token_counts(tokenizer, some)[None], torch.ones(1, dtype=torch.float64)


def _as_documents(texts: Sequence[str]) -> list[Document]:
    return [Document("", text) for text in texts]

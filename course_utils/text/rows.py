"""Rows of tokens, all of one length, cut from the course's texts: to calibrate, to judge and to learn.

One prefix rule for all models that are compared: no token is put before a text. Tokenizers that would add a BOS token
are called without special tokens; the first token of a row is given, never predicted.
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from course_utils.support import checks
from course_utils.support.checks import check_types
from course_utils.text.domains import DOMAINS, SPLITS, documents

# Many short rows rather than few long ones, because the rows are the sample; the pools are what the smallest vocabulary
# of the course (of the Llama) leaves of each text.
_ROWS, _ROW, _DRAWS = 48, 64, 3
_POOLS = {"speeches": 65_536, "wiki": 24_576}  # tokens
_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class TokenBlocks:
    """Rows of equal length without padding, cut from whole documents.

    Attributes:
        input_ids: int64 [rows, length], on the CPU.
        num_bytes: int64 [rows], the UTF-8 bytes that a row's predicted tokens (all but its first) stand for; the end
            token between documents stands for none.
        domain: where the text came from, in words.
        split: one of ``SPLITS``.

    Raises:
        ValueError: a field of another kind, or different numbers of rows.

    >>> blocks = TokenBlocks(torch.arange(6).view(3, 2), torch.tensor([4, 5, 6]), "wiki", "evaluation")
    >>> len(blocks), blocks.num_tokens, blocks[1:].input_ids.tolist()
    (3, 6, [[2, 3], [4, 5]])
    """

    input_ids: torch.Tensor
    num_bytes: torch.Tensor
    domain: str
    split: str

    def __post_init__(self) -> None:
        rows = len(checks.int64("input_ids", self.input_ids, "[rows, length]"))
        if len(checks.int64("num_bytes", self.num_bytes, "[rows]")) != rows:
            raise ValueError(f"'num_bytes' must hold one number for each of {rows} rows; got {len(self.num_bytes)}.")
        checks.text("domain", self.domain)
        checks.one_of("split", self.split, SPLITS)

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.input_ids)

    def __getitem__(self, rows: slice | Sequence[int] | torch.Tensor) -> TokenBlocks:
        """Some rows, as blocks of the same domain and split: a slice, row numbers, or a mask (bool [rows]).

        Raises:
            TypeError: one number; for one row take a slice, such as ``blocks[3:4]``.
            IndexError: there is no such row.
        """
        if isinstance(rows, int):
            raise TypeError(f"Rows come as blocks: take blocks[{rows}:{rows + 1}] for one, or a list of row numbers.")
        return TokenBlocks(self.input_ids[rows], self.num_bytes[rows], self.domain, self.split)

    def sample(self, rows: int, seed: int) -> TokenBlocks:
        """``rows`` different rows, drawn at random by ``seed``; all of them give a shuffled copy."""
        checks.whole_number("rows", rows, least=1, most=len(self), meaning="the rows there are")
        checks.whole_number("seed", seed)
        return self[torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:rows]]

    @property
    def num_tokens(self) -> int:
        """All tokens, the first of each row included."""
        return self.input_ids.numel()

    def batches(self, batch_size: int = 4) -> list[dict[str, torch.Tensor]]:
        """The rows as ``{"input_ids", "attention_mask"}`` dicts of at most ``batch_size`` rows, in order."""
        checks.whole_number("batch_size", batch_size, least=1)
        return [
            {"input_ids": ids, "attention_mask": ids.new_ones(ids.shape)} for ids in self.input_ids.split(batch_size)
        ]


@check_types
def token_blocks(
    tokenizer: PreTrainedTokenizerBase,
    split: str,
    *,
    domain: str = "speeches",
    tokens: int = 8192,
    length: int = 256,
    seed: int = 0,
) -> TokenBlocks:
    """The first ``tokens // length`` rows of a split: documents shuffled by ``seed``, joined by the end token, cut.

    Args:
        tokenizer: any fast tokenizer with an end token, which is the only special token that is added.
        split: one of ``SPLITS``.
        domain: one of ``DOMAINS`` or ``LARGE_DOMAINS``.
        tokens: how many tokens to take; rounded down to whole rows.
        length: tokens per row, at least 2.
        seed: of the documents' order.

    Raises:
        ValueError: unknown split or domain, no end token, or not enough text (the message says how much there is).
        AssetError: the texts are not in the cache and can't be fetched.
    """
    checks.whole_number("length", length, least=2, meaning="one token given and one predicted")
    checks.whole_number("tokens", tokens, least=length, meaning="one row")
    if tokenizer.eos_token_id is None:
        raise ValueError("This tokenizer has no end token (eos_token), which separates the documents; set one.")
    texts = documents(domain, split)
    random.Random(seed).shuffle(texts)
    rows = tokens // length
    ids: list[int] = []
    sizes: list[int] = []
    with tqdm(total=rows * length, desc="Tokenizing", unit="tokens", delay=2, file=sys.stderr) as bar:
        for text in texts:
            text_ids, text_sizes = _encode_with_bytes(tokenizer, text)
            ids += [*text_ids, tokenizer.eos_token_id]
            sizes += [*text_sizes, 0]
            bar.update(min(len(ids), rows * length) - bar.n)
            if len(ids) >= rows * length:
                break
    if len(ids) < rows * length:
        raise ValueError(
            f"The {split} split of {domain} has {len(ids):,} tokens for this tokenizer, {tokens:,} were asked for; ask "
            f"for at most {len(ids) // length * length:,}, or take another domain ({', '.join(DOMAINS)})."
        )
    input_ids = torch.tensor(ids[: rows * length]).view(rows, length)
    num_bytes = torch.tensor(sizes[: rows * length]).view(rows, length)[:, 1:].sum(dim=1)  # [rows]
    return TokenBlocks(input_ids, num_bytes, domain, split)


@check_types
def judging_rows(tokenizer: PreTrainedTokenizerBase, *, draw: int = 0) -> dict[str, TokenBlocks]:
    """Rows that lessons judge by: 48 of speeches and 48 of wiki, 64 tokens each, 3,024 predictions per text.

    They are from all over the evaluation split, which nothing calibrates or trains on. No two draws share a row.

    Args:
        tokenizer: see ``token_blocks``.
        draw: 0 for the lessons' own rows; 1 and 2 for others, which show whether a verdict depends on the rows.
    """
    checks.whole_number("draw", draw, most=_DRAWS - 1, meaning="the draws there are")
    return _evaluation_rows(tokenizer, draw)


@check_types
def further_rows(tokenizer: PreTrainedTokenizerBase) -> dict[str, TokenBlocks]:
    """As many rows again as ``judging_rows`` has, in none of its draws: for a last look at what was chosen by those."""
    return _evaluation_rows(tokenizer, _DRAWS)


def _evaluation_rows(tokenizer: PreTrainedTokenizerBase, part: int) -> dict[str, TokenBlocks]:
    """The part's rows of both texts; parts are slices of one shuffled pool, so they are disjoint."""
    texts = {}
    for domain, tokens in _POOLS.items():
        pool = token_blocks(tokenizer, "evaluation", domain=domain, tokens=tokens, length=_ROW)
        texts[domain] = pool.sample(len(pool), seed=1)[part * _ROWS : (part + 1) * _ROWS]
    return texts


def _encode_with_bytes(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[int]]:
    """Token ids of a text, without special tokens, and how many of its UTF-8 bytes each of them stands for.

    A character may be spread over several tokens. In a byte-level vocabulary (GPT-2, Llama 3) each character of a
    token's name is one byte. In others (SentencePiece: Llama 2, Gemma) a token's name is found again in the text, with
    <0x..> for one byte and "▁" for a space, which may be missing in front; where it isn't found, the slice that the
    tokenizer reports is taken. The counts add up to ``len(text.encode())``, unless a byte-level tokenizer first changes
    the text (some bring accents into one form): then they add up to the bytes of the changed text.
    """
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} is a slow tokenizer; load one backed by the tokenizers library.")
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids: list[int] = encoding["input_ids"]
    names = list(tokenizer.convert_ids_to_tokens(ids))
    # A decoder's state is its JSON, in which a byte-level one may be part of a sequence.
    if b"ByteLevel" in tokenizer.backend_tokenizer.decoder.__getstate__():
        added = tokenizer.added_tokens_decoder  # their names are plain text
        sizes = [len(name.encode()) if i in added else len(name) for i, name in zip(ids, names, strict=True)]
    else:
        sizes = _sizes_by_matching(text, names, [end for _, end in encoding["offset_mapping"]])
    return ids, sizes


def _sizes_by_matching(text: str, names: list[str], ends: list[int]) -> list[int]:
    """Bytes of ``text`` for each token, from the tokens' names and, where those differ from the text, their ends."""
    data, reached, sizes = text.encode(), 0, []
    for name, end in zip(names, ends, strict=True):
        piece = bytes.fromhex(name[3:5]) if _BYTE_PIECE.fullmatch(name) else name.replace("▁", " ").encode()
        for candidate in (piece, piece.removeprefix(b" ")):
            if data.startswith(candidate, reached):
                size = len(candidate)
                break
        else:
            size = max(0, len(text[:end].encode()) - reached)
        sizes.append(size)
        reached += size
    if sizes:
        sizes[-1] += len(data) - reached
    return sizes

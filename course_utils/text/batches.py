"""Batches of token ids: how they are made, checked and read, and the digest that stands for their text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from course_utils.support import checks
from course_utils.support.checks import check_types

NOT_LEARNED = -100  # a label that transformers' models pass over


@dataclass(frozen=True)
class Batch:
    """One batch, checked and on the model's device; each tensor is of shape [rows, length], int64 but for the last.

    ``learned`` is bool: False where a token is only read, so that its prediction is neither learned nor judged.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    learned: Tensor

    @property
    def real(self) -> Tensor:
        """Bool [rows, length]: True where a token is text, False where it is padding."""
        return self.attention_mask.bool()

    @property
    def predicted(self) -> Tensor:
        """Bool [rows, length - 1]: where a real token that is to be learned is predicted from a real token."""
        return self.real[:, 1:] & self.real[:, :-1] & self.learned[:, 1:]

    def inputs(self) -> dict[str, Tensor]:
        """Keyword arguments for a backbone's forward.

        The positions are counted over real tokens, so that a row gives the same states padded left, right or not at all
        (by itself transformers counts padding).
        """
        inputs = {"input_ids": self.input_ids}
        if not self.real.all():
            inputs |= {"attention_mask": self.attention_mask, "position_ids": self.position_ids}
        return inputs


def padded(rows: Sequence[Sequence[int]], *, side: str = "right") -> dict[str, Tensor]:
    """Rows of token ids as one batch, ``{"input_ids", "attention_mask"}`` of shape [rows, longest].

    Args:
        rows: token ids. The mask says what is padding, whose id is 0.
        side: where shorter rows are padded, "right" or, for generation, "left".
    """
    ids = [torch.tensor(row, dtype=torch.long) for row in rows]
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_side=side),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True, padding_side=side),
    }


@check_types
def padded_batches(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    batch_size: int = 4,
    max_length: int = 256,
    padding_side: str = "right",
) -> list[dict[str, Tensor]]:
    """Texts of different lengths as ``{"input_ids", "attention_mask"}`` batches, in order, no special tokens added.

    Args:
        tokenizer: one with a padding token; it is not changed.
        texts: each must have at least one token.
        batch_size: texts per batch; the last may hold fewer.
        max_length: longer texts are cut at the end, to so many tokens.
        padding_side: "right", or "left" for generation.

    Raises:
        ValueError: no texts, a text without tokens, or no padding token.
    """
    texts = checks.strings("texts", texts)
    checks.whole_number("batch_size", batch_size, least=1)
    checks.whole_number("max_length", max_length, least=1)
    checks.one_of("padding_side", padding_side, ("right", "left"))
    if tokenizer.pad_token_id is None:
        raise ValueError("This tokenizer has no padding token; set tokenizer.pad_token = tokenizer.eos_token.")
    batches = []
    for start in range(0, len(texts), batch_size):
        batch = tokenizer(
            texts[start : start + batch_size],
            add_special_tokens=False,
            padding=True,
            padding_side=padding_side,
            truncation=True,
            max_length=max_length,
            return_tensors="pt",
        )
        lengths = batch["attention_mask"].sum(dim=1)
        if not lengths.all():
            raise ValueError(f"Text {start + int(lengths.argmin())} has no tokens; leave empty texts out.")
        batches.append({name: batch[name] for name in ("input_ids", "attention_mask")})
    return batches


def read_batch(batch: Mapping[str, Tensor], *, vocab_size: int, device: torch.device | str) -> Batch:
    """Check one ``{"input_ids", "attention_mask"}`` mapping and move it to ``device``.

    Args:
        batch: ``input_ids``, integers [rows, length], and ``attention_mask``, 0 or 1 in the same shape; the mask may be
            left out when nothing is padded. ``labels``, in the same shape, may say what isn't learned, as transformers'
            models read them: -100 there, and the token's own id elsewhere.
        vocab_size: how many tokens the model knows.
        device: the model's.

    Raises:
        ValueError: anything else, ids outside the vocabulary, nothing to learn, no such device, or "meta".
    """
    if not isinstance(batch, Mapping) or "input_ids" not in batch:
        raise ValueError(
            f"A batch is a mapping with 'input_ids' and 'attention_mask'; got {type(batch).__name__}. "
            "Make batches with text.token_blocks(...).batches() or a tokenizer with return_tensors='pt'."
        )
    ids = torch.as_tensor(batch["input_ids"])
    if ids.dim() != 2 or ids.numel() == 0 or ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(
            f"'input_ids' must be integers of shape [rows, length] with at least one token; "
            f"got {ids.dtype} of shape {list(ids.shape)}."
        )
    checks.whole_number("vocab_size", vocab_size, least=1)
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocab_size:
        raise ValueError(
            f"Token ids must lie in [0, {vocab_size}), the model's vocabulary; got {low} to {high}. "
            "Use the tokenizer that belongs to this model."
        )
    mask = batch.get("attention_mask")
    mask = torch.ones_like(ids) if mask is None else torch.as_tensor(mask)
    if mask.shape != ids.shape or not ((mask == 0) | (mask == 1)).all():
        raise ValueError(
            f"'attention_mask' must hold 0 or 1 in the shape of 'input_ids' {list(ids.shape)}; got {list(mask.shape)}."
        )
    labels = batch.get("labels")
    labels = ids if labels is None else torch.as_tensor(labels)
    if labels.shape != ids.shape or not ((labels == ids) | (labels == NOT_LEARNED) | (mask == 0)).all():
        raise ValueError(
            f"'labels' must have the shape of 'input_ids' {list(ids.shape)} and hold each token's own id, or "
            f"{NOT_LEARNED} where it isn't learned; got {list(labels.shape)}. They aren't shifted: models do that."
        )
    learned = (mask == 1) & (labels != NOT_LEARNED)
    if not learned.any():
        raise ValueError(
            f"Nothing of a batch is learned: it is all padding (attention_mask 0) or its labels are all {NOT_LEARNED}. "
            "Drop it."
        )
    device = checks.device(device)
    if device.type == "meta":
        raise ValueError(
            "The model is on the 'meta' device: shapes without numbers can't read. Load it with its weights."
        )
    ids, mask = ids.to(device, torch.long), mask.to(device, torch.long)
    return Batch(ids, mask, (mask.cumsum(dim=1) - 1).clamp(min=0), learned.to(device))


def read_batches(
    batches: Iterable[Mapping[str, Tensor]], *, vocab_size: int, device: torch.device | str
) -> Iterator[Batch]:
    """Check and yield batches one by one, as ``read_batch`` does.

    Raises:
        ValueError: there is none, or a bad one.
    """
    if isinstance(batches, Mapping | Tensor | str | bytes) or not isinstance(batches, Iterable):
        raise ValueError(
            "'batches' must be an iterable of batches, such as a list of mappings (wrap one batch in a list); got a "
            f"{type(batches).__name__}."
        )
    empty = True
    for batch in batches:
        empty = False
        yield read_batch(batch, vocab_size=vocab_size, device=device)
    if empty:
        raise ValueError("'batches' is empty: give at least one batch of text (was a generator used up before?).")


class Batches(Sequence[Batch]):
    """Batches that are all checked once, and then read again and moved to the device when somebody asks for them.

    So batches on disk stay there, and batches in main memory don't fill the device's.

    Args:
        batches: as ``read_batch`` takes them; what is no sequence is kept as a list.
        vocab_size: how many tokens the model knows.
        device: the model's.
    """

    def __init__(self, batches: Iterable[Mapping[str, Tensor]], *, vocab_size: int, device: torch.device | str) -> None:
        if isinstance(batches, Iterable) and not isinstance(batches, Sequence | Mapping | Tensor):
            batches = list(batches)  # it may be gone through only once
        self._vocab_size, self._device = vocab_size, device
        for _ in read_batches(batches, vocab_size=vocab_size, device=device):
            pass
        self._batches = cast(Sequence[Mapping[str, Tensor]], batches)

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, place: int) -> Batch:  # type: ignore[override]
        return read_batch(self._batches[place], vocab_size=self._vocab_size, device=self._device)


def _digest(parts: Iterable[bytes]) -> str:
    """16 hexadecimal digits that stand for the parts, in their order."""
    hashed = blake2b(digest_size=8)
    for part in parts:
        hashed.update(part)
        hashed.update(b"|")
    return hashed.hexdigest()


def rows_of(batch: Batch) -> list[str]:
    """A digest of each row: of its tokens from the first real one to the last, with the gaps between them.

    Where not all of them are learned, it depends on which are.
    """
    rows = []
    for ids, real, learned in zip(batch.input_ids.cpu(), batch.real.cpu(), batch.learned.cpu(), strict=True):
        places = real.nonzero().flatten().tolist()
        span = slice(places[0], places[-1] + 1) if places else slice(0)
        parts = [torch.where(real, ids, -1)[span]]
        if not learned[real].all():
            parts.append(learned[span])
        rows.append(_digest(part.numpy().tobytes() for part in parts))
    return rows


def text_of(batches: Sequence[Batch]) -> str:
    """Batches in words, with a digest of their rows."""
    tokens = sum(int(batch.predicted.sum()) for batch in batches)
    rows = _digest(" ".join(rows_of(batch)).encode() for batch in batches)
    return f"{len(batches)} batches, {tokens:,} tokens to predict, {rows}" if batches else "none"

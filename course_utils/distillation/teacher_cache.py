"""A teacher's answers on disk: it is asked once, and is not in memory while the student learns.

    cache = cache_teacher(teacher, train + held_out, "build/cache", k=64)
    distill(cache, student, train, validation=held_out, steps=400, lr=2e-4)

All probabilities would be 2 bytes x vocabulary a token, 96 KiB for 49,152 tokens. Kept are the ``k`` likeliest tokens,
with one bucket for all others: 258 bytes for k = 64. The student's loss is the KL divergence over these k + 1 buckets.
It never exceeds the whole one (data-processing inequality) and doesn't see how the others differ among themselves; that
bias shrinks as k grows (Anshumann et al. 2025, arXiv 2503.16870).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from course_utils import checks
from course_utils.architectures import Architecture, describe
from course_utils.argument_types import check_types
from course_utils.batches import Batch, Batches, digest, rows_of
from course_utils.distillation.losses import loss_in_chunks, top_k_loss
from course_utils.distillation.recipe import Recipe
from course_utils.distillation.state import name_of, refuse_unknown, write_tensors
from course_utils.files import write_json
from course_utils.hooks import evaluating

_MANIFEST = "cache.json"
_SHARD_BYTES = 2**26  # what a killed run loses at most, about


class CacheMismatch(ValueError):
    """The folder holds the answers of another teacher, to other text, or another number of them."""


class TeacherCache:
    """A finished cache, made by ``cache_teacher``. Rows of text are found by their content, in whatever batch they are.

    Attributes:
        folder: where it is.
        k: how many tokens are known by name.
        vocab_size: of the teacher.
        teacher: what identifies it, with ``k``.
        tokens: predicted tokens that are stored.
    """

    def __init__(self, folder: Path, manifest: dict) -> None:
        self.folder = folder
        self.k, self.vocab_size, self.tokens = manifest["k"], manifest["vocab_size"], manifest["tokens"]
        self.teacher = f"{manifest['teacher']}, top {self.k} stored"
        self._shards = [safe_open(path, framework="pt") for path in _shard_paths(folder, manifest["shards"])]
        self._places: dict[str, tuple[int, int, int]] = {}  # row -> shard, first and last token
        for number, shard in enumerate(self._shards):
            start = 0
            for row, count in json.loads(shard.metadata()["state"]):
                self._places[row] = (number, start, start + count)
                start += count

    @classmethod
    def open(cls, folder: str | os.PathLike) -> TeacherCache:
        """Open a finished cache.

        Args:
            folder: that ``cache_teacher`` filled.

        Raises:
            ValueError: there is none, or parts are missing.
        """
        folder = Path(folder)
        manifest = _manifest(folder)
        if manifest is None:
            raise ValueError(
                f"'{folder}' holds no teacher cache ({_MANIFEST} is missing); make one with cache_teacher."
            )
        paths = _shard_paths(folder, manifest["shards"])
        there = sum(path.exists() for path in paths)
        if there < len(paths):
            raise ValueError(
                f"'{folder}' holds {there} of {len(paths)} shards; call cache_teacher again, with the same teacher and "
                "text, to make the others."
            )
        return cls(folder, manifest)

    @property
    def nbytes(self) -> int:
        """Size of the files."""
        paths = [self.folder / _MANIFEST, *_shard_paths(self.folder, len(self._shards))]
        return sum(path.stat().st_size for path in paths)

    def check(self, _recipe: Recipe, batches: Iterable[Batch]) -> None:
        """Raise ValueError when a row of text isn't in the cache; it serves every recipe."""
        refuse_unknown(batches, self._places, place=f"the cache '{self.folder}'", maker="cache_teacher")

    def answers(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What the teacher predicts: ids int64 [tokens, k] and float32 log-probabilities [tokens, k + 1].

        The last column is for all other tokens together; there is none if k is the whole vocabulary.
        """
        parts = []
        for row in rows_of(batch):
            number, start, stop = self._places[row]
            ids, log_probs = (self._shards[number].get_slice(name)[start:stop] for name in ("ids", "log_probs"))
            parts.append([ids, log_probs.float()])  # under autocast no float16 tensors can be put together
        ids, log_probs = (torch.cat(column).to(batch.input_ids.device) for column in zip(*parts, strict=True))
        return _readable(ids, log_probs)

    def batch_loss(self, student: Architecture, batch: Batch, *, alpha: float = 0.0) -> Tensor:
        """``losses.batch_loss`` with the divergence over the buckets.

        Args:
            student: gets the gradients.
            batch: on the student's device, of rows that are in the cache.
            alpha: the cross-entropy's share of the loss, from 0 to 1.
        """
        return _loss(student, batch, *self.answers(batch), alpha=alpha)


@check_types
def cache_teacher(
    teacher: PreTrainedModel, batches: Iterable[Mapping[str, Tensor]], folder: str | os.PathLike, *, k: int = 64
) -> TeacherCache:
    """Ask the teacher about every predicted token of the text, and keep its ``k`` likeliest answers in ``folder``.

    A call that is interrupted or killed loses one shard at most; the same call goes on with the missing ones. ``k``
    tokens take ``bytes_per_token`` on disk, per predicted token.

    Args:
        teacher: in any dtype; it runs in that, in eval mode.
        batches: ``{"input_ids", "attention_mask"}`` mappings: all that the student is going to see.
        folder: new, empty, or with a cache of the same teacher and text.
        k: how many tokens are known by name, from 1 to the vocabulary's size.

    Raises:
        ValueError: ``k`` out of range, no batches, too little space on the disk, a folder with something else in it.
        CacheMismatch: the folder holds another teacher's answers, or to other text; the message names the difference.
    """
    folder, architecture = Path(folder), describe(teacher)
    each = _bytes_per_token(architecture.vocab_size, k)
    read = Batches(batches, vocab_size=architecture.vocab_size, device=teacher.device)
    shards = _shared_out(read, each)
    manifest = {
        "teacher": name_of(teacher),
        "data": digest(row.encode() for batch in read for row in rows_of(batch)),
        "k": k,
        "vocab_size": architecture.vocab_size,
        "tokens": sum(_count(batch) for batch in read),
        "shards": len(shards),
    }
    _refuse_others(folder, manifest)
    paths = zip(_shard_paths(folder, len(shards)), shards, strict=True)
    todo = {path: shard for path, shard in paths if not path.exists()}
    tokens = sum(_count(read[place]) for shard in todo.values() for place in shard)
    refuse_full_disk(folder, tokens, vocab_size=architecture.vocab_size, k=k)
    write_json(folder / _MANIFEST, manifest)
    with (
        evaluating(teacher),
        tqdm(total=tokens, desc=f"caching the teacher ({tokens * each / 1e6:,.0f} MB)", unit="token") as bar,
    ):
        for path, shard in todo.items():
            parts, rows = [], list[tuple[str, int]]()
            for batch in map(read.__getitem__, shard):
                parts.append(_ask(architecture, batch, k))
                rows += zip(rows_of(batch), _counts(batch), strict=True)
                bar.update(_count(batch))
            ids, log_probs = (torch.cat(column).cpu() for column in zip(*parts, strict=True))
            write_tensors(path, {"ids": ids, "log_probs": log_probs}, rows)
    return TeacherCache.open(folder)


def _bytes_per_token(vocab_size: int, k: int) -> int:
    """Bytes on disk for one predicted token: k ids, their log-probabilities and that of all others together.

    Raises:
        ValueError: ``k`` isn't a whole number from 1 to the vocabulary's size.

    >>> _bytes_per_token(49_152, 64)
    258
    """
    checks.whole_number("vocab_size", vocab_size, least=1)
    checks.whole_number("k", k, least=1, most=vocab_size, meaning="the vocabulary")
    return k * (_id_type(vocab_size).itemsize + 2) + (2 if k < vocab_size else 0)


@check_types
def _top_k(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """What is stored of a teacher's answers.

    Args:
        logits: [tokens, vocabulary], any float dtype.
        k: how many tokens are known by name.

    Returns:
        ids [tokens, k], the likeliest first, uint16 where the vocabulary allows it, otherwise int32; and float16
        log-probabilities [tokens, k + 1], the last that of all other tokens together ([tokens, k] if there is none).

    Raises:
        ValueError: ``k`` isn't a whole number from 1 to the vocabulary's size.
    """
    checks.whole_number("k", k, least=1, most=logits.shape[-1], meaning="the vocabulary")
    logits = logits.float()
    values, ids = logits.topk(k)  # [tokens, k]
    if k < logits.shape[1]:
        others = logits.scatter(1, ids, -torch.inf).logsumexp(-1, keepdim=True)  # [tokens, 1]
        values = torch.cat([values, others], dim=1)  # [tokens, k + 1]
    least = torch.finfo(torch.float16).min  # as good as impossible, and 0 x it is 0
    return ids.to(_id_type(logits.shape[1])), values.log_softmax(-1).clamp(min=least).half()


def _ask(teacher: Architecture, batch: Batch, k: int) -> tuple[Tensor, Tensor]:
    """What ``top_k`` keeps of the answers about a batch's predicted tokens."""
    with torch.no_grad():
        states = teacher.hidden_states(batch)[:, :-1][batch.predicted]  # [tokens, hidden]
        parts = [_top_k(teacher.logits(chunk), k) for (chunk,) in teacher.chunks(states)]
    ids, log_probs = (torch.cat(column) for column in zip(*parts, strict=True))
    return ids, log_probs


def _readable(ids: Tensor, log_probs: Tensor) -> tuple[Tensor, Tensor]:
    return ids.long(), log_probs.float().log_softmax(-1)  # rounded to half precision, they didn't sum to 1


def _loss(student: Architecture, batch: Batch, ids: Tensor, log_probs: Tensor, *, alpha: float = 0.0) -> Tensor:
    def loss(logits: Tensor, targets: Tensor, ids: Tensor, log_probs: Tensor) -> Tensor:
        return top_k_loss(logits, ids, log_probs, targets, alpha=alpha)

    return loss_in_chunks(student, batch, loss, ids, log_probs)


def _counts(batch: Batch) -> list[int]:
    return batch.predicted.sum(1).tolist()


def _count(batch: Batch) -> int:
    return sum(_counts(batch))


def _shared_out(batches: Sequence[Batch], each: int) -> list[list[int]]:
    """Places of batches, ``_SHARD_BYTES`` a shard or less; a function of the batches: a killed run finds its own."""
    shards: list[list[int]] = [[]]
    used = 0
    for place, batch in enumerate(batches):
        if shards[-1] and used + _count(batch) * each > _SHARD_BYTES:
            shards.append([])
            used = 0
        shards[-1].append(place)
        used += _count(batch) * each
    return shards


def _id_type(vocab_size: int) -> torch.dtype:
    return torch.uint16 if vocab_size <= 2**16 else torch.int32


def _shard_paths(folder: Path, count: int) -> list[Path]:
    return [folder / f"{number:05}.safetensors" for number in range(count)]


def _manifest(folder: Path) -> dict | None:
    path = folder / _MANIFEST
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"'{path}' can't be read ({error}); delete the folder, or give another.") from error


def _refuse_others(folder: Path, wanted: dict) -> None:
    there = _manifest(folder)
    if there is None:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"'{folder}' exists and is not a teacher cache; choose a new or empty folder.")
        return
    differences = [
        f"{key}: {there.get(key)} there, {wanted[key]} wanted" for key in wanted if there.get(key) != wanted[key]
    ]
    if differences:
        raise CacheMismatch(
            f"'{folder}' is another cache. {'; '.join(differences)}. Give another folder, or delete this one."
        )


@check_types
def refuse_full_disk(folder: str | os.PathLike, tokens: int, *, vocab_size: int, k: int = 64) -> None:
    """Raise ValueError where a disk has no room for a cache.

    Args:
        folder: of the cache; it needn't be there yet.
        tokens: predicted ones that are asked about.
        vocab_size: of the teacher.
        k: as for ``cache_teacher``.
    """
    checks.whole_number("tokens", tokens)
    folder, each = Path(folder), _bytes_per_token(vocab_size, k)
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    needed, free = tokens * each, shutil.disk_usage(place).free
    if needed > free:
        raise ValueError(
            f"The cache needs {needed / 1e9:.1f} GB ({needed:,} bytes: {tokens:,} tokens of {each:,} bytes), but only "
            f"{free:,} bytes are free at '{folder}'. Choose a smaller 'k', less text or another disk."
        )

"""Models of full size with random weights: their configurations, and checkpoints that are written piece by piece."""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import math
import os
import re
import shutil
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import filelock
import numpy as np

import course_utils
from course_tools.rehearsal.card import shown
from course_utils.embedded_llama import embedded_llama
from course_utils.roles import HUB_MODELS

GPT2_FOLDER = Path(course_utils.__file__).parent / "data" / "gpt2"
_CHUNK = 2**24  # random numbers made at once
_SEED = 13


@dataclass(frozen=True)
class Shape:
    """Two models' configurations: what the lessons' roles "llama" and "gpt2" are in a rehearsal.

    Attributes:
        llama, gpt2: configurations as in a `config.json`, without the tokenizer's numbers.
        chosen: the hub id under which the first is served; `COURSE_LLAMA` names it unless it is the hub profile's own.
        stand_in: a smaller model in the place of Llama-3.2-1B: the card and the budgets are as much smaller.
    """

    llama: Mapping[str, object]
    gpt2: Mapping[str, object]
    chosen: str = HUB_MODELS["llama"][0]
    stand_in: bool = False

    @property
    def share(self) -> float:
        """Of a T4 and of the budgets, what this shape gets."""
        return parameters(self.llama) / parameters(_LLAMA) if self.stand_in else 1.0


_LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 16,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128_256,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}
_GPT2 = {"model_type": "gpt2", "n_layer": 6, "n_embd": 768, "n_head": 12, "n_positions": 1024, "vocab_size": 50_257}
_QWEN = {
    "model_type": "qwen2",
    "num_hidden_layers": 28,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151_936,
    "max_position_embeddings": 32_768,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}
SHAPES = {
    "llama": Shape(_LLAMA, _GPT2),
    "quarter": Shape(
        _LLAMA | {"hidden_size": 1024, "intermediate_size": 4096, "head_dim": 32, "vocab_size": 64_128},
        _GPT2,
        stand_in=True,
    ),
    "qwen": Shape(_QWEN, _GPT2, chosen="Qwen/shaped-like-Qwen2"),
}


class RehearsalError(ValueError):
    """A rehearsal can't be held; the message says why and what to do."""


def tokenizers() -> dict[str, Path]:
    """For each role, the folder of the embedded model, whose tokenizer serves: the hub's are not at hand."""
    return {"llama": embedded_llama(), "gpt2": GPT2_FOLDER}


def parameters(config: Mapping[str, object]) -> int:
    """How many parameters a model of this configuration has, tied ones once."""
    return sum(math.prod(size) for _, size in _weights(config))


@functools.cache
def _weights_of(config: str) -> tuple[tuple[str, tuple[int, ...]], ...]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**json.loads(config)))
    return tuple((name, tuple(weight.shape)) for name, weight in model.named_parameters())  # a tied one comes once


def _weights(config: Mapping[str, object]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return _weights_of(json.dumps(config, sort_keys=True))


def make_checkpoint(config: Mapping[str, object], folder: Path, tokenizer: Path) -> Path:
    """The folder of a model with random weights, the same every time; written unless it is there.

    Written chunk by chunk, so it takes no memory to speak of. The weights get their name when they are complete; what a
    killed process left is gone on with.

    Args:
        config: as in a `config.json`, with "dtype" "bfloat16" or else float32.
        folder: where models lie; this one's own is named by what is in it.
        tokenizer: a folder to copy the tokenizer from; the model may know more tokens.

    Raises:
        RehearsalError: not enough space, or the disk filled up.
    """
    digest = hashlib.sha256(json.dumps([config, _SEED, tokenizer.name], sort_keys=True).encode()).hexdigest()[:8]
    target = folder / f"{config['model_type']}-{parameters(config) / 1e6:.0f}M-{digest}"
    weights = target / "model.safetensors"
    with filelock.FileLock(_made(folder) / f"{target.name}.lock"):
        if not weights.exists():
            try:
                _write_small_files(config, _made(target), tokenizer)
                _write_weights(config, weights)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                _part(weights).unlink(missing_ok=True)
                raise RehearsalError(
                    f"The disk filled up while {target.name} was written; what was written is gone again. Free some "
                    "space and run this again."
                ) from error
    return target


def _write_small_files(config: Mapping[str, object], target: Path, tokenizer: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer

    read = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
    read.save_pretrained(target)
    tokens = {"bos_token_id": read.bos_token_id, "eos_token_id": read.eos_token_id}
    AutoConfig.for_model(**config, **tokens).save_pretrained(target)


def _write_weights(config: Mapping[str, object], path: Path) -> None:
    dtype, width = ("BF16", 2) if config.get("dtype") == "bfloat16" else ("F32", 4)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in _weights(config):
        begin, end = end, end + width * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    head = struct.pack("<Q", len(text)) + text
    part = _part(path)
    check_space(path.parent, len(head) + end - (part.stat().st_size if part.exists() else 0))
    with part.open("r+b" if part.exists() else "w+b") as file:
        if file.read(len(head)) != head:  # another shape's, or hardly begun
            file.seek(0)
            file.truncate()
            file.write(head)
        complete = os.fstat(file.fileno()).st_size - len(head)
        done = 0
        for number, (name, shape) in enumerate(_weights(config)):
            for chunk, begin in enumerate(range(0, math.prod(shape), _CHUNK)):
                count = min(_CHUNK, math.prod(shape) - begin)
                done += width * count
                if done > complete:
                    file.seek(len(head) + done - width * count)
                    file.write(_random(name, count, [_SEED, number, chunk], dtype))
        file.truncate()
        os.fsync(file.fileno())
    os.replace(part, path)  # not `files.replacing`: what a killed run has written of the part is kept and gone on with


def _random(name: str, count: int, seed: list[int], dtype: str) -> bytes:
    """Norms are ones; all else is small and random."""
    if re.search(r"(norm|ln_\w)\.weight$", name):
        numbers = np.ones(count, dtype=np.float32)
    else:
        numbers = 0.02 * np.random.default_rng(seed).standard_normal(count, dtype=np.float32)
    return (numbers.view(np.uint32) >> 16).astype(np.uint16).tobytes() if dtype == "BF16" else numbers.tobytes()


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def check_space(folder: Path, needed: float) -> None:
    """Refuse to begin where the disk has not so many bytes left.

    Raises:
        RehearsalError: says how many are free.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise RehearsalError(
            f"A rehearsal needs {shown(needed)} of disk space in {folder.name}/, and {shown(max(free, 0))} are free. "
            "Free some and run this again."
        )


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder

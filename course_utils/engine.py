"""llama.cpp in this process: does a GGUF file compute what the model did, and how fast is it where people serve it?

The engine is the optional extra "engine": the wheel llama-cpp-py-sync, which carries llama.cpp and its C interface.
``available()`` tells whether it is there; everything else says how to get it where it isn't.

>>> if available():                                                  # doctest: +SKIP
...     with load(export_gguf(model, tokenizer, "pruned.gguf")) as engine:
...         engine.logits(tokenizer("Once upon a time").input_ids)   # [tokens, vocabulary], as model(...).logits[0]
...     measure_speed({"whole": "whole.gguf", "pruned": "pruned.gguf"})
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import pandas as pd
from torch import Tensor

from course_utils.language_modelling import Perplexity
from course_utils.texts import TokenBlocks

VERSION = "0.11739"  # of llama-cpp-py-sync, which is llama.cpp b11739; pyproject.toml pins the same


class EngineNotAvailable(RuntimeError):
    """The optional extra "engine" isn't installed, in another version, or doesn't run on this machine."""


class EngineError(ValueError):
    """llama.cpp can't read the file, or can't do what was asked; with its own words."""


def available() -> bool:
    """Whether the engine can be used here."""


def problem() -> str:
    """Why the engine can't be used, in one sentence with the remedy; empty where it can."""


def load(path: str | os.PathLike[str], *, context: int = 2048, threads: int | None = None) -> Engine:
    """Open a GGUF file. Close it when done, or use it in a ``with`` statement.

    Keys and values are cached in float32 for a file of "F32" weights, so that its logits equal the model's up to the
    order of sums (about 1e-5 relative), and in float16, llama.cpp's default, for all others.

    Args:
        path: what ``export_gguf`` wrote, or any other GGUF file of a language model.
        context: the most tokens that a text and what is generated after it may have.
        threads: processor threads; by default as many as torch uses, so that both can be compared.

    Raises:
        EngineNotAvailable: see ``problem``.
        EngineError: no such file, or none that llama.cpp can read.
        ValueError: ``context`` or ``threads`` below 1.
    """


class Engine:
    """A GGUF file in llama.cpp. Made by ``load``.

    Attributes:
        path: the file.
        vocab_size: tokens that it knows.
        context: the most tokens that it can hold.
    """

    path: Path
    vocab_size: int
    context: int

    def tokenize(self, text: str) -> list[int]:
        """Token ids as llama.cpp's own tokenizer finds them, special tokens in the text included, none added."""

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """The text of these tokens, special ones included."""

    def logits(self, token_ids: Sequence[int] | Tensor) -> Tensor:
        """Logits after each token of one text: float32 [tokens, vocabulary].

        Args:
            token_ids: [tokens] of one text, at least one and at most ``context``.

        Raises:
            ValueError: none, too many, or an id that isn't in the vocabulary.
        """

    def generate(self, token_ids: Sequence[int] | Tensor, *, new_tokens: int) -> list[int]:
        """The most likely next tokens, one after the other from the cache; an end token doesn't stop it.

        Args:
            token_ids: [tokens] of the prompt.
            new_tokens: how many to generate, at least 1.

        Raises:
            ValueError: as ``logits``, or prompt and new tokens don't fit into ``context``.
        """

    def close(self) -> None:
        """Give the memory back. Afterwards the engine can't be used any more."""

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def perplexity(engine: Engine, token_ids: Tensor | TokenBlocks) -> Perplexity:
    """``language_modelling.perplexity`` of a GGUF file, for the same rows in the same way.

    Args:
        engine: an open file.
        token_ids: int64 [rows, length] without padding, or ``TokenBlocks``.

    Raises:
        ValueError: no rows, fewer than two tokens a row, or an id that isn't in the vocabulary.
    """


def measure_speed(
    files: Mapping[str, str | os.PathLike[str]],
    *,
    prompt_tokens: int = 128,
    new_tokens: int = 32,
    rounds: int = 7,
    warmups: int = 1,
    threads: int | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """``benchmarking.measure_speed`` of GGUF files: reading a prompt and generating, the files taking turns.

    In each round every file reads the same random prompt and then generates exactly ``new_tokens`` tokens. All files
    are open at once (their weights are mapped from disk), so a round's turns follow each other without loading.

    Args:
        files: name -> GGUF file; the first one is what the others are compared with.
        prompt_tokens: tokens of the prompt, at least 1.
        new_tokens: tokens generated after it, at least 1.
        rounds: timed runs of each, at least 6.
        warmups: runs of each beforehand that don't count.
        threads: as for ``load``.
        seed: of the prompt.

    Returns:
        The frame of ``benchmarking.measure_speed``: model, phase, tokens_per_second, speedup over the first file with
        ci_low and ci_high, estimate; ``benchmarking.relative_speed`` and ``speedup_text`` read it. The estimate is the
        ratio of FLOPs for "prefill" and of bytes read for "decode", both counted from the file: fewer bits a weight
        save bytes, but no FLOPs.

    Raises:
        EngineNotAvailable: see ``problem``.
        EngineError: a file can't be read.
        ValueError: no files, a size below 1, too few rounds.
    """

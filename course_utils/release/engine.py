"""llama.cpp in this process: does a GGUF file compute what the model did, and how fast is it where people serve it?

The engine is the optional extra "engine": the wheel llama-cpp-py-sync, which carries llama.cpp and its C interface.
``available()`` tells whether it is there; everything else says how to get it where it isn't.

>>> available() == (problem() == "")
True
>>> with load(export_gguf(model, tokenizer, "pruned.gguf")) as engine:  # doctest: +SKIP
...     logits = engine.logits(tokenizer("Once upon a time").input_ids)  # as model(...).logits[0]
>>> measure_speed({"whole": "whole.gguf", "pruned": "pruned.gguf"})  # doctest: +SKIP
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import platform
import struct
import time
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from hashlib import blake2b
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from course_utils.measuring import benchmarking, language_modelling
from course_utils.measuring.evaluation import Perplexity
from course_utils.support import checks
from course_utils.support.extras import brought
from course_utils.text.rows import TokenBlocks

with brought("engine"):
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFValueType

PACKAGE, VERSION = "llama-cpp-py-sync", "0.11739"  # llama.cpp b11739; pyproject.toml pins the same
_BATCH = 512  # tokens read in one go, llama.cpp's own default: all their logits may exist at once
_F32 = _ALL_F32 = 0  # ggml's number of the type, and llama.cpp's of a file that holds nothing else
_CACHES = {"F16": 1, "Q8_0": 8}  # ggml's numbers of types for keys and values
_WARNING = 3
_complaints: deque[str] = deque(maxlen=8)  # what llama.cpp logged last; printed nowhere


class EngineNotAvailable(RuntimeError):
    """The optional extra "engine" isn't installed, in another version, or doesn't run on this machine."""


class EngineError(ValueError):
    """llama.cpp can't read the file, or can't do what was asked; the message has its own words."""


def available() -> bool:
    """Whether the engine can be used here."""
    return not problem()


def problem() -> str:
    """Why the engine can't be used, in one sentence with the remedy; empty where it can."""
    remedy = f"install it with: python -m pip install {PACKAGE}=={VERSION}"
    try:
        found = metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        return f"The engine (llama.cpp, an optional extra) isn't installed; {remedy}"
    if found != VERSION:
        return f"The engine is {PACKAGE} {found}, and the course was tried with {VERSION} only; {remedy}"
    if platform.machine() in ("x86_64", "AMD64") and not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        return f"The engine ({PACKAGE} {found}) needs a processor with AVX2; lessons go on without it."
    try:
        _library()
    except (ImportError, OSError, RuntimeError) as error:
        return f"The engine ({PACKAGE} {found}) doesn't run on this machine ({error}); lessons go on without it."
    return ""


@functools.cache
def _library() -> tuple[Any, Any, Any]:
    """Its C interface (cffi): the library, what makes C values, and what listens to its logs."""
    from llama_cpp_py_sync._cffi_bindings import get_ffi, get_lib

    ffi, library = get_ffi(), get_lib()

    @ffi.callback("void(enum ggml_log_level, const char *, void *)")
    def note(level: int, text: Any, _data: Any) -> None:
        if level >= _WARNING:
            _complaints.append(ffi.string(text).decode(errors="replace").strip())

    library.llama_log_set(note, ffi.NULL)
    library.llama_backend_init()
    return library, ffi, note  # C keeps no reference to the function that it calls


def load(path: str | os.PathLike[str], *, context: int = 2048, cache: str = "F16") -> Engine:
    """Open a GGUF file, to compute on as many threads as torch does; close it afterwards, or use ``with``.

    A file of "F32" weights is computed in float32 throughout, so that its logits equal the model's up to the order of
    sums: SmolLM2's differ by at most 1e-4, as torch's own do from float64. All others run with llama.cpp's defaults,
    which round activations, keys and values to 16 bits ("F16"), or activations to 8: SmolLM2's logits in "F16" differ
    by up to 0.06, with a standard deviation of 5.

    Args:
        path: what ``export_gguf`` wrote, or any other GGUF file of a language model.
        context: the most tokens that a text and what is generated after it may have.
        cache: how keys and values are kept, "F16" or "Q8_0", which is llama.cpp's own ``type_k`` and ``type_v``. A file
            of "F32" weights keeps them in float32, and takes no "Q8_0".

    Raises:
        EngineNotAvailable: see ``problem``.
        EngineError: no such file, none that llama.cpp can read, or one that can't keep its cache so.
        ValueError: ``path`` is none, ``context`` below 1, or another ``cache``.
    """
    path = checks.path("path", path)
    checks.whole_number("context", context, least=1)
    checks.one_of("cache", cache, _CACHES)
    if trouble := problem():
        raise EngineNotAvailable(trouble)
    if not path.is_file():
        raise EngineError(f"There is no file '{path}'. Write one with export.export_gguf.")
    return Engine(path, context, cache)


class Engine:
    """A GGUF file in llama.cpp. Made by ``load``.

    Attributes:
        path: the file.
        vocab_size: tokens that it knows.
        context: the most tokens that it can hold.
    """

    def __init__(self, path: Path, context: int, cache: str) -> None:
        self.path = path
        library, ffi, _ = _library()
        self._lib, self._ffi = library, ffi
        _complaints.clear()
        settings = library.llama_model_default_params()
        settings.n_gpu_layers = 0  # on the processor alone, because speeds are compared with torch's there
        model = library.llama_model_load_from_file(os.fsencode(path), settings)
        if model == ffi.NULL:
            raise EngineError(f"llama.cpp can't read '{path}': {' '.join(_complaints)}")
        options = library.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = context, _BATCH, _BATCH
        options.n_threads = options.n_threads_batch = torch.get_num_threads()  # so that both can be compared
        options.op_offload = False
        options.type_k = options.type_v = _CACHES[cache]
        if library.llama_model_ftype(model) == _ALL_F32:
            if cache == "Q8_0":
                library.llama_model_free(model)
                raise EngineError(
                    f"'{path}' holds F32 weights, whose cache stays float32. Export F16 for a Q8_0 cache."
                )
            options.type_k = options.type_v = _F32
            options.flash_attn_type = 0  # that one computes in float16
        self._context = library.llama_init_from_model(model, options)
        if self._context == ffi.NULL:
            library.llama_model_free(model)
            raise EngineError(f"llama.cpp can't run '{path}': {' '.join(_complaints)}")
        self._vocabulary = library.llama_model_get_vocab(model)
        self.vocab_size = int(library.llama_vocab_n_tokens(self._vocabulary))
        self.context = context
        self._end = weakref.finalize(self, _free, library, self._context, model)

    def tokenize(self, text: str) -> list[int]:
        """Token ids as llama.cpp's own tokenizer finds them, special tokens in the text included, none added."""
        data = checks.text("text", text).encode("utf-8")
        ids = self._ffi.new("llama_token[]", len(data) + 1)
        count = self._lib.llama_tokenize(self._open(), data, len(data), ids, len(ids), False, True)
        return list(ids[0:count])

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """The text of these tokens, any number of them, special ones included."""
        # Piece by piece: llama_detokenize would take out spaces before punctuation.
        return b"".join(map(self._piece, self._known(token_ids))).decode("utf-8", errors="replace")

    def _piece(self, token: int, size: int = 64) -> bytes:
        piece = self._ffi.new("char[]", size)
        count = self._lib.llama_token_to_piece(self._vocabulary, token, piece, size, 0, True)
        return bytes(self._ffi.buffer(piece, count)) if count >= 0 else self._piece(token, -count)

    def logits(self, token_ids: Sequence[int] | Tensor) -> Tensor:
        """Logits after each token of one text of at most ``context`` tokens: float32 [tokens, vocabulary]."""
        return torch.cat([torch.tensor(logits) for logits in self._read(self._checked(token_ids), every=True)])

    def generate(self, token_ids: Sequence[int] | Tensor, *, new_tokens: int) -> list[int]:
        """The most likely tokens after a prompt, one after the other from the cache; an end token doesn't stop it.

        Prompt and new tokens together must fit into ``context``.
        """
        checks.whole_number("new_tokens", new_tokens, least=1)
        return [*itertools.islice(self._write(self._checked(token_ids, room=new_tokens)), new_tokens)]

    def cache_bytes(self) -> int:
        """Bytes of the keys and values that are kept now, of the text that was read last, with a few of bookkeeping."""
        self._open()
        return int(self._lib.llama_state_seq_get_size(self._context, 0))

    def close(self) -> None:
        """Give the memory back. Afterwards the engine can't be used any more."""
        self._end()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _open(self) -> Any:
        """The vocabulary of an engine that isn't closed: C would crash on one that is."""
        if not self._end.alive:
            raise EngineError(f"'{self.path}' was closed; load it again.")
        return self._vocabulary

    def _known(self, token_ids: Sequence[int] | Tensor) -> list[int]:
        """Token ids as a list of ints. llama.cpp aborts the process on many a wrong one."""
        self._open()
        given = token_ids.tolist() if isinstance(token_ids, Tensor) else token_ids
        return list(checks.whole_numbers("token_ids", given, most=self.vocab_size - 1, meaning="the file's vocabulary"))

    def _checked(self, token_ids: Sequence[int] | Tensor, room: int = 0) -> list[int]:
        """Token ids of one text that, with ``room`` new ones, fit into the context."""
        ids = self._known(token_ids)
        if not 1 <= len(ids) <= self.context - room:
            raise ValueError(
                f"Got {len(ids)} tokens{f' and {room} new ones' if room else ''}; at least one and at most "
                f"{self.context} fit. For more, load the file with a larger 'context'."
            )
        return ids

    def _run(self, ids: Sequence[int], *, every: bool = False) -> np.ndarray:
        """Read tokens after those in the cache: float32 [tokens or 1, vocabulary], a view until the next call."""
        ffi = self._ffi
        tokens = ffi.new("llama_token[]", ids)  # the two must live as long as the batch that points to them
        wanted = ffi.new("int8_t[]", [every] * (len(ids) - 1) + [True])
        batch = ffi.new("llama_batch *", {"n_tokens": len(ids), "token": tokens, "logits": wanted})
        if status := self._lib.llama_decode(self._context, batch[0]):
            raise EngineError(f"llama.cpp stopped with status {status} in '{self.path}': {' '.join(_complaints)}")
        count = len(ids) if every else 1
        logits = ffi.buffer(self._lib.llama_get_logits(self._context), 4 * count * self.vocab_size)
        return np.frombuffer(logits, np.float32).reshape(count, self.vocab_size)

    def _read(self, ids: list[int], *, every: bool) -> Iterator[np.ndarray]:
        """Forget everything and read a text, at most ``_BATCH`` tokens at a time, each as ``_run`` gives it."""
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)
        for start in range(0, len(ids), _BATCH):
            yield self._run(ids[start : start + _BATCH], every=every)

    def _write(self, prompt: list[int]) -> Iterator[int]:
        """The likeliest next tokens, one after the other and without end; each is read when the next one is wanted."""
        *_, logits = self._read(prompt, every=False)
        while True:
            token = int(logits.argmax())
            yield token
            logits = self._run([token])

    def lap(self, prompt: list[int], new_tokens: int) -> dict[str, float]:
        """Seconds of reading a prompt ("prefill") and of ``new_tokens`` further passes ("decode")."""
        start = time.perf_counter()
        tokens = self._write(prompt)
        next(tokens)
        middle = time.perf_counter()
        for _ in range(new_tokens):
            next(tokens)
        return {"prefill": middle - start, "decode": time.perf_counter() - middle}


def _free(library: Any, context: Any, model: Any) -> None:
    library.llama_free(context)
    library.llama_model_free(model)


def perplexity(engine: Engine, token_ids: Tensor | TokenBlocks) -> Perplexity:
    """``language_modelling.perplexity`` of an open file, for the same rows: int64 [rows, length] without padding."""
    rows = token_ids.input_ids if isinstance(token_ids, TokenBlocks) else token_ids
    whole = isinstance(rows, Tensor) and not rows.is_floating_point()
    if not whole or rows.dim() != 2 or rows.shape[0] < 1 or rows.shape[1] < 2:
        given = f"{rows.dtype} {list(rows.shape)}" if isinstance(rows, Tensor) else type(rows).__name__
        raise ValueError(f"'token_ids' must be integers [rows, at least 2 tokens] or TokenBlocks; got {given}.")
    losses, digest = [], blake2b(digest_size=16)
    for row in tqdm(rows.cpu(), desc="Perplexity", unit="row", delay=2, leave=False):
        loss, start = 0.0, 0
        for logits in map(torch.tensor, engine._read(engine._checked(row), every=True)):
            targets = row[start + 1 : start + 1 + len(logits)]  # the last logits have none
            log_p = logits[: len(targets)].log_softmax(-1).gather(1, targets[:, None])
            loss -= float(log_p.double().sum())
            start += len(logits)
        losses.append(loss)
        digest.update(row.long().numpy().tobytes() + b"|")
    predicted = np.full(len(rows), rows.shape[1] - 1)
    row_bytes = language_modelling.bytes_of(token_ids)
    return language_modelling.summary(np.array(losses), predicted, row_bytes, "gguf", digest.hexdigest())


def measure_speed(
    files: Mapping[str, str | os.PathLike[str]],
    *,
    prompt_tokens: int = 128,
    new_tokens: int = 32,
    rounds: int = 7,
) -> pd.DataFrame:
    """``benchmarking.measure_speed`` of GGUF files: reading a prompt and generating, the files taking turns.

    In each round every file reads the same random prompt and then generates exactly ``new_tokens`` tokens. All files
    are open at once (their weights are mapped from disk), so a round's turns follow each other without loading.

    Args:
        files: name -> GGUF file; the first one is what the others are compared with.
        prompt_tokens: of the prompt, at least 1.
        new_tokens: generated after it, at least 1.
        rounds: timed runs of each file, at least 6.

    Returns:
        The frame of ``benchmarking.measure_speed``. The estimate is the ratio of FLOPs for "prefill" and of bytes read
        for "decode", both counted from the file: fewer bits per weight save bytes, but no FLOPs.

    Raises:
        EngineNotAvailable: see ``problem``.
        EngineError: a file can't be read.
    """
    if not isinstance(files, Mapping):
        raise ValueError(f"'files' must be a mapping, name -> path; got {files!r}.")
    sizes = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens}
    for size, value in sizes.items():
        checks.whole_number(size, value, least=1)
    with ExitStack() as opened:
        context = prompt_tokens + new_tokens
        engines = {name: opened.enter_context(load(path, context=context)) for name, path in files.items()}
        known = min((engine.vocab_size for engine in engines.values()), default=1)
        prompt = torch.randint(known, (prompt_tokens,), generator=torch.Generator().manual_seed(0)).tolist()
        laps = {name: functools.partial(engine.lap, prompt, new_tokens) for name, engine in engines.items()}
        samples = benchmarking.take_turns(laps, rounds=rounds)
    work = {name: _work(path, **sizes) for name, path in files.items()}
    first = work[next(iter(work))]
    estimates = {name: {phase: first[phase] / its[phase] for phase in its} for name, its in work.items()}
    return benchmarking.speed_frame(samples, {"prefill": prompt_tokens, "decode": new_tokens}, estimates)


def _work(path: str | os.PathLike[str], *, prompt_tokens: int, new_tokens: int) -> dict[str, float]:
    """Operations of reading a prompt, and bytes of generating one token after it, the cache at its mean length."""
    tensors = list(_tensors(path))
    shapes, kinds = {name: shape for name, shape, _ in tensors}, {name: kind for name, _, kind in tensors}
    weights = {name: math.prod(shape) for name, shape in shapes.items()}
    head = "output.weight" if "output.weight" in shapes else "token_embd.weight"
    read = [name for name in shapes if name == head or name != "token_embd.weight"]
    multiplied = sum(weights[name] for name in read if len(shapes[name]) > 1 and name != head)
    sizes = {name: weights[name] // block * size for name in read for block, size in [GGML_QUANT_SIZES[kinds[name]]]}

    def rows(*ends: str) -> int:
        return sum(shapes[name][1] for name in read if name.endswith(ends))

    all_f32 = all(kinds[name] == GGMLQuantizationType.F32 for name in read)
    cached = rows("attn_k.weight", "attn_v.weight") * (4 if all_f32 else 2)  # bytes per token, as ``load`` caches them
    prefill = 2.0 * prompt_tokens * (multiplied + prompt_tokens * rows("attn_q.weight")) + 2 * weights[head]
    return {"prefill": prefill, "decode": sum(sizes.values()) + (prompt_tokens + new_tokens // 2) * cached}


def _tensors(path: str | os.PathLike[str]) -> Iterator[tuple[str, tuple[int, ...], GGMLQuantizationType]]:
    """Name, shape (row length first) and type of each tensor. ``GGUFReader`` would unpack the tokenizer for seconds."""
    sizes = {kind: np.dtype(number).itemsize for kind, number in GGUFReader.gguf_scalar_to_np.items()}
    with open(path, "rb") as file:

        def take(layout: str) -> tuple:
            return struct.unpack("<" + layout, file.read(struct.calcsize("<" + layout)))

        def step_over(kind: int, count: int = 1) -> None:
            if kind == GGUFValueType.ARRAY:
                step_over(*take("IQ"))
            elif kind == GGUFValueType.STRING:
                for _ in range(count):
                    file.read(*take("Q"))
            else:
                file.read(count * sizes[GGUFValueType(kind)])

        _, _, tensors, settings = take("4sIQQ")
        for _ in range(settings):
            step_over(GGUFValueType.STRING)
            step_over(*take("I"))
        for _ in range(tensors):
            name = file.read(*take("Q")).decode()
            shape = take(f"{take('I')[0]}Q")
            kind, _ = take("IQ")
            yield name, shape, GGMLQuantizationType(kind)

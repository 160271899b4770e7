"""Pruned models as GGUF, the one file that llama.cpp and what is built on it (Ollama, LM Studio …) read.

Llama, Mistral, Qwen2 and Qwen3 models are written under llama.cpp's own names for them. A Llama-like model whose blocks
differ (uneven widths, attentions removed, other heads from block to block) is written as "deci": that is the
architecture of NVIDIA's Nemotron-51B, a Llama pruned block by block, and llama.cpp reads a width and a number of heads
for each block from such a file. So is a Qwen2 with KV groups or hidden channels cut, because llama.cpp takes for
granted that a Qwen2's heads together are as wide as its hidden states.

Number formats: "F32" and "F16" store weights as they are; "Q8_0" and "Q4_0" store blocks of 32 neighbouring weights of
a row as 8- or 4-bit integers with a common scale, 34 or 18 bytes a block. **A row that isn't a multiple of 32 can't be
stored so, and falls back to F16.** The rows of the down-projection are as long as the MLP is wide, those of all others
as long as the hidden size (o_proj: heads x head size). So a width of 1229 takes more bytes than 1248: ``plan_gguf``
tells before anything is written. Norms and biases stay in F32; with "Q4_0" the embedding and the head get "Q8_0", as in
llama.cpp's own files.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from course_utils.models.architectures import Architecture, describe
from course_utils.support import checks
from course_utils.support.extras import brought
from course_utils.support.files import replacing

with brought("gguf"):
    import gguf
    from gguf import GGML_QUANT_SIZES, GGUFWriter, TokenType
    from gguf import GGMLQuantizationType as Type

_QUANTIZATIONS = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7}  # and GGUF's number for a file of each
# llama.cpp's architecture for a family whose blocks are alike, and for one whose blocks differ.
_EVEN = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
_UNEVEN = {"llama": "deci", "mistral": "deci", "qwen2": "deci"}
_SQUARE = ("qwen2",)  # its heads together must be as wide as the hidden states, or llama.cpp refuses the file
_ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")
_GPT2_WORDS = ("ByteLevel", True)  # splits words as GPT-2 does, then maps bytes to letters
_ONLY_BYTES = ("ByteLevel", False)
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_OTHERS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# How a tokenizer splits text before it merges, whether whole words skip the merges -> llama.cpp's name for that.
_SPLITTINGS = {
    ((_GPT2_WORDS,), False): "gpt-2",
    ((("Digits", True), _GPT2_WORDS), False): "smollm",
    ((("Split", _CONTRACTIONS + r"\p{N}{1,3}" + _OTHERS), _ONLY_BYTES), True): "llama-bpe",
    ((("Split", _CONTRACTIONS + r"\p{N}" + _OTHERS), _ONLY_BYTES), False): "qwen2",
}
_LARGEST = {Type.F32: torch.finfo(torch.float32).max}  # all others keep weights or scales in float16
_CHUNK = 2**22  # weights converted at once


class CannotExport(ValueError):
    """The model or its tokenizer can't be expressed in a GGUF file that llama.cpp reads rightly."""


def export_gguf(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    path: str | os.PathLike[str],
    *,
    quantization: str = "F16",
) -> Path:
    """Write a model and its tokenizer as one GGUF file, whole or not at all.

    Weights are converted tensor by tensor, so beside the model no more than one converted tensor is in memory. A
    bypassed attention is left out of the file like a removed one. The model isn't changed.

    Args:
        model: a Llama, Mistral, Qwen2 or Qwen3 causal language model, whole or pruned by any method of this package
            except the adaptive bypass. Qwen3's blocks must be alike, and its attentions without biases.
        tokenizer: the model's, a byte-level BPE that splits text as GPT-2's, SmolLM's, Llama 3's or Qwen2's does. What
            Qwen2's composes first (e and an accent to é), llama.cpp leaves as it is.
        path: the file, usually ``….gguf``; an older one is replaced.
        quantization: "F32", "F16", "Q8_0" or "Q4_0"; see the module's text and ``plan_gguf``.

    Returns:
        The path.

    Raises:
        CannotExport: a ValueError; another family, an adaptive model, blocks or positions that no architecture of
            llama.cpp expresses, a tokenizer that it would read differently, or weights that aren't finite (in F16: that
            exceed 65,504).
        ValueError: another quantization, or ``path`` is a folder.
        UnsupportedArchitecture: ``describe`` doesn't know the model.
    """
    file = _File.of(model, tokenizer, quantization)
    _refuse_shapes_alone(model)
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"'path' must be a file, such as {str(path / 'model.gguf')!r}; {str(path)!r} is a folder.")
    with replacing(path) as fresh, file.writer(fresh) as writer:
        for tensor in tqdm(file.tensors, desc=f"Writing {quantization}", unit="tensor", delay=2, leave=False):
            writer.write_tensor_data(tensor.encoded())
    return path


@torch.no_grad()
def as_stored(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, quantization: str) -> PreTrainedModel:
    """A copy whose weights are the numbers in a file of ``export_gguf``, in the model's own dtype.

    It says without llama.cpp what fewer bits cost. llama.cpp itself rounds activations as well, to 8 bits: of
    SmolLM2-135M its losses are 0.005 nats a token higher, in Q8_0 and in Q4_0, where Q4_0's weights cost 0.16.

    Args:
        model: as for ``export_gguf``; it is not changed.
        tokenizer: as for ``export_gguf``.
        quantization: as for ``export_gguf``.

    Raises:
        CannotExport: as for ``export_gguf``.
        ValueError: as for ``export_gguf``.
        UnsupportedArchitecture: ``describe`` doesn't know the model.
    """
    stored = copy.deepcopy(model)
    file = _File.of(stored, tokenizer, quantization)
    _refuse_shapes_alone(model)
    tensors = [tensor for tensor in file.tensors if tensor.type != Type.F32]
    for tensor in tqdm(tensors, desc=f"Rounding to {quantization}", unit="tensor", delay=2, leave=False):
        tensor.weight.copy_(tensor.decoded())
    return stored


def plan_gguf(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, quantization: str = "F16") -> pd.DataFrame:
    """What ``export_gguf`` would write, without writing it. Shapes are enough: a model on the "meta" device will do.

    Args:
        model: as for ``export_gguf``.
        tokenizer: as for ``export_gguf``.
        quantization: as for ``export_gguf``.

    Returns:
        One row for each kind of tensor and type: part ("embedding", "attention", "MLP", "norms", "head", "positions"
        where they are scaled, "head of zeros" where block 0's attention is left out, and "settings", the tokenizer
        among them), type it gets, tensors, weights, bytes, and note, which is empty or says why the type isn't the one
        asked for and which sizes would be legal. The bytes add up to the file's size exactly.

    Raises:
        CannotExport: as for ``export_gguf``.
        ValueError: as for ``export_gguf``.
        UnsupportedArchitecture: ``describe`` doesn't know the model.
    """
    file = _File.of(model, tokenizer, quantization)
    with tempfile.TemporaryDirectory() as folder, file.writer(Path(folder) / "settings") as writer:
        writer.flush()
        start = _padded((Path(folder) / "settings").stat().st_size)
    padding = sum(_padded(tensor.bytes) - tensor.bytes for tensor in file.tensors)
    rows = [
        (tensor.part, tensor.type.name, 1, math.prod(tensor.shape), tensor.bytes, tensor.note)
        for tensor in file.tensors
    ]
    table = pd.DataFrame(
        [*rows, ("settings", "", 0, 0, start + padding, "")],
        columns=["part", "type", "tensors", "weights", "bytes", "note"],
    )
    return table.groupby(["part", "type", "note"], sort=False, as_index=False).sum()[list(table.columns)]


@dataclass(frozen=True)
class _Tensor:
    """One tensor of the file: what is known before its weights are touched, and how to get them."""

    name: str
    part: str
    weight: Tensor  # the model's own
    type: Type
    note: str
    arranged: Callable[[Tensor], Tensor]  # as the file has its rows

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape in the file."""
        return tuple(self.weight.shape)

    @property
    def byte_shape(self) -> tuple[int, ...]:
        """Its shape with the last axis in bytes."""
        block, size = GGML_QUANT_SIZES[self.type]
        return (*self.shape[:-1], self.shape[-1] // block * size)

    @property
    def bytes(self) -> int:
        """Its size in the file, without what fills up to the next boundary."""
        return math.prod(self.byte_shape)

    def encoded(self) -> np.ndarray:
        """Its bytes: uint8 in ``byte_shape``.

        Raises:
            CannotExport: weights that aren't finite, or too large for the type.
        """
        return self._bytes_of(self.arranged(self.weight))

    def decoded(self) -> Tensor:
        """What its bytes say of the model's own weight: float32 in ``shape``. Blocks lie in rows, whatever their order.

        Raises:
            CannotExport: as for ``encoded``.
        """
        return torch.from_numpy(gguf.quants.dequantize(self._bytes_of(self.weight), self.type))

    def _bytes_of(self, weights: Tensor) -> np.ndarray:
        """Converted a few rows at a time."""
        rows = weights.detach().reshape(-1, self.shape[-1])
        out = np.empty((len(rows), self.byte_shape[-1]), dtype=np.uint8)
        step, limit = max(1, _CHUNK // self.shape[-1]), _LARGEST.get(self.type, torch.finfo(torch.float16).max)
        for start in range(0, len(rows), step):
            chunk = rows[start : start + step].to("cpu", torch.float32)
            if not (largest := float(chunk.abs().max())) <= limit:
                raise CannotExport(
                    f"{self.name} holds a weight of size {largest}, and {self.type.name} holds finite ones up to "
                    f"{limit:,.0f}. Check the model's weights, or export in F32."
                )
            out[start : start + step] = gguf.quants.quantize(chunk.numpy(), self.type).view(np.uint8)
        return out.reshape(self.byte_shape)


@dataclass(frozen=True)
class _File:
    """Everything that a GGUF file holds, the weights still in the model."""

    architecture: str
    quantization: str
    model: PreTrainedModel
    shape: _Shape
    vocabulary: _Vocabulary
    tensors: list[_Tensor]

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, quantization: str) -> _File:
        """Check everything that can be refused before a weight is touched."""
        checks.one_of("quantization", quantization, _QUANTIZATIONS)
        parts = describe(model)
        _refuse_others(parts)
        shape = _Shape.of(parts)
        architecture = _architecture(parts, shape)
        vocabulary = _Vocabulary.of(tokenizer, parts.vocab_size)
        tensors = list(_tensors(parts, shape, architecture, quantization))
        return cls(architecture, quantization, model, shape, vocabulary, tensors)

    @contextlib.contextmanager
    def writer(self, path: Path) -> Iterator[GGUFWriter]:
        """A writer that has written all but the weights."""
        writer = GGUFWriter(path, self.architecture)
        try:
            self._add_settings(writer)
            self.vocabulary.add_to(writer)
            for tensor in self.tensors:
                raw = {} if tensor.type == Type.F32 else {"raw_dtype": tensor.type}
                writer.add_tensor_info(
                    tensor.name,
                    tensor.byte_shape if raw else tensor.shape,
                    np.dtype(np.uint8 if raw else np.float32),
                    tensor.bytes,
                    **raw,
                )
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            yield writer
        finally:
            writer.close()

    def _add_settings(self, writer: GGUFWriter) -> None:
        config, shape = self.model.config, self.shape
        writer.add_type("model")
        # The last part of any system's path: folders above it name a home.
        if name := PureWindowsPath(getattr(config, "_name_or_path", "") or "").name:
            writer.add_name(name)
        writer.add_file_type(_QUANTIZATIONS[self.quantization])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        writer.add_block_count(len(shape.widths))
        writer.add_context_length(shape.context)
        writer.add_embedding_length(shape.hidden)
        uneven = self.architecture == "deci"
        writer.add_feed_forward_length(list(shape.widths) if uneven else shape.widths[0])
        writer.add_head_count(list(shape.heads) if uneven else shape.heads[0])
        writer.add_head_count_kv(list(shape.groups) if uneven else shape.groups[0])
        writer.add_key_length(shape.head_size)
        writer.add_value_length(shape.head_size)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_dimension_count(shape.head_size)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])


def _refuse_shapes_alone(model: PreTrainedModel) -> None:
    if any(weight.is_meta for weight in model.parameters()):  # all of them, or those that are offloaded
        raise CannotExport("The model is on the 'meta' device: it has shapes but no weights. Load it with weights.")


def _refuse_others(parts: Architecture) -> None:
    if parts.name not in _EVEN:
        raise CannotExport(
            f"GGUF export knows {', '.join(_EVEN)}; got a {parts.name!r} model. Convert that one with llama.cpp's own "
            "convert_hf_to_gguf.py, from a folder of save_pruned."
        )
    if parts.adaptive:
        raise CannotExport(
            "An adaptive model decides for each prompt which attentions to leave out, and no GGUF architecture can. "
            "Undo it with make_adaptive(model, None), then choose fixed ones with bypass_attention."
        )
    projections = [projection for a in parts.attentions for projection in (*a.inputs, *a.outputs)]
    if parts.name == "qwen3" and any(projection.bias is not None for projection in projections):
        raise CannotExport(
            "llama.cpp reads no biases in the attention of a 'qwen3' model; this one has them (attention_bias=True), "
            "and without them it would be another model. Run it with transformers."
        )


@dataclass(frozen=True)
class _Shape:
    """A model's sizes, read from its weights, as the file tells them.

    Heads are 0 where an attention is left out. llama.cpp takes the size of heads from block 0, so there one head of
    zeros stands for it, which adds exactly nothing.
    """

    hidden: int
    head_size: int
    context: int
    widths: tuple[int, ...]
    heads: tuple[int, ...]
    groups: tuple[int, ...]  # key/value heads
    even: bool  # all blocks alike, with an attention

    @classmethod
    def of(cls, parts: Architecture) -> _Shape:
        config = parts.model.config
        head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        # Files have no per-layer windows in these architectures: up to the window, full attention is the same.
        window = getattr(config, "sliding_window", None) or config.max_position_embeddings
        widths = parts.intermediate_sizes
        heads = [a.query_width // head_size for a in parts.attentions]
        groups = [a.key_value_width // (2 * head_size) for a in parts.attentions]
        even = 0 not in heads and all(len(set(sizes)) == 1 for sizes in (widths, heads, groups))
        return cls(
            hidden=parts.hidden_size,
            head_size=head_size,
            context=min(window, config.max_position_embeddings),
            widths=widths,
            heads=(heads[0] or 1, *heads[1:]),
            groups=(groups[0] or 1, *groups[1:]),
            even=even,
        )


def _architecture(parts: Architecture, shape: _Shape) -> str:
    """llama.cpp's name of the architecture that computes what the model does."""
    config, family = parts.model.config, parts.name
    alike = shape.even and (family not in _SQUARE or shape.heads[0] * shape.head_size == shape.hidden)
    if not alike and family not in _UNEVEN:
        raise CannotExport(
            f"llama.cpp has no architecture for a {family!r} model whose blocks differ (MLPs of {shape.widths} "
            f"neurons, attentions of {shape.heads} heads). Prune all of its blocks alike, or take "
            f"{', '.join(_UNEVEN)}."
        )
    if config.hidden_act != "silu":
        raise CannotExport(f"llama.cpp computes these models with the activation 'silu'; got {config.hidden_act!r}.")
    architecture = _EVEN[family] if alike else _UNEVEN[family]
    positions = config.rope_parameters
    known = ("default", "linear", "llama3") if architecture in ("llama", "deci") else ("default",)
    if positions["rope_type"] not in known or positions.get("partial_rotary_factor", 1) != 1:
        raise CannotExport(
            f"Rotary positions of a {family!r} model are exported for {', '.join(known)} over whole heads; got "
            f"{dict(positions)}."
        )
    return architecture


def _tensors(parts: Architecture, shape: _Shape, architecture: str, quantization: str) -> Iterator[_Tensor]:
    """The file's tensors in their order."""
    model, config = parts.model, parts.model.config

    def tensor(name: str, part: str, weight: Tensor, arranged: Callable[[Tensor], Tensor] | None = None) -> _Tensor:
        kind, note = _type(part, tuple(weight.shape), quantization)
        return _Tensor(name, part, weight, kind, note, arranged or (lambda weight: weight))

    embedding = model.get_input_embeddings().weight
    yield tensor("token_embd.weight", "embedding", embedding)
    if config.rope_parameters["rope_type"] != "default":
        factors = torch.empty(shape.head_size // 2, device="meta")
        yield tensor("rope_freqs.weight", "positions", factors, lambda _: _frequency_factors(model, shape.head_size))
    # llama.cpp's Llama turns neighbouring numbers of a head together, transformers' the two halves of a head.
    interleaved = architecture in ("llama", "deci")
    interleaved_rows = functools.partial(_interleaved, head_size=shape.head_size)
    for i, (attention, mlp) in enumerate(zip(parts.attentions, parts.mlps, strict=True)):
        names: list[tuple[str, str, Tensor | None]] = []
        if not attention.skipped:
            names.append(("attn_norm.weight", "norms", attention.norms[0].weight))
            for name, projection in zip(_ATTENTION, attention.projections, strict=True):
                names += [(f"{name}.weight", "attention", projection.weight)]
                names += [(f"{name}.bias", "attention", projection.bias)]
            for name in ("q_norm", "k_norm"):
                if norm := getattr(attention.module, name, None):
                    names.append((f"attn_{name}.weight", "norms", norm.weight))
        elif i == 0:
            sizes = (shape.hidden,), *3 * [(shape.head_size, shape.hidden)], (shape.hidden, shape.head_size)
            for name, size in zip(("attn_norm", *_ATTENTION), sizes, strict=True):
                names.append((f"{name}.weight", "head of zeros", torch.zeros(size)))
        names.append(("ffn_norm.weight", "norms", mlp.norm.weight if mlp.norm else None))
        for name, projection in zip(("ffn_gate", "ffn_up", "ffn_down"), mlp.projections, strict=True):
            names += [(f"{name}.weight", "MLP", projection.weight), (f"{name}.bias", "MLP", projection.bias)]
        for name, part, weight in names:
            if weight is None:
                continue
            turned = interleaved and name.startswith(("attn_q.", "attn_k."))
            yield tensor(f"blk.{i}.{name}", part, weight, interleaved_rows if turned else None)
    yield tensor("output_norm.weight", "norms", parts.backbone.norm.weight)
    if parts.head.weight is not embedding:
        yield tensor("output.weight", "head", parts.head.weight)


def _type(part: str, shape: tuple[int, ...], quantization: str) -> tuple[Type, str]:
    """What a tensor is stored as, and why if that isn't what was asked for."""
    if len(shape) == 1:
        return Type.F32, ""
    if quantization in ("F32", "F16"):
        return Type[quantization], ""
    block, _ = GGML_QUANT_SIZES[Type[quantization]]
    if shape[-1] % block:
        below = shape[-1] // block * block
        return Type.F16, (
            f"rows of {shape[-1]:,} aren't a multiple of {block}, so F16; legal: "
            f"{f'{below:,} or ' if below else ''}{below + block:,}"
        )
    if quantization == "Q4_0" and part in ("embedding", "head"):
        return Type.Q8_0, "8 bits, as in llama.cpp's own Q4_0 files"
    return Type[quantization], ""


def _interleaved(weight: Tensor, head_size: int) -> Tensor:
    """Rows of each head (or its bias) in the order 0, h/2, 1, h/2 + 1 … for a head of size h."""
    return weight.reshape(-1, 2, head_size // 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def _frequency_factors(model: PreTrainedModel, head_size: int) -> Tensor:
    """What each rotary frequency is divided by: float32 [head size / 2]. Llama 3 slows the low ones down."""
    positions = model.config.rope_parameters
    scaled, _ = ROPE_INIT_FUNCTIONS[positions["rope_type"]](model.config, torch.device("cpu"))
    plain = positions["rope_theta"] ** -(torch.arange(0, head_size, 2, dtype=torch.float64) / head_size)
    return (plain / scaled).float()


@dataclass(frozen=True)
class _Vocabulary:
    """A byte-level BPE tokenizer in GGUF's terms."""

    splitting: str
    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    special: dict[str, int]  # "bos" -> token id
    adds: dict[str, bool]  # "bos" -> whether it stands at that end of every text
    chat_template: str | None

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, size: int) -> _Vocabulary:
        """Read a tokenizer for an embedding of ``size`` rows; rows without a token get a placeholder."""
        if not getattr(tokenizer, "is_fast", False):
            raise CannotExport(
                f"The tokenizer must be a fast one (tokenizers library); got {type(tokenizer).__name__}."
            )
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        splitting = _splitting(state)
        known = tokenizer.get_vocab()
        if max(known.values()) >= size:
            raise CannotExport(
                f"The tokenizer knows token {max(known.values())}, but the model's embedding has {size} rows. "
                "Give the tokenizer that belongs to this model."
            )
        tokens, kinds = [f"[PAD{i}]" for i in range(size)], [TokenType.UNUSED] * size
        for token, i in known.items():
            tokens[i], kinds[i] = token, TokenType.NORMAL
        for i, added in tokenizer.added_tokens_decoder.items():
            tokens[i] = added.content
            kinds[i] = TokenType.CONTROL if added.special else TokenType.USER_DEFINED
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in state["model"]["merges"]]
        special = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "unk", "pad")}
        ids = tokenizer("a").input_ids
        return cls(
            splitting,
            tokens,
            kinds,
            merges,
            {name: i for name, i in special.items() if i is not None},
            {"bos": ids[0] == special["bos"], "eos": ids[-1] == special["eos"]},
            tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None,
        )

    def add_to(self, writer: GGUFWriter) -> None:
        """Write it into a file's settings."""
        writer.add_vocab_size(len(self.tokens))
        writer.add_tokenizer_model("gpt2")  # GGUF's name for byte-level BPE of any kind
        writer.add_tokenizer_pre(self.splitting)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.kinds)
        writer.add_token_merges(self.merges)
        for name, i in self.special.items():
            getattr(writer, f"add_{name}_token_id")(i)
        for name, whether in self.adds.items():
            getattr(writer, f"add_add_{name}_token")(whether)
        if self.chat_template is not None:
            writer.add_chat_template(self.chat_template)


def _splitting(state: dict) -> str:
    """llama.cpp's name for how a tokenizer (its JSON) splits text."""
    bpe, first = state["model"], state["pre_tokenizer"] or {"type": "none"}
    steps = []
    for step in first.get("pretokenizers", [first]):
        plain = not step.get("add_prefix_space", False)
        if step["type"] == "ByteLevel" and plain:
            steps.append(("ByteLevel", step.get("use_regex", True)))
        elif step["type"] == "Digits":
            steps.append(("Digits", step["individual_digits"]))
        elif step["type"] == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
            steps.append(("Split", step["pattern"].get("Regex")))
        else:
            steps.append((step["type"], str(step)))
    name = None
    if (
        bpe["type"] == "BPE"
        and not bpe.get("byte_fallback")
        and (state["normalizer"] or {}).get("type") in (None, "NFC")
    ):
        name = _SPLITTINGS.get((tuple(steps), bool(bpe.get("ignore_merges"))))
    if name is None:
        raise CannotExport(
            "The course doesn't know how llama.cpp would read this tokenizer's texts. It exports byte-level BPE that "
            f"splits like {', '.join(_SPLITTINGS.values())}; got {bpe['type']} with the steps {steps}. Convert that "
            "model with llama.cpp's own convert_hf_to_gguf.py."
        )
    return name


def _padded(size: int) -> int:
    return GGUFWriter.ggml_pad(size, gguf.GGUF_DEFAULT_ALIGNMENT)

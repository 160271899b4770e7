"""Pruned models as GGUF, the one file that llama.cpp and what is built on it (Ollama, LM Studio …) read.

Llama, Mistral, Qwen2 and Qwen3 models are written under llama.cpp's own names for them. A Llama-like model whose blocks
differ (uneven widths, attentions removed, other heads from block to block) is written as "deci": that is the
architecture of NVIDIA's Nemotron-51B, a Llama pruned block by block, and llama.cpp reads a width and a number of heads
for each block from such a file. So is a Qwen2 with KV groups or hidden channels cut, because llama.cpp takes for
granted that a Qwen2's heads together are as wide as its hidden states.

"F32" and "F16" store weights as they are. "Q8_0" and "Q4_0" store 32 neighbouring weights of a row as 8- or 4-bit
integers with a common scale, in 34 or 18 bytes. **A row that isn't a multiple of 32 can't be stored so, and falls back
to F16.** The rows of the down-projection are as long as the MLP is wide, those of all others as long as the hidden size
(o_proj: heads x head size). So a width of 1229 takes more bytes than 1248: ``plan_gguf`` tells before anything is
written. Norms and biases stay in F32; with "Q4_0" the embedding and the head get "Q8_0", as in llama.cpp's own files.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from course_utils.models.architectures import Architecture, describe
from course_utils.models.refusals import refuse_missing_weights
from course_utils.pruning.checkpoints import live_weights
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
_INTERLEAVED = ("llama", "deci")  # turn neighbouring numbers of a head together; transformers turns its two halves
# The part that a tensor belongs to, by the first of these that its name contains.
_PARTS = {"norm": "norms", "attn": "attention", "ffn": "MLP", "token_embd": "embedding", "output": "head"}
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
        tokenizer: the model's, a byte-level BPE that splits text as GPT-2's, SmolLM's, Llama 3's or Qwen2's does.
            Qwen2's composes letters first (e and an accent to é); llama.cpp doesn't.
        path: the file, usually ``….gguf``; an older one is replaced.
        quantization: "F32", "F16", "Q8_0" or "Q4_0"; see the module's text and ``plan_gguf``.

    Returns:
        The path.

    Raises:
        CannotExport: a ValueError; another family, an adaptive model, blocks or positions that no architecture of
            llama.cpp expresses, a tokenizer that it would read differently, or weights that aren't finite (in F16: that
            exceed 65,504).
        ValueError: another quantization, weights on the meta device, or ``path`` is a folder.
        UnsupportedArchitecture: ``describe`` doesn't know the model.
    """
    file = _File.of(model, tokenizer, quantization)
    refuse_missing_weights(describe(model), "write a file")
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

    It says without llama.cpp what fewer bits cost. llama.cpp itself also rounds activations to 8 bits: of SmolLM2-135M
    its losses are 0.005 nats per token higher, in Q8_0 and in Q4_0, where Q4_0's weights cost 0.16. Arguments and
    errors are those of ``export_gguf``; the model is not changed.
    """
    stored = copy.deepcopy(model)
    file = _File.of(stored, tokenizer, quantization)
    refuse_missing_weights(describe(model), "round weights")
    tensors = [tensor for tensor in file.tensors if tensor.type != Type.F32]
    for tensor in tqdm(tensors, desc=f"Rounding to {quantization}", unit="tensor", delay=2, leave=False):
        tensor.weight.copy_(tensor.decoded())
    return stored


def plan_gguf(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, quantization: str = "F16") -> pd.DataFrame:
    """What ``export_gguf`` would write, without writing it. Shapes are enough: a model on the "meta" device will do.

    Arguments and errors are those of ``export_gguf``.

    Returns:
        One row for each kind of tensor and type: part ("embedding", "attention", "MLP", "norms", "head", "positions"
        where they are scaled, "head of zeros" where block 0's attention is left out, and "settings", the tokenizer
        among them), type it gets, tensors, weights, bytes, and note, which is empty or says why the type isn't the one
        asked for and which sizes would be legal. The bytes add up to the file's size exactly.
    """
    file = _File.of(model, tokenizer, quantization)
    with tempfile.TemporaryDirectory() as folder, file.writer(Path(folder) / "settings") as writer:
        writer.flush()
        start = _padded((Path(folder) / "settings").stat().st_size)
    padding = sum(_padded(tensor.bytes) - tensor.bytes for tensor in file.tensors)
    rows = [
        (tensor.part, tensor.type.name, 1, tensor.weight.numel(), tensor.bytes, tensor.note) for tensor in file.tensors
    ]
    rows.append(("settings", "", 0, 0, start + padding, ""))
    table = pd.DataFrame(rows, columns=["part", "type", "tensors", "weights", "bytes", "note"])
    return table.groupby(["part", "type", "note"], sort=False, as_index=False).sum()[list(table.columns)]


@dataclass(frozen=True)
class _Tensor:
    """One tensor of the file: what is known before its weights are touched, and how to get them."""

    name: str
    part: str
    weight: Tensor  # the model's own
    type: Type
    note: str
    turned: int  # size of a head whose rows llama.cpp wants interleaved; 0 where it doesn't

    @property
    def byte_shape(self) -> tuple[int, ...]:
        """Its shape with the last axis in bytes."""
        block, size = GGML_QUANT_SIZES[self.type]
        return (*self.weight.shape[:-1], self.weight.shape[-1] // block * size)

    @property
    def bytes(self) -> int:
        """Its size in the file, without padding."""
        return math.prod(self.byte_shape)

    def encoded(self) -> np.ndarray:
        """Its bytes: uint8 in ``byte_shape``."""
        return self._bytes_of(_interleaved(self.weight, self.turned) if self.turned else self.weight)

    def decoded(self) -> Tensor:
        """What its bytes say of the model's own weight: float32, with rows in the model's order."""
        return torch.from_numpy(gguf.quants.dequantize(self._bytes_of(self.weight), self.type))

    def _bytes_of(self, weights: Tensor) -> np.ndarray:
        """Weights converted a few rows at a time; those that the type can't hold are refused."""
        rows = weights.detach().reshape(-1, weights.shape[-1])
        out = np.empty((len(rows), self.byte_shape[-1]), dtype=np.uint8)
        step, limit = max(1, _CHUNK // weights.shape[-1]), _LARGEST.get(self.type, torch.finfo(torch.float16).max)
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
    settings: dict[str, Any]  # what each of these methods of GGUFWriter is called with
    tensors: list[_Tensor]

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, quantization: str) -> _File:
        """Check everything that can be refused before a weight is touched."""
        checks.one_of("quantization", quantization, _QUANTIZATIONS)
        parts = describe(model)
        _refuse_others(parts)
        architecture, settings = _sizes(parts)
        settings |= {"add_file_type": _QUANTIZATIONS[quantization]} | _vocabulary(tokenizer, parts.vocab_size)
        tensors = _tensors(parts, architecture, quantization, head_size=settings["add_key_length"])
        return cls(architecture, settings, list(tensors))

    @contextlib.contextmanager
    def writer(self, path: Path) -> Iterator[GGUFWriter]:
        """A writer that has written all but the weights."""
        writer = GGUFWriter(path, self.architecture)
        try:
            for method, value in self.settings.items():
                getattr(writer, method)(value)
            for tensor in self.tensors:
                shape, kind = tensor.byte_shape, np.dtype(np.uint8)
                writer.add_tensor_info(tensor.name, shape, kind, tensor.bytes, raw_dtype=tensor.type)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            yield writer
        finally:
            writer.close()


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
    projections = [projection for attention in parts.attentions for projection in attention.projections]
    if parts.name == "qwen3" and any(projection.bias is not None for projection in projections):
        raise CannotExport(
            "llama.cpp reads no biases in the attention of a 'qwen3' model; this one has them (attention_bias=True), "
            "and without them it would be another model. Run it with transformers."
        )
    if (activation := parts.model.config.hidden_act) != "silu":
        raise CannotExport(f"llama.cpp computes these models with the activation 'silu'; got {activation!r}.")


def _sizes(parts: Architecture) -> tuple[str, dict[str, Any]]:
    """llama.cpp's name of the architecture that computes what the model does, and the sizes that the file tells."""
    config, family = parts.model.config, parts.name
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    widths = list(parts.intermediate_sizes)
    heads = [attention.query_width // head_size for attention in parts.attentions]  # 0 where one is left out
    groups = [attention.key_value_width // (2 * head_size) for attention in parts.attentions]
    alike = 0 not in heads and all(len(set(sizes)) == 1 for sizes in (widths, heads, groups))
    if family in _SQUARE:
        alike &= heads[0] * head_size == parts.hidden_size
    if not alike and family not in _UNEVEN:
        raise CannotExport(
            f"llama.cpp has no architecture for a {family!r} model whose blocks differ (MLPs of {widths} neurons, "
            f"attentions of {heads} heads). Prune all of its blocks alike, or take {', '.join(_UNEVEN)}."
        )
    architecture = _EVEN[family] if alike else _UNEVEN[family]
    positions = config.rope_parameters
    known = ("default", "linear", "llama3") if architecture in _INTERLEAVED else ("default",)
    if positions["rope_type"] not in known or positions.get("partial_rotary_factor", 1) != 1:
        raise CannotExport(
            f"Rotary positions of a {family!r} model are exported for {', '.join(known)} over whole heads; got "
            f"{dict(positions)}."
        )
    # llama.cpp takes the size of heads from block 0. Where its attention is left out, one head of zeros stands for it,
    # which adds exactly nothing.
    heads[0], groups[0] = heads[0] or 1, groups[0] or 1
    uneven = architecture == "deci"
    # Files have no per-layer windows in these architectures: up to the window, full attention is the same.
    window = getattr(config, "sliding_window", None) or config.max_position_embeddings
    settings = {
        "add_type": "model",
        "add_quantization_version": gguf.GGML_QUANT_VERSION,
        "add_block_count": parts.num_blocks,
        "add_context_length": min(window, config.max_position_embeddings),
        "add_embedding_length": parts.hidden_size,
        "add_feed_forward_length": widths if uneven else widths[0],
        "add_head_count": heads if uneven else heads[0],
        "add_head_count_kv": groups if uneven else groups[0],
        "add_key_length": head_size,
        "add_value_length": head_size,
        "add_layer_norm_rms_eps": config.rms_norm_eps,
        "add_rope_dimension_count": head_size,
        "add_rope_freq_base": positions["rope_theta"],
    }
    # The last part of any system's path: folders above it name a home.
    if name := PureWindowsPath(getattr(config, "_name_or_path", "") or "").name:
        settings["add_name"] = name
    return architecture, settings


def _tensors(parts: Architecture, architecture: str, quantization: str, head_size: int) -> Iterator[_Tensor]:
    """The file's tensors in their order."""

    def tensor(name: str, weight: Tensor, part: str) -> _Tensor:
        kind, note = _type(part, tuple(weight.shape), quantization)
        turned = architecture in _INTERLEAVED and (".attn_q." in name or ".attn_k." in name)
        return _Tensor(name, part, weight, kind, note, head_size if turned else 0)

    model = parts.model
    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], parts.num_blocks)
    tied = parts.head.weight is model.get_input_embeddings().weight
    for key, weight in live_weights(parts).items():
        name = str(known.get_name(key, (".weight", ".bias")))
        if not (tied and name == "output.weight"):
            yield tensor(name, weight, next(part for word, part in _PARTS.items() if word in name))
    if parts.attentions[0].skipped:
        sizes = (parts.hidden_size,), *3 * [(head_size, parts.hidden_size)], (parts.hidden_size, head_size)
        for name, size in zip(("norm", "q", "k", "v", "output"), sizes, strict=True):
            yield tensor(f"blk.0.attn_{name}.weight", torch.zeros(size), "head of zeros")
    if model.config.rope_parameters["rope_type"] != "default":
        yield tensor("rope_freqs.weight", _frequency_factors(model, head_size), "positions")


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


def _vocabulary(tokenizer: PreTrainedTokenizerBase, size: int) -> dict[str, Any]:
    """A byte-level BPE tokenizer for an embedding of ``size`` rows; rows without a token get a placeholder."""
    if not getattr(tokenizer, "is_fast", False):
        raise CannotExport(f"The tokenizer must be a fast one (tokenizers library); got {type(tokenizer).__name__}.")
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
    special = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "unk", "pad")}
    ids, merges = tokenizer("a").input_ids, state["model"]["merges"]
    settings = {
        "add_vocab_size": size,
        "add_tokenizer_model": "gpt2",  # GGUF's name for byte-level BPE of any kind
        "add_tokenizer_pre": splitting,
        "add_token_list": tokens,
        "add_token_types": kinds,
        "add_token_merges": [merge if isinstance(merge, str) else " ".join(merge) for merge in merges],
        "add_add_bos_token": ids[0] == special["bos"],
        "add_add_eos_token": ids[-1] == special["eos"],
    }
    settings |= {f"add_{name}_token_id": i for name, i in special.items() if i is not None}
    if isinstance(tokenizer.chat_template, str):
        settings["add_chat_template"] = tokenizer.chat_template
    return settings


def _splitting(state: dict) -> str:
    """llama.cpp's name for how a tokenizer (its JSON) splits text."""
    bpe, first = state["model"], state["pre_tokenizer"] or {"type": "none"}
    steps = []
    for step in first.get("pretokenizers", [first]):
        if step["type"] == "ByteLevel" and not step.get("add_prefix_space", False):
            steps.append(("ByteLevel", step.get("use_regex", True)))
        elif step["type"] == "Digits":
            steps.append(("Digits", step["individual_digits"]))
        elif step["type"] == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
            steps.append(("Split", step["pattern"].get("Regex")))
        else:
            steps.append((step["type"], str(step)))
    plain = not bpe.get("byte_fallback") and (state["normalizer"] or {}).get("type") in (None, "NFC")
    name = _SPLITTINGS.get((tuple(steps), bool(bpe.get("ignore_merges"))))
    if bpe["type"] != "BPE" or not plain or name is None:
        raise CannotExport(
            "llama.cpp might split texts otherwise than this tokenizer. export_gguf takes byte-level BPE that splits "
            f"like {', '.join(_SPLITTINGS.values())}; got {bpe['type']} with the steps {steps}. Convert that model "
            "with llama.cpp's own convert_hf_to_gguf.py."
        )
    return name


def _padded(size: int) -> int:
    return GGUFWriter.ggml_pad(size, gguf.GGUF_DEFAULT_ALIGNMENT)

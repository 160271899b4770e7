"""Pruned models as GGUF, the one file that llama.cpp and what is built on it (Ollama, LM Studio …) read.

Llama, Mistral, Qwen2 and Qwen3 models are written under llama.cpp's own names for them. A Llama-like model whose blocks
differ (uneven widths, attentions removed, other heads from block to block) is written as "deci": that is the
architecture of NVIDIA's Nemotron-51B, a Llama pruned block by block, and llama.cpp reads a width and a number of heads
for each block from such a file.

Number formats: "F32" and "F16" store weights as they are; "Q8_0" and "Q4_0" store blocks of 32 neighbouring weights of a
row as 8- or 4-bit integers with a common scale, 34 or 18 bytes a block. **A row that isn't a multiple of 32 can't be
stored so, and falls back to F16.** The rows of the down-projection are as long as the MLP is wide, those of all others
as long as the hidden size (o_proj: heads x head size). So a width of 1229 costs more than 1248: ``plan_gguf`` tells
before anything is written. Norms and biases stay in F32; with "Q4_0" the embedding and the head get "Q8_0", as in
llama.cpp's own files.

In Ollama: a text file named ``Modelfile`` with the one line ``FROM ./model.gguf`` beside the file, then
``ollama create NAME -f Modelfile`` and ``ollama run NAME``; the chat template is in the file. vLLM loads a checkpoint
folder of ``save_pruned`` where plain transformers can express the model (even widths, fewer blocks); its GGUF reading is
experimental, and it knows no blocks that differ in a "deci" file.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import pandas as pd
import torch
from gguf import GGMLQuantizationType as Type
from gguf import GGUFWriter
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils import checks
from course_utils.architectures import Architecture, describe
from course_utils.files import replacing

QUANTIZATIONS = ("F32", "F16", "Q8_0", "Q4_0")


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
            except the adaptive bypass. Qwen3's blocks must be alike.
        tokenizer: the model's, a byte-level BPE (GPT-2's, SmolLM's, Llama 3's or Qwen2's splitting of text).
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


def plan_gguf(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, quantization: str = "F16"
) -> pd.DataFrame:
    """What ``export_gguf`` would write, without writing it. Shapes are enough: a model on the "meta" device will do.

    Args:
        model: as for ``export_gguf``.
        tokenizer: as for ``export_gguf``.
        quantization: as for ``export_gguf``.

    Returns:
        One row for each kind of tensor and type, the tokenizer and settings in the last: part ("embedding", "head",
        "attention", "MLP", "norms", "settings"), type it gets, tensors, weights, bytes, and note, which is empty or says
        why the type isn't the one asked for and which sizes would be legal. The bytes add up to the file's size
        exactly. ``.attrs["architecture"]`` is llama.cpp's name of the architecture.

    Raises:
        CannotExport: as for ``export_gguf``.
        ValueError: as for ``export_gguf``.
        UnsupportedArchitecture: ``describe`` doesn't know the model.
    """

"""Models of full size with random weights: their configurations, and checkpoints of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import course_utils
from course_utils.models.embedded_llama import embedded_llama
from course_utils.pruning.checkpoints import replacing_checkpoint

GPT2_FOLDER = Path(course_utils.__file__).parent / "data" / "gpt2"
_SEED = 14


@dataclass(frozen=True)
class Shape:
    """Two models' configurations: what the lessons' roles "llama" and "gpt2" are in a rehearsal.

    Attributes:
        llama, gpt2: configurations as in a ``config.json``, without the tokenizer's numbers.
        stand_in: a smaller model in the place of Llama-3.2-1B: the card and the budgets are as much smaller.
    """

    llama: Mapping[str, Any]
    gpt2: Mapping[str, Any]
    stand_in: bool = False

    @property
    def share(self) -> float:
        """The share of a T4 and of the budgets that this shape gets."""
        return parameters(self.llama) / parameters(_LLAMA) if self.stand_in else 1.0


_LLAMA = {
    "model_type": "llama", "num_hidden_layers": 16, "hidden_size": 2048, "intermediate_size": 8192,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128_256,
    "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "tie_word_embeddings": True,
    "dtype": "bfloat16",
}  # fmt: skip
_GPT2 = {"model_type": "gpt2", "n_layer": 6, "n_embd": 768, "n_head": 12, "n_positions": 1024, "vocab_size": 50_257}
_QUARTER = {"hidden_size": 1024, "intermediate_size": 4096, "head_dim": 32, "vocab_size": 64_128}
_QWEN = {
    "model_type": "qwen2", "num_hidden_layers": 28, "hidden_size": 896, "intermediate_size": 4864,
    "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151_936, "max_position_embeddings": 32_768,
    "tie_word_embeddings": True, "dtype": "bfloat16",
}  # fmt: skip
SHAPES = {
    "llama": Shape(_LLAMA, _GPT2),
    "quarter": Shape(_LLAMA | _QUARTER, _GPT2, stand_in=True),
    "qwen": Shape(_QWEN, _GPT2),
}


def tokenizers() -> dict[str, Path]:
    """For each role, the folder of the embedded model, whose tokenizer serves: the hub's are not at hand."""
    return {"llama": embedded_llama(), "gpt2": GPT2_FOLDER}


def parameters(config: Mapping[str, Any]) -> int:
    """How many parameters a model of this configuration has, tied ones once."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    return sum(weight.numel() for weight in model.parameters())


def make_checkpoint(config: Mapping[str, Any], folder: Path, tokenizer: Path) -> Path:
    """The folder of a model with random weights, the same every time; written unless it is there, whole or not at all.

    Args:
        config: as in a ``config.json``, with "dtype" "bfloat16" or else float32.
        folder: where models lie; this one's own is named by what is in it.
        tokenizer: a folder to copy the tokenizer from; the model may know more tokens.
    """
    digest = hashlib.sha256(json.dumps([config, _SEED, tokenizer.name], sort_keys=True).encode()).hexdigest()[:8]
    target = folder / f"{config['model_type']}-{parameters(config) / 1e6:.0f}M-{digest}"
    if not target.exists():
        with replacing_checkpoint(target) as fresh, torch.random.fork_rng(devices=[]):
            read = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
            read.save_pretrained(fresh)
            tokens = {"bos_token_id": read.bos_token_id, "eos_token_id": read.eos_token_id}
            torch.manual_seed(_SEED)
            AutoModelForCausalLM.from_config(AutoConfig.for_model(**config, **tokens)).save_pretrained(fresh)
    return target

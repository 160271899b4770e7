"""A calculator on lesson 10's page: size, cache and speed from counted bytes and a machine's bandwidth.

docs/static/calculator.js computes with the lesson's own formulae; the models to begin with are counted here.
"""

from __future__ import annotations

import html
import json
from functools import cache
from pathlib import Path
from string import Template
from typing import Any, cast

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from course_utils.models.architectures import describe
from course_utils.models.reports import model_size

LESSON = "10"
_MILLION = 1e6
_SMOLLM2: dict[str, Any] = {
    "vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
}  # fmt: skip
# The lesson's models, by shape.
SHAPES: dict[str, dict[str, Any]] = {
    "SmolLM2-135M": _SMOLLM2,
    "SmolLM2-135M, 20 of 30 blocks": _SMOLLM2 | {"num_hidden_layers": 20},
    "SmolLM2-135M, MLPs of 832": _SMOLLM2 | {"intermediate_size": 832},
    "Llama-3.1-8B": {
        "vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False,
    },
}  # fmt: skip


@cache
def presets() -> dict[str, dict[str, float]]:
    """The form's fields of "The model" for each of ``SHAPES``, counted."""
    found: dict[str, dict[str, float]] = {}
    for name, shape in SHAPES.items():
        with torch.device("meta"):  # shapes, and no memory
            model = LlamaForCausalLM(LlamaConfig(**shape))
        embedding, head = cast(torch.nn.Embedding, model.get_input_embeddings()).weight, describe(model).head.weight
        found[name] = {
            "parameters": model_size(model).parameters / _MILLION,
            "lookedUp": 0 if head is embedding else embedding.numel() / _MILLION,
            "layers": shape["num_hidden_layers"],
            "removed": 0,
            "kvHeads": shape["num_key_value_heads"],
            "headSize": shape["hidden_size"] // shape["num_attention_heads"],
        }
    return found


def form() -> str:
    """The calculator's HTML; calculator.js fills it in, and without it there is a sentence."""
    models = "".join(f"<option>{html.escape(name)}</option>" for name in SHAPES)
    page = Path(__file__).with_name("calculator.html").read_text(encoding="utf-8")
    return Template(page).substitute(models=models, presets=json.dumps(presets()).replace("<", "\\u003c"))

"""What the tests of rehearsals share: small models in the lessons' roles, and where a card can be pretended at all."""

from __future__ import annotations

import sys

import pytest
import torch

from course_tools.rehearsal.shapes import Shape

POSSIBLE = pytest.mark.skipif(
    sys.platform == "win32" or torch.cuda.is_available(), reason="needs torch without a card, on Linux or macOS"
)
LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 4,
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 50_304,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}
GPT2 = {"model_type": "gpt2", "n_layer": 2, "n_embd": 64, "n_head": 4, "n_positions": 512, "vocab_size": 50_304}
SMALL = Shape(LLAMA, GPT2, stand_in=True)

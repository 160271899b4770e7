"""A calculator on lesson 10's page: size, cache and speed from counted bytes and a machine's bandwidth.

docs/static/calculator.js computes with the lesson's own formulae; the models to begin with are counted here.
"""

from __future__ import annotations

import html
import json
from functools import cache
from typing import NamedTuple

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from course_utils.models.architectures import describe
from course_utils.models.reports import model_size

LESSON = "10"
_MILLION = 1e6
_SMOLLM2 = {
    "vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
}  # fmt: skip
# The lesson's models, by shape.
SHAPES = {
    "SmolLM2-135M": _SMOLLM2,
    "SmolLM2-135M, 20 of 30 blocks": _SMOLLM2 | {"num_hidden_layers": 20},
    "SmolLM2-135M, MLPs of 832": _SMOLLM2 | {"intermediate_size": 832},
    "Llama-3.1-8B": {
        "vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False,
    },
}  # fmt: skip


class Field(NamedTuple):
    """One number to fill in."""

    name: str
    label: str
    begin: float
    whole: bool = False


FIELDS = {
    "The model": [
        Field("parameters", "Parameters, millions", 0),
        Field("lookedUp", "of which are only looked up, millions", 0),
        Field("layers", "Layers", 0, whole=True),
        Field("removed", "of which have lost their attention", 0, whole=True),
        Field("kvHeads", "KV heads", 0, whole=True),
        Field("headSize", "Size of a head", 0, whole=True),
        Field("bits", "Bits a weight (Q8_0: 8.5, Q4_0: 4.5)", 16),
    ],
    "What it is asked": [
        Field("context", "Tokens of each context", 1024, whole=True),
        Field("requests", "Requests at once", 1, whole=True),
    ],
    "The machine": [
        Field("memory", "Memory, GB", 16),
        Field("bandwidth", "Bandwidth, GB a second", 40),
        Field("peak", "Operations, GFLOP a second", 500),
        Field("price", "Price of a layer, milliseconds", 0),
    ],
}
RESULTS = {
    "weights": "weights, MB",
    "cacheOfToken": "cache of a token, kB",
    "cache": "cache of all contexts, MB",
    "held": "both, MB",
    "milliseconds": "a token of each request takes at least, ms",
    "tokensPerSecond": "tokens a second at most",
    "fitting": "requests that fit into the memory",
}


@cache
def presets() -> dict[str, dict[str, float]]:
    """Fields of "The model" for each of ``SHAPES``, counted."""
    found = {}
    for name, shape in SHAPES.items():
        with torch.device("meta"):  # shapes, and no memory
            model = LlamaForCausalLM(LlamaConfig(**shape))
        embedding, head = model.get_input_embeddings().weight, describe(model).head.weight
        found[name] = {
            "parameters": model_size(model).parameters / _MILLION,
            "lookedUp": 0 if head is embedding else embedding.numel() / _MILLION,
            "layers": model.config.num_hidden_layers,
            "removed": 0,
            "kvHeads": model.config.num_key_value_heads,
            "headSize": model.config.head_dim,
        }
    return found


def form() -> str:
    """The calculator's HTML; calculator.js fills it in, and without it there is a sentence."""
    models = "".join(f"<option>{html.escape(name)}</option>" for name in SHAPES)
    groups = "".join(
        f"<fieldset><legend>{legend}</legend>{''.join(map(_input, fields))}</fieldset>"
        for legend, fields in FIELDS.items()
    )
    results = "".join(f'<dt>{label}</dt><dd><data id="result-{name}"></data></dd>' for name, label in RESULTS.items())
    data = json.dumps(presets()).replace("<", "\\u003c")
    return (
        '<noscript><p>The calculator needs JavaScript.</p></noscript><form class="calculator" hidden>'
        f'<script type="application/json">{data}</script>'
        f'<label><span>Model</span><select name="model">{models}<option value="">your own</option></select></label>'
        f'{groups}<div role="status" aria-atomic="false" aria-label="Results"><dl>{results}</dl></div></form>'
    )


def _input(field: Field) -> str:
    step = "1" if field.whole else "any"
    return (
        f'<label><span>{field.label}</span><input type="number" name="{field.name}" value="{field.begin:g}" min="0" '
        f'step="{step}" required></label>'
    )

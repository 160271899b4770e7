"""The embedded Llama: SmolLM2-135M-Instruct, a real model out of a Python package, for readers without the hub.

The package holds its weights in 4 bits (a GGUF file); the first use writes them as float32, for every use after that.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from course_utils.support.extras import brought
from course_utils.support.session import EMBEDDED_MODELS
from course_utils.text import assets

_NAME = EMBEDDED_MODELS["llama"]


def embedded_llama() -> Path:
    """The folder of SmolLM2-135M-Instruct as float32 safetensors; converted from its GGUF file on first use.

    Raises:
        AssetError: as for ``assets.fetch``.
    """
    asset = assets.ASSETS["smollm2"]
    identity = asset.identity | {"dtype": "float32", "tokenizer": "smollm"}
    return assets.cached_folder(f"models/{_NAME}-{asset.version}", identity, _convert)


def _convert(folder: Path) -> None:
    """Dequantise the 4-bit file exactly, and save what transformers will take for an ordinary model."""
    with brought("gguf"):  # so does transformers
        from gguf import GGUFReader
    source = assets.fetch("smollm2")
    file = f"{_NAME}.Q4_1.gguf"
    print(f"Converting {_NAME} to safetensors, once (10 to 40 seconds).")
    with no_loading_bar():
        model: Any = AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.float32)
    # The weights are plain float32 now, but a model still marked as quantised refuses to be saved.
    model.hf_quantizer = None
    model.is_quantized = False
    for left in ("quantization_config", "_model_name_or_path"):  # the second is the GGUF file's working title
        vars(model.config).pop(left, None)  # which of them there are depends on the version of transformers
    with no_loading_bar():
        model.save_pretrained(folder)
    _read_tokenizer(GGUFReader(source / file).fields).save_pretrained(folder)


def _read_tokenizer(fields: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    """SmolLM2's tokenizer, from the vocabulary and merges among a GGUF file's fields.

    Built here because transformers' own conversion differs between versions (5.15: another end token, no padding).
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    names: list[str] = fields["tokenizer.ggml.tokens"].contents()
    kinds: list[int] = fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"].contents()]
    backend = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, merges))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    backend.decoder = decoders.ByteLevel()
    control = 3  # the kind of <|im_start|> and its like
    backend.add_special_tokens(
        [AddedToken(n, normalized=False) for n, k in zip(names, kinds, strict=True) if k == control]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
        chat_template=fields["tokenizer.chat_template"].contents(),
        model_max_length=8192,
    )


@contextlib.contextmanager
def no_loading_bar() -> Iterator[None]:
    """Loads and saves draw a bar, which notebooks would keep for ever."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()

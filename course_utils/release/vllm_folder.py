"""Pruned models as folders that vLLM serves.

Where all blocks are alike, the folder of ``save_pruned`` is one: vLLM has its architecture. A Llama-like model whose
blocks differ (uneven widths, attentions removed) is written as "DeciLMForCausalLM", vLLM's ``nemotron_nas``: that is
the architecture of NVIDIA's Llama-Nemotron models, Llamas pruned block by block. Weights are the same, under the same
names; ``config.json`` says what each block has, and one small Python file beside it reads that to vLLM.
"""

from __future__ import annotations

import inspect
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, PreTrainedModel, PreTrainedTokenizerBase

from course_utils.models.architectures import Architecture, describe
from course_utils.models.modeling import block_configs
from course_utils.models.modeling.block_configs import BlockConfigs
from course_utils.models.refusals import refuse_adaptive, refuse_missing_weights
from course_utils.pruning.checkpoints import live_weights, replacing_checkpoint, save_pruned
from course_utils.support.checks import check_types
from course_utils.support.files import write_json

_UNEVEN = ("llama", "mistral", "qwen2")  # whose blocks compute what those of vLLM's DeciLM do
_SQUARE = ("qwen2",)  # its heads together must be as wide as the hidden states, or vLLM can't load the plain checkpoint
_POSITIONS = ("default", "linear", "llama3")


class CannotServe(ValueError):
    """The model's blocks differ, and no architecture of vLLM computes what it does."""


@check_types
def export_vllm(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | os.PathLike[str]) -> Path:
    """Save a pruned model and its tokenizer as a folder that vLLM serves, all or nothing.

    Where blocks are alike this is ``save_pruned``, and whether vLLM knows the family is in its list. Where they differ,
    vLLM needs ``--trust-remote-code`` for the folder's configuration, and transformers, which doesn't know the
    architecture, can't read the folder. A bypassed attention is left out like a removed one; in block 0, where vLLM
    can't leave one out, an attention of zeros stands for it, which adds exactly nothing.

    Args:
        model: any causal language model that ``describe`` knows, but for the adaptive bypass; where blocks differ, a
            Llama, Mistral or Qwen2.
        tokenizer: the model's.
        folder: where to; a new one, an empty one, or a checkpoint, which is replaced.

    Returns:
        The folder.

    Raises:
        CannotServe: a ValueError; blocks differ, and vLLM's DeciLM doesn't have the family, activation or positions.
        ValueError: an adaptive model, or some weights are on the meta device (offloaded, or never loaded).
        CheckpointError: ``folder`` holds something else than a checkpoint.
        UnsupportedArchitecture: ``describe`` doesn't know the model.
    """
    parts = describe(model)
    refuse_missing_weights(parts, "save this model")
    refuse_adaptive(parts, "make a folder for vLLM")
    if _is_plain(parts):
        return save_pruned(model, tokenizer, folder)
    _refuse_others(parts)
    with replacing_checkpoint(folder) as fresh:
        parts.sync_config()
        model.save_pretrained(fresh, state_dict=live_weights(parts) | _zeros(parts))
        tokenizer.save_pretrained(fresh)
        path = fresh / "config.json"
        write_json(path, _configuration(parts, json.loads(path.read_text(encoding="utf-8"))))
        shutil.copy(inspect.getfile(block_configs), fresh)
    return Path(folder)


def _is_plain(parts: Architecture) -> bool:
    """Whether vLLM's own class for this family loads the checkpoint that ``save_pruned`` writes."""
    if parts.is_mixture:
        return True
    if len(set(parts.intermediate_sizes)) > 1 or any(attention.skipped for attention in parts.attentions):
        return False
    heads = parts.groups * parts.queries_a_group
    return parts.name not in _SQUARE or heads * parts.head_size == parts.hidden_size


def _refuse_others(parts: Architecture) -> None:
    config, family = parts.model.config, parts.name
    if family not in _UNEVEN:
        raise CannotServe(
            f"vLLM has no architecture for a {family!r} model whose blocks differ (MLPs of {parts.intermediate_sizes} "
            f"neurons). Prune all of its blocks alike, or take {', '.join(_UNEVEN)}."
        )
    if all(attention.skipped for attention in parts.attentions):
        raise CannotServe("vLLM's DeciLM needs an attention, and all of this model's are left out. Keep one.")
    if config.hidden_act != "silu":
        raise CannotServe(f"vLLM computes these models with the activation 'silu'; got {config.hidden_act!r}.")
    positions = config.rope_parameters
    if positions["rope_type"] not in _POSITIONS or positions.get("partial_rotary_factor", 1) != 1:
        raise CannotServe(
            f"Where blocks differ, vLLM was tried with rotary positions of {', '.join(_POSITIONS)} over whole heads; "
            f"got {dict(positions)}."
        )


def _zeros(parts: Architecture) -> dict[str, Tensor]:
    """Weights of an attention that adds exactly nothing, where block 0 has none; its sizes are another block's."""
    if not parts.attentions[0].skipped:
        return {}
    live = next(number for number, attention in enumerate(parts.attentions) if not attention.skipped)
    block, paths = parts.blocks[live], (parts.family.attention, *parts.attention_norms)
    return {
        f"{parts.family.blocks}.0.{path}.{name}": torch.zeros_like(weight)
        for path in paths
        for name, weight in block.get_submodule(path).state_dict().items()
    }


def _configuration(parts: Architecture, saved: dict[str, Any]) -> dict[str, Any]:
    """What ``config.json`` holds: of what transformers saved Llama's fields, and what each block has."""
    config, stated = parts.model.config, LlamaConfig().to_dict()
    live = next(attention for attention in parts.attentions if not attention.skipped)
    # vLLM's DeciLM reads no window: up to its length, full attention is the same.
    window = getattr(config, "sliding_window", None) or config.max_position_embeddings
    blocks = [
        {
            "attention": {"no_op": attention.skipped and number > 0, "n_heads_in_group": parts.queries_a_group},
            "ffn": {"no_op": False, "intermediate_size": width},
        }
        for number, (attention, width) in enumerate(zip(parts.attentions, parts.intermediate_sizes, strict=True))
    ]
    return {name: value for name, value in saved.items() if name in stated} | {
        "architectures": ["DeciLMForCausalLM"],
        "attention_bias": live.outputs[0].bias is not None,
        "auto_map": {"AutoConfig": f"{Path(block_configs.__file__).stem}.{BlockConfigs.__name__}"},
        "block_configs": blocks,
        "head_dim": parts.head_size,
        "intermediate_size": max(parts.intermediate_sizes),  # a plain number, which no block reads
        "max_position_embeddings": min(window, config.max_position_embeddings),
        "model_type": BlockConfigs.model_type,
        "qkv_bias": live.inputs[0].bias is not None,
    }

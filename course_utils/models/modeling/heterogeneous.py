"""Models whose blocks differ: what stock transformers can't build from a configuration yet.

``config.per_layer_config`` (transformers' own schema) says what differs, ``config.adaptive_attention`` what each prompt
decides; this module builds such a model.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from transformers import PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from .no_attention import NoAttention
from .per_prompt import install


class HeterogeneousMixin(torch.nn.Module):
    """Put before a causal language model's class: builds each block as ``per_layer_config`` says.

    A block may have its own MLP width and may skip its attention, always or prompt by prompt. Stock
    models raise AmbiguousGlobalPerLayerAttributeError on such a configuration, so the checkpoint
    never comes up silently un-pruned.
    """

    blocks_path: str  # from the model, e.g. "model.layers"
    attention: str  # from a block, e.g. "self_attn"
    attention_norms: tuple  # from a block: what serves the attention alone
    mlp_inputs: tuple  # from a block, e.g. ("mlp.gate_proj", "mlp.up_proj")
    mlp_output: str  # from a block, e.g. "mlp.down_proj"
    fused: bool  # mlp_inputs is one matrix, gate above up
    width_field: str  # e.g. "intermediate_size"

    def __init__(self, config: PreTrainedConfig) -> None:
        stated = config.to_dict()
        overrides, shared = stated["per_layer_config"], stated[self.width_field]
        self._refuse_unknown(overrides or {})
        layers = list(config.per_layer_config)  # one configuration per block, with its overrides
        widths = [getattr(layer, self.width_field) for layer in layers]
        skips = [getattr(layer, "skip", []) for layer in layers]
        config.per_layer_config = None  # build the stock model first, every block the same
        setattr(config, self.width_field, max(widths))
        super().__init__(config)
        blocks = cast(torch.nn.ModuleList, self.get_submodule(self.blocks_path))
        for number, (block, width, skip) in enumerate(zip(blocks, widths, skips, strict=True)):
            if width != max(widths):
                self._set_width(block, width)
            if skip:
                self._remove_attention(block, number)
        setattr(config, self.width_field, shared)
        config.per_layer_config = overrides
        if getattr(config, "adaptive_attention", None):
            backbone = self.get_submodule(self.blocks_path.rpartition(".")[0])
            install(self, backbone, [block.get_submodule(self.attention) for block in blocks])

    def _refuse_unknown(self, overrides: dict[int, dict]) -> None:
        """Stop at anything that this model couldn't follow, so that it never comes up as another model."""
        for number, fields in overrides.items():
            unknown = set(fields) - {"skip", self.width_field}
            unknown |= set(fields.get("skip", ())) - {"attention"}
            if unknown:
                raise ValueError(f"Block {number}: this model can't follow {sorted(unknown)} of per_layer_config.")

    def _remove_attention(self, block: torch.nn.Module, number: int) -> None:
        block.set_submodule(self.attention, NoAttention(number))
        for norm in self.attention_norms:
            block.set_submodule(norm, torch.nn.Identity())

    def _set_width(self, block: torch.nn.Module, width: int) -> None:
        for path in self.mlp_inputs:
            _resize(block.get_submodule(path), out_features=width * (2 if self.fused else 1))
        _resize(block.get_submodule(self.mlp_output), in_features=width)
        owner: Any = block.get_submodule(self.mlp_output.rpartition(".")[0])
        if hasattr(owner, "intermediate_size"):
            owner.intermediate_size = width


def _resize(module: Any, *, out_features: int | None = None, in_features: int | None = None) -> None:
    """Give an nn.Linear or a Conv1D another shape; the weights are loaded afterwards."""
    transposed = isinstance(module, Conv1D)  # stores [in, out]
    old_out, old_in = module.weight.shape[::-1] if transposed else module.weight.shape
    shape = (out_features or old_out, in_features or old_in)
    module.weight = torch.nn.Parameter(module.weight.new_zeros(shape[::-1] if transposed else shape))
    if module.bias is not None:
        module.bias = torch.nn.Parameter(module.bias.new_zeros(shape[0]))
    if transposed:
        module.nf, module.nx = shape
    else:
        module.out_features, module.in_features = shape

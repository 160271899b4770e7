"""Models whose blocks differ: what stock transformers can't build from a configuration yet.

``config.per_layer_config`` (transformers' own schema) says what differs; this module builds such a
model. Its source is also what ``save_pruned`` writes into a checkpoint's folder, so it imports
nothing but torch and transformers and must stay so.
"""

import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer
from transformers.pytorch_utils import Conv1D


class TokenCount(DynamicLayer):
    """A cache layer that holds keys and values of width 0: no bytes, only how many tokens went by."""

    def get_seq_length(self):
        return self.keys.shape[-2] if self.is_initialized else 0  # the parent takes empty tensors for no tokens


def skip_attention(module, *args, **kwargs):
    """The forward of an attention that isn't there: adds exactly zero to the residual stream.

    It keeps the cache's length right. A cache whose first layer were left out would report length 0,
    and the positions and masks of a cached forward would be wrong.
    """
    states = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    for value in (*args, *kwargs.values()):
        if isinstance(value, Cache):
            empty = states.new_empty(states.shape[0], 1, states.shape[1], 0)
            value.update(empty, empty, module.layer_idx)
            layers = getattr(value, "self_attention_cache", value).layers
            if type(layers[module.layer_idx]) is DynamicLayer:  # sliding windows and static caches count by themselves
                layers[module.layer_idx].__class__ = TokenCount
    return torch.zeros_like(states), None


class NoAttention(torch.nn.Module):
    """Stands in a block where the attention was removed."""

    forward = skip_attention

    def __init__(self, layer_idx):
        super().__init__()
        self.layer_idx = layer_idx


class HeterogeneousMixin:
    """Put before a causal language model's class: builds each block as ``per_layer_config`` says.

    A block may have its own MLP width and may skip its attention. Stock models raise
    AmbiguousGlobalPerLayerAttributeError on such a configuration, so the checkpoint never comes up
    silently un-pruned.
    """

    blocks_path: str  # from the model, e.g. "model.layers"
    attention: str  # from a block, e.g. "self_attn"
    attention_norms: tuple  # from a block: what serves the attention alone
    mlp_inputs: tuple  # from a block, e.g. ("mlp.gate_proj", "mlp.up_proj")
    mlp_output: str  # from a block, e.g. "mlp.down_proj"
    fused: bool  # mlp_inputs is one matrix, gate above up
    width_field: str  # e.g. "intermediate_size"

    def __init__(self, config):
        layers = list(config.per_layer_config)
        widths = [getattr(layer, self.width_field) for layer in layers]
        skips = [getattr(layer, "skip", []) for layer in layers]
        overrides, shared = config.to_dict().get("per_layer_config"), config.to_dict()[self.width_field]
        config.per_layer_config = None  # build the stock model first, every block the same
        setattr(config, self.width_field, max(widths))
        super().__init__(config)
        blocks = self.get_submodule(self.blocks_path)
        for index, (block, width, skip) in enumerate(zip(blocks, widths, skips, strict=True)):
            unknown = set(skip) - {"attention"} | set((overrides or {}).get(index, {})) - {"skip", self.width_field}
            if unknown:
                raise ValueError(f"Block {index}: this model can't follow {sorted(unknown)} of per_layer_config.")
            if width != max(widths):
                self._set_width(block, width)
            if skip:
                block.set_submodule(self.attention, NoAttention(index))
                for norm in self.attention_norms:
                    block.set_submodule(norm, torch.nn.Identity())
        setattr(config, self.width_field, shared)
        config.per_layer_config = overrides

    def _set_width(self, block, width):
        for path in self.mlp_inputs:
            _resize(block.get_submodule(path), out_features=width * (2 if self.fused else 1))
        output = block.get_submodule(self.mlp_output)
        _resize(output, in_features=width)
        owner = block.get_submodule(self.mlp_output.rpartition(".")[0])
        if hasattr(owner, "intermediate_size"):
            owner.intermediate_size = width


def _resize(module, out_features=None, in_features=None):
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

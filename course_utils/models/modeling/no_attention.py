"""An attention that isn't there: adds exactly zero, stores nothing, and still counts tokens for the cache."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer


class TokenCount(DynamicLayer):
    """A cache layer that holds keys and values of width 0: no bytes, only how many tokens went by."""

    def get_seq_length(self) -> int:
        """Tokens so far; the parent takes empty tensors for none."""
        return 0 if self.keys is None else self.keys.shape[-2]


def skip_attention(module: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    """The forward of an attention that isn't there: adds exactly zero to the residual stream.

    It keeps the cache's length right. A cache whose first layer were left out would report length 0,
    and the positions and masks of a cached forward would be wrong.
    """
    states = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]  # [rows, tokens, hidden]
    for value in (*args, *kwargs.values()):
        if isinstance(value, Cache):
            _count_tokens(value, module.layer_idx, states)
    return torch.zeros_like(states), None


def _count_tokens(cache: Cache, layer_idx: int, states: Tensor) -> None:
    layers: list[Any] = getattr(cache, "self_attention_cache", cache).layers
    layer = layers[layer_idx] if layer_idx < len(layers) else None  # some caches make a layer at its first update
    if layer is not None and layer.is_initialized and layer.keys.shape[-1] > 0:
        heads, width = layer.keys.shape[1], layer.keys.shape[-1]  # it was in use: go on in its shape
    else:
        heads, width = 1, 0
    empty = states.new_zeros(states.shape[0], heads, states.shape[1], width)  # [rows, heads, tokens, width]
    cache.update(empty, empty, layer_idx)
    if width == 0 and type(layers[layer_idx]) is DynamicLayer:  # sliding and static layers count by themselves
        layers[layer_idx].__class__ = TokenCount


class NoAttention(torch.nn.Module):
    """Stands in a block where the attention was removed."""

    bypassed = removed = True  # asked instead of the class: a checkpoint's own code brings a class of its own
    forward = skip_attention

    def __init__(self, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx


def replace_forward(module: Any, forward: Callable[..., Any]) -> None:
    """Let a function, called with the module first, stand in for its class's own forward.

    accelerate's hooks (``device_map`` over several devices, offloading) stand in the module's ``forward`` and call what
    was there before, which they keep as ``_old_forward``. There a replacement belongs, or the hooks would be lost.
    """
    setattr(module, "_old_forward" if hasattr(module, "_hf_hook") else "forward", MethodType(forward, module))


def restore_forward(module: Any) -> None:
    """Undo ``replace_forward``, whether hooks came or went meanwhile."""
    if hasattr(module, "_hf_hook"):
        replace_forward(module, type(module).forward)
    else:
        del module.forward

"""Cuts that go through a whole model: KV groups of every attention, and channels of the residual stream.

What one block's parts can do by themselves is in ``parts``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from course_utils.models.architectures import Architecture
from course_utils.models.parts import Projection


def keep_groups(architecture: Architecture, kept: Sequence[Tensor]) -> None:
    """Keep only these key/value heads, as many in each block, with their query heads; in place.

    Args:
        architecture: of the model.
        kept: int64 [groups] for each block, in the order that they get; not looked at where an attention is gone.
    """
    config, heads = architecture.model.config, architecture.queries_a_group
    for attention, groups in zip(architecture.attentions, kept, strict=True):
        if attention.groups:
            attention.keep(groups.to(attention.outputs[0].weight.device))
    config.head_dim = architecture.head_size
    config.num_key_value_heads, config.num_attention_heads = architecture.groups, architecture.groups * heads


@torch.no_grad()
def keep_channels(architecture: Architecture, channels: Tensor, factors: Sequence[float]) -> None:
    """Keep only these hidden channels in everything that reads or writes the residual stream; in place.

    A scaled embedding (Gemma multiplies it by the square root of the hidden size) gives the same numbers as before.

    Args:
        architecture: of the model.
        channels: int64 [kept], in the order that they get.
        factors: one a norm, as ``norms`` lists them: what its weights are multiplied with.
    """
    model, old = architecture.model, architecture.hidden_size
    head, embedding = architecture.head, model.get_input_embeddings()
    tied, factors = head.weight is embedding.weight, list(factors)
    scale = _rescale_embedding(embedding, len(channels))
    if tied:
        factors[-1] /= scale
    for norm, factor in zip(architecture.norms, factors, strict=True):
        offset, weight = architecture.family.norm_offset, norm.weight
        norm_weight = weight.index_select(0, channels.to(weight.device))
        if factor != 1:
            norm_weight = ((norm_weight.float() + offset) * factor - offset).to(weight.dtype)
        norm.weight = nn.Parameter(norm_weight, requires_grad=weight.requires_grad)
    for block_mlp, attention in zip(architecture.mlps, architecture.attentions, strict=True):
        for projection in (*block_mlp.inputs, *attention.inputs):
            projection.keep(channels.to(projection.weight.device), axis="in")
        for projection in (block_mlp.output, *attention.outputs):
            projection.keep(channels.to(projection.weight.device), axis="out")
    weight = embedding.weight
    columns = weight.index_select(1, channels.to(weight.device))
    embedding.weight = nn.Parameter(columns if scale == 1 else columns * scale, requires_grad=weight.requires_grad)
    embedding.embedding_dim = len(channels)
    if tied:
        head.weight, head.in_features = embedding.weight, len(channels)
    else:
        Projection(head).keep(channels.to(head.weight.device), axis="in")
    for module in model.modules():  # blocks and MLPs note it beside their matrices
        if getattr(module, "hidden_size", None) == old:
            module.hidden_size = len(channels)
    if architecture.head_size:  # otherwise it would follow the hidden size
        model.config.head_dim = architecture.head_size
    model.config.hidden_size = len(channels)


def _rescale_embedding(embedding: nn.Module, channels: int) -> float:
    """Give a scaled embedding the factor that its class will compute on reload; return what makes up for it."""
    if not hasattr(embedding, "embed_scale"):
        return 1.0
    old, new = embedding.scalar_embed_scale, channels**0.5
    embedding.scalar_embed_scale = new
    embedding.embed_scale = torch.full_like(embedding.embed_scale, new)  # a new one: variants share the old
    old, new = torch.tensor([old, new]).to(embedding.weight.dtype).tolist()  # as they are rounded on use
    return old / new

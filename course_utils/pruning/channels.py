"""Channel pruning: score the channels of the residual stream, and cut the rest out of all that reads or writes it.

A hidden channel is a column of the embedding, an entry of every norm, an input of every matrix that reads the stream
and an output of every one that writes to it: all lose the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from course_utils.models.architectures import Architecture, describe
from course_utils.models.parts import Projection, note_sizes
from course_utils.models.refusals import refuse_adaptive, refuse_bound_heads, refuse_offloaded_weights
from course_utils.models.reports import PruningReport, model_size
from course_utils.pruning.activations import Reading, read_once
from course_utils.pruning.width import best
from course_utils.support import checks
from course_utils.support.checks import check_types


def channel_importance(model: PreTrainedModel, batches: Iterable[Mapping[str, Tensor]]) -> Tensor:
    """Score every hidden channel by its share of what the norms read; more is more important.

    Args:
        model: any causal language model that ``describe`` knows and whose channels can be cut; it is not changed.
        batches: ``{"input_ids", "attention_mask"}`` mappings; padding never counts.

    Returns:
        [hidden] float32, on the model's device: the root of ``channel_energies``' mean over the norms.

    Raises:
        ValueError: malformed batches, non-finite activations, or a family without this axis (GPT-2, OPT, GPT-NeoX).
    """
    return importance_of(channel_energies(model, batches))


def channel_energies(model: PreTrainedModel, batches: Iterable[Mapping[str, Tensor]]) -> Tensor:
    """Each channel's share of a token's squared length where each norm reads it, mean over the real tokens.

    A share of each token, so that the few tokens with enormous states (a row's first) count like the others.
    Arguments and refusals are those of ``channel_importance``.

    Returns:
        [norms, hidden] float32, rows as ``Architecture.norms`` lists them; each row adds up to 1.
    """
    architecture = describe(model)
    refuse_bound_heads(architecture, "score channels")
    (energies,) = read_once(architecture, batches, watch_channels)
    if not energies.isfinite().all():
        raise ValueError("The model's states hold NaN or infinite values on this text: check its weights and dtype.")
    return energies


@check_types
def importance_of(energies: Tensor) -> Tensor:
    """``channel_importance`` from ``channel_energies``: [norms, hidden] -> [hidden]."""
    return energies.mean(dim=0).sqrt()


def watch_channels(reading: Reading) -> tuple[list[RemovableHandle], Callable[[], Tensor]]:
    """``channel_energies``, for ``read_once``."""
    architecture, norms = reading.architecture, reading.architecture.norms
    size = (len(norms), architecture.hidden_size)
    totals = torch.zeros(size, dtype=torch.float64, device=architecture.model.device)

    def add(total: Tensor, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:  # to [hidden]
        squares = reading.select(inputs[0]).float().square()  # [tokens, hidden]
        total.add_((squares / squares.sum(dim=-1, keepdim=True).clamp(min=1e-30)).sum(dim=0).double())

    hooks = [norm.register_forward_pre_hook(partial(add, total)) for norm, total in zip(norms, totals, strict=True)]

    def shares() -> Tensor:
        return (totals / reading.tokens).float()

    return hooks, shares


@check_types
@torch.no_grad()
def prune_channels(
    model: PreTrainedModel,
    importance: Tensor,
    *,
    size: int,
    rescale_norms: bool = True,
    energies: Tensor | None = None,
) -> PruningReport:
    """Cut the least important hidden channels out of the whole model, in place.

    Equal scores keep the channel with the lower number. Heads keep their number and size, and a tied embedding is
    sliced once and stays tied. The configuration follows (``hidden_size``, ``head_dim``), so the model saves and
    reloads with plain transformers. What remains equals the whole model with the cut channels set to zero in the
    embedding and in what every block adds, where each norm takes its mean over the kept channels alone.

    Without the cut channels a norm divides by another length, so that the kept ones come out of it at another size than
    before. Rescaling multiplies each norm's weights by ``sqrt(share * d / k)``: ``share`` is the kept channels' part of
    the energy, d and k the sizes before and after; on average that gives them their old size back.

    Args:
        model: any causal language model that ``describe`` knows and whose channels can be cut.
        importance: [hidden], as from ``channel_importance``.
        size: channels that stay, at most ``hidden_size``, and a size that the model's configuration allows.
        rescale_norms: rescale as described.
        energies: [norms, hidden], from ``channel_energies``: each norm's own. Without, ``importance`` squared stands
            for the energies at every norm, which suits ``channel_importance`` and no other score.

    Raises:
        ValueError: ``size`` out of range or refused by the model's configuration (the message names the nearest ones
            that are not), scores or energies that don't fit or aren't finite, an adaptive or offloaded model, or a
            family without this axis (GPT-2, OPT, GPT-NeoX). After an error the model is unchanged.
    """
    architecture = describe(model)
    refuse_bound_heads(architecture, "cut channels")
    refuse_adaptive(architecture, "cut channels")
    refuse_offloaded_weights(architecture, "cut channels")
    total, norms = architecture.hidden_size, len(architecture.norms)
    checks.whole_number("size", size, least=1, most=total, meaning="the model's hidden size")
    checks.flag("rescale_norms", rescale_norms)
    if tuple(importance.shape) != (total,) or not importance.isfinite().all():
        raise ValueError(
            f"'importance' must have shape [{total}], the hidden size, and be finite; got {list(importance.shape)}. "
            "Score this very model with channel_importance."
        )
    if energies is None:
        energies = importance.float().square().expand(norms, total)
    if tuple(energies.shape) != (norms, total) or not ((energies >= 0) & energies.isfinite()).all():
        raise ValueError(
            f"'energies' must have shape [{norms}, {total}], norms by channels, and hold finite numbers of at least 0; "
            f"got {list(energies.shape)}. Take them of this very model with channel_energies."
        )
    if size < total and not architecture.accepts(hidden_size=size):
        raise ValueError(
            f"transformers refuses a {architecture.name} model with hidden size {size} and "
            f"{architecture.groups * architecture.queries_a_group} query heads; the nearest sizes that it takes: "
            f"{_nearest(architecture, size)}."
        )

    before = model_size(model)
    if size < total:
        channels = best(importance, size)
        factors = norm_factors(energies, channels) if rescale_norms else [1.0] * norms
        keep_channels(architecture, channels, factors)
    return PruningReport(f"prune_channels, {size} of {total}", before, model_size(model))


@torch.no_grad()
def keep_channels(architecture: Architecture, channels: Tensor, factors: Sequence[float]) -> None:
    """Keep only these hidden channels in everything that reads or writes the residual stream; in place.

    A scaled embedding (Gemma multiplies it by the square root of the hidden size) gives the same numbers as before.

    Args:
        architecture: of the model.
        channels: int64 [kept], in the order that they get.
        factors: one per norm, as ``norms`` lists them: what its weights are multiplied with.
    """
    model, old = architecture.model, architecture.hidden_size
    head, embedding = architecture.head, architecture.embedding
    tied, factors = head.weight is embedding.weight, list(factors)
    scale = _rescale_embedding(embedding, len(channels))
    if tied:
        factors[-1] /= scale
    offset = architecture.family.norm_offset
    for norm, factor in zip(architecture.norms, factors, strict=True):
        weight = norm.get_parameter("weight")
        norm_weight = weight.index_select(0, channels.to(weight.device))
        if factor != 1:
            norm_weight = ((norm_weight.float() + offset) * factor - offset).to(weight.dtype)
        norm.weight = nn.Parameter(norm_weight, requires_grad=weight.requires_grad)
    for block_mlp, attention in zip(architecture.mlps, architecture.attentions, strict=True):
        for projection in (*block_mlp.inputs, *attention.inputs):
            projection.keep(channels, axis="in")
        for projection in (block_mlp.output, *attention.outputs):
            projection.keep(channels, axis="out")
    columns = embedding.weight.index_select(1, channels.to(embedding.weight.device))
    columns = columns if scale == 1 else columns * scale
    embedding.weight = nn.Parameter(columns, requires_grad=embedding.weight.requires_grad)
    embedding.embedding_dim = len(channels)
    if tied:
        head.weight, head.in_features = embedding.weight, len(channels)
    else:
        Projection(head).keep(channels, axis="in")
    for module in model.modules():  # blocks and MLPs note it beside their matrices
        if getattr(module, "hidden_size", None) == old:
            note_sizes(module, hidden_size=len(channels))
    if architecture.head_size:  # otherwise it would follow the hidden size
        model.config.head_dim = architecture.head_size
    model.config.hidden_size = len(channels)


def _rescale_embedding(embedding: Any, channels: int) -> float:
    """Give a scaled embedding the factor that its class will compute on reload; return what makes up for it."""
    if not hasattr(embedding, "embed_scale"):
        return 1.0
    old, new = embedding.scalar_embed_scale, channels**0.5
    embedding.scalar_embed_scale = new
    embedding.embed_scale = torch.full_like(embedding.embed_scale, new)  # a new one: variants share the old
    old, new = torch.tensor([old, new]).to(embedding.weight.dtype).tolist()  # as they are rounded on use
    return old / new


@check_types
def norm_factors(energies: Tensor, channels: Tensor) -> list[float]:
    """What ``prune_channels`` multiplies each norm's weights with when these channels stay.

    Args:
        energies: [norms, hidden].
        channels: int64 [kept].

    Returns:
        ``sqrt(share * d / k)`` for each norm; 1 where the kept channels have no energy.

    >>> norm_factors(torch.tensor([[4.0, 4.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]]), torch.tensor([0, 1]))
    [1.3333333333333333, 1.0]
    """
    energies = energies.double()
    kept, total = energies[:, channels.to(energies.device)].sum(dim=1), energies.sum(dim=1)
    share = torch.where(kept > 0, kept / total * energies.shape[1] / len(channels), 1.0)
    return share.sqrt().tolist()


def legal_sizes(model: PreTrainedModel, least: int) -> list[int]:
    """Hidden sizes from ``least`` up to the model's own that plain transformers takes with its number of heads.

    Raises:
        ValueError: ``least`` out of range, or a family without this axis.
    """
    architecture = describe(model)
    refuse_bound_heads(architecture, "cut channels")
    checks.whole_number("least", least, least=1, most=architecture.hidden_size, meaning="the model's hidden size")
    return [size for size in range(least, architecture.hidden_size + 1) if architecture.accepts(hidden_size=size)]


def _nearest(architecture: Architecture, size: int) -> str:
    """The legal sizes just below and just above one that isn't."""
    below = next((s for s in range(size - 1, 0, -1) if architecture.accepts(hidden_size=s)), None)
    above = next(s for s in range(size + 1, architecture.hidden_size + 1) if architecture.accepts(hidden_size=s))
    return " and ".join(str(s) for s in (below, above) if s is not None)

"""Head pruning: score key/value heads together with their query heads, and cut whole such groups out.

With grouped-query attention several query heads read one key/value head. Cutting query heads alone leaves the cache as
big as it was; a *KV group*, one key/value head with all of its query heads, leaves the matrices and the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from course_utils.models.architectures import Architecture, describe
from course_utils.models.refusals import refuse_adaptive, refuse_bound_heads, refuse_offloaded_weights
from course_utils.models.reports import PruningReport, model_size
from course_utils.pruning.activations import Reading, read_once
from course_utils.pruning.width import best
from course_utils.support import checks
from course_utils.support.checks import check_types


def head_importance(model: PreTrainedModel, batches: Iterable[Mapping[str, Tensor]]) -> list[Tensor]:
    """Score every KV group by the size of what its query heads give; more is more important.

    That is the root mean square, over the real tokens, of the length of the heads' outputs, before the output
    projection mixes them. Minitron (Muralidharan et al. 2024, arXiv 2407.14679) takes means of absolute values over
    each sequence instead.

    Args:
        model: any causal language model that ``describe`` knows and whose heads can be cut; it is not changed.
        batches: ``{"input_ids", "attention_mask"}`` mappings; padding never counts.

    Returns:
        One float32 tensor [KV groups] per block, on the weights' device; zeros where an attention is bypassed or gone.

    Raises:
        ValueError: malformed batches, non-finite activations, or a family without this axis (GPT-2, OPT, GPT-NeoX).
    """
    architecture = describe(model)
    refuse_bound_heads(architecture, "score KV groups")
    (scores,) = read_once(architecture, batches, watch_groups)
    checks.finite(scores, "The scores of the KV groups")
    return scores


def watch_groups(reading: Reading) -> tuple[list[RemovableHandle], Callable[[], list[Tensor]]]:
    """``head_importance``, for ``read_once``."""
    attentions, groups = reading.architecture.attentions, reading.architecture.groups
    device = reading.architecture.model.device
    squares = [torch.zeros(groups, dtype=torch.float64, device=device) for _ in attentions]

    def add(total: Tensor, width: int, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:  # to [groups]
        states = reading.select(inputs[0]).unflatten(-1, (-1, width))  # [tokens, groups, width]
        total.add_(torch.linalg.vector_norm(states, dim=(0, 2), dtype=torch.float32).double().square())

    hooks = [
        attention.outputs[0].module.register_forward_pre_hook(partial(add, total, attention.group_width))
        for attention, total in zip(attentions, squares, strict=True)
        if attention.groups
    ]
    return hooks, lambda: [(total / reading.tokens).sqrt().float() for total in squares]


@check_types
@torch.no_grad()
def prune_kv_groups(model: PreTrainedModel, importance: Sequence[Tensor], *, groups: int) -> PruningReport:
    """Cut the least important KV groups out of every attention, with their query heads, in place.

    Each block keeps ``groups`` of its own choice; equal scores keep the group with the lower number. The head size
    stays, so rotary positions and norms of heads (Qwen3, Gemma 3) stay as they are. The configuration follows
    (``num_key_value_heads``, ``num_attention_heads``, ``head_dim``), so the model saves and reloads with plain
    transformers. What remains equals the whole model with the outputs of the cut heads set to zero. A bypassed
    attention is cut as well, so that it can be restored.

    Args:
        model: any causal language model that ``describe`` knows and whose heads can be cut.
        importance: one score tensor [KV groups] per block, as from ``head_importance``.
        groups: how many stay in each block, from 1; all of them changes nothing.

    Raises:
        ValueError: ``groups`` out of range or refused by the model's configuration (the message names those that
            are not), scores that don't fit or aren't finite, an adaptive or offloaded model, or a family without
            this axis (GPT-2, OPT, GPT-NeoX). After an error the model is unchanged.
    """
    architecture = describe(model)
    refuse_bound_heads(architecture, "cut KV groups")
    refuse_adaptive(architecture, "cut KV groups")
    refuse_offloaded_weights(architecture, "cut KV groups")
    total = architecture.groups
    if not total:
        raise ValueError("All attentions of this model were removed, so there are no KV groups to cut.")
    checks.whole_number("groups", groups, least=1, most=total, meaning="the KV groups of each attention")
    shapes = [tuple(scores.shape) for scores in importance]
    if shapes != [(total,)] * architecture.num_blocks:
        raise ValueError(
            f"'importance' must hold one tensor [{total}], the KV groups, for each of {architecture.num_blocks} "
            f"blocks; got shapes {shapes}. Score this very model with head_importance."
        )
    checks.finite(importance, "'importance'")
    if groups < total and not architecture.accepts(groups=groups):
        raise ValueError(
            f"transformers refuses a {architecture.name} model of hidden size {architecture.hidden_size} with "
            f"{groups * architecture.queries_a_group} query heads; KV groups that can stay: {legal_groups(model)}."
        )

    before = model_size(model)
    if groups < total:
        keep_groups(architecture, [best(scores, groups) for scores in importance])
    return PruningReport(f"prune_kv_groups, {groups} of {total}", before, model_size(model))


def keep_groups(architecture: Architecture, kept: Sequence[Tensor]) -> None:
    """Keep only these key/value heads, as many in each block, with their query heads; in place.

    Args:
        architecture: of the model.
        kept: int64 [groups] for each block, in the order that they get; not looked at where an attention is gone.
    """
    config, heads = architecture.model.config, architecture.queries_a_group
    for attention, groups in zip(architecture.attentions, kept, strict=True):
        if attention.groups:
            attention.keep(groups)
    config.head_dim = architecture.head_size
    config.num_key_value_heads, config.num_attention_heads = architecture.groups, architecture.groups * heads


def legal_groups(model: PreTrainedModel) -> list[int]:
    """How many KV groups each attention can keep, so that plain transformers takes the configuration.

    Raises:
        ValueError: a family without this axis.
    """
    architecture = describe(model)
    refuse_bound_heads(architecture, "cut KV groups")
    return [count for count in range(1, architecture.groups + 1) if architecture.accepts(groups=count)]

"""Depth pruning: find the blocks that change the residual stream least, and take them out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from tqdm import tqdm
from transformers import PreTrainedConfig, PreTrainedModel

from course_utils.models.architectures import describe
from course_utils.models.parts import note_sizes
from course_utils.models.refusals import refuse_adaptive
from course_utils.models.reports import PruningReport, model_size
from course_utils.pruning.activations import CosineDistance, Reading, entering, evaluating, leaving, read_once
from course_utils.support import checks
from course_utils.support.checks import check_types

# Configuration fields that hold one entry per block.
_PER_BLOCK_FIELDS = ("layer_types", "no_rope_layers")


def block_importance(model: PreTrainedModel, batches: Iterable[Mapping[str, Tensor]]) -> Tensor:
    """Block influence: one minus the cosine between a block's input and its output, mean over the real tokens.

    ShortGPT, Men et al. 2024, arXiv 2403.03853. Hooks on the blocks read it, because the last entry of transformers'
    ``output_hidden_states`` comes after the final norm.

    Args:
        model: any causal language model that ``describe`` knows; it is not changed.
        batches: ``{"input_ids", "attention_mask"}`` mappings; padding never counts.

    Returns:
        [num_blocks] float32; near 0: the block hardly turns the residual stream.
    """
    (scores,) = read_once(describe(model), batches, watch_blocks)
    return scores


def watch_blocks(reading: Reading) -> tuple[list[RemovableHandle], Callable[[], Tensor]]:
    """``block_importance``, for ``read_once``."""
    blocks = reading.architecture.blocks
    meters = [CosineDistance() for _ in blocks]

    def watch(meter: CosineDistance) -> Callable:
        return lambda _module, args, kwargs, output: meter.add(entering(args, kwargs), leaving(output), reading.real)

    hooks = [
        block.register_forward_hook(watch(meter), with_kwargs=True) for block, meter in zip(blocks, meters, strict=True)
    ]
    return hooks, lambda: torch.tensor([meter.mean() for meter in meters])


@check_types
def leave_one_out(model: PreTrainedModel, score: Callable[[], float]) -> Tensor:
    """Score the model once for each block left out. Shortened LLaMA, Kim et al. 2024, arXiv 2402.02834.

    Args:
        model: any causal language model that ``describe`` knows; it is as before afterwards.
        score: called without arguments while one block does nothing; say, the model's perplexity on some text.

    Returns:
        [num_blocks] float32, what ``score`` returned.
    """
    scores = []
    for block in tqdm(describe(model).blocks, desc="leave one out", unit="block", leave=False, delay=2):
        hook = block.register_forward_hook(_pass_through, with_kwargs=True)
        with evaluating(model, hook):
            scores.append(float(score()))
    return torch.tensor(scores)


def _pass_through(_module: nn.Module, args: tuple, kwargs: dict, output: Tensor | tuple) -> Tensor | tuple:
    states = entering(args, kwargs)
    return (states, *output[1:]) if isinstance(output, tuple) else states


@torch.no_grad()
def remove_blocks(model: PreTrainedModel, indices: Sequence[int]) -> PruningReport:
    """Take whole blocks out, in place; any set of block numbers in any order.

    The blocks that stay are renumbered (``layer_idx``: it addresses the cache) and the
    configuration follows (``num_hidden_layers`` and every per-block list), so the model saves and
    reloads with plain transformers.

    Args:
        model: any causal language model that ``describe`` knows.
        indices: the blocks to remove; none changes nothing.

    Raises:
        ValueError: a number out of range or repeated, all blocks, all with experts of a mixture, an adaptive model, or
            a GPT-2 whose attention is scaled by the block's number. After an error the model is unchanged.
    """
    architecture = describe(model)
    refuse_adaptive(architecture, "remove blocks")
    config, total = model.config, architecture.num_blocks
    gone = checks.block_numbers(indices, total)
    if len(gone) == total:
        raise ValueError(f"At least one of the {total} blocks must stay; got all of them.")
    if architecture.is_mixture and not set(architecture.mixture_blocks) - set(gone):
        raise ValueError(f"At least one of the blocks with experts, {architecture.mixture_blocks}, must stay; got all.")
    if gone and getattr(config, "scale_attn_by_inverse_layer_idx", False):
        raise ValueError(
            "This GPT-2 scales each attention by its block's number (scale_attn_by_inverse_layer_idx), so "
            "renumbering would change the blocks that stay. Models without this setting can be depth-pruned."
        )
    before = model_size(model)
    if gone:
        kept = [number for number in range(total) if number not in gone]
        blocks = nn.ModuleList(architecture.blocks[number] for number in kept)
        setattr(architecture.backbone, architecture.family.blocks.rpartition(".")[2], blocks)
        for number, block in enumerate(blocks):
            for module in block.modules():
                note_sizes(module, layer_idx=number)
        _shorten(config, kept)
        describe(model).sync_config()
    return PruningReport(f"remove_blocks {gone}", before, model_size(model))


def _shorten(config: PreTrainedConfig, kept: Sequence[int]) -> None:
    """Let the configuration speak of these blocks alone."""
    config.num_hidden_layers = len(kept)
    config.per_layer_config = None
    for field in _PER_BLOCK_FIELDS:
        values = getattr(config, field, None)
        if values is not None:
            setattr(config, field, [values[number] for number in kept])
    if getattr(config, "max_window_layers", None) is not None:  # blocks below it attend globally
        config.max_window_layers = sum(number < config.max_window_layers for number in kept)

"""Depth pruning: find the blocks that change the residual stream least, and take them out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from tqdm import tqdm
from transformers import PreTrainedConfig, PreTrainedModel

from course_utils.models.architectures import Architecture, describe
from course_utils.models.parts import note_sizes
from course_utils.models.refusals import refuse_adaptive, refuse_missing_weights, refuse_offloaded_weights
from course_utils.models.reports import PruningReport, model_size
from course_utils.pruning.activations import (
    CosineDistance,
    MeanChange,
    Reading,
    entering,
    evaluating,
    leaving,
    read_once,
)
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
    meters = [CosineDistance() for _ in reading.architecture.blocks]
    hooks = _around_blocks(reading, lambda number, before, after: meters[number].add(before, after, reading.real))
    return hooks, lambda: torch.tensor([meter.mean() for meter in meters])


@torch.no_grad()
def block_means(model: PreTrainedModel, batches: Iterable[Mapping[str, Tensor]]) -> Tensor:
    """What each block adds to the residual stream on average: its output minus its input.

    ``remove_blocks`` can keep these means. The first real token of each row doesn't count, because its state is many
    times the others' (the attention sink): a mean with it would fit no token at all.

    Args:
        model: any causal language model that ``describe`` knows; it is not changed.
        batches: ``{"input_ids", "attention_mask"}`` mappings; padding never counts, on either side.

    Returns:
        [num_blocks, hidden size] float32, on the model's device.

    Raises:
        ValueError: empty or malformed batches, no row of at least two tokens, non-finite states, or weights on the meta
            device.
    """
    architecture = describe(model)
    refuse_missing_weights(architecture, "look at blocks")
    (means,) = read_once(architecture, batches, watch_means)
    checks.finite(means, "The means of what the blocks add")
    return means


def watch_means(reading: Reading) -> tuple[list[RemovableHandle], Callable[[], Tensor]]:
    """``block_means``, for ``read_once``."""
    meters = [MeanChange() for _ in reading.architecture.blocks]
    hooks = _around_blocks(reading, lambda number, before, after: meters[number].add(before, after, reading.later))

    def means() -> Tensor:
        if not meters[0].tokens:
            raise ValueError(
                "'batches' hold no token to count: the first token of each row is left out, and no row has a second "
                "one. Give rows of at least two tokens."
            )
        return torch.stack([meter.mean().to(reading.architecture.model.device) for meter in meters])

    return hooks, means


def _around_blocks(reading: Reading, see: Callable[[int, Tensor, Tensor], object]) -> list[RemovableHandle]:
    """Hooks that hand over each block's number, and the states that enter and leave it."""

    def hook(number: int, _block: nn.Module, args: tuple, kwargs: dict, output: Tensor | tuple) -> None:
        see(number, entering(args, kwargs), leaving(output))

    blocks = enumerate(reading.architecture.blocks)
    return [block.register_forward_hook(partial(hook, number), with_kwargs=True) for number, block in blocks]


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


@check_types
@torch.no_grad()
def remove_blocks(model: PreTrainedModel, indices: Sequence[int], *, means: Tensor | None = None) -> PruningReport:
    """Take whole blocks out, in place; any set of block numbers in any order.

    The blocks that stay are renumbered (``layer_idx``: it addresses the cache) and the
    configuration follows (``num_hidden_layers`` and every per-block list), so the model saves and
    reloads with plain transformers.

    A block that goes also wrote a constant: what it adds is in part the same for every token. With ``means`` that
    constant stays. It goes into the bias of the matrix that leads out of the MLP of the nearest block below, so every
    token gets it where the removed block stood. GPT-2, OPT and GPT-NeoX have this bias; Llama and SmolLM3 get it
    (``config.mlp_bias``: each matrix of their MLPs then has one, of zeros where nothing is kept).

    Args:
        model: any causal language model that ``describe`` knows.
        indices: the blocks to remove; none changes nothing.
        means: what each block of this model adds on average, as from ``block_means``, [num_blocks, hidden size].

    Raises:
        ValueError: a number out of range or repeated, all blocks, all with experts of a mixture, an adaptive model, or
            a GPT-2 whose attention is scaled by the block's number. With ``means``: means that don't fit the model or
            aren't finite, block 0 among those that go, a family that can't hold them, or an offloaded model. After an
            error the model is unchanged.
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
    if means is not None:
        _check_means(architecture, gone, means)
    before = model_size(model)
    if gone:
        kept = [number for number in range(total) if number not in gone]
        blocks = nn.ModuleList(architecture.blocks[number] for number in kept)
        setattr(architecture.backbone, architecture.family.blocks.rpartition(".")[2], blocks)
        for number, block in enumerate(blocks):
            for module in block.modules():
                note_sizes(module, layer_idx=number)
        _shorten(config, kept)
        if means is not None:
            _keep_means(describe(model), kept, gone, means)
        describe(model).sync_config()
    return PruningReport(f"remove_blocks {gone}", before, model_size(model))


def _check_means(architecture: Architecture, gone: Sequence[int], means: Tensor) -> None:
    """Refuse means that don't fit, and a model that can't keep those of the blocks that go."""
    shape = (architecture.num_blocks, architecture.hidden_size)
    if tuple(means.shape) != shape:
        raise ValueError(
            f"'means' must be of shape [blocks, hidden size], here {list(shape)}; got {list(means.shape)}. Measure "
            "them on this very model with block_means."
        )
    checks.finite(list(means), "'means'")
    refuse_offloaded_weights(architecture, "keep the means of blocks")
    refuse_no_room(architecture)
    if 0 in gone:
        raise ValueError(
            "Can't keep the mean of block 0: nothing stands before it, and the mean of a block is kept in the nearest "
            "one before it. Leave 'means' out, or let block 0 stay."
        )


def refuse_no_room(architecture: Architecture) -> None:
    """Refuse a model that has no place for the means of blocks."""
    if why := why_no_room(architecture):
        raise ValueError(
            f"Can't keep the means of blocks: {why}. Leave 'means' out, and let the model learn afterwards."
        )


def why_no_room(architecture: Architecture) -> str:
    """Why a model has no place for a constant between two blocks; "" where it has one: the bias of an MLP."""
    model, family = architecture.model, architecture.family
    name = f"{type(model).__name__} ({architecture.name})"
    if architecture.is_mixture:
        return f"{name} is a mixture of experts, and no bias of an expert reaches every token"
    if not family.adds_mlp_as_it_is(model.config):
        return f"{name} normalises what its MLPs write, so that a bias in there is no constant behind it"
    if not family.mlp_bias_field and any(mlp.output.bias is None for mlp in architecture.mlps):
        return (
            f"the matrices that lead out of the MLPs of {name} have no bias, and its configuration can give them none"
        )
    return ""


def make_room(architecture: Architecture) -> None:
    """Give all MLPs their biases, of zeros, where they have none and the family's configuration can say so."""
    if any(mlp.output.bias is None for mlp in architecture.mlps):
        setattr(architecture.model.config, architecture.family.mlp_bias_field, True)
        for projection in (projection for mlp in architecture.mlps for projection in mlp.projections):
            projection.give_bias()


def _keep_means(architecture: Architecture, kept: Sequence[int], gone: Sequence[int], means: Tensor) -> None:
    """Add the means of the blocks that are gone to the bias of the nearest block before each that was kept.

    Args:
        architecture: of the shortened model.
        kept: the numbers that its blocks had.
        gone: the others.
        means: of the blocks before any was gone.
    """
    make_room(architecture)
    for place, (number, following) in enumerate(zip(kept, [*kept[1:], len(means)], strict=True)):
        between = [block for block in gone if number < block < following]
        if between:
            output = architecture.mlps[place].output
            output.shift(means[between].sum(dim=0).to(output.weight.device))


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

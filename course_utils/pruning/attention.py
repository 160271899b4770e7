"""Attention bypass: leave out whole attention sublayers, so that the residual passes through unchanged.

He et al. 2024, "What Matters in Transformers? Not All Attention is Needed", arXiv 2406.15786.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from course_utils.models.architectures import Architecture, describe
from course_utils.models.modeling.no_attention import NoAttention, replace_forward, restore_forward, skip_attention
from course_utils.models.refusals import refuse_adaptive
from course_utils.models.reports import PruningReport, model_size
from course_utils.pruning.activations import (
    CosineDistance,
    Entering,
    entering,
    evaluating,
    leaving,
    run_keeping,
    starting_at,
)
from course_utils.support import checks
from course_utils.text.batches import Batch, read_batches

_KEPT_BYTES = 2 * 1024**3  # 8,192 tokens of a model with 32 blocks of 4,096 channels, in 16 bits


def attention_importance(model: PreTrainedModel, batches: Iterable[Mapping[str, Tensor]]) -> Tensor:
    """How much each attention turns the residual stream: ``1 - cos(x, x + attention(norm(x)))``.

    x is the block's input, before the norm.

    Args:
        model: any causal language model that ``describe`` knows; it is not changed.
        batches: ``{"input_ids", "attention_mask"}`` mappings. The score is a mean over their real tokens.

    Returns:
        [num_blocks] float32; 0 for a bypassed attention.
    """
    architecture = describe(model)
    read = _read(architecture, batches)
    return _scores(architecture, read, [{} for _ in read])


def select_attention_layers(
    model: PreTrainedModel,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    count: int,
    iterative: bool = True,
) -> list[int]:
    """Choose the attentions that matter least. Ties go to the lower block.

    One-shot ranks them once. Iterative takes out the least important one, measures the others in
    the model that remains (MLPs of bypassed blocks included), and repeats. The states that enter the blocks are kept
    meanwhile (34 MB for 512 tokens of Llama-3.2-1B in 16 bits), so that blocks below a change don't run again. They
    never take more than 2 GiB: with more text only every second, third, … block's are kept.

    What a bypass costs on short rows says little about long texts. It costs more there, since a token in the middle of
    a text has more to look at; and the loss on running text doesn't show that the model can't repeat a passage any more
    (lesson 05). Judge a choice on rows as long as yours, and on what your users ask.

    Args:
        model: any causal language model that ``describe`` knows; it is not changed.
        batches: ``{"input_ids", "attention_mask"}`` mappings, to measure on.
        count: how many to choose, from 0 to the number of live attentions.
        iterative: measure again after each choice.

    Returns:
        ``count`` block numbers, least important first.

    Raises:
        ValueError: one of these out of range, or an adaptive model.
    """
    architecture = describe(model)
    refuse_adaptive(architecture, "choose attentions")
    live = [i for i, attention in enumerate(architecture.attentions) if not attention.skipped]
    count = checks.whole_number("count", count, most=len(live), meaning="the live attentions")
    checks.flag("iterative", iterative)
    read = _read(architecture, batches)
    kept: list[Entering] = [{} for _ in read]
    places = _places(architecture, read) if iterative else range(0)
    scores = _scores(architecture, read, kept, places)
    if not iterative:
        return sorted(live, key=lambda i: (float(scores[i]), i))[:count]
    chosen: list[int] = []
    try:
        for _ in tqdm(range(count), desc="choosing attentions", unit="layer", leave=False, delay=2):
            least = min((i for i in live if i not in chosen), key=lambda i: (float(scores[i]), i))
            chosen.append(least)
            _skip(architecture, least)
            if len(chosen) < count:
                first = max(place for place in places if place <= least)
                scores[first:] = _scores(architecture, read, kept, places, first=first)
    finally:
        for layer in chosen:
            _restore(architecture, layer)
    return chosen


@torch.no_grad()
def bypass_attention(model: PreTrainedModel, layers: Sequence[int], *, remove: bool = False) -> PruningReport:
    """Bypass exactly these blocks' attentions, in place: each adds exactly zero to the residual stream.

    A bypassed attention computes nothing and keeps no keys and values; every other bypassed one is
    restored, so ``[]`` gives the original model back bit for bit. All attentions may be bypassed:
    each token is then processed by itself.

    Args:
        model: any causal language model that ``describe`` knows.
        layers: block numbers, in any order.
        remove: delete the weights (projections and the norm before them) for good.

    Raises:
        ValueError: a number out of range or repeated, an adaptive model, or a removed attention left
            out of ``layers``: it can't be restored. After an error the model is unchanged.
    """
    architecture = describe(model)
    refuse_adaptive(architecture, "bypass attentions")
    checks.flag("remove", remove)
    attentions = architecture.attentions
    layers = checks.block_numbers(layers, len(attentions))
    lost = [i for i, a in enumerate(attentions) if a.removed and i not in layers]
    if lost:
        raise ValueError(
            f"The attentions of blocks {lost} were removed with their weights and can't be restored; "
            "include them in 'layers', or load the original model again."
        )
    before = model_size(model)
    for i, (block, attention) in enumerate(zip(architecture.blocks, attentions, strict=True)):
        if attention.removed:
            continue
        if attention.skipped:
            _restore(architecture, i)
        if i in layers and remove:
            block.set_submodule(architecture.family.attention, NoAttention(i))
            for path in architecture.attention_norms:
                block.set_submodule(path, nn.Identity())
        elif i in layers:
            _skip(architecture, i)
    describe(model).sync_config()
    return PruningReport(f"{'remove' if remove else 'bypass'} attention {layers}", before, model_size(model))


def _skip(architecture: Architecture, layer: int) -> None:
    attention = architecture.attentions[layer]
    attention.module.bypassed = True
    replace_forward(attention.module, skip_attention)
    for norm in attention.norms:
        replace_forward(norm, _identity)


def _restore(architecture: Architecture, layer: int) -> None:
    attention = architecture.attentions[layer]
    del attention.module.bypassed
    for module in (attention.module, *attention.norms):
        restore_forward(module)


def _identity(_module: nn.Module, states: Tensor) -> Tensor:
    return states


def _read(architecture: Architecture, batches: Iterable[Mapping[str, Tensor]]) -> list[Batch]:
    return list(read_batches(batches, vocab_size=architecture.vocab_size, device=architecture.model.device))


def _places(architecture: Architecture, batches: Sequence[Batch]) -> range:
    """The blocks at whose entrance states are kept: as many as ``_KEPT_BYTES`` holds, evenly spaced, block 0 always."""
    tokens = sum(batch.input_ids.numel() for batch in batches)
    most = max(1, _KEPT_BYTES // (tokens * architecture.hidden_size * architecture.model.dtype.itemsize))
    return range(0, architecture.num_blocks, -(-architecture.num_blocks // most))


@torch.no_grad()
def _scores(
    architecture: Architecture,
    batches: Sequence[Batch],
    kept: Sequence[Entering],
    places: Sequence[int] = (),
    *,
    first: int = 0,
) -> Tensor:
    """Importance of the attentions from block ``first`` on, [blocks from there on]; the blocks below don't run.

    Args:
        architecture: of the model.
        batches: what to measure on.
        kept: what entered block ``first`` when a batch was last read, one per batch; brought up to date above it.
        places: block numbers at whose entrance to keep it.
        first: number of the lowest block that runs.
    """
    meters = {number: CosineDistance() for number in range(first, architecture.num_blocks)}
    states = real = torch.empty(0)

    def enter(_block: nn.Module, args: tuple, kwargs: dict) -> None:
        nonlocal states
        states = entering(args, kwargs).float()  # [rows, length, hidden]

    def add(number: int, _module: nn.Module, _args: tuple, output: Tensor | tuple) -> None:
        # Summed in 32 bits: a sum in 16 bits would round small contributions away.
        meters[number].add(states, states + leaving(output).float(), real)

    attentions = architecture.attentions  # refused for a mixture, before there are hooks
    hooks = [architecture.blocks[i].register_forward_pre_hook(enter, with_kwargs=True) for i in meters]
    hooks += [attentions[i].contribution.register_forward_hook(partial(add, i)) for i in meters]
    with evaluating(architecture.model, *hooks):
        for batch, entered in zip(batches, kept, strict=True):
            real = batch.real
            with starting_at(architecture, first, entered):
                _, above = run_keeping(architecture, batch, [place for place in places if place > first])
            entered |= above
    return torch.tensor([meter.mean() for meter in meters.values()])

"""Attention bypass: leave out whole attention sublayers, so that the residual passes through unchanged.

He et al. 2024, "What Matters in Transformers? Not All Attention is Needed", arXiv 2406.15786.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from course_utils import checks
from course_utils.architectures import Architecture, describe, evaluating
from course_utils.batches import Batch, read_batches
from course_utils.influence import CosineDistance, as_scores, entering, leaving
from course_utils.modeling.forwards import replace_forward, restore_forward
from course_utils.modeling.no_attention import NoAttention, skip_attention
from course_utils.refusals import refuse_adaptive
from course_utils.reports import PruningReport, model_size


def attention_importance(model: PreTrainedModel, batches: Iterable[Mapping[str, Tensor]]) -> Tensor:
    """How much each attention turns the residual stream: ``1 - cos(x, x + attention(norm(x)))``.

    x is the block's input, before the norm.

    Args:
        model: any causal language model that ``describe`` knows; it is not changed.
        batches: ``{"input_ids", "attention_mask"}`` mappings. The score is a mean over their real tokens; padding
            never counts.

    Returns:
        [num_blocks] float32; 0 for a bypassed attention.

    Raises:
        ValueError: empty or malformed batches.
        UnsupportedArchitecture: ``describe`` doesn't know the model.
    """
    return _Replay(describe(model), batches).scores


def select_attention_layers(
    model: PreTrainedModel,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    count: int,
    iterative: bool = True,
    memory_budget: int = 2 * 1024**3,
) -> list[int]:
    """Choose the attentions that matter least. Ties go to the lower block.

    One-shot ranks them once. Iterative takes out the least important one, measures the others in
    the model that remains (MLPs of bypassed blocks included), and repeats. Measuring again runs
    neither the head nor any block below the change: states that enter the blocks are kept.

    Args:
        model: any causal language model that ``describe`` knows; it is not changed.
        batches: ``{"input_ids", "attention_mask"}`` mappings, to measure on.
        count: how many to choose, from 0 to the number of live attentions.
        iterative: measure again after each choice.
        memory_budget: bytes that the kept states may take, above 0; with fewer, more blocks run again.

    Returns:
        ``count`` block numbers, least important first.

    Raises:
        ValueError: one of these out of range; bad batches; an adaptive model.
        UnsupportedArchitecture: ``describe`` doesn't know the model.
    """
    architecture = describe(model)
    refuse_adaptive(architecture, "choose attentions")
    live = [i for i, attention in enumerate(architecture.attentions) if not attention.skipped]
    count = checks.whole_number("count", count, most=len(live), meaning="the live attentions")
    checks.flag("iterative", iterative)
    checks.whole_number("memory_budget", memory_budget, least=1)
    replay = _Replay(architecture, batches, memory_budget if iterative else 0)
    if not iterative:
        return sorted(live, key=lambda i: (float(replay.scores[i]), i))[:count]
    chosen: list[int] = []
    try:
        for _ in tqdm(range(count), desc="choosing attentions", unit="layer", leave=False, delay=2):
            worst = min((i for i in live if i not in chosen), key=lambda i: (float(replay.scores[i]), i))
            chosen.append(worst)
            _skip(architecture, worst)
            if len(chosen) < count:
                replay.run_from(worst)
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
            out of ``layers``: it can't be restored. Everything is checked first.
        UnsupportedArchitecture: ``describe`` doesn't know the model.
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


@dataclass
class _Recording:
    """One batch, and what its first pass called the blocks with."""

    batch: Batch
    states: dict[int, Tensor] = field(default_factory=dict)  # [rows, length, hidden] entering a block; only where kept
    calls: dict[int, tuple[tuple, dict]] = field(default_factory=dict)  # each block's arguments, None for the states

    def call(self, block: nn.Module, number: int, states: Tensor) -> Tensor:
        """Run one block as in the first pass, on other states."""
        args, kwargs = self.calls[number]
        args, kwargs = ((states, *args[1:]), kwargs) if args else ((), kwargs | {"hidden_states": states})
        return leaving(block(*args, **kwargs))

    def note(self, number: int, args: tuple, kwargs: dict) -> None:
        """Keep what a block is called with, without the states."""
        self.calls[number] = ((None, *args[1:]), kwargs) if args else ((), kwargs | {"hidden_states": None})


class _Replay:
    """Attention scores of a model on fixed batches, cheap to update after a change at one block.

    The first pass records what every block is called with. ``run_from(block)`` then runs only that
    block and those above it, from the nearest states that were kept.
    """

    def __init__(
        self, architecture: Architecture, batches: Iterable[Mapping[str, Tensor]], memory_budget: int = 0
    ) -> None:
        self._architecture = architecture
        read = read_batches(batches, vocab_size=architecture.vocab_size, device=architecture.model.device)
        self._recordings = [_Recording(batch) for batch in read]
        self._kept = self._affordable(memory_budget)
        self.scores = torch.zeros(architecture.num_blocks)
        self._measure(0, lambda recording: architecture.hidden_states(recording.batch))

    def run_from(self, first: int) -> None:
        """Measure again after a change in block ``first``: the scores below it stand."""
        start = max(block for block in self._kept if block <= first)

        def replay(recording: _Recording) -> None:
            states = recording.states[start]
            for number, block in enumerate(self._architecture.blocks[start:], start):
                states = recording.call(block, number, states)

        self._measure(start, replay)

    def _affordable(self, budget: int) -> range:
        """The blocks whose incoming states are kept: evenly spaced, block 0 always, none without a budget."""
        blocks = self._architecture.num_blocks
        tokens = sum(recording.batch.input_ids.numel() for recording in self._recordings)
        bytes_a_block = tokens * self._architecture.hidden_size * self._architecture.model.dtype.itemsize
        return range(0, blocks, -(-blocks // max(1, budget // bytes_a_block))) if budget else range(0)

    @torch.no_grad()
    def _measure(self, start: int, run: Callable[[_Recording], object]) -> None:
        meters = {number: CosineDistance() for number in range(start, self._architecture.num_blocks)}
        recording, incoming = self._recordings[0], torch.empty(0)

        def enter(number: int, _block: nn.Module, args: tuple, kwargs: dict) -> None:
            nonlocal incoming
            incoming = entering(args, kwargs)  # [rows, length, hidden]
            if self._kept:
                recording.note(number, args, kwargs)
            if number in self._kept:
                recording.states[number] = incoming

        def add(number: int, _module: nn.Module, _args: tuple, output: Tensor | tuple) -> None:
            states = incoming.float()  # a sum in 16 bits would round away small contributions
            meters[number].add(states, states + leaving(output).float(), recording.batch.real)

        blocks, attentions = self._architecture.blocks, self._architecture.attentions
        hooks = [blocks[i].register_forward_pre_hook(partial(enter, i), with_kwargs=True) for i in meters]
        hooks += [attentions[i].contribution.register_forward_hook(partial(add, i)) for i in meters]
        with evaluating(self._architecture.model, *hooks):
            for recording in self._recordings:
                run(recording)
        self.scores[start:] = as_scores(list(meters.values()))

"""Attention bypass: leave out whole attention sublayers, so that the residual passes through unchanged.

He et al. 2024, "What Matters in Transformers? Not All Attention is Needed", arXiv 2406.15786.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from types import MethodType

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from course_utils import checks
from course_utils.architectures import Architecture, describe, evaluating
from course_utils.batches import read_batches
from course_utils.influence import CosineDistance, as_scores, entering, leaving
from course_utils.modeling.no_attention import NoAttention, skip_attention
from course_utils.reports import PruningReport, model_size


def attention_importance(model: PreTrainedModel, batches: Iterable[Mapping[str, Tensor]]) -> Tensor:
    """How much each attention turns the residual stream: ``1 - cos(x, x + attention(norm(x)))``.

    x is the block's input, before the norm. Averaged over the real tokens of ``batches``; padding
    never counts. A bypassed attention scores 0.

    Returns:
        [num_blocks] float32.

    Raises:
        ValueError: empty or malformed batches. UnsupportedArchitecture: unknown family.
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
    """Choose the ``count`` attentions that matter least.

    One-shot ranks them once. Iterative takes out the least important one, measures the others in
    the model that remains (MLPs of bypassed blocks included), and repeats. Measuring again runs
    neither the head nor any block below the change: states that enter the blocks are kept, as many
    as fit ``memory_budget`` bytes. Ties go to the lower block.

    Returns:
        ``count`` block numbers, least important first. The model is unchanged.

    Raises:
        ValueError: ``count`` is not from 0 to the number of live attentions; bad batches; an adaptive model.
    """
    architecture = describe(model)
    architecture.refuse_adaptive("choose attentions")
    live = [i for i, attention in enumerate(architecture.attentions) if not attention.skipped]
    count = checks.whole_number("count", count, most=len(live), meaning="the live attentions")
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
        remove: delete the weights (projections and the norm before them) for good.

    Raises:
        ValueError: a number out of range or repeated, an adaptive model, or a removed attention left
            out of ``layers``: it can't be restored. Everything is checked first.
    """
    architecture = describe(model)
    architecture.refuse_adaptive("bypass attentions")
    attentions = architecture.attentions
    layers = checks.block_numbers(layers, len(attentions))
    lost = [i for i, a in enumerate(attentions) if isinstance(a.module, NoAttention) and i not in layers]
    if lost:
        raise ValueError(
            f"The attentions of blocks {lost} were removed with their weights and can't be restored; "
            "include them in 'layers', or load the original model again."
        )
    before = model_size(model)
    for i, (block, attention) in enumerate(zip(architecture.blocks, attentions, strict=True)):
        if isinstance(attention.module, NoAttention):
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
    attention.module.forward = MethodType(skip_attention, attention.module)
    for norm in attention.norms:
        norm.forward = MethodType(_identity, norm)


def _restore(architecture: Architecture, layer: int) -> None:
    attention = architecture.attentions[layer]
    for module in (attention.module, *attention.norms):
        del module.forward  # the class's own forward comes back


def _identity(_module: nn.Module, states: Tensor) -> Tensor:
    return states


class _Replay:
    """Attention scores of a model on fixed batches, cheap to update after a change at one block.

    The first pass records what every block is called with. ``run_from(block)`` then runs only that
    block and those above it, from the nearest states that were kept.
    """

    def __init__(self, architecture: Architecture, batches: Iterable[Mapping[str, Tensor]], memory_budget: int = 0):
        self._architecture = architecture
        model = architecture.model
        self._batches = list(read_batches(batches, vocab_size=architecture.vocab_size, device=model.device))
        self._states: list[dict[int, Tensor]] = [{} for _ in self._batches]
        self._calls: list[dict[int, tuple[tuple, dict]]] = [{} for _ in self._batches]
        self._kept = self._affordable(memory_budget)
        self.scores = torch.zeros(architecture.num_blocks)
        self._measure(0, lambda number: architecture.hidden_states(self._batches[number]))

    def run_from(self, first: int) -> None:
        """Measure again after a change in block ``first``: the scores below it stand."""
        start = max(block for block in self._kept if block <= first)

        def replay(number: int) -> None:
            states = self._states[number][start]
            for block in range(start, self._architecture.num_blocks):
                args, kwargs = self._calls[number][block]
                call = ((states, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": states})
                states = leaving(self._architecture.blocks[block](*call[0], **call[1]))

        self._measure(start, replay)

    def _affordable(self, budget: int) -> range:
        """The blocks whose incoming states are kept: evenly spaced, block 0 always, none without a budget."""
        blocks = self._architecture.num_blocks
        tokens = sum(batch.input_ids.numel() for batch in self._batches)
        one = tokens * self._architecture.hidden_size * self._architecture.model.dtype.itemsize
        return range(0, blocks, -(-blocks // max(1, budget // one))) if budget else range(0)

    @torch.no_grad()
    def _measure(self, start: int, run: Callable[[int], object]) -> None:
        meters = {i: CosineDistance() for i in range(start, self._architecture.num_blocks)}
        number, incoming = 0, torch.empty(0)

        def enter(block: int, _module: nn.Module, args: tuple, kwargs: dict) -> None:
            nonlocal incoming
            incoming = entering(args, kwargs)
            if self._kept:
                # Without the states themselves, which only the kept blocks hold.
                self._calls[number][block] = (
                    ((None, *args[1:]), kwargs) if args else ((), kwargs | {"hidden_states": None})
                )
            if block in self._kept:
                self._states[number][block] = incoming

        def add(block: int, _module: nn.Module, _args: tuple, output: Tensor | tuple) -> None:
            states = incoming.float()  # a sum in 16 bits would round away small contributions
            meters[block].add(states, states + leaving(output).float(), self._batches[number].real)

        blocks, attentions = self._architecture.blocks, self._architecture.attentions
        hooks = [blocks[i].register_forward_pre_hook(partial(enter, i), with_kwargs=True) for i in meters]
        hooks += [attentions[i].contribution.register_forward_hook(partial(add, i)) for i in meters]
        with evaluating(self._architecture.model, *hooks):
            for number in range(len(self._batches)):
                run(number)
        self.scores[start:] = as_scores(list(meters.values()))

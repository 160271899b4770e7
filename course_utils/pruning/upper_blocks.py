"""Running a model again from some block upwards: the blocks below return what they returned before.

Below a change nothing changes. So keep, at the first run, what enters the blocks that may be the first to change::

    states, kept = run_keeping(architecture, batch, [5])
    bypass_attention(model, [5])
    with starting_at(architecture, 5, kept):
        changed = architecture.hidden_states(batch)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn

from course_utils.models.architectures import Architecture
from course_utils.pruning.hooks import evaluating
from course_utils.support.checks import check_types
from course_utils.text.batches import Batch

Entering = dict[int, Tensor | tuple | None]
"""What enters some blocks, by number: what the block below returned. None at block 0, below which there is nothing."""


def run_keeping(architecture: Architecture, batch: Batch, blocks: Iterable[int]) -> tuple[Tensor, Entering]:
    """Run everything but the head, and keep what enters some blocks.

    Args:
        architecture: of the model, from ``describe``.
        batch: what the model reads.
        blocks: numbers of the blocks at whose entrance to keep it; block 0 is always among them, and costs nothing.

    Returns:
        States after the final norm [rows, length, hidden], and what enters each of ``blocks``.
    """
    kept: Entering = {0: None}

    def keep(number: int, _block: nn.Module, _args: tuple, output: Tensor | tuple) -> None:
        kept[number] = output

    hooks = [architecture.blocks[i - 1].register_forward_hook(partial(keep, i)) for i in blocks if i]
    with evaluating(architecture.model, *hooks):
        return architecture.hidden_states(batch), kept


@contextmanager
def starting_at(architecture: Architecture, first: int, kept: Entering) -> Iterator[None]:
    """While the context is open, the blocks below ``first`` don't run: they return what was kept.

    Args:
        architecture: of the model, from ``describe``.
        first: number of the first block that runs; as many as there are blocks for none.
        kept: from ``run_keeping``, on the batch that is about to be read; holds ``first``.
    """
    with standing_still(list(architecture.blocks)[:first], lambda: kept[first]):
        yield


@contextmanager
@check_types
def standing_still(blocks: Sequence[nn.Module], returned: Callable[[], Tensor | tuple | None]) -> Iterator[None]:
    """While the context is open, some blocks don't run.

    Args:
        blocks: of a model.
        returned: gives what each of them returns instead.
    """
    own = [vars(block).get("forward") for block in blocks]  # None, unless somebody put it there, such as accelerate
    for block in blocks:
        block.forward = lambda *_args, **_kwargs: returned()
    try:
        yield
    finally:
        for block, forward in zip(blocks, own, strict=True):
            del block.forward
            if forward is not None:
                block.forward = forward

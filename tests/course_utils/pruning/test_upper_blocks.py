"""Starting at some block gives what the whole run gives, bit for bit, and leaves the blocks as they were."""

from __future__ import annotations

import pytest
import torch
from tiny import FAMILIES, tiny_batches, tiny_model

from course_utils.models.architectures import describe
from course_utils.pruning.upper_blocks import run_keeping, starting_at
from course_utils.text.batches import read_batch


def padded(architecture):
    return read_batch(
        tiny_batches(padding="left", size=6)[0], vocab_size=architecture.vocab_size, device=architecture.model.device
    )


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_upper_blocks_give_the_same_and_the_lower_ones_do_not_run(family):
    architecture = describe(tiny_model(family, layers=4))
    batch, ran = padded(architecture), []
    expected, kept = run_keeping(architecture, batch, [0, 2, 3])
    assert kept.keys() == {0, 2, 3}
    hooks = [
        mlp.contribution.register_forward_hook(lambda *_, number=number: ran.append(number))
        for number, mlp in enumerate(architecture.mlps)
    ]
    for first in (0, 2, 3):
        with starting_at(architecture, first, kept):
            states, above = run_keeping(architecture, batch, range(first + 1, 4))
        assert torch.equal(states, expected)
        assert ran == list(range(first, 4))
        assert above.keys() == {0, *range(first + 1, 4)}
        ran.clear()
    for hook in hooks:
        hook.remove()
    assert not any("forward" in vars(block) for block in architecture.blocks)


@torch.no_grad()
def test_a_forward_that_was_put_there_comes_back_after_an_error():
    architecture = describe(tiny_model(layers=3))
    batch, block = padded(architecture), architecture.blocks[0]
    _, kept = run_keeping(architecture, batch, [2])
    block.forward = own = type(block).forward.__get__(block)  # as accelerate does, to move what comes in
    with pytest.raises(KeyboardInterrupt), starting_at(architecture, 2, kept):
        raise KeyboardInterrupt
    assert vars(block)["forward"] is own
    assert "forward" not in vars(architecture.blocks[1])

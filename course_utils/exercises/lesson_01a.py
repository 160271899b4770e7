"""The check of the deeper notebook 01a, where the damage sits."""

from __future__ import annotations

import torch

from course_utils.exercises import Attempt, exercise, require


@exercise(
    1,
    task="Return a list of tensors: each block's scores, dealt out to other neurons of the same block.",
    proved="Same blocks, same numbers removed, and nothing known about neurons: a fair control.",
)
def check_shuffled(attempt: Attempt) -> None:
    """Check a function (scores, seed) -> the same scores in another order, block by block."""
    scores = [torch.arange(40.0), 100 + torch.arange(40.0), 200 + torch.arange(30.0)]
    given = [of_block.clone() for of_block in scores]
    drawn = attempt(scores, 0)
    require(
        isinstance(drawn, list | tuple) and len(drawn) == 3, "Return a list with one tensor for each block, in order."
    )
    for block, (new, old) in enumerate(zip(drawn, given, strict=True)):
        require(new.shape == old.shape, f"Block {block} has {len(old)} neurons; you return a shape {list(new.shape)}.")
        require(
            torch.equal(new.sort().values, old.sort().values),
            f"Block {block} no longer has its own scores. Deal each block's scores out inside that block; fresh random "
            "numbers, or numbers of other blocks, would change how many neurons a rule removes where.",
        )
        require(not torch.equal(new, old), f"In block {block} each neuron still has its own score: nothing is random.")
    require(
        all(torch.equal(now, before) for now, before in zip(scores, given, strict=True)),
        "You changed the given scores. Return new tensors: the criterion is still needed.",
    )
    require(
        not torch.equal(drawn[0], drawn[1] - 100),
        "Every block gets the same order. Seed once, before the loop, so that blocks are drawn independently.",
    )
    again, other = attempt(scores, 0), attempt(scores, 1)
    require(
        all(torch.equal(a, b) for a, b in zip(drawn, again, strict=True)),
        "The same seed gives another order each time; a control must be reproducible. Use a generator with that seed.",
    )
    require(
        any(not torch.equal(a, b) for a, b in zip(drawn, other, strict=True)),
        "Seeds 0 and 1 give the same order: then 19 seeds are one control. Use `seed`.",
    )

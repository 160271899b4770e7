"""Which parts stay, the highest scores in their old order; and which one of those that went was needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from course_utils.support import checks
from course_utils.support.checks import check_types


@check_types
def best(scores: Tensor, count: int) -> Tensor:
    """The ``count`` highest of these scores [all], as numbers int64 [count] in ascending order; of equals the lower.

    Raises:
        ValueError: ``count`` isn't a whole number from 0 to the number of scores.
    """
    checks.whole_number("count", count, least=0, most=len(scores), meaning="the scores there are")
    return scores.sort(descending=True, stable=True).indices[:count].sort().values


@check_types
def strongest(scores: Tensor, ratio: float, multiple_of: int = 1) -> Tensor:
    """The neurons that stay when ``prune_neurons`` cuts by these scores.

    Args:
        scores: one a neuron, [width].
        ratio: share to remove, in [0, 1).
        multiple_of: round what remains up to this multiple.

    Returns:
        int64 [kept], in their old order. Of equal scores the lower number stays.

    Raises:
        ValueError: ``ratio`` or ``multiple_of`` out of range.

    >>> strongest(Tensor([3.0, 1.0, 5.0, 2.0]), ratio=0.5)
    tensor([0, 2])
    """
    return best(scores, kept_width(len(scores), ratio, multiple_of))


def kept_width(width: int, ratio: float, multiple_of: int = 1) -> int:
    """Neurons that remain of ``width`` when ``floor(ratio x width)`` go, rounded up to a multiple, at most ``width``.

    Raises:
        ValueError: ``width`` or ``multiple_of`` below 1, or ``ratio`` outside [0, 1).

    >>> kept_width(1536, 0.2), kept_width(1536, 0.2, multiple_of=128)
    (1229, 1280)
    """
    checks.whole_number("width", width, least=1)
    checks.ratio(ratio)
    checks.whole_number("multiple_of", multiple_of, least=1)
    removed = min(math.floor(ratio * width + 1e-9), width - 1)  # 0.29 * 100 is 28.999999999999996
    return min(width, math.ceil((width - removed) / multiple_of) * multiple_of)


@check_types
def by_halves(suspects: Sequence[Any], harm: Callable[[Sequence[Any]], float]) -> Any:
    """The suspect whose return heals most, found by halves: of two, the one with less harm when it is put back.

    Two halves are compared with each other, never with a threshold, so it doesn't matter how much harm is left. It
    takes two calls a step, and log2(suspects) steps.

    Args:
        suspects: what was taken out, in any order.
        harm: what is left of the damage when these are put back.

    Raises:
        ValueError: there are no suspects.

    >>> by_halves(range(100), lambda back: 0.1 if 77 in back else 1.0)
    77
    """
    if not len(suspects):
        raise ValueError("'suspects' is empty: nobody can be found.")
    while len(suspects) > 1:
        middle = len(suspects) // 2
        suspects = min(suspects[:middle], suspects[middle:], key=harm)
    return suspects[0]

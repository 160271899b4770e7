"""What a run says of a sentence of the text: shown, not shown, or the other way round."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

SHOWN, OPEN, TURNED = "shown", "not shown", "the other way round"


def outcome(margins: Iterable[float]) -> str:
    """What numbers say of a sentence, each above 0 where it speaks for it.

    Args:
        margins: at least one, such as what a rival costs minus what a method costs, in any unit.

    Returns:
        ``SHOWN`` if all are above 0, ``TURNED`` if all are below, otherwise ``OPEN``; so NaN shows nothing.

    Raises:
        ValueError: there are none.

    >>> [outcome(margins) for margins in ([0.2, 3], [-1, -2], [0.2, -1])]
    ['shown', 'the other way round', 'not shown']
    """
    values = np.array([*margins], float)
    if not values.size:
        raise ValueError("a verdict needs at least one margin, got none.")
    return SHOWN if (values > 0).all() else TURNED if (values < 0).all() else OPEN


def here(sentence: str, margins: Iterable[float]) -> None:
    """Print whether this run shows a sentence of the text; its numbers may come from another model.

    Args:
        sentence: as in "Six neighbours can cost less than one of them alone."
        margins: as for ``outcome``.

    Raises:
        ValueError: there are no margins.
    """
    print(f"here: {outcome(margins)}. {sentence}")

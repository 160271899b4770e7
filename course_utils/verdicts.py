"""What a run says of a sentence of the text: shown, not shown, or the other way round."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence

import numpy as np

from course_utils import checks

SHOWN, OPEN, TURNED = "shown", "not shown", "the other way round"


def outcome(margins: Sequence[float]) -> str:
    """What numbers say of a sentence, each above 0 where it speaks for it.

    Args:
        margins: a list or an array of at least one, such as what a rival costs minus what a method costs, in any unit.

    Returns:
        ``SHOWN`` if all are above 0, ``TURNED`` if all are below, otherwise ``OPEN``; so NaN shows nothing.

    Raises:
        ValueError: there are none, or they are no numbers.

    >>> [outcome(margins) for margins in ([0.2, 3], [-1, -2], [0.2, -1])]
    ['shown', 'the other way round', 'not shown']
    """
    try:
        values = np.asarray(margins, dtype=float)
    except (TypeError, ValueError):
        values = np.empty(0)
    if not values.ndim or not values.size:
        raise ValueError(f"'margins' must be a list of at least one number; got {reprlib.repr(margins)}.")
    return SHOWN if (values > 0).all() else TURNED if (values < 0).all() else OPEN


def here(sentence: str, margins: Sequence[float]) -> None:
    """Print whether this run shows a sentence of the text; its numbers may come from another model.

    Args:
        sentence: as in "Six neighbours can cost less than one of them alone."
        margins: as for ``outcome``.

    Raises:
        ValueError: the sentence is none; see ``outcome`` as well.
    """
    print(f"here: {outcome(margins)}. {checks.text('sentence', sentence)}")

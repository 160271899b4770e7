"""Claims: sentences of the text that a run shows, doesn't show, or shows the other way round."""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Sequence

import numpy as np

from course_utils.support import checks

SHOWN, OPEN, TURNED = "shown", "not shown", "the other way round"
# The kind of an output that holds a cell's claims: a list of {"sentence": …, "margins": […]}.
CLAIMS = "application/vnd.pruning-llms.claims+json"
_of_this_cell: list[dict] = []


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
    values = _numbers(margins)
    return SHOWN if (values > 0).all() else TURNED if (values < 0).all() else OPEN


def claim(sentence: str, margins: Sequence[float]) -> None:
    """Keep in the notebook what this run says of a sentence of the text, and print nothing.

    An output of the cell that no page shows holds it, so it is there wherever the notebook goes. Outside a notebook
    nothing is kept.

    Args:
        sentence: as in "Six neighbours can cost less than one of them alone."
        margins: as for ``outcome``.

    Raises:
        ValueError: the sentence is none; see ``outcome`` as well.
    """
    rounded = [float(f"{margin:.4g}") for margin in _numbers(margins)]
    found = {"sentence": checks.text("sentence", sentence), "margins": rounded}
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None:
        _of_this_cell.append(found)
        shell.events.register("post_run_cell", _leave)  # once, however often it is asked for


def here(sentence: str, margins: Sequence[float]) -> None:
    """Print whether this run shows a sentence of the text, whose numbers may come from another model; a ``claim``, too.

    Args:
        sentence: as for ``claim``.
        margins: as for ``outcome``.

    Raises:
        ValueError: as for ``claim``.
    """
    claim(sentence, margins)
    print(f"here: {outcome(margins)}. {sentence}")


def _numbers(margins: Sequence[float]) -> np.ndarray:
    try:
        values = np.asarray(margins, dtype=float)
    except (TypeError, ValueError):
        values = np.empty(0)
    if not values.ndim or not values.size:
        raise ValueError(f"'margins' must be a list of at least one number; got {reprlib.repr(margins)}.")
    return values


def _leave(result: object) -> None:
    """Leave the claims of a cell that has ended in its outputs, below whatever it showed."""
    if _of_this_cell:
        from IPython.display import display

        display({CLAIMS: [*_of_this_cell], "text/plain": ""}, raw=True)  # an editor that knows no such kind shows ""
        _of_this_cell.clear()

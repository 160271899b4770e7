"""Claims: sentences of the text that a run shows, doesn't show, or shows the other way round."""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Sequence

import numpy as np

SHOWN, OPEN, TURNED = "shown", "not shown", "the other way round"
# The kind of an output that holds a cell's claims: a list of {"sentence": …, "margins": […]}.
CLAIMS = "application/vnd.pruning-llms.claims+json"
_of_this_cell: list[dict] = []


def outcome(margins: Sequence[float]) -> str:
    """What numbers say of a sentence: ``SHOWN`` if all are above 0, ``TURNED`` if all are below, otherwise ``OPEN``.

    So NaN shows nothing. A margin is, for instance, what a rival costs minus what a method costs, in any unit.

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
    nothing is kept. ``margins`` are those of ``outcome``.
    """
    from course_utils.support import checks  # it loads torch, for which commands that read claims needn't wait

    rounded = [float(f"{margin:.4g}") for margin in _numbers(margins)]
    found = {"sentence": checks.text("sentence", sentence), "margins": rounded}
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None:
        _of_this_cell.append(found)
        shell.events.register("post_run_cell", _leave)  # once, however often it is asked for


def here(sentence: str, margins: Sequence[float]) -> None:
    """Print whether this run shows a sentence of the text, whose numbers may be another model's; a ``claim``, too."""
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

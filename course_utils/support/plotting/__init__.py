"""Figures: one style, the same colours and markers in all lessons, and matrices as heatmaps.

    style()
    heatmap(table, x_label="evaluated on", y_label="calibrated on", value_label="perplexity")
    show("A matrix of four numbers; the diagonal is the lowest.")

Groups differ in colour (seaborn's colour-blind palette) and in marker, so that a figure survives a bad projector and a
black-and-white print. Call ``style()`` once in a notebook; nothing is changed on import. ``show(alt)`` ends a figure.

===============  ===================================================================================================
``base``         ``style``, ``show``, and ``mark``: the colour and the marker of each arm, alike in all lessons
``tensors``      ``heatmap``
``parts``        what they share, such as ``log_ticks`` and the colour of floors
===============  ===================================================================================================
"""

from course_utils.support.plotting.base import mark, show, style
from course_utils.support.plotting.parts import FLOOR_COLOUR, log_ticks
from course_utils.support.plotting.tensors import heatmap

__all__ = [
    "FLOOR_COLOUR",
    "heatmap",
    "log_ticks",
    "mark",
    "show",
    "style",
]

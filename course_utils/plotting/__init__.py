"""Figures: one style, and a few by name. Each takes a tidy frame or a tensor and returns the Axes it drew on.

    style()
    heatmap(table, x_label="evaluated on", y_label="calibrated on", value_label="perplexity")
    show("A matrix of four numbers; the diagonal is the lowest.")

Groups differ in colour (seaborn's colour-blind palette) and in marker, so that a figure survives a bad projector and a
black-and-white print. Call ``style()`` once in a notebook; nothing is changed on import. ``show(alt)`` ends a figure.

===============  ===================================================================================================
``base``         ``style``, ``show``, and ``mark``: the colour and the marker of each arm, alike in all lessons
``curves``       quality against how much was removed: ``pruning_curve``
``comparisons``  models, arms and choices side by side, as points with their intervals: ``scores_with_intervals``
``tensors``      ``heatmap``
``parts``        what they share, such as ``log_ticks`` and the colours of controls and floors
===============  ===================================================================================================
"""

from course_utils.plotting.base import mark, show, style
from course_utils.plotting.comparisons import scores_with_intervals
from course_utils.plotting.curves import pruning_curve
from course_utils.plotting.parts import CONTROL_COLOUR, FLOOR_COLOUR, log_ticks
from course_utils.plotting.tensors import heatmap

__all__ = [
    "CONTROL_COLOUR",
    "FLOOR_COLOUR",
    "heatmap",
    "log_ticks",
    "mark",
    "pruning_curve",
    "scores_with_intervals",
    "show",
    "style",
]

"""What figures share: the colour of floors, and axes with their labels and ticks."""

from __future__ import annotations

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, LogFormatterSciNotation, LogLocator, NullFormatter

from course_utils.support.plotting.base import mark

FLOOR_COLOUR = mark("guessing")["color"]


def axes_or_new(ax: Axes | None) -> Axes:
    """The caller's axes, or those of a new figure."""
    return plt.subplots(layout="constrained")[1] if ax is None else ax


def label_axes(ax: Axes, x_label: str, y_label: str, title: str | None) -> None:
    """Write what the axes are, and a title if there is one."""
    ax.set_xlabel(x_label)
    ax.set_ylabel(y_label)
    if title is not None:
        ax.set_title(title)


def tilt_long_labels(ax: Axes) -> None:
    """Tilt the labels along the horizontal axis where they would touch."""
    labels = ax.get_xticklabels()
    if sum(len(label.get_text()) for label in labels) > 36:  # side by side they would touch
        ax.set_xticks(ax.get_xticks(), labels, rotation=20, ha="right", rotation_mode="anchor")


def log_ticks(axis: Axis) -> None:
    """Numbers that one can read on a logarithmic axis: 10, 20, 50, 100; over long ranges 10, 100, 1,000.

    Within less than a decade there are more of them, so that no axis is left with two.
    """
    low, high = axis.get_view_interval()
    span = high / low
    steps = {3: (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 4, 5, 6, 8), 10: (1, 1.5, 2, 3, 5, 7), 300: (1, 2, 5)}
    axis.set_major_locator(LogLocator(subs=next((subs for most, subs in steps.items() if span < most), (1,))))
    plain = FuncFormatter(lambda value, _: f"{value:,.6g}")
    axis.set_major_formatter(plain if high < 1e7 else LogFormatterSciNotation())
    axis.set_minor_formatter(NullFormatter())

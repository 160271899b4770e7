"""Comparisons: models, arms and choices side by side, as points with their intervals."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from course_utils.argument_types import check_types
from course_utils.plotting.parts import (
    FLOOR_COLOUR,
    FLOOR_DASHES,
    axes_or_new,
    colour_of,
    label_axes,
    marker_of,
    require_columns,
    tilt_long_labels,
)


@check_types
def scores_with_intervals(
    frame: pd.DataFrame,
    *,
    x: str = "task",
    y: str = "value",
    group: str = "model",
    x_label: str,
    y_label: str,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Scores side by side: a point with its interval for each group, and the floors of each position of ``x``.

    Args:
        frame: one row a point, with the columns ``x``, ``y``, ``group``, ``ci_low``, ``ci_high``, and where there are
            floors ``chance`` and ``majority`` (as ``evaluate`` gives them; nan draws nothing).
        x: the column whose values stand side by side.
        y: the column of the scores.
        group: the column that names what is compared, by colour and marker.
        x_label: what ``x`` is, with its unit.
        y_label: what ``y`` is, with its unit.
        title: above the axes; None for none.
        ax: where to draw; None makes a figure.

    Raises:
        ValueError: a column is missing, there is nothing to draw, or two rows share a place.
    """
    require_columns(frame, [x, y, group, "ci_low", "ci_high"])
    if frame.duplicated([x, group]).any():
        raise ValueError(
            f"Several rows have the same {x} and {group}. Keep one metric, for instance "
            "frame[frame['metric'] != 'perplexity']."
        )
    ax = axes_or_new(ax)
    places, names = list(dict.fromkeys(frame[x])), list(dict.fromkeys(frame[group]))
    alone = not frame.duplicated(x).any()  # one point a place: it stands over its label
    for number, name in enumerate(names):
        part = frame[frame[group] == name]
        shift = 0.0 if alone else 0.5 * (number / (len(names) - 1) - 0.5)
        ax.errorbar(
            [places.index(place) + shift for place in part[x]],
            part[y],
            yerr=[part[y] - part["ci_low"], part["ci_high"] - part[y]],
            fmt=marker_of(number),
            color=colour_of(number),
            capsize=4,
            label=str(name),
        )
    for floor, dashes in FLOOR_DASHES.items():
        levels = frame.groupby(x)[floor].first().dropna() if floor in frame else {}
        for number, (place, level) in enumerate(levels.items()):
            middle = places.index(place)
            label = None if number else floor
            ax.hlines(level, middle - 0.4, middle + 0.4, colors=FLOOR_COLOUR, linestyles=[dashes], label=label)
    ax.set_xticks(range(len(places)), [str(place) for place in places])
    tilt_long_labels(ax)
    ax.set_xlim(-0.5, len(places) - 0.5)
    ax.grid(axis="x", visible=False)
    label_axes(ax, x_label, y_label, title)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return ax

"""Comparisons: models, arms and choices side by side or row by row, as points with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from course_utils import checks
from course_utils.argument_types import check_types
from course_utils.plotting.parts import (
    CONTROL_COLOUR,
    FLOOR_COLOUR,
    FLOOR_DASHES,
    axes_or_new,
    colour_of,
    label_axes,
    log_ticks,
    marker_of,
    require_columns,
    tilt_long_labels,
)
from course_utils.reports import shown


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


@check_types
def rows_with_intervals(
    values: Mapping[str, tuple[float, float, float]],
    *,
    x_label: str,
    at: float | None = None,
    at_label: str = "",
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """One row a name, the first on top: a value with its interval, for paired ratios and differences.

    Args:
        values: name -> value, lower end and upper end of its interval.
        x_label: what the values are, with their unit.
        at: a vertical line, such as 1 for ratios to an unpruned model.
        at_label: what the line is, written beside it.
        title: above the axes; None for none.
        ax: where to draw; None makes a figure.

    Raises:
        ValueError: nothing to draw.
    """
    if not values:
        raise ValueError("There are no values: there is nothing to draw.")
    names, at = list(values), at if at is None else checks.number("at", at)
    ax = plt.subplots(figsize=(9, 1.4 + 0.5 * len(names)), layout="constrained")[1] if ax is None else ax
    for place, name in enumerate(names):
        value, low, high = values[name]
        ax.errorbar(
            value, place, xerr=[[value - low], [high - value]], fmt="o", color=colour_of(0), capsize=4, zorder=3
        )
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)  # from below upwards
    ax.grid(axis="y", visible=False)
    if at is not None:
        ax.axvline(at, color=FLOOR_COLOUR, linestyle=":", linewidth=1.6, zorder=1)
        low, high = ax.get_xlim()
        right = at < low + 0.7 * (high - low)  # else it would run off the axes
        ax.annotate(
            at_label, (at, 0), xycoords=("data", "axes fraction"), xytext=(4 if right else -4, 3),
            textcoords="offset points", ha="left" if right else "right", color=FLOOR_COLOUR, fontsize="small",
        )  # fmt: skip
    label_axes(ax, x_label, "", title)
    return ax


@check_types
def against_random(
    choices: Mapping[str, float],
    controls: Mapping[str, Sequence[float]],
    *,
    x_label: str,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """What was chosen beside random sets, on one logarithmic axis: a row each, a dot for every set.

    A dashed line runs through the median of the first control.

    Args:
        choices: name -> value, written beside its dot; from the top down.
        controls: name -> the values of its random sets, in grey: below the choice of that name, or below all.
        x_label: what the values are.
        title: above the axes; None for none.
        ax: where to draw; None makes a figure.

    Raises:
        ValueError: no choices and no controls, a control without sets, or a value that isn't positive.
    """
    seen = [*choices.values(), *(value for values in controls.values() for value in values)]
    if not seen or not all(len(values) for values in controls.values()) or min(seen) <= 0:
        raise ValueError("against_random needs choices or controls, at least one set in each, and values above 0.")
    names = [*choices, *(name for name in controls if name not in choices)]  # a shared name shares a row
    ax = plt.subplots(figsize=(9, 1.6 + 0.48 * len(names)), layout="constrained")[1] if ax is None else ax
    for place, value in enumerate(choices.values()):
        ax.plot(value, place, "o", color=colour_of(0), markersize=9, zorder=4)
        ax.annotate(
            shown(value),
            (value, place),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            fontsize="small",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )
    for name, values in controls.items():
        row = names.index(name) + (0.35 if name in choices else 0)
        jitter = np.linspace(-0.22, 0.22, len(values))
        ax.plot(values, row + jitter, ".", color=CONTROL_COLOUR, markersize=10, alpha=0.8, zorder=3)
        if row == len(choices):
            upright = [-0.45, len(names) - 0.4]
            ax.plot([np.median(values)] * 2, upright, color=CONTROL_COLOUR, linestyle="--", linewidth=1.6, zorder=0.5)
    ax.set_xscale("log")
    ax.set_xlim(right=2.75 * max(seen))  # room for the last number
    log_ticks(ax.xaxis)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - (0.25 if choices.keys() & controls.keys() else 0.4), -1.1)
    ax.grid(axis="y", visible=False)
    label_axes(ax, x_label, "", title)
    return ax

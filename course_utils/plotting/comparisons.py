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


@check_types
def before_and_after(
    frame: pd.DataFrame,
    *,
    x_label: str,
    lines: Mapping[str, float] | None = None,
    log_x: bool = False,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """What a treatment changed: for each case, the first on top, a line from an open point to a filled one.

    Args:
        frame: a row a case, named by the index, with the columns ``before`` and ``after``, and where cases belong
            together ``group``, by colour.
        x_label: what is measured, with its unit.
        lines: name -> level of vertical lines, such as ``{"teacher": 33.1}``.
        log_x: a logarithmic axis.
        title: above the axes; None for none.
        ax: where to draw; None makes a figure.

    Raises:
        ValueError: a column is missing, or there is nothing to draw.
    """
    require_columns(frame, ["before", "after"])
    if ax is None:
        ax = plt.subplots(figsize=(9, 1.8 + 0.45 * len(frame)), layout="constrained")[1]
    groups = list(frame["group"]) if "group" in frame else [""] * len(frame)
    known = list(dict.fromkeys(groups))
    for place, (before, after, group) in enumerate(zip(frame["before"], frame["after"], groups, strict=True)):
        colour = colour_of(known.index(group))
        ax.plot([before, after], [place, place], color=colour, linewidth=2, zorder=1)
        ax.plot(before, place, marker="o", color=colour, markerfacecolor="white", markeredgewidth=2, linestyle="none")
        ax.plot(after, place, marker="o", color=colour, linestyle="none")
    ax.set_yticks(range(len(frame)), [str(name) for name in frame.index])
    ax.set_ylim(len(frame) - 0.4, -1.3)  # from below upwards, with room for the lines' names
    if log_x:
        ax.set_xscale("log")
        log_ticks(ax.xaxis)
    for number, (name, level) in enumerate((lines or {}).items()):
        ax.axvline(level, color=FLOOR_COLOUR, linestyle=list(FLOOR_DASHES.values())[number % 2], linewidth=1.6)
        ax.annotate(
            name, (level, -0.8), xytext=(5, 0), textcoords="offset points", color=FLOOR_COLOUR, fontsize="small"
        )
    ax.grid(axis="y", visible=False)
    label_axes(ax, x_label, "", title)
    return ax


@check_types
def paired_differences(
    frame: pd.DataFrame,
    *,
    x_label: str,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Differences from one reference below each other, with their intervals, and a line where there is none.

    Args:
        frame: a row a difference, with the columns ``case``, ``difference``, ``ci_low``, ``ci_high`` and ``measure``:
            what was measured, by colour and marker.
        x_label: what the difference is, with its unit.
        title: above the axes; None for none.
        ax: where to draw; None makes a figure.

    Raises:
        ValueError: a column is missing, or there is nothing to draw.
    """
    require_columns(frame, ["case", "difference", "ci_low", "ci_high", "measure"])
    cases, names = list(dict.fromkeys(frame["case"])), list(dict.fromkeys(frame["measure"]))
    if ax is None:
        ax = plt.subplots(figsize=(9, 2 + 0.3 * len(cases) * len(names)), layout="constrained")[1]
    ax.axvline(0, color=FLOOR_COLOUR, linewidth=1.6)
    for number, name in enumerate(names):
        part = frame[frame["measure"] == name]
        shift = 0.0 if len(names) == 1 else 0.5 * (number / (len(names) - 1) - 0.5)
        ax.errorbar(
            part["difference"],
            [cases.index(case) + shift for case in part["case"]],
            xerr=[part["difference"] - part["ci_low"], part["ci_high"] - part["difference"]],
            fmt=marker_of(number),
            color=colour_of(number),
            capsize=4,
            label=str(name),
        )
    ax.set_yticks(range(len(cases)), cases)
    ax.set_ylim(len(cases) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    label_axes(ax, x_label, "", None)
    if title is not None:
        ax.set_title(title, pad=44 if len(names) > 1 else None)  # the legend stands between: it hides no point there
    if len(names) > 1:
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(names))
    return ax

"""Curves: quality against how much was removed, beside its random control and its floors."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from course_utils import checks
from course_utils.argument_types import check_types
from course_utils.plotting.parts import (
    CONTROL_COLOUR,
    PERCENT,
    axes_or_new,
    colour_of,
    label_axes,
    marker_of,
    require_columns,
)


@check_types
def pruning_curve(
    frame: pd.DataFrame,
    *,
    x: str = "ratio",
    group: str = "criterion",
    x_label: str,
    y_label: str,
    control: str | None = "random",
    x_percent: bool = True,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Quality against how much was removed: a line for each group, a band for the random control.

    Args:
        frame: one row a measurement, with the columns ``x``, "value", ``group``, and where there are intervals
            ``ci_low`` and ``ci_high``, drawn as a band. Several rows of one group at one ``x`` (seeds) are drawn as
            their mean, with a band of one standard deviation.
        x: the column along the horizontal axis: how much was removed.
        group: the column that names the lines.
        x_label: what ``x`` is, with its unit.
        y_label: what the value is, with its unit.
        control: the group that is drawn in grey behind the others; None if there is none.
        x_percent: ``x`` is a share and is shown in percent.
        title: above the axes; None for none.
        ax: where to draw; None makes a figure.

    Raises:
        ValueError: a column is missing, or there is nothing to draw.
    """
    require_columns(frame, [x, "value", group])
    ax = axes_or_new(ax)
    control = control if control is None else checks.text("control", control)
    names = [name for name in dict.fromkeys(frame[group]) if name != control]
    if control in set(frame[group]):
        part = frame[frame[group] == control]
        _line(ax, part, x, str(control), color=CONTROL_COLOUR, marker=".", zorder=2)
    for number, name in enumerate(names):
        part = frame[frame[group] == name]
        _line(ax, part, x, str(name), color=colour_of(number), marker=marker_of(number), zorder=3)
    if x_percent:
        ax.xaxis.set_major_formatter(PERCENT)
    label_axes(ax, x_label, y_label, title)
    ax.legend(title=group)
    return ax


def _line(
    ax: Axes,
    part: pd.DataFrame,
    x: str,
    name: str,
    *,
    color: str | tuple[float, float, float],
    marker: str,
    zorder: int,
) -> None:
    """One group: its line, and the band of its intervals or of its repetitions."""
    summary = part["value"].groupby(part[x]).agg(["mean", "std", "count"])
    middle, low, high = summary["mean"], summary["mean"] - summary["std"], summary["mean"] + summary["std"]
    if summary["count"].max() > 1:
        name = f"{name} (mean ± sd, n = {summary['count'].max()})"
    elif {"ci_low", "ci_high"} <= set(part.columns):
        low, high = (part.set_index(x)[column].sort_index() for column in ("ci_low", "ci_high"))
    ax.plot(summary.index, middle, label=name, color=color, marker=marker, zorder=zorder)
    band = low.fillna(middle), high.fillna(middle)
    ax.fill_between(summary.index, *band, color=color, alpha=0.18, linewidth=0, zorder=zorder - 1)

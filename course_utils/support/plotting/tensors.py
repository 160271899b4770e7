"""Matrices in colours, with their numbers."""

from __future__ import annotations

import contextlib

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from course_utils.support import checks
from course_utils.support.argument_types import check_types
from course_utils.support.plotting.parts import axes_or_new, label_axes, tilt_long_labels


@check_types
def heatmap(
    matrix: pd.DataFrame,
    *,
    x_label: str,
    y_label: str,
    value_label: str,
    fmt: str = ".2f",
    center: float | None = None,
    limit: float | None = None,
    numbers: bool = True,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """A matrix in colours with its numbers written in; NaN leaves a cell empty.

    Args:
        matrix: a cell a number; the index and the columns give the labels.
        x_label: what the columns are.
        y_label: what the rows are.
        value_label: what the numbers are, with their unit, for the colour bar.
        fmt: of the numbers.
        center: the colours diverge around it.
        limit: the distance from ``center`` at full colour, for figures that share a scale; by default the largest one.
        numbers: False for matrices whose numbers would be too small to read.
        title: above the axes; None for none.
        ax: where to draw; None makes a figure.

    Raises:
        ValueError: an empty matrix, or a ``limit`` without ``center`` or not above 0.
    """
    if matrix.empty:
        raise ValueError("The matrix is empty: there is nothing to draw.")
    if limit is not None and (center is None or not limit > 0):
        raise ValueError(f"'limit' is a distance above 0 from 'center'; got limit {limit!r} and center {center!r}.")
    _check_format(fmt)
    checks.flag("numbers", numbers)
    center = center if center is None else checks.number("center", center)
    ax = axes_or_new(ax)
    colours = "viridis" if center is None else "vlag"
    scale, bar = {"center": center}, {"label": value_label}
    if limit is not None and center is not None:
        scale |= {"vmin": center - limit, "vmax": center + limit}
        if (matrix - center).abs().max(axis=None) > limit:
            bar["extend"] = "both"  # some cells lie beyond the scale
    sns.heatmap(matrix, annot=numbers, fmt=fmt, cmap=colours, linewidths=1, cbar_kws=bar, ax=ax, **scale)
    ax.tick_params(rotation=0)
    tilt_long_labels(ax)
    label_axes(ax, x_label, y_label, title)
    return ax


def _check_format(fmt: str) -> None:
    for number in (1.0, 1):  # "d" is for whole ones
        with contextlib.suppress(ValueError, TypeError):
            format(number, fmt)
            return
    raise ValueError(f"'fmt' must be a format of numbers, such as '.2f'; got {fmt!r}.")

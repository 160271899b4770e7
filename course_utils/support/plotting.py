"""One look for all figures: a style, a colour and a marker for each arm, and a sentence that describes the figure.

    style()
    heatmap(table, x_label="evaluated on", y_label="calibrated on", value_label="perplexity")
    show("A matrix of four numbers; the diagonal is the lowest.")

Groups differ in colour and in marker, so that a figure survives colour-blind eyes, a bad projector and a print in black
and white. Call ``style()`` once in a notebook; nothing is changed on import. ``show(alt)`` ends a figure.
"""

from __future__ import annotations

import base64
import contextlib
import io
from typing import Any

import pandas as pd

from course_utils.support import checks
from course_utils.support.checks import check_types
from course_utils.support.extras import brought

with brought("plots"):
    import matplotlib.pyplot as plt
    import seaborn as sns
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.ticker import FuncFormatter, LogFormatterSciNotation, LogLocator, NullFormatter

# Told apart by colour-blind eyes, on a projector (three times as dark as white), and in grey by their markers.
# Criteria, parts, rules for prompts, places, groups and ways to heal are never drawn together: they may share colours.
_MARKS: dict[str, dict[str, Any]] = {
    "L1": {"color": "#1f5fb4", "marker": "s"},
    "activation": {"color": "#d97b00", "marker": "o"},
    "peak-to-peak": {"color": "#0a9f68", "marker": "^"},
    "influence": {"color": "#d16abb", "marker": "D"},
    "leave-one-out": {"color": "#5c2f10", "marker": "v"},
    "random": {"color": "0.45", "marker": "."},
    "wrong": {"color": "#dc1c34", "marker": "x"},
    "separate": {"color": "#dc1c34", "marker": "x"},
    "neurons": {"color": "#d97b00", "marker": "o"},
    "attentions": {"color": "#2b8fe0", "marker": "P"},
    "blocks": {"color": "#d16abb", "marker": "D"},
    "channels": {"color": "#0a9f68", "marker": "^"},
    "own choice": {"color": "#5c2f10", "marker": "v"},
    "one for all": {"color": "0.25", "marker": "."},
    "complexity": {"color": "#0a9f68", "marker": "^"},
    "published": {"color": "#5c2f10", "marker": "v"},
    "price": {"color": "#d97b00", "marker": "o"},
    "at the word": {"color": "#d97b00", "marker": "o"},
    "at the last token": {"color": "#2b8fe0", "marker": "P"},
    "mostly women": {"color": "#0a9f68", "marker": "^"},
    "mostly men": {"color": "#5c2f10", "marker": "v"},
    "KL": {"color": "#2b8fe0", "marker": "P"},
    "solved + KL": {"color": "#d97b00", "marker": "o"},
    "cross-entropy": {"color": "#0a9f68", "marker": "^"},
    "LoRA": {"color": "#d16abb", "marker": "D"},
    "stereotype": {"color": "#0a9f68", "marker": "^"},
    "woman/man": {"color": "#5c2f10", "marker": "v"},
    "whole": {"color": "black", "marker": "*"},
    "guessing": {"color": "0.25", "linestyle": (0, (3, 1, 1, 1))},
}
FLOOR_COLOUR = _MARKS["guessing"]["color"]


def style() -> None:
    """Set fonts, colours and grid for the rest of the session: readable on a projector. Calling it twice is fine.

    Tables show their texts whole, too: pandas cuts them at 50 characters.
    """
    pd.set_option("display.max_colwidth", None)
    sns.set_theme(
        context="notebook",
        style="whitegrid",
        palette="colorblind",
        font_scale=1.35,
        rc={
            "figure.figsize": (9, 5),
            "figure.dpi": 100,
            "lines.linewidth": 2.2,
            "lines.markersize": 8,
            "axes.titleweight": "bold",
            "legend.frameon": True,
            "legend.framealpha": 0.9,
        },
    )


def mark(name: str) -> dict[str, Any]:
    """How an arm is drawn in every lesson: colour, marker and label, for ``ax.plot(x, y, **mark("L1"))``.

    Args:
        name: such as the criterion "L1", the part "neurons", the way to heal "KL", the "whole" model or the line of
            "guessing"; the message about an unknown name lists all of them.

    Raises:
        ValueError: unknown name.

    >>> mark("L1")
    {'color': '#1f5fb4', 'marker': 's', 'label': 'L1'}
    """
    checks.one_of("name", name, _MARKS)
    return _MARKS[name] | {"label": name}


def show(alt: str) -> None:
    """Show the current figure with a sentence that says what is on it, for readers who don't see it, and close it.

    The sentence travels with the picture in the notebook: as its text form, and as ``alt`` of the picture's metadata,
    where JupyterLab, the course's pages and its site look for it.

    Args:
        alt: what is drawn on which axes and what stands out, in one to three sentences.

    Raises:
        ValueError: there is no figure, or ``alt`` is too short to describe one (fewer than five words).
    """
    with brought("plots"):
        from IPython.display import display  # only a notebook needs it; scripts draw without

    if not plt.get_fignums():
        raise ValueError("There is no figure to show: draw one first.")
    if not isinstance(alt, str) or len(alt.split()) < 5:
        raise ValueError(f"alt={alt!r} describes no figure; say what is drawn and what stands out, in a sentence.")
    figure = plt.gcf()
    png = io.BytesIO()
    figure.savefig(png, format="png", bbox_inches="tight")
    picture = base64.b64encode(png.getvalue()).decode("ascii")
    display({"image/png": picture, "text/plain": alt}, raw=True, metadata={"image/png": {"alt": alt}})
    plt.close(figure)


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
        matrix: one number per cell; the index and the columns give the labels.
        x_label: what the columns are.
        y_label: what the rows are.
        value_label: what the numbers are, with their unit, for the colour bar.
        fmt: of the numbers.
        center: the colours diverge around it.
        limit: the distance from ``center`` at full colour, for figures that share a scale; by default the largest one.
        numbers: False for matrices whose numbers would be too small to read.
        title: above the axes.
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
    ax = plt.subplots(layout="constrained")[1] if ax is None else ax
    scale: dict[str, Any] = {"cmap": "viridis"}
    bar: dict[str, Any] = {"label": value_label}
    if center is not None:
        center = checks.number("center", center)
        scale = {"cmap": "vlag", "center": center}
        if limit is not None:
            scale |= {"vmin": center - limit, "vmax": center + limit}
            if (matrix - center).abs().max(axis=None) > limit:
                bar["extend"] = "both"  # some cells lie beyond the scale
    sns.heatmap(matrix, annot=numbers, fmt=fmt, linewidths=1, cbar_kws=bar, ax=ax, **scale)
    ax.tick_params(rotation=0)
    labels = [label.get_text() for label in ax.get_xticklabels()]
    if sum(map(len, labels)) > 36:  # side by side they would touch
        ax.set_xticks(ax.get_xticks(), labels, rotation=20, ha="right", rotation_mode="anchor")
    ax.set(xlabel=x_label, ylabel=y_label)
    if title is not None:
        ax.set_title(title)
    return ax


def _check_format(fmt: str) -> None:
    for number in (1.0, 1):  # "d" is for whole ones
        with contextlib.suppress(ValueError, TypeError):
            format(number, fmt)
            return
    raise ValueError(f"'fmt' must be a format of numbers, such as '.2f'; got {fmt!r}.")


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

"""One style and a few figures by name. Each takes a tidy frame and returns the Axes it drew on.

Groups differ in colour (seaborn's colour-blind palette) and in marker, so that a figure survives a bad projector and a
black-and-white print. Call ``style()`` once in a notebook; nothing is changed on import. ``show(alt)`` ends a figure.
"""

from __future__ import annotations

import base64
import contextlib
import io
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, LogFormatterSciNotation, LogLocator, MaxNLocator, NullFormatter
from torch import Tensor

from course_utils import checks

if TYPE_CHECKING:
    from course_utils.components import Components

CONTROL_COLOUR = "0.45"
FLOOR_COLOUR = "0.25"
_PERCENT = FuncFormatter(lambda share, _: f"{100 * share:g}%")
_MARKERS = "osD^vPX*<>"
_FLOOR_DASHES = {"chance": (0, (1, 1.5)), "majority": (0, (5, 2))}


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


def show(alt: str) -> None:
    """Show the current figure with a sentence that says what is on it, for readers who don't see it, and close it.

    The sentence travels with the picture in the notebook: as its text form, and as ``alt`` of the picture's metadata,
    where JupyterLab, the course's pages and its site look for it.

    Args:
        alt: what is drawn on which axes and what stands out, in one to three sentences.

    Raises:
        ValueError: there is no figure, or ``alt`` is too short to describe one (fewer than five words).
    """
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


def pruning_curve(
    frame: pd.DataFrame,
    *,
    x: str = "ratio",
    y: str = "value",
    group: str = "criterion",
    x_label: str,
    y_label: str,
    control: str | None = "random",
    floors: Mapping[str, float] | None = None,
    log_y: bool = False,
    x_percent: bool = True,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Quality against how much was removed: a line for each group, a band for the random control, floors.

    Args:
        frame: one row a measurement, with the columns ``x``, ``y``, ``group``, and where there are intervals
            ``ci_low`` and ``ci_high``, drawn as a band. Several rows of one group at one ``x`` (seeds) are drawn as
            their mean, with a band of one standard deviation (geometric if ``log_y``).
        x: the column along the horizontal axis: how much was removed.
        y: the column along the vertical axis: the quality.
        group: the column that names the lines.
        x_label: what ``x`` is, with its unit.
        y_label: what ``y`` is, with its unit.
        control: the group that is drawn in grey behind the others; None if there is none.
        floors: name -> level of horizontal lines, such as ``{"chance": 0.25, "majority": 0.28}``.
        log_y: a logarithmic vertical axis.
        x_percent: ``x`` is a share and is shown in percent.
        title: above the axes; None for none.
        ax: where to draw; None makes a figure.

    Raises:
        ValueError: a column is missing, or there is nothing to draw.
    """
    _require(frame, [x, y, group])
    ax = _axes(ax)
    control = control if control is None else checks.text("control", control)
    names = [name for name in dict.fromkeys(frame[group]) if name != control]
    if control in set(frame[group]):
        part = frame[frame[group] == control]
        _line(ax, part, x, y, str(control), log_y=log_y, color=CONTROL_COLOUR, marker=".", zorder=2)
    for number, name in enumerate(names):
        part = frame[frame[group] == name]
        _line(ax, part, x, y, str(name), log_y=log_y, color=_colour(number), marker=_marker(number), zorder=3)
    _floors(ax, floors or {})
    if log_y:
        ax.set_yscale("log")
        log_ticks(ax.yaxis)
    if x_percent:
        ax.xaxis.set_major_formatter(_PERCENT)
    _finish(ax, x_label, y_label, title)
    ax.legend(title=group)
    return ax


def curve_with_seeds(
    frame: pd.DataFrame,
    *,
    x: str = "ratio",
    y: str = "value",
    group: str = "criterion",
    seeds: str = "random",
    x_label: str,
    y_label: str,
    floors: Mapping[str, float] | None = None,
    log_y: bool = False,
    x_percent: bool = True,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Quality against how much was removed: a line for each group, and a grey dot for each seed of the random control.

    Args:
        frame: one row a measurement, with the columns ``x``, ``y`` and ``group``; one row at each ``x`` in a group, and
            as many as there are seeds in the group ``seeds``, where a thin line joins the medians.
        x: the column along the horizontal axis: how much was removed.
        y: the column along the vertical axis: the quality.
        group: the column that names the lines.
        seeds: the group that is drawn as dots.
        x_label: what ``x`` is, with its unit.
        y_label: what ``y`` is, with its unit.
        floors: name -> level of horizontal lines, such as ``{"unpruned": 1.17, "guessing": 2.73}``.
        log_y: a logarithmic vertical axis.
        x_percent: ``x`` is a share and is shown in percent.
        title: above the axes; None for none.
        ax: where to draw; None makes a figure.

    Raises:
        ValueError: a column is missing, or there is nothing to draw.
    """
    _require(frame, [x, y, group])
    ax = _axes(ax)
    dots = frame[frame[group] == checks.text("seeds", seeds)]
    if len(dots):
        fewest, most = (int(number) for number in dots.groupby(x).size().agg(["min", "max"]))
        count = str(most) if fewest == most else f"{fewest} to {most}"
        medians = dots.groupby(x)[y].median()
        ax.plot(medians.index, medians, color=CONTROL_COLOUR, linewidth=1, zorder=2)
        ax.plot(
            dots[x], dots[y], ".", color=CONTROL_COLOUR, markersize=10, alpha=0.6, zorder=4,
            label=f"{seeds}, {count} seeds and their median",
        )  # fmt: skip
    for number, (name, part) in enumerate(frame[frame[group] != seeds].groupby(group, sort=False)):
        ax.plot(part[x], part[y], color=_colour(number), marker=_marker(number), zorder=3, label=str(name))
    _floors(ax, floors or {})
    if log_y:
        ax.set_yscale("log")
        log_ticks(ax.yaxis)
    ax.margins(y=0.1)  # room for a floor's name at the top
    if x_percent:
        ax.xaxis.set_major_formatter(_PERCENT)
    _finish(ax, x_label, y_label, title)
    ax.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)  # steep lines go everywhere
    return ax


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
    _require(frame, [x, y, group, "ci_low", "ci_high"])
    if frame.duplicated([x, group]).any():
        raise ValueError(
            f"Several rows have the same {x} and {group}. Keep one metric, for instance "
            "frame[frame['metric'] != 'perplexity']."
        )
    ax = _axes(ax)
    places, names = list(dict.fromkeys(frame[x])), list(dict.fromkeys(frame[group]))
    alone = not frame.duplicated(x).any()  # one point a place: it stands over its label
    for number, name in enumerate(names):
        part = frame[frame[group] == name]
        shift = 0.0 if alone else 0.5 * (number / (len(names) - 1) - 0.5)
        ax.errorbar(
            [places.index(place) + shift for place in part[x]],
            part[y],
            yerr=[part[y] - part["ci_low"], part["ci_high"] - part[y]],
            fmt=_marker(number),
            color=_colour(number),
            capsize=4,
            label=str(name),
        )
    for floor, dashes in _FLOOR_DASHES.items():
        levels = frame.groupby(x)[floor].first().dropna() if floor in frame else {}
        for number, (place, level) in enumerate(levels.items()):
            middle = places.index(place)
            label = None if number else floor
            ax.hlines(level, middle - 0.4, middle + 0.4, colors=FLOOR_COLOUR, linestyles=[dashes], label=label)
    ax.set_xticks(range(len(places)), [str(place) for place in places])
    _tilt_long_labels(ax)
    ax.set_xlim(-0.5, len(places) - 0.5)
    ax.grid(axis="x", visible=False)
    _finish(ax, x_label, y_label, title)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def against_random(
    choices: Mapping[str, float | Sequence[float]],
    controls: Mapping[str, Sequence[float]],
    *,
    x_label: str,
    limit: float | None = None,
    lines: Mapping[str, float] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """What was chosen beside random sets, on one logarithmic axis: a row each, a dot for every set.

    A dashed line runs through the median of the first control. A value above ``limit`` stands at the right edge as an
    arrow with its number, so that one wreck doesn't squash the rest; so does the end of an interval that goes on there.

    Args:
        choices: name -> value, written beside its dot, or (value, lower end, upper end of its 95 % interval); from the
            top down.
        controls: name -> the values of its random sets, below the choices, in grey.
        x_label: what the values are.
        limit: the largest value that is drawn to scale; None for all.
        lines: name -> level of vertical lines, such as ``{"unpruned": 1}``; those above ``limit`` are left out.
        title: above the axes; None for none.
        ax: where to draw; None makes a figure.

    Raises:
        ValueError: no choices and no controls, a control without sets, or a value that isn't positive.
    """
    points = {name: (value,) if isinstance(value, int | float) else tuple(value) for name, value in choices.items()}
    seen = [point[0] for point in points.values()] + [value for values in controls.values() for value in values]
    if not seen or not all(len(values) for values in controls.values()) or min(seen) <= 0:
        raise ValueError("against_random needs choices or controls, at least one set in each, and values above 0.")
    names = [*choices, *(name for name in controls if name not in choices)]  # a shared name shares a row
    edge = 2.5 * max(seen) if limit is None else checks.positive("limit", limit)  # room for the last number
    ax = plt.subplots(figsize=(9, 1.6 + 0.48 * len(names)), layout="constrained")[1] if ax is None else ax
    for place, (value, *ends) in enumerate(points.values()):
        if value > edge:
            _beyond(ax, place, edge, [value], _colour(0))
            continue
        error = [[value - ends[0]], [min(ends[1], edge) - value]] if ends else None
        drawn = ax.errorbar(value, place, xerr=error, fmt="o", color=_colour(0), markersize=9, capsize=4, zorder=4)
        if ends and ends[1] > edge:
            drawn.lines[1][1].set_visible(False)  # no cap: the interval doesn't end here
            _beyond(ax, place, edge, [ends[1]], _colour(0), before="to ")
        if not ends:
            written = f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"
            ax.annotate(
                written,
                (value, place),
                xytext=(8, 0),
                textcoords="offset points",
                va="center",
                fontsize="small",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
            )
    for name, values in controls.items():
        row = names.index(name) + (0.35 if name in choices else 0)
        inside = [value for value in values if value <= edge]
        jitter = np.linspace(-0.22, 0.22, len(values))[: len(inside)]
        ax.plot(inside, row + jitter, ".", color=CONTROL_COLOUR, markersize=10, alpha=0.8, zorder=3)
        _beyond(ax, row, edge, [value for value in values if value > edge], CONTROL_COLOUR)
        if row == len(choices) and np.median(values) <= edge:
            upright = [-0.45, len(names) - 0.4]  # below the lines' names
            ax.plot([np.median(values)] * 2, upright, color=CONTROL_COLOUR, linestyle="--", linewidth=1.6, zorder=0.5)
    for name, level in (lines or {}).items():
        if level <= edge:
            ax.axvline(level, color=FLOOR_COLOUR, linestyle=":", linewidth=1.6)
            ax.annotate(
                name, (level, -0.75), xytext=(5, 0), textcoords="offset points", color=FLOOR_COLOUR, fontsize="small"
            )
    ax.set_xscale("log")
    ax.set_xlim(right=edge * 1.1)
    log_ticks(ax.xaxis)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - (0.25 if choices.keys() & controls.keys() else 0.4), -1.1)
    ax.grid(axis="y", visible=False)
    _finish(ax, x_label, "", title)
    return ax


def _beyond(ax: Axes, place: float, limit: float, ratios: Sequence[float], colour: object, *, before: str = "") -> None:
    """An arrow at the right edge for ratios that are too large to draw, with their numbers; below a line to there."""
    if not len(ratios):
        return
    worst = sorted(ratios)
    written = f"×{worst[-1]:,.0f}" if len(worst) == 1 else f"{len(worst)} sets, ×{worst[0]:,.0f} to ×{worst[-1]:,.0f}"
    ax.plot(limit, place, ">", color=colour, markersize=9, clip_on=False, zorder=4)
    ax.annotate(
        before + written, (limit, place), xytext=(-9, -16 if before else -11 if len(worst) > 1 else 0),
        textcoords="offset points", ha="right", va="center", color=colour, fontsize="small",
    )  # fmt: skip


def rows_with_intervals(
    values: Mapping[str, tuple[float, float, float]],
    *,
    x_label: str,
    marks: Mapping[str, float] | None = None,
    mark_label: str = "estimate",
    at: float | None = None,
    at_label: str = "",
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """One row a name, the first on top: a value with its interval, for paired ratios and differences.

    Args:
        values: name -> value, lower end and upper end of its interval.
        x_label: what the values are, with their unit.
        marks: name -> a second value of a row, drawn as an open diamond.
        mark_label: what the diamonds are, for the legend.
        at: a vertical line, such as 1 for ratios to an unpruned model.
        at_label: what the line is, written beside it.
        title: above the axes; None for none.
        ax: where to draw; None makes a figure.

    Raises:
        ValueError: nothing to draw.
    """
    if not values:
        raise ValueError("There are no values: there is nothing to draw.")
    names, marks, at = list(values), marks or {}, at if at is None else checks.number("at", at)
    ax = plt.subplots(figsize=(9, 1.4 + 0.5 * len(names)), layout="constrained")[1] if ax is None else ax
    for place, name in enumerate(names):
        value, low, high = values[name]
        ax.errorbar(value, place, xerr=[[value - low], [high - value]], fmt="o", color=_colour(0), capsize=4, zorder=3)
        if name in marks:
            label = mark_label if name == next(iter(marks)) else None
            ax.plot(
                marks[name], place, "D", color=_colour(1), fillstyle="none", markeredgewidth=2, label=label, zorder=4
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
    if marks:
        ax.legend()
    _finish(ax, x_label, "", title)
    return ax


def ability_and_bias(
    frame: pd.DataFrame,
    *,
    y_label: str,
    control: str = "random",
    limit: float = 2.5,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """What an intervention costs against the bias that it leaves: a point an arm, with the intervals of both.

    Args:
        frame: index the arms' names; columns "price" (perplexity, x unpruned), "price_low", "price_high", "bias",
            "bias_low", "bias_high"; nan ends draw no interval.
        y_label: of the bias; 0 is drawn as a line.
        control: arms whose name begins with it are small grey dots.
        limit: arms whose price is above it are listed in a corner: they would squash the others.
        title: above the figure.
        ax: where to draw; a new figure by default.

    Raises:
        ValueError: a column is missing, or there are no rows.
    """
    _require(frame, ["price", "price_low", "price_high", "bias", "bias_low", "bias_high"])
    checks.positive("limit", limit)
    checks.text("control", control)
    ax = plt.subplots(figsize=(9, 6.5), layout="constrained")[1] if ax is None else ax
    dots = frame[frame.index.str.startswith(control)]
    if len(dots):
        ax.scatter(dots["price"], dots["bias"], s=50, color="0.6", zorder=1, label=control)
    known = frame.drop(dots.index)
    for number, (name, row) in enumerate(known[known["price"] <= limit].iterrows()):
        ends = [[[row[of] - row[f"{of}_low"]], [row[f"{of}_high"] - row[of]]] for of in ("price", "bias")]
        looks = {"color": f"C{number + (number > 6)}", "marker": _MARKERS[number % len(_MARKERS)]}  # C7 is grey
        ax.errorbar(row["price"], row["bias"], xerr=ends[0], yerr=ends[1], linestyle="", capsize=3, label=name, **looks)
    ax.axhline(0, color=FLOOR_COLOUR, linewidth=1.5)
    ax.set_xscale("log")
    ax.set_xlim(max(0.8, ax.get_xlim()[0]), min(limit, max(ax.get_xlim()[1], 1.2)))
    ax.set_xticks(
        [tick for tick in (0.9, 1, 1.1, 1.25, 1.5, 2, 3, 5) if np.prod(np.sign(tick - np.array(ax.get_xlim()))) < 0]
    )
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set(xlabel="perplexity, × before the cut", ylabel=y_label, title=title)
    broken = known[known["price"] > limit]
    if len(broken):
        lines = [f"{name}: × {row['price']:,.0f}, {row['bias']:+.2f}" for name, row in broken.iterrows()]
        ax.text(0.98, 0.03, "\n".join(["not drawn, broken:", *lines]), transform=ax.transAxes, ha="right", size="small")
    ax.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.14), ncol=4)
    return ax


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
    _require(frame, ["before", "after"])
    if ax is None:
        ax = plt.subplots(figsize=(9, 1.8 + 0.45 * len(frame)), layout="constrained")[1]
    groups = list(frame["group"]) if "group" in frame else [""] * len(frame)
    known = list(dict.fromkeys(groups))
    for place, (before, after, group) in enumerate(zip(frame["before"], frame["after"], groups, strict=True)):
        colour = _colour(known.index(group))
        ax.plot([before, after], [place, place], color=colour, linewidth=2, zorder=1)
        ax.plot(before, place, marker="o", color=colour, markerfacecolor="white", markeredgewidth=2, linestyle="none")
        ax.plot(after, place, marker="o", color=colour, linestyle="none")
    ax.set_yticks(range(len(frame)), [str(name) for name in frame.index])
    ax.set_ylim(len(frame) - 0.4, -1.3)  # from below upwards, with room for the lines' names
    if log_x:
        ax.set_xscale("log")
        log_ticks(ax.xaxis)
    for number, (name, level) in enumerate((lines or {}).items()):
        ax.axvline(level, color=FLOOR_COLOUR, linestyle=list(_FLOOR_DASHES.values())[number % 2], linewidth=1.6)
        ax.annotate(
            name, (level, -0.8), xytext=(5, 0), textcoords="offset points", color=FLOOR_COLOUR, fontsize="small"
        )
    ax.grid(axis="y", visible=False)
    _finish(ax, x_label, "", title)
    return ax


def paired_differences(
    frame: pd.DataFrame,
    *,
    group: str = "measure",
    x_label: str,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Differences from one reference below each other, with their intervals, and a line where there is none.

    Args:
        frame: a row a difference, with the columns ``case``, ``difference``, ``ci_low``, ``ci_high`` and ``group``.
        group: the column that names what was measured, by colour and marker.
        x_label: what the difference is, with its unit.
        title: above the axes; None for none.
        ax: where to draw; None makes a figure.

    Raises:
        ValueError: a column is missing, or there is nothing to draw.
    """
    _require(frame, ["case", "difference", "ci_low", "ci_high", group])
    cases, names = list(dict.fromkeys(frame["case"])), list(dict.fromkeys(frame[group]))
    if ax is None:
        ax = plt.subplots(figsize=(9, 2 + 0.3 * len(cases) * len(names)), layout="constrained")[1]
    ax.axvline(0, color=FLOOR_COLOUR, linewidth=1.6)
    for number, name in enumerate(names):
        part = frame[frame[group] == name]
        shift = 0.0 if len(names) == 1 else 0.5 * (number / (len(names) - 1) - 0.5)
        ax.errorbar(
            part["difference"],
            [cases.index(case) + shift for case in part["case"]],
            xerr=[part["difference"] - part["ci_low"], part["ci_high"] - part["difference"]],
            fmt=_marker(number),
            color=_colour(number),
            capsize=4,
            label=str(name),
        )
    ax.set_yticks(range(len(cases)), cases)
    ax.set_ylim(len(cases) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    _finish(ax, x_label, "", None)
    if title is not None:
        ax.set_title(title, pad=44 if len(names) > 1 else None)  # the legend stands between: it hides no point there
    if len(names) > 1:
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(names))
    return ax


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
    ax = _axes(ax)
    colours = "viridis" if center is None else "vlag"
    scale, bar = {"center": center}, {"label": value_label}
    if limit is not None and center is not None:
        scale |= {"vmin": center - limit, "vmax": center + limit}
        if (matrix - center).abs().max(axis=None) > limit:
            bar["extend"] = "both"  # some cells lie beyond the scale
    sns.heatmap(matrix, annot=numbers, fmt=fmt, cmap=colours, linewidths=1, cbar_kws=bar, ax=ax, **scale)
    ax.tick_params(rotation=0)
    _tilt_long_labels(ax)
    _finish(ax, x_label, y_label, title)
    return ax


def histogram(
    values: Mapping[str, Tensor | np.ndarray | Sequence[float]],
    *,
    x_label: str,
    bins: int = 60,
    log_x: bool = False,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """How values are spread: one outline for each name, all with the same bins, as shares of their own total.

    Args:
        values: name -> its values, of any shape.
        x_label: what the values are, with their unit.
        bins: how many, between the smallest and the largest of all values.
        log_x: a logarithmic axis, with bins that are equally wide on it.
        title: above the axes; None for none.
        ax: where to draw; None makes a figure.

    Raises:
        ValueError: no names, no values, or values that are not finite; with ``log_x``, one that isn't positive.
    """
    checks.whole_number("bins", bins, least=1)
    arrays = {name: np.asarray(array, dtype=np.float64).ravel() for name, array in values.items()}
    if not arrays or not all(array.size and np.isfinite(array).all() for array in arrays.values()):
        raise ValueError("histogram needs at least one name, each with finite values.")
    everything = np.concatenate(list(arrays.values()))
    if log_x and everything.min() <= 0:
        raise ValueError(f"A logarithmic axis needs positive values; the smallest is {everything.min():.3g}.")
    ax = _axes(ax)
    edges = (np.geomspace if log_x else np.linspace)(everything.min(), everything.max(), bins + 1)
    for number, (name, array) in enumerate(arrays.items()):
        shares = np.full(array.size, 1 / array.size)
        ax.hist(array, bins=edges, weights=shares, histtype="step", linewidth=2.2, color=_colour(number), label=name)
        ax.hist(array, bins=edges, weights=shares, alpha=0.15, color=_colour(number))
    if log_x:
        ax.set_xscale("log")
    ax.yaxis.set_major_formatter(_PERCENT)
    _finish(ax, x_label, "share of values", title)
    ax.legend()
    return ax


def components(
    result: Components, *, title: str | None = None, axes: Sequence[Axes] | None = None
) -> tuple[Axes, Axes]:
    """The first two principal components, a point for each item, and beside them what every component explains.

    Below the points stands how much of their variance lies between the groups, with the same for shuffled labels. The
    grey band is what components explain when the columns are shuffled, from the smallest to the largest shuffle.

    Args:
        result: of ``components.principal_components``.
        title: above the points; None for none.
        axes: two, for the points and for the explained variance.

    Raises:
        ValueError: not two axes.
    """
    if axes is None:
        axes = plt.subplots(1, 2, figsize=(14, 5.5), layout="constrained")[1]
    if len(axes) != 2:
        raise ValueError(f"'axes' must be two, for the points and for the explained variance; got {len(axes)}.")
    left, right = axes
    points, groups = result.points.numpy(), np.asarray(result.groups)
    for number, name in enumerate(dict.fromkeys(result.groups)):
        members = points[groups == name, :2]  # [items of the group, 2]
        label = f"{name} (n = {len(members)})"
        left.scatter(*members.T, label=label, color=_colour(number), marker=_marker(number), alpha=0.6)
    first, second = (f"component {i + 1} ({100 * float(result.explained[i]):.1f} % of the variance)" for i in range(2))
    _finish(left, first, second, title)
    left.annotate(
        f"between groups: {100 * result.between:.1f} % of what is drawn\n"
        f"(labels shuffled: {100 * float(result.between_shuffled.median()):.1f} %, p = {result.p:.2g})",
        (0.02, 0.02), xycoords="axes fraction", va="bottom", fontsize="small", color=FLOOR_COLOUR,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8},
    )  # fmt: skip
    left.legend()

    numbers, shuffled = range(1, len(result.explained) + 1), result.explained_shuffled.numpy()
    right.fill_between(
        numbers, shuffled.min(axis=0), shuffled.max(axis=0), color=CONTROL_COLOUR, alpha=0.3, linewidth=0
    )
    right.plot(
        numbers, shuffled.mean(axis=0), color=CONTROL_COLOUR, marker=".", label=f"shuffled (n = {len(shuffled)})"
    )
    right.plot(numbers, result.explained, color=_colour(0), marker="o", label="as measured")
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.yaxis.set_major_formatter(_PERCENT)
    right.set_ylim(bottom=0)
    _finish(right, "component", "share of the variance explained", None)
    right.legend()
    return left, right


def show_tensor(
    tensor: Tensor,
    *,
    title: str | None = None,
    x_label: str = "column",
    y_label: str = "row",
    removed_rows: Collection[int] = (),
    removed_columns: Collection[int] = (),
    fmt: str = ".1f",
    limit: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """A small matrix with its numbers; rows and columns that pruning removes are greyed and crossed out.

    Args:
        tensor: [rows, columns], or [columns] for a single row.
        title: above the matrix; None for none.
        x_label: what the columns are.
        y_label: what the rows are.
        removed_rows: numbers of the rows that go.
        removed_columns: numbers of the columns that go.
        fmt: of the numbers.
        limit: the magnitude at full colour, for figures that share a scale; by default the tensor's largest.
        ax: where to draw; None makes a figure.

    Raises:
        ValueError: more than two dimensions, empty, or a removed index that isn't there.
    """
    matrix = np.atleast_2d(tensor.detach().float().cpu().numpy())
    rows, columns = matrix.shape if matrix.ndim == 2 else (0, 0)
    if not rows * columns:
        raise ValueError(f"show_tensor draws a matrix or a vector; got shape {list(tensor.shape)}.")
    missing = [i for i in removed_rows if not 0 <= i < rows] + [i for i in removed_columns if not 0 <= i < columns]
    _check_format(fmt)
    if missing:
        raise ValueError(f"Removed rows and columns must lie inside [{rows}, {columns}]; got {missing}.")
    if ax is None:
        _, ax = plt.subplots(figsize=(1.6 + 0.8 * columns, 1.4 + 0.7 * rows), layout="constrained")
    gone = np.zeros(matrix.shape, dtype=bool)
    gone[list(removed_rows)] = True
    gone[:, list(removed_columns)] = True
    limit = max(float(np.abs(matrix).max()), 1e-12) if limit is None else checks.positive("limit", limit)
    ax.imshow(np.ma.masked_array(matrix, gone), cmap="RdBu_r", vmin=-1.6 * limit, vmax=1.6 * limit)
    ax.imshow(np.ma.masked_array(np.ones(matrix.shape), ~gone), cmap="Greys", vmin=0, vmax=6)
    for (row, column), value in np.ndenumerate(matrix):
        text = ax.text(column, row, format(value, f"z{fmt}"), ha="center", va="center")
        if gone[row, column]:
            text.set_color("0.35")
            ax.plot([column - 0.4, column + 0.4], [row + 0.4, row - 0.4], color="0.6", linewidth=1)
    ax.set_xticks(range(columns))
    ax.set_yticks(range(rows))
    ax.set_xticks(np.arange(-0.5, columns), minor=True)
    ax.set_yticks(np.arange(-0.5, rows), minor=True)
    ax.grid(False, which="major")
    ax.grid(True, which="minor", color="white", linewidth=2)
    ax.tick_params(which="both", length=0)
    sns.despine(ax=ax, left=True, bottom=True)
    _finish(ax, x_label, y_label, title)
    return ax


def _line(
    ax: Axes,
    part: pd.DataFrame,
    x: str,
    y: str,
    name: str,
    *,
    log_y: bool,
    color: str | tuple[float, float, float],
    marker: str,
    zorder: int,
) -> None:
    """One group: its line, and the band of its intervals or of its repetitions."""
    values = np.log(part[y]) if log_y else part[y]
    summary = values.groupby(part[x]).agg(["mean", "std", "count"])
    middle, low, high = summary["mean"], summary["mean"] - summary["std"], summary["mean"] + summary["std"]
    if log_y:
        middle, low, high = np.exp(middle), np.exp(low), np.exp(high)
    if summary["count"].max() > 1:
        name = f"{name} (mean ± sd, n = {summary['count'].max()})"
    elif {"ci_low", "ci_high"} <= set(part.columns):
        low, high = (part.set_index(x)[column].sort_index() for column in ("ci_low", "ci_high"))
    ax.plot(summary.index, middle, label=name, color=color, marker=marker, zorder=zorder)
    band = low.fillna(middle), high.fillna(middle)
    ax.fill_between(summary.index, *band, color=color, alpha=0.18, linewidth=0, zorder=zorder - 1)


def _floors(ax: Axes, floors: Mapping[str, float]) -> None:
    """Horizontal lines with their names and levels."""
    for name, level in floors.items():
        written = f"{level:,.0f}" if level >= 1000 else f"{level:.3g}"
        ax.axhline(level, color=FLOOR_COLOUR, linestyle=_FLOOR_DASHES.get(name, (0, (3, 1, 1, 1))), linewidth=1.6)
        ax.annotate(
            f"{name}\n{written}", (1, level), xycoords=("axes fraction", "data"), xytext=(4, 0),
            textcoords="offset points", ha="left", va="center", color=FLOOR_COLOUR, fontsize="small",
        )  # fmt: skip


def _require(frame: pd.DataFrame, columns: Sequence[str]) -> None:
    missing = [column for column in columns if column not in list(frame)]
    if missing:
        raise ValueError(f"The frame lacks the columns {missing}; it has {list(frame.columns)}.")
    if frame.empty:
        raise ValueError("The frame has no rows: there is nothing to draw.")


def _check_format(fmt: str) -> None:
    for number in (1.0, 1):  # "d" is for whole ones
        with contextlib.suppress(ValueError, TypeError):
            format(number, fmt)
            return
    raise ValueError(f"'fmt' must be a format of numbers, such as '.2f'; got {fmt!r}.")


def _axes(ax: Axes | None) -> Axes:
    return plt.subplots(layout="constrained")[1] if ax is None else ax


def _tilt_long_labels(ax: Axes) -> None:
    labels = ax.get_xticklabels()
    if sum(len(label.get_text()) for label in labels) > 36:  # side by side they would touch
        ax.set_xticks(ax.get_xticks(), labels, rotation=20, ha="right", rotation_mode="anchor")


def _colour(number: int) -> tuple[float, float, float]:
    palette = sns.color_palette("colorblind")
    return palette[number % len(palette)]


def _marker(number: int) -> str:
    return _MARKERS[number % len(_MARKERS)]


def _finish(ax: Axes, x_label: str, y_label: str, title: str | None) -> None:
    ax.set_xlabel(x_label)
    ax.set_ylabel(y_label)
    if title is not None:
        ax.set_title(title)

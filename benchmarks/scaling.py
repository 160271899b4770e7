"""How a cost grows, as slopes on logarithmic axes: measured beside what counting leads to expect."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import numpy as np
import seaborn as sns
from matplotlib.figure import Figure

from benchmarks.common import Finding, markdown_table, slope, slope_interval, with_range
from course_utils.benchmarking import MIN_ROUNDS

SLACK = 0.15  # a measured slope may differ so much from the counted one


def curve(
    name: str, unit: str, sizes: Sequence[float], rounds: Sequence[Sequence[float]], counted: Sequence[float]
) -> dict:
    """One cost at several sizes.

    Args:
        name: what is done.
        unit: "seconds" or "MiB".
        sizes: of each point.
        rounds: of each point, what was measured.
        counted: of each point, what the cost should be proportional to.
    """
    return {
        "name": name,
        "unit": unit,
        "sizes": [*sizes],
        "rounds": [[*each] for each in rounds],
        "counted": [*counted],
    }


def measured_slope(data: dict) -> tuple[float, float, float]:
    """With its 95 % interval; without one, three times the same, where a number is exact and measured once."""
    if len(data["rounds"][0]) < MIN_ROUNDS:
        return (slope(data["sizes"], [median(each) for each in data["rounds"]]),) * 3
    return slope_interval(data["sizes"], data["rounds"])


def slope_table(curves: Sequence[dict], axis: str) -> str:
    """A row a curve: the points, the measured slope, the counted one."""
    rows = []
    for each in curves:
        measured = measured_slope(each)
        points = ", ".join(f"{median(values):.3g}" for values in each["rounds"])
        text = f"{measured[0]:.2f}" if measured[1] == measured[2] else with_range(measured)
        rows.append([each["name"], each["unit"], points, text, f"{slope(each['sizes'], each['counted']):.2f}"])
    return markdown_table(["what", "unit", f"at {axis}", "slope (95 %)", "counted slope"], rows)


def slope_findings(curves: Sequence[dict], axis: str) -> list[Finding]:
    found = []
    for each in curves:
        measured, counted = measured_slope(each)[0], slope(each["sizes"], each["counted"])
        met = measured <= counted + SLACK
        what = f"{each['name']}: {each['unit']} against {axis}, slope"
        found.append(Finding(what, f"{measured:.2f}", f"≤ {counted:.2f} + {SLACK}", met))
    return found


def draw(curves: Sequence[dict], axis: str) -> Figure:
    """Points with their ranges; dashed, what counting leads to expect, through the middle of the points."""
    units = list(dict.fromkeys(each["unit"] for each in curves))
    figure, colours = Figure(figsize=(6.5 * len(units), 5)), sns.color_palette("colorblind")
    for ax, unit in zip(np.atleast_1d(figure.subplots(1, len(units))), units, strict=True):
        for number, each in enumerate(of_unit for of_unit in curves if of_unit["unit"] == unit):
            middle = np.array([median(values) for values in each["rounds"]])
            ends = np.array([[m - min(v), max(v) - m] for m, v in zip(middle, each["rounds"], strict=True)]).T
            counted = np.array(each["counted"])
            label = f"{each['name']}: {measured_slope(each)[0]:.2f} (counted {slope(each['sizes'], counted):.2f})"
            ax.errorbar(each["sizes"], middle, ends, marker="osD^v"[number], color=colours[number], label=label)
            scaled = counted * np.exp(np.mean(np.log(middle) - np.log(counted)))
            ax.plot(each["sizes"], scaled, "--", color=colours[number], alpha=0.7)
        ax.set(xscale="log", yscale="log", xlabel=axis, ylabel=unit if unit == "seconds" else f"peak extra {unit}")
        ax.grid(visible=True, which="both", alpha=0.3)
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.13)}
        ax.legend(title="slopes, measured; dashed: as counted", fontsize="small", **below)
    return figure

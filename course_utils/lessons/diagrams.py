"""Drawings of what the lessons cut: one style, one function a drawing, no measurement in any of them.

Each draws a figure and returns its Axes; ``plotting.show(alt)`` ends it. Boxes are computation, bars are matrices, the
thick line is the residual stream. Orange is what a lesson speaks of, and it has a thick edge, or is hatched or crossed
out, as well, so that nothing depends on colour.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from course_utils.support.extras import brought

with brought("plots"):
    import matplotlib.pyplot as plt
    from matplotlib.axes import Axes
    from matplotlib.patches import Circle, FancyBboxPatch, Rectangle

INK, QUIET, STREAM, MARK = "0.15", "0.55", "#0173b2", "#de8f05"
_PALE = {INK: "white", STREAM: "#dcebf5", MARK: "#fdebd0", QUIET: "0.95"}
_NEURONS = 6  # drawn of each MLP: enough to see one among others
_SMALL = 12.6  # points; 13.8 elsewhere, so that a phone can show them


def gpt2_block(*, neuron: int = 2) -> Axes:
    """A GPT-2 block, and its MLP opened up: one neuron is a column of ``c_fc``, its bias, and a row of ``c_proj``.

    ``neuron`` says which of the six drawn is marked. ``c_proj``'s own bias belongs to no neuron.
    """
    ax = _canvas(9, 5.6, "One neuron of GPT-2's MLP", bottom=0.2)
    _block(ax, "GPT-2 block")
    _matrix(ax, (2.9, 2.3), (2.1, 1.3), "c_fc\n[hidden, neurons]", columns=_NEURONS, marked_columns=[neuron])
    _matrix(ax, (2.9, 1.85), (2.1, 0.22), "bias", columns=_NEURONS, marked_columns=[neuron], beside=True)
    _box(ax, (5.95, 2.95), "GELU", width=0.9)
    _matrix(ax, (7.1, 1.9), (1.3, 2.1), "c_proj\n[neurons, hidden]", rows=_NEURONS, marked_rows=[neuron])
    _matrix(ax, (7.1, 1.45), (1.3, 0.22), "bias", beside=True)
    _arrow(ax, (5.1, 2.95), (5.5, 2.95))
    _arrow(ax, (6.4, 2.95), (7.0, 2.95))
    _note(ax, (5.75, 0.75), "Removing the neuron takes out the three hatched pieces; c_proj's bias stays as it is.")
    return ax


def glu_block(*, neuron: int | None = 2) -> Axes:
    """A Llama block, and its GLU opened up: one neuron is a row of gate, a row of up, and a column of down.

    ``neuron`` says which of the six drawn is marked; with None the drawing tells of no neuron.
    """
    marked = [] if neuron is None else [neuron]
    ax = _canvas(9, 5.6, "One neuron of a GLU" if marked else "The MLP of a Llama", bottom=0.2)
    _block(ax, "Llama block")
    _matrix(ax, (2.9, 3.2), (1.3, 1.6), "gate_proj", rows=_NEURONS, marked_rows=marked)
    _matrix(ax, (2.9, 1.2), (1.3, 1.6), "up_proj", rows=_NEURONS, marked_rows=marked)
    _box(ax, (4.95, 4.0), "SiLU", width=0.8)
    _symbol(ax, (5.95, 3.0), "×")
    _matrix(ax, (6.9, 2.35), (1.6, 1.3), "down_proj", columns=_NEURONS, marked_columns=marked)
    _arrow(ax, (4.25, 4.0), (4.53, 4.0))
    _arrow(ax, (5.37, 4.0), (5.85, 3.2))
    _arrow(ax, (4.25, 2.0), (5.83, 2.84))
    _arrow(ax, (6.16, 3.0), (6.8, 3.0))
    together = "Results i of gate and of up are multiplied: the three hatched pieces go together."
    _note(ax, (5.75, 0.6), together if marked else "gate's and up's results are multiplied, and down leads back.")
    return ax


def attention_bypass() -> Axes:
    """A block with its attention left out beside a whole one: the stream passes, the MLP stays, no keys or values."""
    ax = _canvas(9, 4.6, "Leaving one attention layer out")
    for left, bypassed in ((0.4, False), (4.9, True)):
        middle = left + 1.95
        _text(ax, (middle, 4.25), "bypassed" if bypassed else "whole block", weight="bold")
        _stream(ax, (left, 1.2), (left + 3.9, 1.2))
        colour = MARK if bypassed else INK
        _box(ax, (left + 1.0, 2.45), "norm\nattention", width=1.15, height=0.9, colour=colour)
        _box(ax, (left + 2.9, 2.45), "norm\nMLP", width=1.0, height=0.9)
        _box(ax, (left + 1.0, 3.65), "K, V cache", width=1.15, height=0.42, colour=colour)
        _sublayer(ax, left + 2.9, 2.0, half=0.35)
        if bypassed:
            _cross(ax, (left + 1.0, 2.45), 0.4)
            _cross(ax, (left + 1.0, 3.65), 0.2)
        else:
            _sublayer(ax, left + 1.0, 2.0, half=0.4)
            _arrow(ax, (left + 1.0, 2.92), (left + 1.0, 3.42))
    _note(ax, (4.5, 0.35), "A bypass adds exactly zero: x = x + attention(norm(x)) becomes x = x, not x = x + norm(x).")
    return ax


def hidden_channel() -> Axes:
    """One hidden channel of a Llama: a column of what reads the stream, a row of what writes it, a number of norms."""
    ax = _canvas(9, 3.9, "One hidden channel")
    reads: dict[str, Any] = {"columns": _NEURONS, "marked_columns": [2]}
    writes: dict[str, Any] = {"rows": _NEURONS, "marked_rows": [2]}
    _matrix(ax, (0.3, 1.3), (1.3, 1.6), "embedding,\nhead", **reads)
    _matrix(ax, (2.25, 1.3), (1.3, 1.6), "q, k, v", **reads)
    _matrix(ax, (2.25, 0.95), (1.3, 0.2), "norm", **reads, beside=True)
    _matrix(ax, (4.25, 1.5), (0.9, 1.2), "o", **writes)
    _matrix(ax, (5.65, 1.3), (1.3, 1.6), "gate, up", **reads)
    _matrix(ax, (5.65, 0.95), (1.3, 0.2), "norm", **reads, beside=True)
    _matrix(ax, (7.75, 1.5), (0.9, 1.2), "down", **writes)
    _note(ax, (4.5, 0.4), "What reads the stream loses a column, what writes it a row, and each norm a number.")
    return ax


def mixture_of_experts() -> Axes:
    """One token in a block's mixture: a router weighs sixteen experts, two of them compute, and one is crossed out."""
    ax = _canvas(9, 4.9, "One token in a mixture of experts")
    _stream(ax, (0.3, 0.95), (8.8, 0.95))
    _text(ax, (1.3, 0.62), "residual stream", size=_SMALL, colour=STREAM)
    _box(ax, (1.35, 2.9), "router", width=1.5, height=0.9, colour=STREAM)
    _arrow(ax, (1.35, 1.05), (1.35, 2.42))
    _arrow(ax, (2.12, 2.9), (2.75, 2.9))
    for number in range(16):
        x, y = 3.15 + 0.62 * (number % 8), 3.5 - 0.95 * (number // 8)
        lit = number in (5, 10)
        ax.add_patch(
            Rectangle(
                (x - 0.25, y - 0.3), 0.5, 0.6, facecolor=MARK if lit else _PALE[QUIET], edgecolor="0.4",
                hatch="//" if lit else None, lw=0.8, zorder=3,
            )
        )  # fmt: skip
        if number != 14:
            _text(ax, (x, y), str(number), size=_SMALL, background="white" if lit else None)
    _cross(ax, (3.15 + 0.62 * 6, 2.55), 0.24)
    _text(ax, (5.35, 4.15), "sixteen experts, an MLP each", size=_SMALL)
    _arrow(ax, (7.85, 2.9), (8.25, 2.9))
    _arrow(ax, (8.25, 2.9), (8.25, 1.1))
    _symbol(ax, (8.25, 0.95), "+")
    _text(ax, (7.95, 1.85), "0.7 × expert 5\n+ 0.3 × expert 10", size=_SMALL, background="white")
    _note(ax, (4.5, 0.25), "Two experts compute for this token. The crossed-out one is to be removed.")
    return ax


def _canvas(width: float, height: float, title: str, *, bottom: float = 0.0) -> Axes:
    """Axes in inches: one unit is one inch, so that text and boxes keep their proportion in every drawing."""
    _, ax = plt.subplots(figsize=(width, height), layout="constrained")
    ax.set(xlim=(0, width), ylim=(bottom, height), aspect="equal", title=title)
    ax.axis("off")
    return ax


def _block(ax: Axes, name: str) -> None:
    """A small block on the left, its MLP marked: what the rest of the drawing opens up."""
    _text(ax, (1.15, 5.2), name, weight="bold")
    _stream(ax, (0.45, 0.6), (0.45, 4.9))
    for y, part in ((1.75, "norm\nattention"), (3.65, "norm\nMLP")):
        _box(ax, (1.45, y), part, width=1.1, height=0.8, colour=MARK if "MLP" in part else INK)
        _arrow(ax, (0.45, y - 0.7), (1.2, y - 0.42))
        _arrow(ax, (1.2, y + 0.42), (0.58, y + 0.66))
        _symbol(ax, (0.45, y + 0.7), "+")
    ax.plot([2.02, 2.7], [4.05, 5.0], color=MARK, lw=1, ls=":")
    ax.plot([2.02, 2.7], [3.25, 1.0], color=MARK, lw=1, ls=":")


def _sublayer(ax: Axes, x: float, y: float, *, half: float) -> None:
    """The way from the stream below into the box above and back."""
    _arrow(ax, (x - half, 1.2), (x - half, y))
    _arrow(ax, (x + half, y), (x + half, 1.33))
    _symbol(ax, (x + half, 1.2), "+")


def _text(
    ax: Axes,
    at: tuple[float, float],
    text: str,
    *,
    size: float = 13.8,
    weight: str = "normal",
    colour: str = INK,
    background: str | None = None,
) -> None:
    behind = {"facecolor": background, "edgecolor": "none", "pad": 1.5} if background else None
    ax.text(*at, text, size=size, weight=weight, color=colour, ha="center", va="center", bbox=behind,
            zorder=7)  # fmt: skip


def _note(ax: Axes, at: tuple[float, float], text: str) -> None:
    _text(ax, at, text, size=13.2, colour="0.3")


def _box(
    ax: Axes, centre: tuple[float, float], text: str, *, width: float, height: float = 0.6, colour: str = INK
) -> None:
    """A box with its text; a marked one has a thicker edge as well, so that nothing is told by colour alone."""
    x, y = centre
    ax.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - height / 2), width, height, boxstyle="round,pad=0.02,rounding_size=0.08",
            facecolor=_PALE[colour], edgecolor=colour, lw=3.2 if colour == MARK else 1.6, zorder=3,
        )
    )  # fmt: skip
    _text(ax, centre, text)


def _matrix(
    ax: Axes,
    corner: tuple[float, float],
    size: tuple[float, float],
    name: str,
    *,
    rows: int = 1,
    columns: int = 1,
    marked_rows: Collection[int] = (),
    marked_columns: Collection[int] = (),
    beside: bool = False,
) -> None:
    """A matrix as a grid of its neurons; marked ones are orange and hatched. Row 0 is on top."""
    (x, y), (width, height) = corner, size
    for row in range(rows):
        for column in range(columns):
            marked = row in marked_rows or column in marked_columns
            cell = (x + width * column / columns, y + height * (rows - 1 - row) / rows)
            ax.add_patch(
                Rectangle(
                    cell, width / columns, height / rows, facecolor=MARK if marked else _PALE[STREAM], edgecolor="0.4",
                    hatch="//" if marked else None, lw=0.8, zorder=3,
                )
            )  # fmt: skip
    if beside:
        _text(ax, (x + width + 0.35, y + height / 2), name, size=_SMALL)
    else:
        _text(ax, (x + width / 2, y + height + 0.12 + 0.1 * (name.count("\n") + 1)), name, size=_SMALL)


def _stream(ax: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": STREAM, "lw": 4, "shrinkA": 0, "shrinkB": 0})


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    ax.annotate(
        "", end, start, zorder=4,
        arrowprops={"arrowstyle": "-|>", "color": INK, "lw": 1.4, "shrinkA": 0, "shrinkB": 0},
    )  # fmt: skip


def _symbol(ax: Axes, at: tuple[float, float], sign: str) -> None:
    ax.add_patch(Circle(at, 0.15, facecolor="white", edgecolor=INK, lw=1.4, zorder=5))
    _text(ax, at, sign, weight="bold")


def _cross(ax: Axes, centre: tuple[float, float], half: float) -> None:
    x, y = centre
    for sign in (1, -1):
        ax.plot([x - half, x + half], [y - sign * half, y + sign * half], color=MARK, lw=3, zorder=8)

"""One page to hang up: each method with its drawing and what the saved run measured, as a PDF in A3."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
from matplotlib.axes import Axes
from matplotlib.backends.backend_pdf import PdfPages
from nbformat import NotebookNode

from course_tools.lessons.printed import picked
from course_utils import diagrams, plotting
from course_utils.files import replacing
from course_utils.plotting import mark
from course_utils.records import read_record

WIDTH, HEIGHT = 16.54, 11.69  # A3, landscape, in inches
_COLUMNS, _ROWS, _WORDS = 4, 3, 27  # characters in a line below a drawing
_TITLE, _SENTENCE = 18, 17.5  # points; from two metres one reads what is larger than about 16
_DPI = 220


@dataclass(frozen=True)
class Panel:
    """A method: its drawing, and a sentence with a place for each number.

    Attributes:
        title: above the drawing.
        lesson: whose saved run has the numbers.
        drawing: draws a figure of its own and returns its Axes; None for the figure with the control.
        says: the sentence, with `{names}`.
        numbers: {name: "row · column" of a table, or the line that prints it with "…" for its numbers, and which of the
            numbers there, from 0}.
    """

    title: str
    lesson: str
    drawing: Callable[[], Axes] | None
    says: str
    numbers: Mapping[str, tuple[str, int]] = field(default_factory=dict)


def conditions() -> Axes:
    """What to ask of a bias that was cut out, in the order of lesson 09."""
    _, ax = plt.subplots(figsize=(7, 3.6), layout="constrained")
    ax.set(xlim=(0, 7), ylim=(0, 3.6), title="A bias was cut out?")
    ax.axis("off")
    asked = (
        "Was it there at all?",
        "Judged on other sentences?",
        "More than a twin that knows no groups?",
        "Can the model still read?",
        "What else went?",
    )
    for number, condition in enumerate(asked):
        y = 3.2 - 0.68 * number
        ax.plot(0.6, y, marker="s", ms=15, mfc="none", mec=diagrams.STREAM, mew=1.8)
        ax.text(1.05, y, condition, va="center", size=15)
    return ax


def damage() -> Axes:
    """What cuts of one price on text take of some abilities, from the record of lesson 12."""
    _, ax = plt.subplots(figsize=(7, 3.6), layout="constrained")
    record = read_record("damage_profile").query("healed == '' and dtype == 'bfloat16' and price == 3")
    names = ("copying", "facts", "code", "German")
    for part, cut in (("blocks", "three blocks"), ("neurons", "neurons, chosen on speeches")):
        rows = record[(record.part == part) & (record.read == "speeches")].groupby("text").damage.mean()
        ax.plot([rows[name] for name in names], range(len(names)), **mark(part) | {"ls": "", "ms": 15, "label": cut})
    ax.set_yticks(range(len(names)), names, size=15)
    ax.invert_yaxis()
    ax.set_xlabel("nats lost by each token", size=15)
    ax.set_title("The same loss on text")
    ax.legend(fontsize=14)
    return ax


# Lesson 01 prints it twice, with six numbers each: without the mean, and with it.
_L1 = "L1 speeches here … nats, beats … of … record … nats, beats … of …"[:60]
# Lesson 04: first and last block, the sum of their harms, the six together, the dearest block and its harm.
_SIX = "furthest below its dearest block, … to …: sum …, together …, dearest alone: block …, … nats"[:60]
PANELS = (
    Panel(
        "Width: MLP neurons",
        "01",
        diagrams.gpt2_block,
        "A fifth of the neurons cut by L1: {l1} nats a token, {beaten} of {cuts} random cuts beaten. With their mean "
        "kept: {kept}, and {better}.",
        {
            "l1": (_L1, 0),
            "beaten": (_L1, 4),
            "cuts": (_L1, 5),
            "kept": (_L1, 6),
            "better": (_L1, 10),
        },
    ),
    Panel(
        "Width, with a control",
        "03",
        None,
        "A tenth of the neurons cut: perplexity times {activation} by activation, {random} by chance (the black line), "
        "{l1} by L1.",
        {
            "activation": ("activation · speeches: × whole", 0),
            "random": ("median random · speeches: × whole", 0),
            "l1": ("L1 · speeches: × whole", 0),
        },
    ),
    Panel(
        "Depth: whole blocks",
        "04",
        diagrams.residual_stream,
        "One block alone costs {alone} nats; six neighbours, it among them, {together}. Harms don't add: leave out "
        "together what shall go.",
        {
            "together": (_SIX, 3),
            "alone": (_SIX, 5),
        },
    ),
    Panel(
        "Attention: a bypass",
        "05",
        diagrams.attention_bypass,
        "The bypass that adds its input looks better: {ratio} × the perplexity ({low} to {high}). Only an equality "
        "tells that it is wrong.",
        {
            "ratio": ("speeches, here: input / zeros … (… to …)", 0),
            "low": ("speeches, here: input / zeros … (… to …)", 1),
            "high": ("speeches, here: input / zeros … (… to …)", 2),
        },
    ),
    Panel(
        "Each prompt decides",
        "06",
        diagrams.adaptive_decision,
        "At {saved} % of the cache saved, a complexity score harms {score} nats a token, one number for all {one}.",
        {
            "saved": ("complexity · cache saved, %", 0),
            "score": ("complexity · harm", 0),
            "one": ("complexity · one for all", 0),
        },
    ),
    Panel(
        "Healing",
        "07",
        diagrams.distillation,
        "Solve first, then train. A bad cut costs {cut} nats a token; what leads out of its neurons, solved for again "
        "without a gradient, leaves {solved}.",
        {"cut": ("peak-to-peak, cut · speeches", 0), "solved": ("peak-to-peak, solved · speeches", 0)},
    ),
    Panel(
        "Bias: is there one?",
        "08",
        diagrams.reading_points,
        "Three heads say for the nurse what they say for the mechanic: {jobs} % of the gap moves, {people} % of "
        "woman/man's, by random heads {most} %.",
        {
            "jobs": ("the three together · occupations", 0),
            "people": ("the three together · woman/man", 0),
            "most": ("19 random sets, most · occupations", 0),
        },
    ),
    Panel(
        "Bias: did only the bias go?",
        "09",
        conditions,
        "“She” for the nurse: {before} → {after} nats. With it went “she” for the woman: {known} → {kept}.",
        {
            "before": ("whole · stereotype", 0),
            "after": ("carries · stereotype", 0),
            "known": ("whole · woman/man", 0),
            "kept": ("carries · woman/man", 0),
        },
    ),
    Panel(
        "Speed and size",
        "10",
        diagrams.reading_and_generating,
        "Freed memory is served requests: the whole model {whole} at once, without a fifth of its attentions {calm}, "
        "in eight bits {bits}.",
        {
            "whole": ("whole · requests", 0),
            "calm": ("6 attentions fewer · requests", 0),
            "bits": ("whole, 8 bits · requests", 0),
        },
    ),
    Panel(
        "A whole recipe",
        "11",
        diagrams.making_a_small_model,
        "Four fifths of a model, in 8 bits: {cut_mb} MB, {cut} nats a token of speeches. Its rival, all of it in 4 "
        "bits: {whole_mb} MB, {whole} nats.",
        {
            "cut_mb": ("winner, Q8_0 · MB", 0),
            "cut": ("winner, Q8_0 · speeches", 0),
            "whole_mb": ("whole, off the grid, Q4_0 · MB", 0),
            "whole": ("whole, off the grid, Q4_0 · speeches", 0),
        },
    ),
    Panel(
        "What else went?",
        "12",
        damage,
        "The same loss on text. Three blocks leave {blocks} % of a list right, neurons {neurons} %; of German {left} % "
        "and {rest} %.",
        {
            "blocks": ("three blocks, copying: …% right, … (… to …) nats lost"[:60], 0),
            "neurons": ("neurons, copying: …% right, … (… to …) nats lost"[:60], 0),
            "left": ("three blocks, German: …% right, … (… to …) nats lost"[:60], 0),
            "rest": ("neurons, German: …% right, … (… to …) nats lost"[:60], 0),
        },
    ),
    Panel(
        "Mixtures: whole experts",
        "13",
        diagrams.mixture_of_experts,
        "Half of the experts gone, by what one adds when it is asked: {reap} nats a token. By dice {dice}, by how "
        "often it is asked {frequency}.",
        {
            "reap": ("REAP · half, record", 0),
            "dice": ("random, median · half, record", 0),
            "frequency": ("frequency · half, record", 0),
        },
    ),
)


def sentence(panel: Panel, saved: NotebookNode) -> str:
    """The panel's sentence with the numbers of the saved run; raises as `numbers_shown`."""
    return panel.says.format_map(numbers_shown(panel, saved))


def numbers_shown(panel: Panel, saved: NotebookNode) -> dict[str, str]:
    """The panel's numbers, as the saved run prints them.

    Raises:
        ValueError: the run doesn't show one of them.
    """
    try:
        return picked(saved, panel.numbers)
    except KeyError as missing:
        raise ValueError(
            f"Lesson {panel.lesson}'s saved run doesn't show {missing}; mend PANELS in course_tools/workshop/poster.py."
        ) from None


def draw(notebooks: Path, figure: Path, target: Path, *, course: str) -> None:
    """Draw the poster.

    Args:
        notebooks: with the saved runs.
        figure: the picture that shows what a control is for, docs/images/criteria.png.
        target: the PDF.
        course: where the course lives, for the foot.

    Raises:
        ValueError: a saved run lacks a number.
    """
    made = sheet(notebooks, figure, course=course)
    with replacing(target) as fresh, PdfPages(fresh, metadata={"Title": "Pruning LLMs", "CreationDate": None}) as pages:
        pages.savefig(made, dpi=_DPI)
    plt.close(made)


def sheet(notebooks: Path, figure: Path, *, course: str) -> plt.Figure:
    """The poster as a figure; arguments as in `draw`."""
    told = [sentence(panel, _saved(notebooks, panel.lesson)) for panel in PANELS]
    plotting.style()
    pictures = [_picture(panel.drawing) if panel.drawing else plt.imread(figure) for panel in PANELS]
    made = plt.figure(figsize=(WIDTH, HEIGHT))
    made.text(0.03, 0.945, "Pruning LLMs", size=38, weight="bold")
    claim = "No sentence without a measurement, no measurement without a control."
    made.text(0.31, 0.95, claim, size=_SENTENCE)
    for panel, picture, says, place in zip(PANELS, pictures, told, _places(), strict=True):
        _cell(made, place, f"{panel.lesson}  {panel.title}", picture, says)
    foot = (
        "Before a title: its lesson. In brackets: 95 %. Chance: the median of 19 cuts. Saved runs: a GPT-2 "
        f"of 5.9 M parameters (01), a mixture of 8.3 M (13), otherwise SmolLM2-135M.  {course}  CC BY 4.0"
    )
    made.text(0.03, 0.014, foot, size=10, color="0.3")
    return made


def _saved(notebooks: Path, lesson: str) -> NotebookNode:
    (path,) = notebooks.glob(f"{lesson}_*.ipynb")
    return nbformat.read(path, as_version=4)


def _picture(drawing: Callable[[], Axes]) -> object:
    """A drawing's own figure as an image, without title and notes, whose place the poster's own words take."""
    ax, data = drawing(), io.BytesIO()
    ax.set_title("")
    for note in [text for text in ax.texts if text.get_color() == diagrams.NOTE]:
        note.remove()
    ax.figure.savefig(data, dpi=_DPI, bbox_inches="tight")
    plt.close(ax.figure)
    data.seek(0)
    image = plt.imread(data)  # [height, width, channels]
    rows, columns = ((image[..., :3] < 1).any(-1).any(axis).nonzero()[0] for axis in (1, 0))
    return image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _places() -> Iterator[tuple[float, float, float, float]]:
    """Left, bottom, width and height of each cell, row by row from above, as shares of the sheet."""
    width, height = 0.94 / _COLUMNS, 0.895 / _ROWS
    for row in range(_ROWS):
        for column in range(_COLUMNS):
            yield 0.03 + column * width, 0.035 + (_ROWS - 1 - row) * height, width - 0.015, height - 0.012


def _cell(made: plt.Figure, place: tuple[float, float, float, float], title: str, picture: object, says: str) -> None:
    left, bottom, width, height = place
    made.text(left, bottom + height - 0.028, title, size=_TITLE, weight="bold", color=diagrams.STREAM)
    ax = made.add_axes((left, bottom + 0.455 * height, width, 0.41 * height))
    ax.imshow(picture, interpolation="antialiased")
    ax.axis("off")
    lines = re.findall(rf"(.{{1,{_WORDS}}})(?:\s+|$)", says)
    made.text(left, bottom + 0.43 * height, "\n".join(lines), size=_SENTENCE, va="top", linespacing=1.15)

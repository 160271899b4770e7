"""Figures to move through: what lies behind some lessons' figures to remember, for docs/static/explore.js.

The script looks up and draws. Every number and every sentence that it shows is made here, from the record that the
lesson itself reads.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.resources import files

import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.colors import to_hex
from matplotlib.figure import Figure as Canvas
from matplotlib.markers import MarkerStyle
from matplotlib.path import Path as Outline

from course_utils.lessons.policies import by_level, by_price, cache_saved, gap_to_static, outcome
from course_utils.lessons.prompt_harm import Record
from course_utils.measuring.abilities import ABILITIES
from course_utils.models.reports import shown, with_interval
from course_utils.support.plotting import log_ticks, mark
from course_utils.support.records import read_record
from course_utils.support.uncertainty import ratio_interval

_LETTERS = {Outline.MOVETO: "M", Outline.LINETO: "L", Outline.CURVE3: "Q", Outline.CURVE4: "C", Outline.CLOSEPOLY: "Z"}
_GUESSING = math.log(49_152)  # nats per token, of SmolLM2's vocabulary


@dataclass(frozen=True)
class Point:
    """One entry of a record."""

    chosen: tuple[str, ...]  # its value of each control
    name: str  # of the arm
    x: float
    y: float
    low: float  # the ends of the 95 % interval of y
    high: float
    says: str  # the sentence that names its numbers
    foot: float | None = None  # the part of y that is drawn full


@dataclass(frozen=True)
class Line:
    """A line through some places, drawn where the first controls have the values ``chosen``."""

    chosen: tuple[str, ...]
    name: str
    places: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Figure:
    """Points to choose from, and the lines that they are compared with."""

    controls: tuple[str, ...]  # the later ones offer what the record has at the earlier ones' values
    slides: int  # how many of the last controls are slides; the others are lists
    scenes: int  # how many of the first controls say which points are drawn
    labels: tuple[str, str]  # of the horizontal axis and of the vertical one
    points: Sequence[Point]  # in the order in which controls offer their values
    begin: int  # the number of the point that is chosen first
    lines: Sequence[Line] = ()
    interval: str = "95 % interval"  # what the bar over the chosen point is
    likes: Mapping[str, str] = field(default_factory=dict)  # which arm of the course's table a name looks like
    ticks: Sequence[str] = ()  # of the horizontal axis at 0, 1, 2 …, where it isn't one of numbers
    logarithmic: bool = False  # both axes, or the vertical one where there are ``ticks``


def _random_cuts() -> Figure:
    """Lesson 03: a tenth of the neurons cut, and something put back."""
    record = read_record("random_cuts").query("draw == 0")
    places = {
        "shared": "10 % cut",
        "two put back": "two neurons\nput back",
        "stream put back": "first token's\nstate put\nback",
    }
    arms = ("activation", "peak-to-peak", "L1", "random")
    points, lines = [], []
    for (text, dtype), rows in record.groupby(["text", "dtype"], sort=False):
        blind = rows.query("criterion == 'random' and edit == 'shared'").sort_values("damage")
        middle = blind.iloc[len(blind) // 2]
        uncut = rows[rows.criterion == ""].nats.item()
        lines.append(Line((text, dtype), "guessing", _level(math.exp(_GUESSING - uncut), (-0.5, 2.5))))
        for row in rows[rows.criterion.isin(arms) & rows.edit.isin(places)].itertuples():
            place, words = [*places].index(row.edit), " ".join(places[row.edit].split())
            times = _times(row.rows)
            says = (
                f"{row.criterion}, {words}: perplexity × {with_interval(*times)} of the whole model's on {text}, in "
                f"{dtype}. It is × {with_interval(*_times(row.rows - middle.rows))} of the median random cut's."
            )
            chosen = text, dtype, row.criterion, words, str(row.seed)
            beside = 0.16 * (arms.index(row.criterion) - 1.5)
            points.append(Point(chosen, row.criterion, place + beside, *times, says))
    return Figure(
        controls=("Judged on", "Number format", "Criterion", "What was done", "Draw"),
        slides=1,
        scenes=2,
        labels=("", "perplexity, × the whole model's"),
        points=points,
        begin=next(i for i, point in enumerate(points) if point.name == "activation"),
        lines=lines,
        ticks=[*places.values()],
        logarithmic=True,
    )


def _sets_of_six() -> Figure:
    """Lesson 04: six of 30 blocks left out together, against the sum of their single harms."""
    record = read_record("leave_out")
    record = record[record.part != "attention"].assign(size=record.layers.map(len))
    ways = {"run": "six neighbours", "random": "random", "influence": "influence"}
    points, lines = [], []
    for (text, dtype), rows in record.groupby(["text", "dtype"], sort=False):
        alone = rows.query("criterion == 'alone' and part == 'block'")
        single = {layers[0]: damage for layers, damage in zip(alone.layers, alone.damage, strict=True)}
        for way, name in ways.items():
            sets = [*rows[(rows.criterion == way) & (rows["size"] == 6)].itertuples()]
            for row in sorted(sets, key=lambda row: row.layers):
                mean, low, high = _mean(row.rows)
                total = sum(single[block] for block in row.layers)
                blocks, draws = _in_words(row.layers), len(row.calibrations)
                says = (
                    f"{blocks.capitalize()}, on {text} in {dtype}: left out together they cost "
                    f"{with_interval(mean, low, high)} nats per token, perplexity × {shown(math.exp(mean))}; one by "
                    f"one, {shown(total)} in sum."
                )
                if way == "run" and draws:
                    says += f" Chosen by {draws} of 5 draws of the calibration text."
                points.append(Point((text, dtype, name, blocks), name, total, mean, low, high, says))
        here = [point for point in points if point.chosen[:2] == (text, dtype)]
        ends = min(point.x for point in here), max(point.x for point in here)
        uncut = rows[rows.criterion == ""].nats.item()
        lines.append(Line((text, dtype), "guessing", _level(_GUESSING - uncut, ends)))
        lines.append(Line((text, dtype), "harms add up", [(end, end) for end in ends]))
    return Figure(
        controls=("Judged on", "Number format", "Six blocks", "Which six"),
        slides=1,
        scenes=2,
        labels=("sum of the six single harms, nats", "harm of the six together, nats"),
        points=points,
        begin=next(i for i, point in enumerate(points) if "Chosen by" in point.says),
        lines=lines,
        likes={"six neighbours": "leave-one-out", "harms add up": "whole"},
        logarithmic=True,
    )


def _rules_for_prompts() -> Figure:
    """Lesson 06: harm against cache saved, of three rules for prompts and of one number for all."""
    record = Record.load()
    _, judged = record.split()
    saved, count = cache_saved(judged, 30), len(judged.tokens)
    choices = [
        ("one for all", f"{number} of 30 attentions", np.full(count, column))
        for column, number in enumerate(record.numbers)
    ]
    choices.append(("complexity", "8, 3 and 0 attentions", by_level(record, (8, 3, 0))))
    published = np.abs(np.subtract.outer(judged.published, record.numbers)).argmin(1)
    choices.append(("published", "as published", published))
    choices += [
        ("price", f"{100 * target:.1f} % asked for", by_price(record, 30, target)[0])
        for target in np.linspace(0.02, 0.25, 14)
    ]
    points = []
    for name, setting, columns in choices:
        share, harm = outcome(judged.harm, saved, columns)
        gap, low, high = gap_to_static(judged.harm, saved, columns, [*judged.documents])
        says = (
            f"{name}, {setting}: {100 * share:.1f} % of the cache saved, {harm:.3f} nats per token of harm. That is "
            f"{gap:+.3f} ({low:+.3f} to {high:+.3f}) beside one number for all, or a coin between two, at this saving."
        )
        points.append(Point((name, setting), name, 100 * share, harm, harm - gap + low, harm - gap + high, says))
    return Figure(
        controls=("Rule", "Setting"),
        slides=1,
        scenes=0,
        labels=("cache saved, %", "harm, nats per token"),
        points=points,
        begin=next(i for i, point in enumerate(points) if point.name == "price" and point.x > 10),
        lines=[Line((), "one for all", [*zip(100 * saved.sum(0), judged.harm.mean(0), strict=True)])],
        interval="95 % interval of the distance to the line",
    )


def _token_times() -> Figure:
    """Lesson 10: milliseconds per token, and how many of them reading the model's bytes takes at least."""
    record = pd.read_json(files("course_utils") / "data" / "token_times.json")
    points = []
    for program, rows in record.groupby("program", sort=False):
        whole = rows.milliseconds.iloc[0]
        for place, row in enumerate(rows.itertuples()):
            says = (
                f"{row.name}, in {program}: {row.milliseconds:.1f} ms per token ({row.low:.1f} to {row.high:.1f}), × "
                f"{row.milliseconds / whole:.2f} of the whole model's. Reading its bytes takes {row.floor:.2f} ms at "
                f"least, {100 * row.floor / row.milliseconds:.0f} % of it."
            )
            numbers = row.milliseconds, row.low, row.high
            points.append(Point((program, row.name), row.part, place, *numbers, says, foot=row.floor))
    return Figure(
        controls=("Program", "Model"),
        slides=0,
        scenes=1,
        labels=("", "milliseconds per token"),
        points=points,
        begin=2,
        ticks=["\n".join(name.rsplit(" ", 1)) for name in record.name.unique()],
    )


def _abilities() -> Figure:
    """Lesson 12: what cuts of one price on text took of each ability."""
    record = read_record("damage_profile").query("healed == '' and dtype == 'bfloat16' and price > 0")
    prices = {3: "three blocks", 1: "one block", 8: "eight blocks"}
    names = {
        ("run", "blocks", "speeches"): "neighbouring blocks",
        ("leave-one-out", "attentions", "speeches"): "attentions",
        ("activation", "neurons", "speeches"): "neurons, by speeches",
        ("activation", "neurons", "wiki"): "neurons, by wiki",
        ("activation", "neurons", "mix"): "neurons, by a mix",
        ("activation", "neurons", "mix with languages"): "neurons, by a mix with languages",
        ("random", "neurons", ""): "random neurons",
    }
    made, points, lines = ["criterion", "part", "read", "seed"], [], []
    for price, words in prices.items():
        rows = record[record.price == price]
        on_text = rows[rows.text.isin(("speeches", "wiki"))].groupby(made).damage.mean()
        lines.append(Line((words,), "on text", _level(on_text.mean(), (-0.5, len(ABILITIES) - 0.5))))
        for row in rows[rows.text.isin(ABILITIES)].itertuples():
            name, place = names[row.criterion, row.part, row.read], ABILITIES.index(row.text)
            lost = _mean(row.rows)
            text = on_text[row.criterion, row.part, row.read, row.seed]
            says = (
                f"{name.capitalize()}, draw {row.seed}, at the price of {words}: {with_interval(*lost)} nats lost by "
                f"each token of {row.text}, beside {shown(text)} on text."
            )
            beside = 0.11 * ([*names.values()].index(name) - 3)
            points.append(Point((words, name, row.text, str(row.seed)), name, place + beside, *lost, says))
    return Figure(
        controls=("Price", "Cut", "Ability", "Draw"),
        slides=1,
        scenes=1,
        labels=("", "nats lost by each token"),
        points=points,
        begin=next(i for i, point in enumerate(points) if point.chosen[1:3] == ("neighbouring blocks", "copying")),
        lines=lines,
        likes={
            "neighbouring blocks": "blocks",
            "neurons, by speeches": "neurons",
            "neurons, by wiki": "published",
            "neurons, by a mix": "complexity",
            "neurons, by a mix with languages": "L1",
            "random neurons": "random",
            "on text": "whole",
        },
        ticks=ABILITIES,
    )


_FIGURES: dict[str, Callable[[], Figure]] = {
    "03": _random_cuts, "04": _sets_of_six, "06": _rules_for_prompts, "10": _token_times, "12": _abilities,
}  # fmt: skip
LESSONS = (*_FIGURES,)


@cache
def figure(lesson: str) -> Figure:
    """The figure of a lesson with this number, one of ``LESSONS``."""
    return _FIGURES[lesson]()


@cache
def page_data(lesson: str) -> str:
    """A lesson's figure as explore.js reads it, JSON: values by number, axes with ticks, and how each arm looks."""
    drawn = figure(lesson)
    values = [list(dict.fromkeys(point.chosen[i] for point in drawn.points)) for i in range(len(drawn.controls))]
    kinds = ["list"] * (len(values) - drawn.slides) + ["slide"] * drawn.slides
    told = zip(drawn.controls, kinds, values, strict=True)
    places = [place for line in drawn.lines for place in line.places]
    heights = [height for point in drawn.points for height in (point.low, point.y, point.high)]
    across = [point.x for point in drawn.points] + [x for x, _ in places]
    if drawn.ticks:
        x_axis = {"label": drawn.labels[0], "log": False, "span": [-0.5, len(drawn.ticks) - 0.5]}
        x_axis["ticks"] = [*enumerate(drawn.ticks)]
    else:
        x_axis = _axis(drawn.labels[0], across, drawn.logarithmic)
    least = [0] if any(point.foot is not None for point in drawn.points) else []  # a bar stands on nothing
    looks = {name: _look(drawn.likes.get(name, name)) for name in dict.fromkeys(one.name for one in drawn.points)}
    for line in drawn.lines:  # without a marker, where nothing was measured
        looks.setdefault(line.name, _look(drawn.likes.get(line.name, line.name)) | {"outline": ""})
    data = {
        "controls": [{"label": label, "kind": kind, "values": offered} for label, kind, offered in told],
        "scenes": drawn.scenes,
        "begin": drawn.begin,
        "interval": drawn.interval,
        "x": x_axis,
        "y": _axis(drawn.labels[1], [*heights, *(y for _, y in places), *least], drawn.logarithmic),
        "looks": looks,
        "points": [asdict(point) | {"chosen": _numbers(point.chosen, values)} for point in drawn.points],
        "lines": [asdict(line) | {"chosen": _numbers(line.chosen, values)} for line in drawn.lines],
    }
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _numbers(chosen: Sequence[str], values: Sequence[Sequence[str]]) -> list[int]:
    return [offered.index(value) for value, offered in zip(chosen, values, strict=False)]


def _axis(label: str, numbers: Sequence[float], logarithmic: bool) -> dict:
    """An axis that holds all these numbers, with ticks that one can read."""
    low, high = min(numbers), max(numbers)
    places: Iterable[float]
    write: Callable[[float], str]
    if logarithmic:
        span = [low / (high / low) ** 0.03, high * (high / low) ** 0.03]
        axis = Canvas().subplots(subplot_kw={"yscale": "log", "ylim": span}).yaxis
        log_ticks(axis)
        places, write = axis.get_majorticklocs(), axis.get_major_formatter()
    else:
        room = 0.03 * (high - low)
        span = [low - room if low else 0, high + room]
        places, write = ticker.MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(*span), "{:,.6g}".format
    ticks = [[float(place), write(place)] for place in places if span[0] <= place <= span[1]]
    return {"label": label, "log": logarithmic, "span": span, "ticks": ticks}


def _look(name: str) -> dict[str, str]:
    """An arm's colour, and the outline of its marker as an SVG path, one unit high with up positive; "" for none."""
    look = mark(name)
    return {"colour": to_hex(look["color"]), "outline": "".join(_strokes(look["marker"])) if "marker" in look else ""}


def _strokes(marker: str) -> Iterator[str]:
    style = MarkerStyle(marker)
    for numbers, code in style.get_path().transformed(style.get_transform()).iter_segments():
        letter = _LETTERS[code]
        yield letter if letter == "Z" else letter + " ".join(f"{number:.3g}" for number in numbers)


def _level(height: float, ends: tuple[float, float]) -> list[tuple[float, float]]:
    return [(end, height) for end in ends]


def _mean(rows: np.ndarray) -> tuple[float, float, float]:
    """Mean of one number a row, and the ends of its interval."""
    mean, _, low, high = ratio_interval(rows, np.ones(len(rows)))
    return mean, low, high


def _times(rows: np.ndarray) -> tuple[float, float, float]:
    """Ratio of two perplexities from differences in nats, one a row, and the ends of its interval."""
    value, low, high = map(math.exp, _mean(rows))
    return value, low, high


def _in_words(blocks: Sequence[int]) -> str:
    first, *_, last = blocks
    if last - first == len(blocks) - 1:
        return f"blocks {first} to {last}"
    return f"blocks {', '.join(map(str, blocks[:-1]))} and {last}"

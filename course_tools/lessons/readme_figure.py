"""Draw the README's figure from the record that lesson 03 shows, and write its sentence into the pages.

python -m course_tools.lessons.readme_figure
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from course_utils.support import plotting
from course_utils.support.files import replacing, write_text
from course_utils.support.records import read_record
from course_utils.support.uncertainty import ratio_interval

ROOT = Path(__file__).resolve().parents[2]
FIGURE = "docs/images/criteria.png"
PAGES = ("README.md", "docs/index.md")
KEY = "Shows"  # what the picture shows, kept inside it: matplotlib's versions draw the same data as other bytes
_VOCABULARY = 49_152  # SmolLM2's: a model that holds all tokens equally likely has this perplexity
_WIDTH, _HEIGHT, _DPI = 4.7, 4.3, 200  # inches: on a telephone's 360 pixels, 10 points are still 10 pixels
_ALT = (
    "The same model with 10 % of its MLP neurons removed in three ways. Perplexity, lower is better: whole model "
    "{whole}; most active neurons kept {active}, {ratio} × the random cut in the middle (95 %: {low} to {high}); "
    "removed at random {random}, the median of {cuts} cuts from {lowest} to {highest}; largest weights kept {weights}; "
    "blind guessing {guess}"
)


def shown() -> dict[str, str]:
    """The numbers as the figure prints them, from the record: float32, speeches.

    They are perplexities of the whole model, of guessing, of the cuts that keep the most active neurons and the largest
    weights, and of the best, the median and the worst random cut; how many random cuts there were; and the ratio of
    "active" to the median random cut, on the same rows of text, with its 95 % interval.
    """
    record = read_record("random_cuts").query("text == 'speeches' and dtype == 'float32' and draw == 0")
    cuts = record[(record.criterion == "random") & (record.edit == "shared")].sort_values("nats")
    middle, (active, weights) = cuts.iloc[len(cuts) // 2], (_cut(record, name) for name in ("activation", "L1"))
    nats = {"whole": _cut(record, "", "").nats, "guess": math.log(_VOCABULARY)}
    nats |= {"active": active.nats, "weights": weights.nats}
    nats |= {"lowest": cuts.nats.iloc[0], "random": middle.nats, "highest": cuts.nats.iloc[-1]}
    ratio, _, low, high = ratio_interval(active.rows - middle.rows, np.ones(len(active.rows)))
    ratios = {"ratio": ratio, "low": low, "high": high}
    numbers = {name: _perplexity(math.exp(value)) for name, value in nats.items()} | {"cuts": str(len(cuts))}
    return numbers | {name: f"{math.exp(value):.2f}" for name, value in ratios.items()}


def _cut(record: pd.DataFrame, criterion: str, edit: str = "shared") -> pd.Series:
    return record[(record.criterion == criterion) & (record.edit == edit)].iloc[0]


def _perplexity(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}"


def draw(numbers: dict[str, str]) -> Figure:
    """One bar a way of choosing, from the whole model's perplexity to that of the cut one."""
    plotting.style()
    ways = [
        ("keep the most active", numbers["active"], "activation"),
        ("pick at random (median)", numbers["random"], "random"),
        ("keep the largest weights", numbers["weights"], "L1"),
    ]
    figure, ax = plt.subplots(figsize=(_WIDTH, _HEIGHT), layout="constrained")
    figure.suptitle("Cut 10 % of a model's neurons:\nhow you choose them decides.", size=14, weight="bold")
    whole, guess, low, high = (_value(numbers[name]) for name in ("whole", "guess", "lowest", "highest"))
    for place, (way, text, name) in enumerate(ways):
        colour = plotting.mark(name)["color"]
        ax.barh(place, _value(text) - whole, left=whole, height=0.3, color=colour)
        number = ax.annotate(text, (whole, place - 0.33), (4, 0), textcoords="offset points", size=15, weight="bold")
        ax.annotate(way, (1, 0), (6, 4), xycoords=number, textcoords="offset points", size=11.5)
    ax.plot([low, high], [1, 1], color="black", linewidth=1.4, marker="|", markersize=8)
    ax.annotate(f"{numbers['cuts']} cuts", (high, 1), (6, 0), textcoords="offset points", size=10, va="center")
    for level, name, side in ((whole, f"whole model {numbers['whole']}", "left"), (guess, "blind guessing", "right")):
        ax.axvline(level, color=plotting.FLOOR_COLOUR, linewidth=1.4, linestyle=(0, (3, 2)) if level == guess else "-")
        ax.text(level, -0.78, name, size=10, ha=side, color=plotting.FLOOR_COLOUR)
    ax.set_xscale("log")
    ax.set_xlim(whole * 0.95, guess * 1.05)
    ax.set_ylim(2.35, -0.68)
    ax.set_yticks([])
    ax.set_xticks([100, 1_000, 10_000], ["100", "1,000", "10,000"], size=10)
    ax.set_xlabel("tokens it hesitates between (perplexity)", size=10.5)
    ax.grid(visible=False)
    sns.despine(ax=ax, left=True)
    return figure


def kept(numbers: dict[str, str]) -> str:
    """What a picture of these numbers keeps inside: JSON, with a sentence for readers who don't see it."""
    return json.dumps(numbers | {"alt": _ALT.format_map(numbers)})


def with_alt(page: str, numbers: dict[str, str]) -> str:
    """The Markdown page with the picture's sentence written anew."""
    picture = f"![{_ALT.format_map(numbers)}]"
    return re.sub(r"!\[[^\]]*\](?=\([\w/]*images/criteria\.png\))", lambda _: picture, page)


def main(root: Path = ROOT) -> None:
    """Draw the figure of the clone at `root`, and write its sentence into the pages that show it."""
    numbers = shown()
    figure = draw(numbers)
    with replacing(root / FIGURE) as fresh:
        metadata = {KEY: kept(numbers), "Software": None}
        figure.savefig(fresh, format="png", dpi=_DPI, metadata=metadata, pil_kwargs={"optimize": True})
    plt.close(figure)
    for page in (root / name for name in PAGES):
        write_text(page, with_alt(page.read_text(encoding="utf-8"), numbers))


def _value(text: str) -> float:
    return float(text.replace(",", ""))


if __name__ == "__main__":
    main()
    print(f"written: {FIGURE}, and its sentence in {' and '.join(PAGES)}")

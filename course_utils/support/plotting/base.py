"""One look for all figures: a style, a colour and a marker for each arm, and a sentence for who doesn't see them."""

from __future__ import annotations

import base64
import io
from typing import Any

import pandas as pd

from course_utils.support import checks
from course_utils.support.extras import brought

with brought("plots"):  # first of the package's modules: the others find it here
    import matplotlib.pyplot as plt
    import seaborn as sns

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
        name: a criterion ("L1", "activation", "peak-to-peak", "influence", "leave-one-out", "random"), "wrong" or
            "separate" sets, a part ("neurons", "attentions", "blocks", "channels") or a reader's "own choice", a rule
            for prompts ("one for all", "complexity", "published", "price"), a place that is patched ("at the word", "at
            the last token"), a group of occupations ("mostly women", "mostly men"), a way to heal ("KL", "solved + KL",
            "cross-entropy", "LoRA"), what is cut out ("stereotype") beside what shall stay ("woman/man"), the "whole"
            model, or the line of "guessing".

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

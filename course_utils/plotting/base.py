"""What begins and ends a figure: one style for the whole notebook, and a sentence for readers who don't see it."""

from __future__ import annotations

import base64
import io

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns


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

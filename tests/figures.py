"""A look at figures: that they render, and what their legends say."""

import io


def render(ax) -> None:
    png = io.BytesIO()
    ax.figure.savefig(png, format="png")
    assert png.getvalue().startswith(b"\x89PNG")


def legend(ax) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]

"""A look at figures: that they render."""

import io


def render(ax) -> None:
    png = io.BytesIO()
    ax.figure.savefig(png, format="png")
    assert png.getvalue().startswith(b"\x89PNG")

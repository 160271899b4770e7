"""Copy the README's figure out of lesson 03's saved outputs.

python -m course_tools.lessons.readme_figure
"""

from __future__ import annotations

import base64
from pathlib import Path

import nbformat

from course_utils.files import write_bytes

ROOT = Path(__file__).resolve().parents[2]
FIGURE, NOTEBOOK, CELL = ROOT / "docs/images/criteria.png", "03_*.ipynb", "Which neurons should go?"


def saved_figure() -> bytes:
    """The PNG that the notebook shows below the cell with ``CELL`` in its code."""
    (path,) = (ROOT / "notebooks").glob(NOTEBOOK)
    (cell,) = (c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code" and CELL in c.source)
    (png,) = (output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", {}))
    return base64.b64decode(png)


if __name__ == "__main__":
    print("written" if write_bytes(FIGURE, saved_figure()) else "unchanged", FIGURE.relative_to(ROOT).as_posix())

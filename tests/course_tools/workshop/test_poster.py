"""The poster: one page, and only numbers that the saved runs show."""

import dataclasses
import re
from pathlib import Path

import nbformat
import pytest

from course_tools.workshop import poster

ROOT = Path(__file__).resolve().parents[3]


def saved(panel):
    (path,) = (ROOT / "notebooks").glob(f"{panel.lesson}_*.ipynb")
    return nbformat.read(path, as_version=4)


@pytest.mark.parametrize("panel", poster.PANELS, ids=[panel.lesson for panel in poster.PANELS])
def test_sentences_say_what_the_saved_runs_show(panel):
    said = poster.sentence(panel, saved(panel))
    assert "{" not in said and panel.numbers
    shown = str(
        [
            output
            for cell in saved(panel).cells
            for output in cell.get("outputs", [])
            if "image/png" not in output.get("data", {})
        ]
    )
    for name, (label, _) in panel.numbers.items():
        assert f"{{{name}}}" in panel.says and "·" in label
    for number in set(re.findall(r"\d[\d,.]*\d", said)) - set(re.findall(r"\d[\d,.]*\d", panel.says)):
        assert number in shown
    assert len(re.findall(r"\d", panel.says)) <= 6, "measured numbers are read, not written"


def test_number_that_is_not_there_is_named():
    panel = dataclasses.replace(poster.PANELS[0], numbers={"l1": ("no · such number", 0)})
    with pytest.raises(ValueError, match="Lesson 01's saved run doesn't show 'no · such number'"):
        poster.sentence(panel, saved(panel))


def test_one_page_without_a_date(tmp_path):
    for name in ("a", "b"):
        figure = ROOT / "docs" / "images" / "criteria.png"
        poster.draw(ROOT / "notebooks", figure, tmp_path / f"{name}.pdf", course="https://example.org/course")
    data = (tmp_path / "a.pdf").read_bytes()
    assert data.startswith(b"%PDF") and len(re.findall(rb"/Type\s*/Page\b", data)) == 1 and b"CreationDate" not in data
    assert data == (tmp_path / "b.pdf").read_bytes()
    (width, height) = re.findall(rb"/MediaBox \[ 0 0 ([\d.]+) ([\d.]+) \]", data)[0]
    assert float(width) == pytest.approx(poster.WIDTH * 72) and float(height) == pytest.approx(poster.HEIGHT * 72)

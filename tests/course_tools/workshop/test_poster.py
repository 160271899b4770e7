"""The poster: one page, and only numbers that the saved runs show."""

import dataclasses
import itertools
import re
from pathlib import Path
from types import SimpleNamespace

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
        assert f"{{{name}}}" in panel.says and ("·" in label or "…" in label)
    for number in set(re.findall(r"\d[\d,.]*\d", said)) - set(re.findall(r"\d[\d,.]*\d", panel.says)):
        assert number in shown
    assert len(re.findall(r"\d", panel.says)) <= 6, "measured numbers are read, not written"


# What the sentences, or the drawings above them, say beside the numbers. Each has to follow from what was measured.
CLAIMS = {
    ("01", "l1"): lambda n: n.l1 > n.kept and n.beaten == 0 and n.better == n.cuts == 19,
    ("03", "l1"): lambda n: n.activation < n.random < n.l1,
    ("04", "alone"): lambda n: 0 < n.together < n.alone,
    ("05", "ratio"): lambda n: n.low < n.ratio < n.high < 1,
    ("06", "score"): lambda n: n.score > 2 * n.one,
    ("07", "cut"): lambda n: n.solved < n.cut / 2,
    ("08", "jobs"): lambda n: n.jobs > 3 * n.most and n.people > 50,
    ("09", "before"): lambda n: 0 < n.after < 0.75 * n.before and 0 < n.kept < 0.75 * n.known,
    ("10", "calm"): lambda n: n.whole < n.calm < n.bits,
    ("11", "cut_mb"): lambda n: n.whole_mb < n.cut_mb and n.whole < n.cut,
    ("12", "blocks"): lambda n: n.blocks < n.neurons / 2 and n.rest < n.left,
    ("13", "reap"): lambda n: n.reap < n.dice < n.frequency,
}


@pytest.mark.parametrize("panel", poster.PANELS, ids=[panel.lesson for panel in poster.PANELS])
def test_sentences_follow_from_their_numbers(panel):
    (claim,) = [claim for (lesson, name), claim in CLAIMS.items() if lesson == panel.lesson and name in panel.numbers]
    shown = {
        name: float(text.replace(",", "").replace("\N{MINUS SIGN}", "-"))
        for name, text in poster.numbers_shown(panel, saved(panel)).items()
    }
    assert claim(SimpleNamespace(**shown)), shown


def test_every_lesson_with_a_method_of_its_own_is_on_it():
    """Lesson 02 is how not to do what lesson 03 does."""
    lessons = {path.name[:2] for path in (ROOT / "lessons").glob("*.py")}
    assert {panel.lesson for panel in poster.PANELS} == lessons - {"02"}
    assert len(poster.PANELS) == len(list(poster._places()))


def wider(box, gap):
    return type(box).from_extents(box.x0 - gap, box.y0, box.x1 + gap, box.y1)


def test_every_line_fits_its_place(monkeypatch):
    monkeypatch.setattr(poster, "_picture", lambda drawing: [[0.0]])
    drawn = poster.sheet(ROOT / "notebooks", ROOT / "docs" / "images" / "criteria.png", course="https://example.org/x")
    drawn.canvas.draw()
    boxes = [(text.get_text(), text.get_window_extent()) for text in drawn.texts]
    right, bottom = drawn.bbox.x1, drawn.bbox.y0
    assert not [text for text, box in boxes if box.x1 > right or box.y0 < bottom]
    gap = 0.2 * drawn.dpi  # inches; columns that touch are read across
    assert not [(a[0], b[0]) for a, b in itertools.combinations(boxes, 2) if a[1].overlaps(wider(b[1], gap))]
    pictures = [ax.get_window_extent() for ax in drawn.axes]
    assert not [text for text, box in boxes if any(box.overlaps(picture) for picture in pictures)]
    poster.plt.close(drawn)


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

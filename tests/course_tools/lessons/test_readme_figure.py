"""The README's figure: drawn from the record that lesson 03 shows, fresh, and legible on a telephone."""

import itertools
import re

import matplotlib.pyplot as plt
import pytest
from PIL import Image

from course_tools.lessons import readme_figure

TELEPHONE = 360  # pixels that a picture gets on a screen of 390
MADE_UP = dict.fromkeys(("active", "random", "lowest"), "42.0") | {
    "whole": "30.0",
    "guess": "50,000",
    "weights": "9,876",
}
MADE_UP |= {"highest": "2,345", "cuts": "19", "ratio": "0.8", "low": "0.7", "high": "0.9"}


def shown_by(path):
    """What a drawn picture shows, as it was when it was drawn: JSON."""
    with Image.open(path) as picture:
        return picture.text.get(readme_figure.KEY)


@pytest.fixture(scope="module")
def numbers():
    return readme_figure.shown()


def test_figure_and_pages_show_the_record(numbers):
    told = f"run `python -m {readme_figure.__name__}`"
    assert shown_by(readme_figure.ROOT / readme_figure.FIGURE) == readme_figure.kept(numbers), told
    for page in readme_figure.PAGES:
        text = (readme_figure.ROOT / page).read_text(encoding="utf-8")
        assert readme_figure.with_alt(text, numbers) == text != readme_figure.with_alt(text, MADE_UP), told


@pytest.mark.parametrize("made_up", [True, False])
def test_legible_on_a_telephone(made_up, numbers):
    numbers = MADE_UP if made_up else numbers
    figure = readme_figure.draw(numbers)
    figure.canvas.draw()
    texts = [text for text in figure.findobj(plt.Text) if text.get_text().strip() and text.get_visible()]
    words = " ".join(text.get_text() for text in texts)
    assert all(numbers[name] in words for name in ("whole", "active", "random", "weights", "cuts"))
    assert min(text.get_fontsize() for text in texts) * TELEPHONE / (72 * figure.get_figwidth()) >= 10
    boxes = [text.get_window_extent() for text in texts]
    assert not [(a, b) for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)]
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)
    plt.close(figure)


def test_written_whole_on_white_paper(tmp_path, numbers):
    """Opaque: on a dark page as on a light one."""
    for page in readme_figure.PAGES:
        (tmp_path / page).parent.mkdir(exist_ok=True)
        (tmp_path / page).write_text("![old](images/criteria.png) ![other](images/x.png)\n", encoding="utf-8")
    readme_figure.main(tmp_path)
    with Image.open(tmp_path / readme_figure.FIGURE) as picture:
        assert picture.convert("RGBA").getextrema()[3] == (255, 255)
        assert picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    assert shown_by(tmp_path / readme_figure.FIGURE) == readme_figure.kept(numbers)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert re.fullmatch(r"!\[The same model .+\]\(images/criteria.png\) !\[other\]\(images/x.png\)\n", text)

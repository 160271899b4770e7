"""The README's figure: drawn from what lesson 03's saved run shows, fresh, and legible on a telephone."""

import dataclasses
import itertools
import re

import matplotlib.pyplot as plt
import nbformat
import pytest
from PIL import Image

from course_tools.lessons import readme_figure

TELEPHONE = 360  # pixels that a picture gets on a screen of 390
NUMBERS = readme_figure.Shown("30.0", "50,000", "32.1", "9,876", "40.2", "51.0", "2,345", "19", "0.8", "0.7", "0.9")


@pytest.fixture(scope="module")
def saved():
    (path,) = (readme_figure.ROOT / "notebooks").glob(readme_figure.NOTEBOOK)
    return nbformat.read(path, as_version=4)


def test_figure_shows_the_saved_run(saved):
    numbers = readme_figure.shown(saved)
    figure = readme_figure.ROOT / readme_figure.FIGURE
    assert readme_figure.read(figure) == readme_figure.kept(numbers), f"run `python -m {readme_figure.__name__}`"
    assert readme_figure.kept(numbers) != readme_figure.kept(dataclasses.replace(numbers, active="39.8"))


@pytest.mark.parametrize("page", readme_figure.PAGES)
def test_pages_say_what_the_figure_shows(page, saved):
    text = (readme_figure.ROOT / page).read_text(encoding="utf-8")
    numbers = readme_figure.shown(saved)
    assert text.count(f"![{readme_figure.alt(numbers)}](") == 1
    assert readme_figure.with_alt(text, numbers) == text, f"run `python -m {readme_figure.__name__}`"
    assert readme_figure.with_alt(text, NUMBERS).count(readme_figure.alt(NUMBERS)) == 1


def test_number_that_is_not_there_is_named(saved):
    kept = [cell for cell in saved.cells if "random cuts as good" not in str(cell.get("outputs"))]
    with pytest.raises(ValueError, match="doesn't show 'activation · random cuts as good'"):
        readme_figure.shown(nbformat.v4.new_notebook(cells=kept))


@pytest.mark.parametrize("numbers", [NUMBERS, None], ids=["made up", "saved"])
def test_legible_on_a_telephone(numbers, saved):
    numbers = numbers or readme_figure.shown(saved)
    figure = readme_figure.draw(numbers).figure
    figure.canvas.draw()
    texts = [text for text in figure.findobj(plt.Text) if text.get_text().strip() and text.get_visible()]
    words = " ".join(text.get_text() for text in texts)
    for number in (numbers.whole, numbers.active, numbers.random, numbers.weights, f"{numbers.cuts} cuts"):
        assert number in words
    pixels = TELEPHONE / (72 * figure.get_figwidth())
    assert min(text.get_fontsize() for text in texts) * pixels >= 10
    boxes = [text.get_window_extent() for text in texts]
    assert not [(a, b) for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)]
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)
    plt.close(figure)


def test_written_whole_on_white_paper(tmp_path, saved):
    """Opaque: on a dark page as on a light one."""
    (tmp_path / "notebooks").mkdir()
    nbformat.write(saved, tmp_path / "notebooks" / "03_made_up.ipynb")
    for page in readme_figure.PAGES:
        (tmp_path / page).parent.mkdir(exist_ok=True)
        (tmp_path / page).write_text("![old](images/criteria.png) ![other](images/x.png)\n", encoding="utf-8")
    readme_figure.main(tmp_path)
    with Image.open(tmp_path / readme_figure.FIGURE) as picture:
        assert picture.convert("RGBA").getextrema()[3] == (255, 255)
        assert picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    assert readme_figure.read(tmp_path / readme_figure.FIGURE) == readme_figure.kept(readme_figure.shown(saved))
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert re.fullmatch(r"!\[The same model .+\]\(images/criteria.png\) !\[other\]\(images/x.png\)\n", text)

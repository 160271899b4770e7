"""Drawings render with everything inside the picture, and mark what they are asked to mark."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pytest
from matplotlib.patches import Rectangle

from course_utils.lessons import diagrams
from course_utils.support import plotting

DRAWINGS = {
    "gpt2_block": [{}],
    "glu_block": [{}, {"neuron": None}],
    "attention_bypass": [{}],
    "hidden_channel": [{}],
    "mixture_of_experts": [{}],
}


@pytest.fixture(autouse=True)
def fresh_figures():
    with plt.rc_context():
        yield
    plt.close("all")


@pytest.mark.parametrize(
    ("name", "options"), [(name, options) for name, cases in DRAWINGS.items() for options in cases]
)
def test_everything_lies_inside_the_picture(name, options):
    plotting.style()
    ax = getattr(diagrams, name)(**options)
    figure = ax.figure
    figure.canvas.draw()
    page = figure.bbox
    assert ax.get_title()
    for text in ax.texts:
        if text.get_text():
            box = text.get_window_extent()
            assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1, text.get_text()


def test_every_drawing_is_tested():
    public = {name for name, thing in vars(diagrams).items() if getattr(thing, "__module__", "") == diagrams.__name__}
    assert {name for name in public if not name.startswith("_")} == set(DRAWINGS)


@pytest.mark.parametrize("name", ["gpt2_block", "glu_block"])
def test_one_neuron_is_hatched_in_three_pieces(name):
    ax = getattr(diagrams, name)(neuron=4)
    hatched = [patch for patch in ax.patches if isinstance(patch, Rectangle) and patch.get_hatch()]
    assert len(hatched) == 3


def test_a_glu_without_a_marked_neuron_tells_of_none():
    ax = diagrams.glu_block(neuron=None)
    assert not [patch for patch in ax.patches if isinstance(patch, Rectangle) and patch.get_hatch()]
    assert not any("hatched" in text.get_text() for text in ax.texts)

"""A figure begins in the course's style and ends with its sentence."""

import base64
import itertools

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from course_utils.support.plotting import base


def test_style_is_applied_only_when_asked_and_twice_is_once():
    assert plt.rcParams["axes.titleweight"] == matplotlib.rcParamsDefault["axes.titleweight"]
    base.style()
    once = dict(plt.rcParams)
    base.style()
    assert dict(plt.rcParams) == once
    assert plt.rcParams["font.size"] > matplotlib.rcParamsDefault["font.size"]


FIGURES = {
    "criteria": ["L1", "activation", "peak-to-peak", "influence", "leave-one-out", "random", "wrong", "whole"],
    "parts": ["neurons", "attentions", "blocks", "whole"],
    "versions": ["neurons", "attentions", "blocks", "channels", "own choice"],
    "rules": ["one for all", "complexity", "published", "price"],
    "places": ["at the word", "at the last token", "random"],
    "groups": ["mostly women", "mostly men"],
    "what a cut takes": ["neurons", "stereotype", "woman/man", "random"],
    "ways to heal": ["KL", "solved + KL", "cross-entropy", "LoRA"],
}
# What eyes without one of the three cones make of red, green and blue (Machado et al. 2009, at full severity).
EYES = {
    "all cones": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "no red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "no blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def linear(colour):
    rgb = np.array(to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    """CIELAB of linear red, green and blue; a distance of 2 is just seen."""
    share = TO_XYZ @ np.clip(rgb, 0, 1) / np.array([0.95047, 1, 1.08883])
    x, y, z = np.where(share > 0.008856, np.cbrt(share), 7.787 * share + 4 / 29)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("eyes", EYES)
@pytest.mark.parametrize("arms", FIGURES.values(), ids=FIGURES)
def test_arms_of_a_figure_are_told_apart_by_colour(arms, eyes):
    seen = {arm: lab(np.array(EYES[eyes]) @ linear(base.mark(arm)["color"])) for arm in arms}
    for one, other in itertools.combinations(arms, 2):
        assert np.linalg.norm(seen[one] - seen[other]) > 12, (one, other)


@pytest.mark.parametrize("arms", FIGURES.values(), ids=FIGURES)
def test_arms_of_a_figure_are_told_apart_in_grey_by_their_markers(arms):
    assert len({base.mark(arm)["marker"] for arm in arms}) == len(arms)


def test_marks_are_readable_on_a_projector_and_all_tried():
    for arm in base._MARKS:
        luminance = TO_XYZ[1] @ linear(base.mark(arm)["color"])
        assert 1.05 / (luminance + 0.05) >= 3, f"{arm} is too pale on white"
    assert base._MARKS.keys() == {*itertools.chain(*FIGURES.values()), "separate", "guessing"}
    assert base.mark("separate") | {"label": "wrong"} == base.mark("wrong")


def test_mark_draws_a_line_and_a_floor_and_is_a_fresh_one():
    (line,) = plt.plot([1, 2], **base.mark("L1"))
    assert (line.get_marker(), line.get_label()) == ("s", "L1")
    assert plt.axhline(3, **base.mark("guessing")).get_linestyle() == "--", "dashes of its own"
    base.mark("L1")["color"] = "red"
    assert base.mark("L1")["color"] != "red"
    with pytest.raises(ValueError, match="'name' must be one of L1, .*; got 'l1'"):
        base.mark("l1")


def test_show_sends_the_picture_with_its_sentence_and_closes_it(monkeypatch):
    sent = {}
    monkeypatch.setattr("IPython.display.display", lambda data, **rest: sent.update(data=data, **rest))
    plt.plot([1, 2])
    base.show("A line that rises from 1 to 2.")
    assert base64.b64decode(sent["data"]["image/png"]).startswith(b"\x89PNG")
    assert sent["data"]["text/plain"] == sent["metadata"]["image/png"]["alt"] == "A line that rises from 1 to 2."
    assert not plt.get_fignums()


def test_show_refuses_no_figure_and_no_sentence():
    with pytest.raises(ValueError, match="no figure to show"):
        base.show("A line that rises from 1 to 2.")
    plt.plot([1, 2])
    with pytest.raises(ValueError, match="what stands out"):
        base.show("Perplexity")
    assert plt.get_fignums()

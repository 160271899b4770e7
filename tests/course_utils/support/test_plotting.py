"""Figures: one style, arms that everybody can tell apart, matrices with their numbers, and a sentence at the end."""

import base64
import itertools

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from figures import render
from matplotlib.colors import to_rgb

from course_utils.support import plotting

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def fresh_figures():
    yield
    plt.close("all")


def test_style_is_applied_only_when_asked_and_twice_is_once():
    assert plt.rcParams["axes.titleweight"] == matplotlib.rcParamsDefault["axes.titleweight"]
    plotting.style()
    once = dict(plt.rcParams)
    plotting.style()
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
    seen = {arm: lab(np.array(EYES[eyes]) @ linear(plotting.mark(arm)["color"])) for arm in arms}
    for one, other in itertools.combinations(arms, 2):
        assert np.linalg.norm(seen[one] - seen[other]) > 12, (one, other)


@pytest.mark.parametrize("arms", FIGURES.values(), ids=FIGURES)
def test_arms_of_a_figure_are_told_apart_in_grey_by_their_markers(arms):
    assert len({plotting.mark(arm)["marker"] for arm in arms}) == len(arms)


def test_marks_are_readable_on_a_projector_and_all_tried():
    for arm in plotting._MARKS:
        luminance = TO_XYZ[1] @ linear(plotting.mark(arm)["color"])
        assert 1.05 / (luminance + 0.05) >= 3, f"{arm} is too pale on white"
    assert plotting._MARKS.keys() == {*itertools.chain(*FIGURES.values()), "separate", "guessing"}
    assert plotting.mark("separate") | {"label": "wrong"} == plotting.mark("wrong")


def test_mark_draws_a_line_and_a_floor_and_is_a_fresh_one():
    (line,) = plt.plot([1, 2], **plotting.mark("L1"))
    assert (line.get_marker(), line.get_label()) == ("s", "L1")
    assert plt.axhline(3, **plotting.mark("guessing")).get_linestyle() == "--", "dashes of its own"
    plotting.mark("L1")["color"] = "red"
    assert plotting.mark("L1")["color"] != "red"


def test_show_sends_the_picture_with_its_sentence_and_closes_it(monkeypatch):
    sent = {}
    monkeypatch.setattr("IPython.display.display", lambda data, **rest: sent.update(data=data, **rest))
    with pytest.raises(ValueError, match="no figure to show"):
        plotting.show("A line that rises from 1 to 2.")
    plt.plot([1, 2])
    with pytest.raises(ValueError, match="what stands out"):
        plotting.show("Perplexity")
    assert plt.get_fignums()
    plotting.show("A line that rises from 1 to 2.")
    assert base64.b64decode(sent["data"]["image/png"]).startswith(b"\x89PNG")
    assert sent["data"]["text/plain"] == sent["metadata"]["image/png"]["alt"] == "A line that rises from 1 to 2."
    assert not plt.get_fignums()


def test_heatmap_writes_its_numbers():
    ax = plotting.heatmap(
        pd.DataFrame([[1.0, 2.0], [3.0, 4.5]], index=["a", "b"], columns=["c", "d"]),
        x_label="evaluated on", y_label="calibrated on", value_label="perplexity", fmt=".1f",
    )  # fmt: skip
    render(ax)
    assert [text.get_text() for text in ax.texts] == ["1.0", "2.0", "3.0", "4.5"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("evaluated on", "calibrated on")
    assert ax.collections[0].colorbar.ax.get_ylabel() == "perplexity"


def test_heatmaps_share_a_scale_when_told_and_tilt_long_labels():
    labels = {"x_label": "site", "y_label": "block", "value_label": "ratio"}
    matrix = pd.DataFrame([[0.9, 1.6], [np.nan, 1.0]], columns=["attention_out and_more", "mlp_out and_more"])
    ax = plotting.heatmap(matrix, center=1.0, limit=0.5, numbers=False, **labels)
    render(ax)
    assert ax.collections[0].get_clim() == (0.5, 1.5)
    assert ax.collections[0].colorbar.extend == "both"  # 1.6 lies beyond
    assert not ax.texts
    assert [label.get_text() for label in ax.get_xticklabels()] == [*matrix.columns]
    assert {label.get_rotation() for label in ax.get_xticklabels()} == {20.0}
    ax = plotting.heatmap(matrix, center=1.0, limit=1.0, **labels)
    assert ax.collections[0].get_clim() == (0.0, 2.0) and ax.collections[0].colorbar.extend == "neither"
    assert [text.get_text() for text in ax.texts] == ["0.90", "1.60", "1.00"]
    for bad in ({"limit": 0.5}, {"limit": 0.0, "center": 1.0}, {"limit": -1.0, "center": 1.0}):
        with pytest.raises(ValueError, match="distance above 0"):
            plotting.heatmap(matrix, **bad, **labels)


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (1, 40, ["1", "2", "5", "10", "20"]),
        (30, 100, ["30", "50", "70"]),
        (1, 2, ["1.2", "1.6"]),
        (10, 20_000, ["10", "100", "1,000", "10,000"]),
        (1, 1e9, ["$"]),
    ],
)
def test_log_ticks_are_numbers_that_one_can_read(low, high, labels):
    _, ax = plt.subplots()
    ax.set_yscale("log")
    ax.set_ylim(low, high)
    plotting.log_ticks(ax.yaxis)
    render(ax)
    found = [label.get_text() for label in ax.get_yticklabels()]
    assert all(any(label in text for text in found) for label in labels)
    assert not any(label.get_text() for label in ax.get_yticklabels(minor=True))

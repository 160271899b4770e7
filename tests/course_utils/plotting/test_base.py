"""A figure begins in the course's style and ends with its sentence."""

import base64

import matplotlib
import matplotlib.pyplot as plt
import pytest

from course_utils.plotting import base


def test_style_is_applied_only_when_asked_and_twice_is_once():
    assert plt.rcParams["axes.titleweight"] == matplotlib.rcParamsDefault["axes.titleweight"]
    base.style()
    once = dict(plt.rcParams)
    base.style()
    assert dict(plt.rcParams) == once
    assert plt.rcParams["font.size"] > matplotlib.rcParamsDefault["font.size"]


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

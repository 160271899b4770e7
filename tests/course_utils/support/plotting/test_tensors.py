"""Matrices render, with their numbers and scales."""

import numpy as np
import pandas as pd
import pytest
from figures import render

from course_utils.support.plotting import tensors


def test_heatmap_writes_its_numbers():
    ax = tensors.heatmap(
        pd.DataFrame([[1.0, 2.0], [3.0, 4.5]], index=["a", "b"], columns=["c", "d"]),
        x_label="evaluated on", y_label="calibrated on", value_label="perplexity", fmt=".1f",
    )  # fmt: skip
    render(ax)
    assert [text.get_text() for text in ax.texts] == ["1.0", "2.0", "3.0", "4.5"]
    assert ax.collections[0].colorbar.ax.get_ylabel() == "perplexity"


def test_heatmaps_share_a_scale_when_told():
    labels = {"x_label": "site", "y_label": "block", "value_label": "ratio"}
    matrix = pd.DataFrame([[0.9, 1.6], [np.nan, 1.0]], columns=["attention_out", "mlp_out"])
    ax = tensors.heatmap(matrix, center=1.0, limit=0.5, numbers=False, **labels)
    render(ax)
    assert ax.collections[0].get_clim() == (0.5, 1.5)
    assert ax.collections[0].colorbar.extend == "both"  # 1.6 lies beyond
    assert not ax.texts
    ax = tensors.heatmap(matrix, center=1.0, limit=1.0, **labels)
    assert ax.collections[0].get_clim() == (0.0, 2.0) and ax.collections[0].colorbar.extend == "neither"
    assert [text.get_text() for text in ax.texts] == ["0.90", "1.60", "1.00"]
    for bad in ({"limit": 0.5}, {"limit": 0.0, "center": 1.0}, {"limit": -1.0, "center": 1.0}):
        with pytest.raises(ValueError, match="distance above 0"):
            tensors.heatmap(matrix, **bad, **labels)


def test_long_labels_are_tilted():
    sites = ["attention_out", "mlp_out", "down_input", "attention_norm"]
    ax = tensors.heatmap(pd.DataFrame(np.eye(4), columns=sites), x_label="x", y_label="y", value_label="v")
    render(ax)
    assert [label.get_text() for label in ax.get_xticklabels()] == sites
    assert {label.get_rotation() for label in ax.get_xticklabels()} == {20.0}

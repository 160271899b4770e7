"""Curves render, and carry the labels, floors and bands that they promise."""

import numpy as np
import pandas as pd
import pytest
from figures import legend, render

from course_utils.plotting import curves


@pytest.fixture
def curve() -> pd.DataFrame:
    ratios = [0.0, 0.2, 0.4]
    rows = [
        {"criterion": name, "ratio": ratio, "value": 10 * factor**ratio, "ci_low": 9.0, "ci_high": 11 * factor**ratio}
        for name, factor in (("l1", 100), ("activation", 5))
        for ratio in ratios
    ]
    rows += [
        {"criterion": "random", "ratio": ratio, "value": 10 * (20 + seed) ** ratio}
        for seed in range(5)
        for ratio in ratios
    ]
    return pd.DataFrame(rows)


def test_pruning_curve_shows_groups_and_control(curve):
    ax = curves.pruning_curve(curve, x_label="neurons removed (%)", y_label="accuracy")
    render(ax)
    assert legend(ax) == ["random (mean ± sd, n = 5)", "l1", "activation"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("neurons removed (%)", "accuracy")
    assert "20%" in [tick.get_text() for tick in ax.get_xticklabels()]
    assert len(ax.collections) == 3  # one band each


def test_the_controls_band_is_one_standard_deviation(curve):
    ax = curves.pruning_curve(curve, x_label="x", y_label="perplexity")
    render(ax)
    values = curve.query("criterion == 'random' and ratio == 0.4")["value"]
    low, high = values.mean() - values.std(), values.mean() + values.std()
    band = ax.collections[0].get_paths()[0].vertices
    np.testing.assert_allclose([band[band[:, 0] == 0.4, 1].min(), band[band[:, 0] == 0.4, 1].max()], [low, high])


def test_a_line_for_each_axis_with_its_interval_beside_the_control():
    """What the differential view needs: ``pruning_curve`` over blocks."""
    rows = [
        {"axis": name, "block": block, "value": level, "ci_low": level - 0.1, "ci_high": level + 0.2}
        for name, level in (("gender", 1.2), ("neutral", 1.0))
        for block in range(4)
    ]
    ax = curves.pruning_curve(
        pd.DataFrame(rows), x="block", group="axis", control="neutral", x_percent=False,
        x_label="block", y_label="ratio",
    )  # fmt: skip
    render(ax)
    assert legend(ax) == ["neutral", "gender"]
    for band, level in zip(ax.collections, (1.0, 1.2), strict=True):
        heights = band.get_paths()[0].vertices[:, 1]
        assert (heights.min(), heights.max()) == pytest.approx((level - 0.1, level + 0.2))


def test_curves_refuse_what_they_cannot_draw(curve):
    with pytest.raises(ValueError, match="accuracy"):
        curves.pruning_curve(curve, x="accuracy", x_label="x", y_label="y")
    with pytest.raises(ValueError, match="no rows"):
        curves.pruning_curve(curve[:0], x_label="x", y_label="y")

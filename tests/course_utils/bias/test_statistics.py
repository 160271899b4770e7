"""Sums over cells by hand; ``test_reporting`` has the tables, their intervals and how often they are wrong."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from course_utils.bias.statistics import means, require_neutral, sums_by_cell, with_holm

ITEMS = pd.DataFrame(
    {
        "template": ["t0", "t0", "t1", "t1"],
        "swap": ["s0", "s0", "s0", "s1"],
        "preference": [1.0, 2.0, 4.0, 8.0],
    }
)


def test_cells_hold_their_sum_and_count():
    table = sums_by_cell(ITEMS, ["preference"], ["t0", "t1", "t2"])
    assert table.tolist() == [[[3, 2], [0, 0]], [[4, 1], [8, 1]], [[0, 0], [0, 0]]]  # [templates, swaps, columns + 1]
    assert means(table.sum(axis=(0, 1))).tolist() == [15 / 4]


def test_mean_of_an_empty_cell_is_nan():
    assert math.isnan(means(np.zeros(2))[0])


def test_neutral_swaps_are_required():
    require_neutral(pd.DataFrame({"axis": ["gender", "neutral"]}))
    with pytest.raises(ValueError, match="no neutral pairs"):
        require_neutral(pd.DataFrame({"axis": ["gender"]}))


def test_p_values_are_adjusted_for_axes_and_not_for_controls():
    table = with_holm(
        pd.DataFrame(
            {
                "axis": ["gender", "age", "neutral"],
                "kind": ["demographic", "demographic", "neutral"],
                "p": [0.01, 0.04, 0.5],
            }
        )
    )
    assert table["p_holm"].tolist()[:2] == pytest.approx([0.02, 0.04])
    assert math.isnan(table["p_holm"][2])

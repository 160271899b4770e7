"""Comparisons render, with each point and interval in its place, and say what isn't drawn."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from figures import legend, render

from course_utils.plotting import comparisons


def test_scores_with_intervals_draws_points_and_floors():
    rows = [
        {
            "model": model,
            "task": task,
            "value": 0.4,
            "ci_low": 0.3,
            "ci_high": 0.55,
            "chance": chance,
            "majority": np.nan,
        }
        for model in ("unpruned", "20 % pruned")
        for task, chance in (("lambada_openai", 0.0), ("arc_easy", 0.25), ("hellaswag", 0.25), ("winogrande", 0.5))
    ]
    frame = pd.DataFrame(rows)
    ax = comparisons.scores_with_intervals(frame, x_label="task", y_label="accuracy")
    render(ax)
    assert legend(ax) == ["chance", "unpruned", "20 % pruned"]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == list(dict.fromkeys(frame["task"]))
    assert sorted(x for bar in ax.containers for x in bar[0].get_xdata())[:2] == [-0.25, 0.25], "side by side"
    one_each = frame.groupby("task", sort=False).first().reset_index().assign(model=["a", "b", "b", "a"])
    alone = comparisons.scores_with_intervals(one_each, x_label="task", y_label="accuracy", ax=plt.figure().subplots())
    placed = [x for bar in alone.containers for x in bar[0].get_xdata()]
    assert sorted(placed) == [0, 1, 2, 3], "a single point stands over its label"
    with pytest.raises(ValueError, match="metric"):
        comparisons.scores_with_intervals(pd.concat([frame, frame]), x_label="task", y_label="accuracy")

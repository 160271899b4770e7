"""What figures share: ticks that one can read."""

import matplotlib.pyplot as plt
import pytest
from figures import render

from course_utils.support.plotting import parts


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
    parts.log_ticks(ax.yaxis)
    render(ax)
    found = [label.get_text() for label in ax.get_yticklabels()]
    assert all(any(label in text for text in found) for label in labels)
    assert not any(label.get_text() for label in ax.get_yticklabels(minor=True))

"""What figures share: colours and markers that repeat, ticks that one can read, labels that don't touch."""

import matplotlib.pyplot as plt
import pytest
from figures import render

from course_utils.plotting import parts


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


def test_groups_beyond_the_last_colour_or_marker_begin_again():
    assert len({parts.colour_of(number) for number in range(10)}) == 10 and parts.colour_of(10) == parts.colour_of(0)
    assert len({parts.marker_of(number) for number in range(10)}) == 10 and parts.marker_of(10) == parts.marker_of(0)

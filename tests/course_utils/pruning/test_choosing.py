"""As many stay as were asked for, the highest ones, in their old order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from course_utils.pruning.choosing import best, by_halves, kept_width, strongest


@example(width=100, percent=29, multiple=1)  # 0.29 * 100 is 28.999999999999996
@given(width=st.integers(1, 20000), percent=st.integers(0, 99), multiple=st.sampled_from([1, 8, 64, 128]))
def test_kept_width(width, percent, multiple):
    kept = kept_width(width, percent / 100, multiple)
    exact = width - width * percent // 100  # integers don't round
    assert 1 <= exact <= kept <= width
    assert kept < exact + multiple
    assert kept % multiple == 0 or kept == width


def test_the_strongest_stay_in_their_old_order_and_of_equals_the_first():
    scores = torch.tensor([3.0, 1.0, 5.0, 1.0, 4.0, 1.0])
    kept = strongest(scores, 0.4)  # floor(2.4) go
    assert kept.tolist() == [0, 1, 2, 4] and kept.dtype == torch.int64
    assert strongest(scores, 0.4, multiple_of=5).tolist() == [0, 1, 2, 3, 4]
    assert strongest(scores, 0.0).tolist() == list(range(6))
    for ratio in (1.0, -0.1, 40, float("nan"), "0.4"):
        with pytest.raises(ValueError, match=r"\[0, 1\)"):
            strongest(scores, ratio)


def test_of_many_equal_scores_the_lower_numbers_stay():
    # Many, because a careless sort keeps the order of a few.
    scores = torch.randint(0, 3, (5000,), generator=torch.Generator().manual_seed(0)).float()
    order = sorted(range(5000), key=lambda number: (-scores[number], number))
    assert best(scores, 1000).tolist() == sorted(order[:1000])


@pytest.mark.parametrize("guilty", [0, 17, 49, 50, 98])
def test_the_needed_one_is_found_in_two_calls_a_step(guilty):
    calls = []

    def harm(back):
        calls.append(back)
        return 1.5 - 0.5 * (guilty in back)

    assert by_halves(range(99), harm) == guilty
    assert len(calls) <= 14
    with pytest.raises(ValueError, match="'suspects' is empty"):
        by_halves([], harm)


def test_of_two_needed_ones_the_one_that_heals_more_is_followed():
    heals = {3: 0.4, 60: 0.5}
    assert by_halves(range(64), lambda back: 1 - sum(heals.get(one, 0) for one in back)) == 60

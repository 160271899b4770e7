"""Savings and choices on tables small enough to work out by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from course_utils.lessons.policies import (
    by_level,
    cheapest_guess,
    outcome,
    price_for,
    static_harm,
)
from course_utils.lessons.prompt_harm import Record

HARM = np.array([[0.0, 0.1, 0.4], [0.0, 0.3, 0.5], [0.0, 0.2, 0.9]])
SAVED = np.array([[0.0, 0.01, 0.02], [0.0, 0.02, 0.04], [0.0, 0.1, 0.2]])


NAMES = np.array(list("abcd"))
RECORD = Record(
    settings={},
    choosing=0,
    kinds=NAMES,
    documents=NAMES,
    digests=NAMES,
    numbers=(0, 1, 2, 3),
    tokens=np.array([7, 1, 19, 4]),
    answer_tokens=np.array([32, 5, 32, 9]),
    harm=np.tile([0.0, 0.1, 0.3, 0.6], (4, 1)),
    complexity=np.array([0.0, 1.0, 0.4, 0.6]),
)


def test_levels_share_the_prompts_that_choose():
    record = dataclasses.replace(RECORD, choosing=2)
    assert by_level(record, (3, 1)).tolist() == [3, 1]
    assert by_level(record, (2,)).tolist() == [2, 2]
    with pytest.raises(ValueError, match="'left_out' must hold one number for each level, among 0, 1, 2, 3; got"):
        by_level(record, (5, 0))


def test_outcome_and_static_mixtures():
    saved, harm = outcome(HARM, SAVED, np.array([2, 0, 1]))
    assert saved == pytest.approx(0.12)
    assert harm == pytest.approx(0.2)
    assert static_harm(HARM, SAVED, 0.065) == pytest.approx(0.1)  # half of the way to the first number


def test_static_arm_may_toss_a_coin_between_numbers_far_apart():
    """Number 1 costs 0.3 for a third of the saving; a coin between 0 and 2 pays 0.2 for it."""
    harm, saved = np.tile([0.0, 0.3, 0.6], (3, 1)), np.tile([0.0, 0.01, 0.03], (3, 1))
    assert static_harm(harm, saved, np.array([0.03, 0.045, 0.09])) == pytest.approx([0.2, 0.3, 0.6])


def test_rule_with_a_price():
    assert cheapest_guess(HARM, SAVED, 0.0).tolist() == [0, 0, 0]
    assert cheapest_guess(HARM, SAVED, 1e6).tolist() == [2, 2, 2]
    assert cheapest_guess(HARM, SAVED, 3.0).tolist() == [0, 0, 1]
    price = price_for(HARM, SAVED, 0.1)
    assert outcome(HARM, SAVED, cheapest_guess(HARM, SAVED, price))[0] >= 0.1
    with pytest.raises(ValueError, match=r"at most 0\.260"):
        price_for(HARM, SAVED, 0.5)

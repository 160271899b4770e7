"""Savings and choices on tables small enough to work out by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from course_utils.lessons.policies import (
    by_level,
    by_price,
    cache_saved,
    cheapest_guess,
    gap_to_static,
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
    published=np.array([], dtype=int),
)


def test_cache_by_hand():
    cache = cache_saved(RECORD, blocks=4)
    tokens = np.array([39, 6, 51, 13])
    np.testing.assert_allclose(cache, tokens[:, None] * np.arange(4) / (4 * 109))


def test_levels_share_the_prompts_that_choose():
    record = dataclasses.replace(RECORD, choosing=2)
    assert by_level(record, (3, 1)).tolist() == [3, 1]
    assert by_level(record, (2,)).tolist() == [2, 2]
    with pytest.raises(ValueError, match="'left_out' must hold one number for each level, among 0, 1, 2, 3; got"):
        by_level(record, (5, 0))


def test_price_is_set_on_the_prompts_that_choose():
    """Two choose, of 27 and 21 tokens with a mean answer of 20; the two that judge have 39 and 24."""
    record = dataclasses.replace(RECORD, choosing=2, answer_tokens=np.array([35, 5, 99, 99]))
    choice, price = by_price(record, 4, share=0.2)
    assert price == pytest.approx(0.1 / 21)  # at 0.1 / 27 only the longer one leaves one out, which saves 27 / 192
    assert choice.tolist() == [1, 1]
    whole, _ = by_price(record, 4, share=0.75)
    assert whole.tolist() == [3, 3]
    with pytest.raises(ValueError, match="'share' must lie from 0 to 0.750"):
        by_price(record, 4, 0.76)


def test_outcome_and_static_mixtures():
    saved, harm = outcome(HARM, SAVED, np.array([2, 0, 1]))
    assert saved == pytest.approx(0.12)
    assert harm == pytest.approx(0.2)
    assert static_harm(HARM, SAVED, 0.065) == pytest.approx(0.1)  # half of the way to the first number


def test_static_arm_may_toss_a_coin_between_numbers_far_apart():
    """Number 1 costs 0.3 for a third of the saving; a coin between 0 and 2 pays 0.2 for it."""
    harm, saved = np.tile([0.0, 0.3, 0.6], (3, 1)), np.tile([0.0, 0.01, 0.03], (3, 1))
    assert static_harm(harm, saved, np.array([0.03, 0.045, 0.09])) == pytest.approx([0.2, 0.3, 0.6])
    gap, _, _ = gap_to_static(harm, saved, np.ones(3, dtype=int), ["a", "b", "c"])
    assert gap == pytest.approx(0.1)


def test_a_static_choice_has_no_gap():
    harm = HARM.copy()
    harm[1, 1] = 0.2  # convex in each document, so that no draw has a mixture below the number everywhere
    for column in (1, 2):
        gap, low, high = gap_to_static(harm, SAVED, np.full(3, column), ["a", "b", "c"])
        assert (gap, low, high) == pytest.approx((0, 0, 0), abs=1e-12)


def test_static_arm_follows_the_cost_of_each_draw():
    generator = np.random.default_rng(0)
    tokens = np.exp(generator.uniform(0, 6, 300))
    saved = tokens[:, None] / tokens.sum() * np.array([0, 0.1, 0.2])
    harm = np.tile([0.0, 0.1, 0.2], (300, 1))  # a straight line: who is chosen makes no difference but for the cost
    choice = generator.integers(0, 3, 300)
    gap, low, high = gap_to_static(harm, saved, choice, np.arange(300))
    assert low < 0 < high
    assert abs(gap) < 0.02
    by_length = np.searchsorted(np.quantile(tokens, [1 / 3, 2 / 3]), tokens)
    assert gap_to_static(harm, saved, by_length, np.arange(300))[2] < 0
    assert gap_to_static(harm, saved, 2 - by_length, np.arange(300))[1] > 0


def test_documents_are_drawn_whole():
    generator = np.random.default_rng(1)
    effect = np.repeat(generator.normal(0, 0.1, 20), 30)
    harm = np.stack([np.zeros(600), 0.5 + effect, 1 + effect], axis=1)
    saved = np.tile([0, 0.1 / 600, 0.2 / 600], (600, 1))
    choice = generator.permutation(np.repeat([0, 2], 300))
    few, many = (
        gap_to_static(harm, saved, choice, documents) for documents in (np.repeat(np.arange(20), 30), np.arange(600))
    )
    assert few[0] == pytest.approx(many[0])


def test_rule_with_a_price():
    assert cheapest_guess(HARM, SAVED, 0.0).tolist() == [0, 0, 0]
    assert cheapest_guess(HARM, SAVED, 1e6).tolist() == [2, 2, 2]
    assert cheapest_guess(HARM, SAVED, 3.0).tolist() == [0, 0, 1]
    price = price_for(HARM, SAVED, 0.1)
    assert outcome(HARM, SAVED, cheapest_guess(HARM, SAVED, price))[0] >= 0.1
    with pytest.raises(ValueError, match=r"at most 0\.260"):
        price_for(HARM, SAVED, 0.5)

"""Savings, choices and bounds on tables small enough to work out by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from course_utils.policies import (
    cache_saved,
    cheapest_guess,
    gap_to_static,
    least_harm,
    outcome,
    price_for,
    seconds_saved,
    shuffled_within,
    split_half_ceiling,
    static_harm,
)
from course_utils.prompt_harm import Record

HARM = np.array([[0.0, 0.1, 0.4], [0.0, 0.3, 0.5], [0.0, 0.2, 0.9]])
SAVED = np.array([[0.0, 0.01, 0.02], [0.0, 0.02, 0.04], [0.0, 0.1, 0.2]])


SECONDS = {"lengths": [4, 16], "numbers": [0, 3], "prefill": [[2.0, 1.0], [4.0, 3.0]], "decode": [[1.0, 0.5]] * 2}


def a_record():
    tokens = np.array([7, 1, 19, 4])
    harm = np.random.default_rng(0).uniform(size=(4, 4))
    return Record(
        settings={},
        choosing=0,
        kinds=np.array(["passage"] * 4),
        documents=np.array(list("abcd")),
        digests=np.array(list("abcd")),
        numbers=(0, 1, 2, 3),
        tokens=tokens,
        answer_tokens=np.array([32, 5, 32, 9]),
        harm=harm,
        halves=np.stack([harm, harm], axis=2),
        agree=harm,
        states=harm,
        entropies=harm[:, :2],
        seconds={
            "lengths": [4, 16],
            "numbers": [0, 3],
            "prefill": [[2.0, 1.0], [4.0, 3.0]],
            "decode": [[1.0, 0.5]] * 2,
        },
        random_orders={},
    )


def test_seconds_and_cache_by_hand():
    record = a_record()
    seconds, cache = seconds_saved(record), cache_saved(record, blocks=4)
    row = int(np.argmax(record.tokens == 4))  # the first length of the table: read in 2 or 1, a token in 1 or 0.5
    answer = record.answer_tokens[row]
    whole = sum(
        np.exp(np.interp(np.log(np.clip(n, 4, 16)), np.log([4, 16]), np.log([2, 4]))) + k
        for n, k in zip(record.tokens, record.answer_tokens, strict=True)
    )
    assert seconds[row, 3] == pytest.approx((1 + 0.5 * answer) / whole)
    assert seconds[row, 1] == pytest.approx(seconds[row, 3] / 3)
    tokens = record.tokens + record.answer_tokens
    assert cache[row, 2] == pytest.approx(tokens[row] * 2 / (4 * tokens.sum()))
    assert (seconds[:, 0] == 0).all()


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
    lower = static_harm(harm[:, ::-1], saved[:, ::-1], 0.045)  # in whatever order the numbers stand
    assert lower == pytest.approx(0.3)


def test_a_static_choice_has_no_gap():
    for column in (1, 2):
        gap, low, high = gap_to_static(HARM, SAVED, np.full(3, column), ["a", "b", "c"])
        assert gap == pytest.approx(0, abs=1e-12)
        assert low == pytest.approx(0, abs=1e-12)
        assert high == pytest.approx(0, abs=1e-12)


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
    assert cheapest_guess(HARM, SAVED, 1.0).tolist() == [0, 0, 1]
    price = price_for(HARM, SAVED, 0.1)
    assert outcome(HARM, SAVED, cheapest_guess(HARM, SAVED, price))[0] >= 0.1
    with pytest.raises(ValueError, match=r"at most 0\.260"):
        price_for(HARM, SAVED, 0.5)


def test_bound_is_below_every_assignment():
    for target in (0.05, 0.12, 0.2, 0.26):
        best = min(
            harm
            for choice in itertools.product(range(3), repeat=3)
            for saved, harm in [outcome(HARM, SAVED, np.array(choice))]
            if saved >= target - 1e-12
        )
        found = least_harm(HARM, SAVED, target)
        assert found <= best + 1e-9
        assert found >= best - HARM.max() / 3  # one prompt is split at most
    assert least_harm(HARM, SAVED, 0.26) == pytest.approx(HARM[:, 2].mean())
    with pytest.raises(ValueError, match=r"at most 0\.260"):
        least_harm(HARM, SAVED, 0.3)


def test_ceiling_knows_noise_from_signal():
    generator = np.random.default_rng(2)
    true = generator.normal(size=4000)
    halves = true[:, None] + generator.normal(size=(4000, 2))
    reliability, ceiling = split_half_ceiling(np.concatenate([halves, [[1.0, np.nan]]]))
    assert reliability == pytest.approx(2 / 3, abs=0.04)  # 1 / (1 + 1/2)
    assert np.corrcoef(true, halves.mean(1))[0, 1] == pytest.approx(ceiling, abs=0.04)
    assert split_half_ceiling(generator.normal(size=(4000, 2)))[1] < 0.35


def test_dealing_stays_in_its_stratum():
    choice, strata = np.arange(100), np.repeat([0, 1], 50)
    dealt = shuffled_within(choice, strata, seed=1)
    assert sorted(dealt[:50]) == list(range(50))
    assert (dealt != choice).any()
    assert choice.tolist() == list(range(100))

"""Tables by hand, and on made-up scores: what is there is found with its size, and what isn't there is not."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from tiny import log_likelihood, tiny_model, word_tokenizer
from tiny_pairs import made_up_scores, make_pairs

from course_utils.bias.contrastive import CONTROLS
from course_utils.bias.scores import measure_pairs
from course_utils.bias.statistics import activation_ratio, behaviour, means, preferences, sums_by_cell, with_holm
from course_utils.support import uncertainty


@pytest.fixture
def few_draws(monkeypatch):
    """A twentieth of the draws: hundreds of made-up measurements are told from each other by fewer, too."""
    monkeypatch.setattr(uncertainty, "RESAMPLES", 500)


def test_cells_hold_their_sum_and_count():
    items = pd.DataFrame({"template": ["t0", "t0", "t1", "t1"], "swap": ["s0", "s0", "s0", "s1"]})
    table = sums_by_cell(items.assign(preference=[1.0, 2.0, 4.0, 8.0]), ["preference"], ["t0", "t1", "t2"])
    assert table.tolist() == [[[3, 2], [0, 0]], [[4, 1], [8, 1]], [[0, 0], [0, 0]]]  # [templates, swaps, columns + 1]
    assert means(table.sum(axis=(0, 1))).tolist() == [15 / 4] and math.isnan(means(table[2, 0])[0])


def test_p_values_are_adjusted_for_axes_and_not_for_controls():
    found = with_holm(pd.DataFrame({"kind": ["demographic", "demographic", "neutral"], "p": [0.01, 0.04, 0.5]}))
    assert found["p_holm"].tolist() == pytest.approx([0.02, 0.04, math.nan], nan_ok=True)


def test_preferences_by_hand_cancel_what_the_endings_share():
    model, pairs = tiny_model(), make_pairs(templates=2, swaps=2)
    items = preferences(measure_pairs(model, word_tokenizer(), pairs))
    assert len(items) == 4
    for item in items.itertuples():
        total = 0.0
        for pair in pairs:
            if (pair.template, pair.swap) == (item.template, item.swap):
                for sign, text in ((1, pair.text_a), (-1, pair.text_b)):
                    ending = log_likelihood(model, text, len(text.split()) - 1)  # alone: the rest is the same
                    total += sign * pair.valence * ending
        assert item.preference == pytest.approx(total, abs=1e-4)


def test_paraphrases_are_averaged_and_incomplete_items_left_out():
    scores = made_up_scores(templates=3, swaps=2)
    doubled = pd.concat([scores.frame, scores.frame.assign(log_likelihood=lambda f: f["log_likelihood"] * 3)])
    both = preferences(replace(scores, frame=doubled))
    np.testing.assert_allclose(both["preference"], 2 * preferences(scores)["preference"])
    scores.frame.loc[0, "log_likelihood"] = math.nan
    assert len(preferences(scores)) == len(both) - 1


def test_no_more_than_one_null_in_twenty_is_called_a_preference(few_draws):
    # templates and swaps vary equally: the hardest case, where each sign-flip test alone finds too much
    table = behaviour(made_up_scores(1, effects={f"axis {i}": 0.0 for i in range(200)}, spread=(1.0, 1.0, 1.0)))
    tested = table[table["kind"] == "demographic"]
    assert len(tested) == 200
    assert (tested["p"] < 0.05).mean() <= 0.05 + 2.6 * math.sqrt(0.05 * 0.95 / 200)
    assert (tested["p_holm"] < 0.05).sum() <= 1


def test_planted_effects_are_found_with_their_size_and_direction(few_draws):
    effects = {f"axis {i}": 1.0 if i % 2 else -1.0 for i in range(40)}
    table = behaviour(made_up_scores(2, effects=effects)).set_index("axis").loc[list(effects)]
    truth = np.array(list(effects.values()))
    assert (table["p"] < 0.05).mean() > 0.9
    assert (np.sign(table["preference"]) == truth).all()
    assert ((table["ci_low"] < truth) & (truth < table["ci_high"])).mean() > 0.85
    assert (table["p_holm"] >= table["p"]).all() and (table["smallest_p"] == 2**-9).all()


def test_controls_have_no_adjusted_p_and_identity_is_nothing():
    scores = made_up_scores(effects={"group": 0.5})
    table, items = behaviour(scores).set_index("axis"), preferences(scores)
    assert table.loc[list(CONTROLS), "p_holm"].isna().all() and table["p_holm"].notna().sum() == 1
    assert table.loc["identity", ["preference", "ci_low", "ci_high", "absolute", "p"]].tolist() == [0, 0, 0, 0, 1]
    assert math.isnan(table.loc["neutral", "to_neutral"])
    size = items["preference"].abs().groupby(items["axis"]).mean()
    assert table.loc["paraphrase", "to_neutral"] == pytest.approx(size["paraphrase"] / size["neutral"])
    assert table.loc["group", "absolute"] == pytest.approx(size["group"])
    few = behaviour(made_up_scores(1, effects={"group": 0.5}, templates=4, swaps=4)).set_index("axis").loc["group"]
    assert few["p"] == few["smallest_p"] == 2**-3, "no less than so few units can show"


def test_activation_ratio_finds_what_exceeds_a_neutral_swap_and_nothing_else(few_draws):
    found, false = [], []
    for seed in range(40):
        found.append(activation_ratio(made_up_scores(seed, ratio=1.5), by_place=False).iloc[0])
        false.append(activation_ratio(made_up_scores(seed), by_place=False).iloc[0])
    assert np.mean([row["ratio_low"] > 1 for row in found]) > 0.9
    assert np.mean([row["ratio_low"] < 1.5 < row["ratio_high"] for row in found]) > 0.85
    assert np.mean([not row["ratio_low"] < 1 < row["ratio_high"] for row in false]) <= 0.05 + 2.6 * 0.035
    assert all((row["p"] < 0.05) == (not row["ratio_low"] < 1 < row["ratio_high"]) for row in found + false)


def test_activation_ratio_has_a_row_for_each_place():
    scores = made_up_scores(ratio=2.0, effects={"one": 0.0, "two": 0.0})
    places = activation_ratio(scores)
    assert len(places) == 2 * 2 * 3 and set(places["axis"]) == {"one", "two"}
    assert ((places["p_holm"] >= places["p"]) & (places["ratio"] > 1.5)).all()
    cell = places.query("axis == 'one' and site == 'mlp_out' and block == 0").iloc[0]
    means_of = [scores.relative[scores.frame["axis"] == axis, 1, 0].mean() for axis in ("one", "neutral")]
    assert cell[["demographic", "neutral"]].tolist() == pytest.approx(means_of, rel=1e-5)
    assert cell["ratio"] == pytest.approx(cell["demographic"] / cell["neutral"])


def test_what_has_no_control_no_axis_no_activations_or_no_valence_is_refused():
    scores = made_up_scores()
    kinds = scores.frame["kind"]
    alone, controls = (
        replace(scores, frame=scores.frame[keep], relative=scores.relative[keep])
        for keep in (kinds == "demographic", kinds != "demographic")
    )
    for statistic in (behaviour, activation_ratio):
        with pytest.raises(ValueError, match="no neutral pairs"):
            statistic(alone)
    with pytest.raises(ValueError, match="no axis beside"):
        activation_ratio(controls)
    with pytest.raises(ValueError, match="No activations"):
        activation_ratio(replace(scores, relative=scores.relative[:, :0], sites=()))
    with pytest.raises(ValueError, match="unpleasantly"):
        preferences(replace(scores, frame=scores.frame.assign(valence=0)))

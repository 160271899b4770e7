"""What pairs are measured by; ``test_reporting`` has the differences by hand, for every family."""

from __future__ import annotations

import numpy as np
from tiny import tiny_model, word_tokenizer
from tiny_pairs import gap, make_pairs

from course_utils.bias.contrastive import Pair
from course_utils.bias.scores import measure_pairs
from course_utils.pruning.adaptive import AdaptiveConfig, ModelIdentity, make_adaptive

PAIRS = make_pairs(templates=2, swaps=2)


def measured(pairs=PAIRS, **options):
    return measure_pairs(tiny_model("llama"), word_tokenizer(), pairs, **options)


def test_log_likelihoods_are_those_of_single_texts():
    model = tiny_model("llama")
    found = measure_pairs(model, word_tokenizer(), PAIRS, sites=())
    np.testing.assert_allclose(found.frame["log_likelihood"], [gap(model, pair) for pair in PAIRS], atol=1e-4)
    assert found.relative.shape == found.cosine.shape == (len(PAIRS), 0, 3)


def test_chosen_places_are_those_of_all_places():
    everywhere, chosen = measured(), measured(sites="mlp_out")
    assert everywhere.sites == ("attention_out", "mlp_out") and everywhere.blocks == (0, 1, 2)
    np.testing.assert_allclose(chosen.relative[:, 0], everywhere.relative[:, 1], atol=1e-6)
    np.testing.assert_allclose(chosen.cosine[:, 0], everywhere.cosine[:, 1], atol=1e-6)


def test_fingerprint_is_of_the_texts_and_their_order():
    assert measured().fingerprint == measured(sites=(), batch_size=1).fingerprint
    assert measured().fingerprint != measured(PAIRS[::-1]).fingerprint


def test_excluded_tokens_are_counted_for_each_pair_of_groups():
    table = measured(sites=()).excluded()
    assert len(table) == 1 and table.loc[0, "pairs"] == len(PAIRS)
    assert table.loc[0, "excluded"] == 0 and table.loc[0, "excluded_share"] == 0


def test_an_adaptive_model_decides_for_each_text():
    model = tiny_model()
    limits = {"log_length": [0.0, 5.0], "variance": [0.0, 1.0]}
    make_adaptive(model, AdaptiveConfig(ModelIdentity.of(model), (1,), (1, 0), (0.5,), "length_variance", limits))
    pairs = make_pairs()
    together = measure_pairs(model, word_tokenizer(), pairs).frame.log_likelihood
    alone = [measure_pairs(model, word_tokenizer(), [pair]).frame.log_likelihood.item() for pair in pairs]
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)


def test_without_shared_tokens_there_is_nothing_to_compare():
    bare = Pair("w3 ", "w4", "w5", "", axis="x", kind="neutral", group_a="a", group_b="b", template="t")
    assert measured([bare]).frame.log_likelihood.isna().all()

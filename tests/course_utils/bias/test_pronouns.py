"""Prompts come in halves that don't meet; odds and patches are those of single texts, in every family."""

from __future__ import annotations

import inspect

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import FAMILIES, tiny_model, token_ids, word_tokenizer

from course_utils.bias import pronouns
from course_utils.models.architectures import describe

SHE, HE = 20, 21
TEXTS = ["w3 w40 w5", "w3 w41 w42 w5 w6", "w9 w43", "w3 w44 w5"]
SOURCES = ["w3 w50 w5 w7", "w3 w51 w5", "w9 w52", "w3 w53 w54 w5"]


ANSWERS = (f" w{SHE}", f" w{HE}")


@pytest.fixture(autouse=True)
def _tiny_words(monkeypatch):
    """A tiny tokenizer's words for "she" and "he", where nobody names others."""
    monkeypatch.setattr(pronouns, "PRONOUNS", ANSWERS)
    monkeypatch.setattr(pronouns, "_BATCH_SIZE", 3)
    for function in (
        pronouns.log_odds,
        pronouns.patched_log_odds,
        pronouns.head_effects,
        pronouns.traced_log_odds,
    ):
        inner = inspect.unwrap(function)
        monkeypatch.setitem(inner.__kwdefaults__, "answers", ANSWERS)


@torch.no_grad()
def odds_of(model, text):
    log_p = model(token_ids(text)).logits[0, -1].double().log_softmax(-1)
    return float(log_p[SHE] - log_p[HE])


def test_occupations_and_people_are_dealt_out_evenly():
    table = pronouns.occupations()
    assert len(table) == 40 and table["women"].is_monotonic_increasing and table["word"].is_unique
    assert (table.groupby(["group", "split"]).size() == 10).all()
    means = table.groupby("split")["women"].mean()
    assert abs(means["selection"] - means["evaluation"]) < 0.02
    people = pronouns.people()
    assert (people.groupby(["group", "split"]).size() == 5).all()
    assert people.groupby("pair")["split"].nunique().eq(1).all()  # a pair stays together


def test_halves_share_neither_words_nor_templates():
    halves = [pronouns.prompts(pronouns.occupations(), split) for split in pronouns.SPLITS]
    for column in ("word", "template", "text"):
        assert not set(halves[0][column]) & set(halves[1][column])
    everything = pronouns.prompts(pronouns.occupations())
    assert len(everything) == 40 * 8 and not everything["text"].str.contains("{", regex=False).any()
    assert all(row.word in row.text for row in everything.itertuples())


def test_opposites_pair_most_with_fewest_women():
    pairs = pronouns.opposites(pronouns.prompts(pronouns.occupations(), "selection"))
    assert len(pairs) == 4 * 10
    assert (pairs.iloc[0]["word"], pairs.iloc[0]["other"]) == ("secretary", "carpenter")
    assert pairs.iloc[0]["text"] == "The secretary said that" and pairs.iloc[0]["source"] == "The carpenter said that"
    groups = pronouns.occupations().set_index("word")["group"]
    assert (groups[pairs["word"]] == "mostly women").all() and (groups[pairs["other"]] == "mostly men").all()
    assert (pairs["same"] != pairs["text"]).all() and set(pairs["same"]) == set(pairs["text"])
    assert all(row.same in set(pairs["text"][pairs["template"] == row.template]) for row in pairs.itertuples())


def test_opposites_of_people_are_their_pairs():
    pairs = pronouns.opposites(pronouns.prompts(pronouns.people(), "selection"))
    assert len(pairs) == 4 * 5
    assert (pairs.iloc[0]["text"], pairs.iloc[0]["source"]) == ("The woman said that", "The man said that")
    known = pronouns.people().set_index("word")["pair"]
    assert (known[pairs["word"]].to_numpy() == known[pairs["other"]].to_numpy()).all()
    assert pairs["same"].iloc[0] == pairs["text"].iloc[1]


def test_gap_is_the_difference_of_means_and_its_interval_holds_it():
    table = pronouns.prompts(pronouns.occupations())
    noise = np.random.default_rng(0).standard_normal(len(table))
    table["odds"] = 2.0 * (table["group"] == "mostly women") + 0.5 * noise
    gap, low, high = pronouns.group_gap(table)
    means = table.groupby("group")["odds"].mean()
    assert gap == pytest.approx(means["mostly women"] - means["mostly men"])
    assert low < gap < high and low > 1.5 and high < 2.5


@pytest.mark.parametrize("family", FAMILIES)
def test_odds_and_states_are_those_of_single_texts(family):
    model, tokenizer = tiny_model(family), word_tokenizer()
    found = pronouns.log_odds(model, tokenizer, TEXTS)
    np.testing.assert_allclose(found, [odds_of(model, text) for text in TEXTS], atol=2e-4)
    again, states = pronouns.odds_and_states(model, tokenizer, TEXTS, sites=("residual", "down_input"))
    np.testing.assert_allclose(again, found, atol=2e-4)
    architecture = describe(model)
    assert states["residual"].shape == (4, 3, architecture.hidden_size)
    assert states["down_input"].shape == (4, 3, architecture.intermediate_sizes[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_patching_all_heads_of_all_blocks_at_equal_words_gives_the_sources_odds(family):
    """Texts that end in the same word differ at their last token only by what attention brings."""
    model, tokenizer = tiny_model(family), word_tokenizer()
    texts, sources = ["w3 w40 w5", "w9 w43 w7"], ["w3 w50 w5", "w9 w52 w7"]
    heads = [(block, head) for block in range(3) for head in range(4)]
    nothing, everything = pronouns.patched_log_odds(model, tokenizer, texts, sources, [[], heads])
    np.testing.assert_allclose(nothing, [odds_of(model, text) for text in texts], atol=2e-4)
    np.testing.assert_allclose(everything, [odds_of(model, text) for text in sources], atol=2e-4)


def test_one_head_is_patched_as_by_hand():
    model, tokenizer = tiny_model(), word_tokenizer()
    projection, size = model.model.layers[1].self_attn.o_proj, 8
    (patched,) = pronouns.patched_log_odds(model, tokenizer, TEXTS, SOURCES, [[(1, 2)]])
    for text, source, value in zip(TEXTS, SOURCES, patched, strict=True):
        said = []
        with torch.no_grad():
            handle = projection.register_forward_pre_hook(lambda _, args, said=said: said.append(args[0].clone()))
            model(token_ids(source))
            handle.remove()

            def put(_, args, said=said):
                states = args[0].clone()
                states[0, -1, 2 * size : 3 * size] = said[0][0, -1, 2 * size : 3 * size]
                return (states,)

            handle = projection.register_forward_pre_hook(put)
            assert odds_of(model, text) == pytest.approx(value, abs=2e-4)
            handle.remove()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_estimates_what_a_small_patch_does(family):
    model, tokenizer = tiny_model(family), word_tokenizer()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    estimates = pronouns.head_effects(model, tokenizer, TEXTS, SOURCES)
    assert estimates.shape == (4, 3, 4)
    before = pronouns.log_odds(model, tokenizer, TEXTS)
    heads = [(block, head) for block in range(3) for head in range(4)]
    exact = pronouns.patched_log_odds(model, tokenizer, TEXTS, SOURCES, [[head] for head in heads]) - before
    assert np.corrcoef(estimates.flatten(1).T.numpy().ravel(), exact.ravel())[0, 1] > 0.5
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_weights_keep_whether_they_learn():
    model = tiny_model()
    pronouns.head_effects(model, word_tokenizer(), TEXTS, SOURCES)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def by_hand(model, text, source, place, block):
    """The log-odds after the text, with the source's state at one place behind one block."""
    layer, seen = model.model.layers[block], []
    handle = layer.register_forward_hook(lambda _, __, states: seen.append(states[0, place].clone()))
    odds_of(model, source)
    handle.remove()

    def put(_, __, states):
        states = states.clone()
        states[0, place] = seen[0]
        return states

    handle = layer.register_forward_hook(put)
    odds = odds_of(model, text)
    handle.remove()
    return odds


@torch.no_grad()
def test_states_are_traced_as_by_hand():
    model, tokenizer = tiny_model(), word_tokenizer()
    ends = [pronouns.swapped_place(tokenizer, *pair) for pair in zip(TEXTS, SOURCES, strict=True)]
    assert ends == [-1, -1, -1, -2]
    for places in (ends, [-3, -1, -2, -1]):
        found = pronouns.traced_log_odds(model, tokenizer, TEXTS, SOURCES, places, [2, 0])
        rows = zip(TEXTS, SOURCES, places, strict=True)
        right = [[by_hand(model, *row, block) for block in (2, 0)] for row in rows]
        np.testing.assert_allclose(found, np.transpose(right), atol=2e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_tokens_state_behind_the_last_block_decides(family):
    model, tokenizer = tiny_model(family), word_tokenizer()
    texts, sources = TEXTS * 9, SOURCES * 9  # more than run at once
    (found,) = pronouns.traced_log_odds(model, tokenizer, texts, sources, [-1] * len(texts), [2])
    np.testing.assert_allclose(found, [odds_of(model, source) for source in sources], atol=2e-4)


def test_other_answers():
    model, tokenizer = tiny_model(), word_tokenizer()
    turned, pair = ANSWERS[::-1], (TEXTS, SOURCES)
    for function, rest in (
        (pronouns.log_odds, [TEXTS]),
        (pronouns.patched_log_odds, [*pair, [[(1, 0)]]]),
        (pronouns.head_effects, pair),
        (pronouns.traced_log_odds, [*pair, [-1] * 4, [0]]),
    ):
        one, other = (function(model, tokenizer, *rest, answers=each) for each in (ANSWERS, turned))
        np.testing.assert_allclose(np.asarray(one), -np.asarray(other), atol=1e-6)


def test_random_heads_are_as_many_as_deep_and_others():
    chosen = [(2, 1), (3, 0)]
    sets = pronouns.random_heads(chosen, 4, 5)
    assert len(sets) == 19 and all(len(set(one)) == 2 for one in sets)
    assert all(2 <= block < 5 and (block, head) not in chosen for one in sets for block, head in one)
    assert sets == pronouns.random_heads(chosen, 4, 5) != pronouns.random_heads(chosen, 4, 5, seed=1)


def test_what_is_refused():
    model, tokenizer = tiny_model(), word_tokenizer()
    with pytest.raises(ValueError, match="Each text needs a source"):
        pronouns.patched_log_odds(model, tokenizer, TEXTS, SOURCES[:2], [[]])
    for places, blocks, named in (
        ([-1] * 3, [0], "'places'"),
        ([-1] * 3 + [0], [0], "'places'"),
        ([-1] * 3 + [-9], [0], "'places' must be tokens of both"),
        ([-1] * 4, [3], "'blocks'"),
        ([-1] * 4, [], "'blocks'"),
    ):
        with pytest.raises(ValueError, match=named):
            pronouns.traced_log_odds(model, tokenizer, TEXTS, SOURCES, places, blocks)
    with pytest.raises(ValueError, match="'text' and 'source' must differ"):
        pronouns.swapped_place(tokenizer, "w1 w2", "w1 w2")
    with pytest.raises(ValueError, match="one token each"):
        pronouns.log_odds(model, tokenizer, TEXTS, answers=("w1 w2", "w3"))


def test_an_occupation_needs_no_split_to_be_prompted():
    table = pronouns.prompts(pd.DataFrame({"word": ["person"]}))
    assert len(table) == 8 and table["text"][0] == "The person said that"


def test_pairs_of_pronouns_have_the_gap_as_their_double_difference():
    table = pronouns.opposites(pronouns.prompts(pronouns.occupations(), "selection")).iloc[:2]
    she, he = pronouns.pronoun_pairs(table, "occupations")[:2]
    assert (she.before, she.a, she.b) == ("The ", table.word[0], table.other[0])
    assert (she.text_a, she.valence) == (table.text[0] + pronouns.PRONOUNS[0], 1)
    assert (he.text_b, he.valence) == (table.source[0] + pronouns.PRONOUNS[1], -1)
    assert len(pronouns.pronoun_pairs(table, "occupations")) == 4
    for wrong in (table.iloc[:0], table.drop(columns="other")):
        with pytest.raises(ValueError, match="rows of opposites"):
            pronouns.pronoun_pairs(wrong, "occupations")

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
    for function in (pronouns.log_odds, pronouns.patched_log_odds, pronouns.head_effects):
        monkeypatch.setitem(inspect.unwrap(function).__kwdefaults__, "answers", ANSWERS)


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
    alone = pronouns.prompts(pd.DataFrame({"word": ["person"]}))  # needs no split
    assert len(alone) == 8 and alone["text"][0] == "The person said that"


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


def exchanged(model, module, text, source, part):
    """The log-odds after a text when a part of what a module reads at the last token is what it is in the source."""
    seen = []

    def look(_, args):
        seen.append(args[0][0, -1].clone())

    def put(_, args):
        states = args[0].clone()
        states[0, -1, part] = seen[0][part]
        return (states,)

    for hook, read in ((look, source), (put, text)):
        handle = module.register_forward_pre_hook(hook)
        odds = odds_of(model, read)
        handle.remove()
    return odds


@torch.no_grad()
def test_one_head_is_patched_as_by_hand():
    model = tiny_model()
    (patched,) = pronouns.patched_log_odds(model, word_tokenizer(), TEXTS, SOURCES, [[(1, 2)]])
    module, part = model.model.layers[1].self_attn.o_proj, slice(16, 24)  # heads of 8
    right = [exchanged(model, module, *pair, part) for pair in zip(TEXTS, SOURCES, strict=True)]
    np.testing.assert_allclose(patched, right, atol=2e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_estimates_what_a_patch_does_and_weights_keep_whether_they_learn(family):
    model, tokenizer = tiny_model(family), word_tokenizer()
    learning = {name: name.endswith("bias") or "0" in name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(learning[name])
    estimates = pronouns.head_effects(model, tokenizer, TEXTS, SOURCES)
    assert estimates.shape == (4, 3, 4)
    before = pronouns.log_odds(model, tokenizer, TEXTS)
    heads = [(block, head) for block in range(3) for head in range(4)]
    exact = pronouns.patched_log_odds(model, tokenizer, TEXTS, SOURCES, [[head] for head in heads]) - before
    assert np.corrcoef(estimates.flatten(1).T.numpy().ravel(), exact.ravel())[0, 1] > 0.5
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == learning
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_swapped_place_is_the_last_token_that_differs():
    tokenizer = word_tokenizer()
    ends = [pronouns.swapped_place(tokenizer, *pair) for pair in zip(TEXTS, SOURCES, strict=True)]
    assert ends == [-1, -1, -1, -2]


def test_other_answers():
    model, tokenizer = tiny_model(), word_tokenizer()
    turned, pair = ANSWERS[::-1], (TEXTS, SOURCES)
    for function, rest in (
        (pronouns.log_odds, [TEXTS]),
        (pronouns.patched_log_odds, [*pair, [[(1, 0)]]]),
        (pronouns.head_effects, pair),
    ):
        one, other = (function(model, tokenizer, *rest, answers=each) for each in (ANSWERS, turned))
        np.testing.assert_allclose(np.asarray(one), -np.asarray(other), atol=1e-6)


def test_random_heads_are_as_many_as_deep_and_others():
    chosen = [(2, 1), (3, 0)]
    sets = pronouns.random_heads(chosen, 4, 5)
    assert len(sets) == 19 and all(len(set(one)) == 2 for one in sets)
    assert {block for one in sets for block, _ in one} == {2, 3, 4} and not {head for one in sets for head in one} & {
        *chosen
    }
    assert sets == pronouns.random_heads(chosen, 4, 5) != pronouns.random_heads(chosen, 4, 5, seed=1)


def test_texts_without_a_source_or_a_difference_and_answers_of_two_tokens_are_refused():
    model, tokenizer = tiny_model(), word_tokenizer()
    with pytest.raises(ValueError, match="Each text needs a source"):
        pronouns.patched_log_odds(model, tokenizer, TEXTS, SOURCES[:2], [[]])
    with pytest.raises(ValueError, match="'text' and 'source' must differ"):
        pronouns.swapped_place(tokenizer, "w1 w2", "w1 w2")
    with pytest.raises(ValueError, match="one token each"):
        pronouns.log_odds(model, tokenizer, TEXTS, answers=("w1 w2", "w3"))

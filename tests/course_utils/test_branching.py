"""Rows that branch: what stands in them, what each token sees, and which models can be told so."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import FAMILIES, deaf_attention, tiny_model

from course_utils.adaptive import AdaptiveConfig, ModelIdentity, make_adaptive
from course_utils.architectures import describe
from course_utils.attention import bypass_attention
from course_utils.branching import BranchingBatch, Row, can_branch, row_batch

TEXTS = [[3, 4, 5, 10, 11], [3, 4, 5, 12], [3, 4, 5, 10, 13, 14]]


def test_a_beginning_stands_once():
    row = Row(TEXTS)
    assert row.ids == [3, 4, 5, 10, 11, 12, 10, 13, 14]
    assert row.positions == [0, 1, 2, 3, 4, 3, 3, 4, 5]
    assert row.owner == [0, 0, 0, 1, 1, 2, 3, 3, 3]
    assert row.places == [[0, 1, 2, 3, 4], [0, 1, 2, 5], [0, 1, 2, 6, 7, 8]]
    assert len(row) == 9 and row.branches


@pytest.mark.parametrize("texts", [[[3, 4]], [[3, 4], [3, 4]], [[3], [3, 4, 5]]])
def test_a_row_with_one_ending_needs_no_mask(texts):
    row = Row(texts)
    assert not row.branches and row.ids == max(texts, key=len)
    assert not isinstance(row_batch(describe(tiny_model()), [row]), BranchingBatch)


texts = st.lists(st.lists(st.integers(3, 6), min_size=1, max_size=6), min_size=1, max_size=5)


@settings(max_examples=60)
@given(st.lists(texts, min_size=1, max_size=4))
def test_each_token_sees_its_own_text_and_nothing_else(rows):
    rows = [Row(texts) for texts in rows]
    batch = row_batch(describe(tiny_model()), rows)
    length = batch.input_ids.shape[1]
    plain = (torch.ones(length, length).tril().bool() & batch.real[:, None, :])[:, None]
    sees = (batch.visible == 0 if isinstance(batch, BranchingBatch) else plain)[:, 0]
    assert sees.any(-1).all()  # softmax over nothing is NaN
    for row, ids, positions, visible in zip(rows, batch.input_ids, batch.position_ids, sees, strict=True):
        for places in row.places:
            for number, place in enumerate(places):
                assert visible[place].nonzero()[:, 0].tolist() == places[: number + 1]
                assert positions[place] == number and ids[place] == row.ids[place]


@pytest.mark.parametrize("attention", [None, "eager"])  # None: what the family takes by default
@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_those_of_the_texts_alone(family, attention):
    architecture = describe(tiny_model(family, attn_implementation=attention))
    assert can_branch(architecture, 6)
    rows = [Row(TEXTS), Row(TEXTS[:2])]
    with torch.no_grad():
        together = architecture.hidden_states(row_batch(architecture, rows))
        for states, row, texts in zip(together, rows, (TEXTS, TEXTS[:2]), strict=True):
            for places, text in zip(row.places, texts, strict=True):
                alone = architecture.hidden_states(row_batch(architecture, [Row([text])]))[0]
                torch.testing.assert_close(states[places], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("attention", [None, "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_padding_behind_a_text_needs_no_mask(family, attention):
    architecture = describe(tiny_model(family, attn_implementation=attention))
    batch = row_batch(architecture, [Row([text]) for text in TEXTS])
    assert not batch.real.all() and set(batch.inputs()) == {"input_ids"}
    with torch.no_grad():
        for states, text in zip(architecture.hidden_states(batch), TEXTS, strict=True):
            alone = architecture.hidden_states(row_batch(architecture, [Row([text])]))[0]
            torch.testing.assert_close(states[: len(text)], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_rounding_is_not_taken_for_disobedience(family, dtype):
    assert can_branch(describe(tiny_model(family, dtype=dtype)), 6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_that_heeds_no_mask_is_found_out(family, dtype):
    model = tiny_model(family, dtype=dtype, attn_implementation=deaf_attention())
    assert not can_branch(describe(model), 6)
    model.set_attn_implementation("eager")
    assert can_branch(describe(model), 6)  # asked anew


def test_the_trial_runs_once_and_changes_nothing():
    model, passes = tiny_model(attention_dropout=0.5).train(), []
    model.model.register_forward_hook(lambda *_: passes.append(1))
    assert can_branch(describe(model), 6) and can_branch(describe(model), 60)
    assert len(passes) == 2 and model.training and all(weight.grad is None for weight in model.parameters())


def test_a_model_without_attentions_can_be_told_anything():
    model = tiny_model()
    bypass_attention(model, [0, 1, 2])
    assert can_branch(describe(model), 6)


@pytest.mark.parametrize(("window", "possible"), [(8, True), (7, False), (None, True)])
def test_one_mask_cannot_say_what_a_window_hides(window, possible):
    assert can_branch(describe(tiny_model("mistral", sliding_window=window)), 8) == possible


def test_flash_attention_takes_no_mask_and_an_adaptive_model_decides_for_each_text():
    model = tiny_model()
    model.config._attn_implementation = "flash_attention_2"
    assert not can_branch(describe(model), 6)
    model = tiny_model()
    limits = {"log_length": [0.0, 5.0], "variance": [0.0, 1.0]}
    make_adaptive(model, AdaptiveConfig(ModelIdentity.of(model), (1,), (1, 0), (0.5,), "length_variance", limits))
    assert not can_branch(describe(model), 6)
    padded = row_batch(describe(model), [Row([text]) for text in TEXTS])
    assert "attention_mask" in padded.inputs()  # what it decides by is a mean over the text


def test_bad_rows_are_refused():
    with pytest.raises(ValueError, match="vocabulary"):
        row_batch(describe(tiny_model()), [Row([[200]])])

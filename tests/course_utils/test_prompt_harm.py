"""The harm of a bypass on a prompt's answer equals what a plain computation gives, batched or not; records survive."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import FAMILIES, tiny_model, word_tokenizer, words

from course_utils import prompt_harm
from course_utils.adaptive import divergence
from course_utils.models import variant
from course_utils.prompt_harm import (
    ANSWER_TOKENS,
    DIRECTIONS,
    RECORD,
    Case,
    Measured,
    Record,
    batches_by_length,
    greedy_answers,
    harm_at_random,
    measure,
    principal_states,
    seconds_by_length,
)

SETS = [[2], [2, 1], [3, 2, 1]]


@pytest.fixture
def tokenizer():
    found = word_tokenizer()
    found.eos_token = "w1"
    return found


def long_enough(family="llama"):
    return tiny_model(family, layers=4, **{"n_positions" if family == "gpt2" else "max_position_embeddings": 128})


def texts():
    generator = torch.Generator().manual_seed(5)
    return [words(torch.randint(3, 97, (size,), generator=generator).tolist()) for size in (7, 1, 19, 4)]


@pytest.mark.parametrize("family", FAMILIES)
def test_harm_is_the_divergence_along_the_own_answer(family, tokenizer):
    model = long_enough(family)
    found = measure(model, tokenizer, texts(), SETS, decide_at=1)
    assert found.harm.shape == (4, 3)
    for row, text in enumerate(texts()):
        prompt = tokenizer(text).input_ids
        (answer,) = greedy_answers(model, tokenizer, [prompt])
        assert found.tokens[row] == len(prompt)
        assert found.answer_tokens[row] == len(answer) <= ANSWER_TOKENS
        whole = torch.tensor([prompt + answer[:-1]])  # the answer's last token predicts nothing
        batch = {"input_ids": whole, "attention_mask": torch.ones_like(whole)}
        expected = divergence(model, [batch], SETS, last=len(answer))[:, 0]
        np.testing.assert_allclose(found.harm[row], expected, rtol=2e-3, atol=2e-5)


def test_what_a_policy_may_look_at(tokenizer):
    model = long_enough()
    found = measure(model, tokenizer, texts(), SETS, decide_at=2)
    for row, text in enumerate(texts()):
        with torch.no_grad():
            output = model(torch.tensor([tokenizer(text).input_ids]), output_hidden_states=True)
        states = output.hidden_states[2][0]  # entering block 2
        np.testing.assert_allclose(found.states[row], torch.stack([states[-1], states.mean(0)]), rtol=1e-4, atol=1e-5)
        early = torch.distributions.Categorical(logits=model.lm_head(model.model.norm(states[-1]))).entropy()
        final = torch.distributions.Categorical(logits=output.logits[0, -1]).entropy()
        np.testing.assert_allclose(found.entropies[row], [early.item(), final.item()], rtol=1e-4)


def test_halves_are_every_other_token(tokenizer):
    found = measure(long_enough(), tokenizer, texts(), SETS, decide_at=0)
    first, second = (found.answer_tokens + 1) // 2, found.answer_tokens // 2
    known = second > 0
    both = found.halves[..., 0] * first[:, None] + np.nan_to_num(found.halves[..., 1]) * second[:, None]
    np.testing.assert_allclose(both / found.answer_tokens[:, None], found.harm)
    assert np.isnan(found.halves[~known, :, 1]).all()
    assert ((found.agree >= 0) & (found.agree <= 1)).all()


def test_model_is_as_before(tokenizer):
    model = long_enough()
    ids = torch.tensor([[5, 6, 7]])
    before = model(ids).logits
    measure(model, tokenizer, texts(), SETS, decide_at=1)
    assert torch.equal(model(ids).logits, before)
    assert "forward" not in {name for block in model.model.layers for name in vars(block)}


def test_bad_arguments(tokenizer):
    model = long_enough()
    with pytest.raises(ValueError, match="no tokens"):
        measure(model, tokenizer, ["w5", ""], SETS, decide_at=0)
    with pytest.raises(ValueError, match="decide_at"):
        measure(model, tokenizer, ["w5"], SETS, decide_at=4)
    with pytest.raises(ValueError, match="9"):
        measure(model, tokenizer, ["w5"], [[9]], decide_at=0)


def test_batches_hold_rows_alike_in_length():
    lengths = [3, 1500, 5, 1480, 4, 2100] + [30] * 40
    batches = batches_by_length(lengths)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert batches[0] == [5]
    assert all(len(batch) <= 48 for batch in batches)
    assert [1, 3] in batches


def a_record(tokenizer):
    model = long_enough()
    chosen = [Case("passage", text, f"book {i}") for i, text in enumerate(texts())]
    found = measure(model, tokenizer, texts(), SETS, decide_at=1)
    seconds = {"lengths": [4, 16], "numbers": [0, 3], "prefill": [[2.0, 1.0], [4.0, 3.0]], "decode": [[1.0, 0.5]] * 2}
    return Record.of(chosen, found, choosing=3, numbers=(1, 2, 3), seconds=seconds, settings={"model": "tiny"})


def test_record_comes_back(tmp_path, tokenizer):
    record = a_record(tokenizer)
    record.save(tmp_path / "record.json")
    again = Record.load(tmp_path / "record.json")
    assert again.numbers == (0, 1, 2, 3)
    assert (again.harm[:, 0] == 0).all()
    for name in ("harm", "halves", "agree", "states", "entropies"):
        np.testing.assert_allclose(getattr(again, name), getattr(record, name), atol=6e-5)
    for name in ("kinds", "documents", "digests", "tokens"):
        assert getattr(again, name).tolist() == getattr(record, name).tolist()
    judging = again.part(slice(3, None))
    assert (len(judging.harm), judging.choosing, judging.documents.tolist()) == (1, 0, ["book 3"])


def test_only_its_own_model_gets_a_record(tmp_path, monkeypatch, tokenizer):
    monkeypatch.setattr(prompt_harm, "RECORD", tmp_path / "record.json")
    model = long_enough()
    model.config.name_or_path = "tiny"
    assert Record.shipped_for(model) is None
    a_record(tokenizer).save(tmp_path / "record.json")
    assert Record.shipped_for(model).settings == {"model": "tiny"}
    model.config.name_or_path = "other"
    assert Record.shipped_for(model) is None


def test_only_prompts_that_choose_set_the_directions():
    states = np.random.default_rng(0).normal(size=(60, 2, 8))
    changed = states.copy()
    changed[40:] *= 9
    found, other = (principal_states(values, choosing=40) for values in (states, changed))
    assert found.shape == (60, DIRECTIONS)
    np.testing.assert_allclose(found[:40], other[:40])
    np.testing.assert_allclose(found[:40].std(0), 1)


def test_random_sets_are_measured_on_short_prompts(tokenizer):
    cases = [Case("passage", text, "book") for text in [*texts(), "w5 " * 91]]
    found = harm_at_random(long_enough(), tokenizer, cases[::-1], left_out=2, prompts=3, seeds=2)
    assert found["prompts"] == [1, 2, 3]
    assert np.array(found["harm"]).shape == (3, 2)
    assert [len(set(blocks)) for blocks in found["sets"]] == [2, 2]


def test_seconds_are_taken_in_turns_and_the_model_stays():
    model = long_enough()
    found = seconds_by_length(variant(model), [2, 1, 3], numbers=(0, 3), lengths=(4, 8), rounds=6, steps=2)
    assert found["lengths"] == [4, 8]
    assert np.array(found["prefill"]).shape == np.array(found["decode"]).shape == (2, 2)
    assert (np.array(found["decode"]) > 0).all()


def test_joined_parts_keep_their_order():
    def part(value):
        one = np.full((1, 2), value)
        return Measured(one[:, 0], one[:, 0], one, one[..., None], one, one[..., None], one)

    joined = Measured.joined([part(1.0), part(2.0), part(3.0)])
    assert joined.rows([2, 0]).harm[:, 0].tolist() == [3.0, 1.0]


def test_the_shipped_record_says_what_it_needs_to():
    record = Record.load()
    judging = record.part(slice(record.choosing, None))
    assert RECORD.stat().st_size < 2**20
    assert len(judging.kinds) >= 1000
    assert not {*record.documents[: record.choosing]} & {*judging.documents} & {"arc_easy"}
    assert np.isfinite(record.harm).all()
    assert (record.harm[:, 1:] >= 0).all()
    assert judging.tokens.min() <= 3
    assert judging.tokens.max() >= 800
    assert np.shape(record.random_orders["harm"])[1] >= 19

"""Log-likelihoods and perplexities by their definitions; ``test_evaluation`` has the whole measurement."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tiny import FAMILIES, tiny_batches, tiny_model, word_tokenizer

from course_utils.measuring.language_modelling import (
    continuations,
    dtype_name,
    exp,
    greedy_answers,
    logits_one_by_one,
    perplexity,
)
from course_utils.models import architectures
from course_utils.models.architectures import describe


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_reading_one_by_one_equals_reading_at_once(family):
    model, ids = tiny_model(family), tiny_batches()[0]["input_ids"]
    expected = model(ids, use_cache=False).logits
    torch.testing.assert_close(logits_one_by_one(model, ids), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits_one_by_one(model, ids.flip(1)), expected, atol=1e-2)


@torch.no_grad()
def test_a_model_that_nobody_knows_is_read_one_by_one():
    """Such as one with the obvious, wrong stand-in for an attention."""

    class Zero(torch.nn.Module):
        def forward(self, hidden_states, **_):
            return torch.zeros_like(hidden_states), None

    model = tiny_model()
    model.model.layers[1].self_attn = Zero()
    with pytest.raises(architectures.UnsupportedArchitecture):
        describe(model)
    ids = tiny_batches()[0]["input_ids"]
    torch.testing.assert_close(logits_one_by_one(model, ids), model(ids).logits, atol=1e-4, rtol=1e-4)


def test_perplexity_of_a_model_that_knows_nothing_is_its_vocabulary():
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight.zero_()
    found = perplexity(model, tiny_batches(rows=3, length=5))
    assert found.perplexity == pytest.approx(97) and found.nll == pytest.approx(math.log(97))
    assert found.tokens == 3 * 4 and found.ci_low == pytest.approx(found.ci_high)
    assert math.isnan(found.bits_per_byte) and "bits/byte" not in str(found)


def test_exponentials_overflow_to_infinity_in_silence():
    with np.errstate(over="raise"):
        assert exp(1000.0) == math.inf and exp(np.float32(0)) == 1


def test_dtype_is_named_without_its_library():
    assert dtype_name(tiny_model("gpt2", dtype=torch.bfloat16)) == "bfloat16"


def test_continuations_are_the_greedy_words_of_each_model():
    models, tokenizer, prompts = {"a": tiny_model(), "b": tiny_model(seed=1)}, word_tokenizer(), ["w5 w6 w7", "w8"]
    written = continuations(models, tokenizer, prompts, new_tokens=5)
    assert list(written.index) == prompts and list(written.columns) == ["a", "b"]
    for name, model in models.items():
        ids = tokenizer(prompts[1], return_tensors="pt")["input_ids"]
        for _ in range(5):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
        assert written.loc["w8", name] == tokenizer.decode(ids[0, 1:], skip_special_tokens=True)


OTHER_THAN_GREEDY = {
    "repetition_penalty": 9.0, "no_repeat_ngram_size": 1, "min_length": 9, "num_beams": 3, "temperature": 30.0,
    "bad_words_ids": [[number] for number in range(50)], "suppress_tokens": [*range(50)],
    "sequence_bias": [[[5], 9.0]], "forced_eos_token_id": 5, "stop_strings": ["w"],
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER_THAN_GREEDY)
def test_greedy_takes_the_likeliest_token_whatever_the_model_s_settings_say(name):
    model = tiny_model("gpt2", resid_pdrop=0.5).train()
    own = model.generation_config
    setattr(own, name, OTHER_THAN_GREEDY[name])
    ids = torch.tensor([[5, 6, 5, 6]])
    (answer,) = greedy_answers(model, ids.tolist(), new_tokens=8, ends=None)
    assert model.generation_config is own and model.training
    for _ in range(8):
        ids = torch.cat([ids, model.eval()(ids).logits[:, -1:].argmax(-1)], dim=1)
    assert answer == ids[0, 4:].tolist()


def test_an_answer_ends_where_the_model_s_own_end_token_comes():
    model, tokenizer = tiny_model(), word_tokenizer()
    whole = continuations({"a": model}, tokenizer, ["w5 w6 w7"], new_tokens=6).loc["w5 w6 w7", "a"].split()
    model.generation_config.eos_token_id = [96, int(whole[2][1:])]
    ended = continuations({"a": model}, tokenizer, ["w5 w6 w7"], new_tokens=6).loc["w5 w6 w7", "a"].split()
    assert ended == whole[: whole.index(whole[2]) + 1]

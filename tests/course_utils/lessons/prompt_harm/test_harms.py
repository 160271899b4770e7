"""The harm of a bypass on a prompt's answer equals what a plain computation gives, batched or not."""

import numpy as np
import pytest
import torch
from tiny import FAMILIES
from tiny_harm import SETS, long_enough, texts

from course_utils.lessons.prompt_harm.harms import ANSWER_TOKENS, Measured, _batches_by_length, measure
from course_utils.measuring.language_modelling import greedy_answers
from course_utils.models.architectures import describe
from course_utils.pruning.attention import bypass_attention


@torch.no_grad()
def divergences(model, prompt, answer, bypassed):
    """KL(whole || bypassed) along an answer for each set of attentions, mean over its tokens."""
    ids = torch.tensor([prompt + answer[:-1]])  # the answer's last token predicts nothing
    found = []
    for layers in ([], *bypassed):
        bypass_attention(model, layers)
        found.append(model(ids).logits[0, len(prompt) - 1 :].log_softmax(-1))
    bypass_attention(model, [])
    return [float((found[0].exp() * (found[0] - other)).sum(-1).mean()) for other in found[1:]]


@pytest.mark.parametrize("family", FAMILIES)
def test_harm_is_the_divergence_along_the_own_answer(family, tokenizer):
    model = long_enough(family)
    found = measure(model, tokenizer, texts(), SETS)
    assert found.harm.shape == (4, 3)
    for row, text in enumerate(texts()):
        prompt = tokenizer(text).input_ids
        (answer,) = greedy_answers(model, [prompt], new_tokens=ANSWER_TOKENS, ends=tokenizer.eos_token_id)
        assert found.tokens[row] == len(prompt)
        assert found.answer_tokens[row] == len(answer) <= ANSWER_TOKENS
        expected = divergences(model, prompt, answer, SETS)
        np.testing.assert_allclose(found.harm[row], expected, rtol=2e-3, atol=2e-5)


def test_model_is_as_before(tokenizer):
    model = long_enough()
    ids = torch.tensor([[5, 6, 7]])
    before = model(ids).logits
    measure(model, tokenizer, texts(), SETS)
    assert torch.equal(model(ids).logits, before)
    assert "forward" not in {name for block in model.model.layers for name in vars(block)}


def test_a_bypass_that_was_there_stays(tokenizer):
    model, smaller = long_enough(), long_enough()
    bypass_attention(model, [1])
    bypass_attention(smaller, [1], remove=True)
    found = measure(model, tokenizer, texts(), [[2], [3]])
    assert [attention.skipped for attention in describe(model).attentions] == [False, True, False, False]
    expected = measure(smaller, tokenizer, texts(), [[1, 2], [1, 3]])
    np.testing.assert_array_equal(found.harm, expected.harm)


def test_a_prompt_without_tokens_is_refused(tokenizer):
    with pytest.raises(ValueError, match="no tokens"):
        measure(long_enough(), tokenizer, ["w5", ""], SETS)


def test_batches_hold_rows_alike_in_length():
    lengths = [3, 1500, 5, 1480, 4, 2100] + [30] * 40
    batches = _batches_by_length(lengths)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert batches[0] == [5]
    assert all(len(batch) <= 48 for batch in batches)
    assert [1, 3] in batches


def test_joined_parts_keep_their_order():
    def part(value):
        one = np.full((1, 2), value)
        return Measured(one[:, 0], one[:, 0], one)

    joined = Measured.joined([part(1.0), part(2.0), part(3.0)])
    assert joined.harm[:, 0].tolist() == [1.0, 2.0, 3.0]

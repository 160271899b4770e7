"""One reading serves any number of watchers, counts real tokens only, and takes its hooks away."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_batches, tiny_model

from course_utils.models.architectures import describe
from course_utils.pruning.passes import read_once


def first_inputs(reading):
    """Watches what enters block 0: the rows of real tokens, and how many there were at each batch."""
    seen = []

    def hook(_module, args, kwargs):
        seen.append((reading.select((args or [kwargs["hidden_states"]])[0]), reading.tokens))

    return [reading.architecture.blocks[0].register_forward_pre_hook(hook, with_kwargs=True)], lambda: seen


@pytest.mark.parametrize("padding", [None, "left", "right"])
def test_watchers_see_real_tokens_in_their_order(padding):
    model, batches = tiny_model(), tiny_batches(padding=padding)
    one, other = read_once(describe(model), batches, first_inputs, first_inputs)
    real = [batch["attention_mask"].bool() for batch in batches]
    assert [tokens for _, tokens in one] == torch.tensor([int(r.sum()) for r in real]).cumsum(0).tolist()
    for (states, _), (again, _), batch, mask in zip(one, other, batches, real, strict=True):
        assert torch.equal(states, again)
        assert torch.equal(states, model.get_input_embeddings()(batch["input_ids"][mask]))


def test_hooks_are_gone_after_an_error_and_no_gradient_was_kept():
    model = tiny_model().train()
    with pytest.raises(ValueError, match="mapping"):
        read_once(describe(model), [*tiny_batches(), "text"], first_inputs)
    assert model.training and not any(m._forward_pre_hooks for m in model.modules())
    (seen,) = read_once(describe(model), tiny_batches(), first_inputs)
    assert not any(states.requires_grad for states, _ in seen)

"""An attention that isn't there adds zeros and counts tokens; ``test_attention`` has whole models without some."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_model
from transformers import DynamicCache

from course_utils.models.modeling.no_attention import NoAttention, TokenCount

STATES = torch.randn(2, 3, 8)


def test_it_adds_exactly_zero():
    output, weights = NoAttention(0)(STATES)
    assert torch.equal(output, torch.zeros_like(STATES)) and weights is None


@pytest.mark.parametrize("named", [True, False])
def test_it_counts_tokens_and_stores_no_bytes(named):
    cache, attention = DynamicCache(), NoAttention(0)
    for tokens in (3, 1):
        states = STATES[:, :tokens]
        attention(hidden_states=states, past_key_values=cache) if named else attention(states, cache)
    layer = cache.layers[0]
    assert cache.get_seq_length() == 4 and isinstance(layer, TokenCount)
    assert layer.keys.numel() == layer.values.numel() == 0


@torch.no_grad()
def test_a_cache_that_was_in_use_goes_on_in_its_shape():
    model, cache = tiny_model("llama", layers=1), DynamicCache()
    model(torch.tensor([[5, 6]]), past_key_values=cache)
    shape = cache.layers[0].keys.shape  # [rows, heads, tokens, width]
    NoAttention(0)(STATES[:1, :1], cache)
    assert cache.layers[0].keys.shape == (*shape[:2], 3, shape[3]) and not isinstance(cache.layers[0], TokenCount)

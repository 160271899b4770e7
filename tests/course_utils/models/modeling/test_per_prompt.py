"""One prompt's score by hand; ``test_adaptive`` has decisions carried along by whole models."""

from __future__ import annotations

import math

import pytest
import torch

from course_utils.models.modeling.per_prompt import complexity, embedding_features

PLAIN = {"policy": "length_variance", "parameters": {"log_length": [0.0, math.log(4)], "variance": [1.0, 3.0]}}


def test_features_by_hand():
    prompt = torch.tensor([[1.0, 5.0], [3.0, 1.0]])  # two tokens
    torch.testing.assert_close(embedding_features(prompt), torch.tensor([math.log(2), (1 + 4) / 2]))
    assert embedding_features(prompt.half()).dtype is torch.float32


@pytest.mark.parametrize(
    ("tokens", "spread", "score"),
    [(2, 2**0.5, 0.5), (1, 0.0, 0.0), (20, 9.0, 1.0), (4, 1.0, 0.5)],  # the variance is the spread's square
)
def test_score_is_the_mean_of_both_scaled_and_cut_off(tokens, spread, score):
    prompt = torch.tensor([[spread * (-1) ** token] * 3 for token in range(tokens)])
    assert complexity(PLAIN, prompt) == pytest.approx(score)
    assert complexity({"policy": "length"}, prompt) == tokens

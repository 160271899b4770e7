"""Matrices, MLPs and attentions are [out, in] alike, and keep what they are told to."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_model

from course_utils.models.architectures import describe


@pytest.mark.parametrize("axis", ["out", "in"])
@pytest.mark.parametrize("family", ["gpt2", "opt"])  # stored [in, out], and [out, in]; both with biases
def test_a_projection_keeps_rows_or_columns_in_the_order_asked_for(family, axis):
    projection, index = describe(tiny_model(family)).mlps[1].inputs[0], torch.tensor([5, 0, 7])
    weight, bias, stored = projection.weight.clone(), projection.bias.clone(), projection.module.weight
    expected = (weight[index], bias[index]) if axis == "out" else (weight[:, index], bias)
    projection.keep(index, axis=axis)
    assert torch.equal(projection.weight, expected[0]) and torch.equal(projection.bias, expected[1])
    assert projection.module.weight is not stored

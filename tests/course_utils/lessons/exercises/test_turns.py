"""How far states turn: lessons 04 and 05 test each declared mistake."""

import torch

from course_utils.lessons.exercises.turns import turned


def test_real_tokens_turn_by_their_angle():
    before = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]]])
    after = torch.tensor([[[0.0, 5.0], [0.0, 1.0], [-3.0, 0.0]]])
    assert turned(before, after, torch.tensor([[1, 1, 0]])) == 0.5

"""States are found however they are handed over, and nothing is left behind, also after an error."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from course_utils.pruning.hooks import entering, evaluating, leaving


def test_states_are_found_however_they_are_handed_over():
    given = torch.ones(1, 2, 3)
    assert entering((given,), {}) is given and entering((), {"hidden_states": given}) is given
    assert leaving(given) is given and leaving((given, None)) is given


def test_each_module_is_back_in_its_own_mode_and_hooks_are_gone():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).train()
    model[1].eval()
    hook = model[0].register_forward_hook(lambda *_: None)
    with pytest.raises(RuntimeError), evaluating(model, hook):
        assert not any(module.training for module in model.modules())
        raise RuntimeError
    assert [module.training for module in model.modules()] == [True, True, False]
    assert not model[0]._forward_hooks

"""Bad tensors, models and devices are refused, and good ones come back."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from course_utils.support import tensor_checks


def test_scores_that_are_not_finite():
    tensor_checks.finite([torch.zeros(2)], "The scores")
    with pytest.raises(ValueError, match=r"The scores hold NaN or infinite values in blocks \[1\]"):
        tensor_checks.finite([torch.zeros(2), torch.tensor([1.0, float("nan")])], "The scores")


@pytest.mark.parametrize("value", ["gpu", "", None, object(), "cuda:99"])
def test_devices_refused(value):
    with pytest.raises(ValueError, match="'device' must be a device that this machine has"):
        tensor_checks.device(value)


def test_devices_accepted():
    assert tensor_checks.device("cpu") == tensor_checks.device(torch.device("cpu")) == torch.device("cpu")


def test_modules():
    layer = torch.nn.Linear(1, 1)
    assert tensor_checks.module("model", layer) is layer
    with pytest.raises(TypeError, match="'model' must be a model, as load_model returns it first; got None"):
        tensor_checks.module("model", None)


@pytest.mark.parametrize("value", [[1], torch.ones(3), torch.ones(2, 2).long(), torch.tensor(1), None])
def test_integers_of_a_shape(value):
    assert tensor_checks.int64("rows", torch.arange(3), "[rows]").tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match=r"'rows' must be an int64 tensor \[rows\]; got "):
        tensor_checks.int64("rows", value, "[rows]")


def test_commands_that_need_no_model_wait_for_no_torch():
    told = "import sys, course_tools.cli; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"

"""Settings are checked when they are made, and say the learning rate of each step."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from course_utils.healing.distillation import Recipe


def test_every_setting_stands_in_a_record():
    """Checkpoints and rankings are found again by what this gives, so nothing may be left out."""
    assert Recipe(steps=3, lr=1e-3).as_json() == {
        "steps": 3, "lr": 1e-3, "alpha": 0.0, "accumulate": 1, "warmup": 0.05, "weight_decay": 0.0, "clip": 1.0,
        "precision": "torch.float32", "recompute": False, "train_embedding": True, "mlps_only": False,
        "lora_rank": 0,
        "validate_every": 50, "seed": 0, "save_every": 50,
    }  # fmt: skip
    given = Recipe(steps=np.int64(3), lr=np.float32(0.5), precision=torch.bfloat16, accumulate=np.int8(2))
    assert json.loads(json.dumps(given.as_json())) == given.as_json()


def test_the_rate_rises_and_falls():
    rates = [Recipe(steps=100, lr=1.0, warmup=0.1).rate(step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert max(rates) == rates[10] == 1.0 and rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[55] == pytest.approx(0.55) and rates[99] == pytest.approx(0.1, abs=1e-3)
    assert Recipe(steps=1, lr=1.0, warmup=0.0).rate(0) == 1.0


def test_what_is_due_after_how_many_steps():
    due = Recipe(steps=7, lr=1.0).is_due
    assert [done for done in range(8) if due(done, 3)] == [3, 6, 7]

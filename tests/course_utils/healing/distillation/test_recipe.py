"""Settings are checked when they are made, can be read, and say the learning rate of each step."""

from __future__ import annotations

import inspect
import json
from dataclasses import FrozenInstanceError, fields
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch

from course_utils.healing.distillation import Recipe, recipe


def test_every_setting_is_checked_and_described():
    names = [field.name for field in fields(Recipe)]
    hints = get_type_hints(Recipe, include_extras=True)
    assert all(callable(check) for check in (get_args(hints[name])[1] for name in names))
    described = inspect.getdoc(Recipe)  # Python 3.13 takes the indentation off docstrings, earlier ones don't
    assert all(f"\n    {name}: " in described for name in names)


def test_unknown_and_missing_settings_are_named():
    with pytest.raises(TypeError, match=r"no setting 'learning_rate', 'epochs'; there are steps, lr, .*, save_every\."):
        recipe.with_settings(None, {"steps": 1, "learning_rate": 1e-3, "epochs": 2})
    with pytest.raises(TypeError, match="'steps' and 'lr' must be given"):
        recipe.with_settings(None, {})
    with pytest.raises(TypeError, match="^'lr' must be given"):
        recipe.with_settings(None, {"steps": 3})


def test_changed_settings_are_checked_and_leave_the_recipe_alone():
    given = Recipe(steps=3, lr=1e-3)
    assert recipe.with_settings(given, {}) == given
    assert recipe.with_settings(given, {"alpha": 0.5}) == Recipe(steps=3, lr=1e-3, alpha=0.5)
    with pytest.raises(ValueError, match="'alpha'"):
        recipe.with_settings(given, {"alpha": 2})
    with pytest.raises(FrozenInstanceError):
        given.alpha = 0.5
    assert given.alpha == 0.0


def test_it_can_be_read_and_written():
    given = Recipe(steps=np.int64(3), lr=np.float32(0.5), precision=torch.bfloat16, accumulate=np.int8(2))
    assert str(given).splitlines()[:3] == ["steps           3", "lr              0.5", "alpha           0.0"]
    assert "precision       torch.bfloat16" in str(given)
    assert json.loads(json.dumps(given.as_json())) == given.as_json()


def test_every_setting_stands_in_a_record():
    """Checkpoints and rankings are found again by what this gives, so nothing may be left out."""
    assert Recipe(steps=3, lr=1e-3).as_json() == {
        "steps": 3, "lr": 1e-3, "alpha": 0.0, "accumulate": 1, "warmup": 0.05, "weight_decay": 0.0, "clip": 1.0,
        "precision": "torch.float32", "recompute": False, "train_embedding": True, "mlps_only": False,
        "lora_rank": 0,
        "validate_every": 50, "seed": 0, "save_every": 50,
    }  # fmt: skip


def test_the_rate_rises_and_falls():
    rates = [Recipe(steps=100, lr=1.0, warmup=0.1).rate(step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert max(rates) == rates[10] == 1.0 and rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[55] == pytest.approx(0.55) and rates[99] == pytest.approx(0.1, abs=1e-3)
    assert Recipe(steps=1, lr=1.0, warmup=0.0).rate(0) == 1.0


def test_what_is_due_after_how_many_steps():
    due = Recipe(steps=7, lr=1.0).is_due
    assert [done for done in range(8) if due(done, 3)] == [3, 6, 7]

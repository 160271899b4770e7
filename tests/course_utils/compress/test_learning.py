"""Each way to learn has its rate, and each wish its own folder."""

from __future__ import annotations

import torch
from own_command import saved

from course_utils.compress import run


def test_another_wish_goes_its_own_way(command, tmp_path):
    """What an earlier run left isn't taken for it, nor in its way when all else is done."""
    found = {}
    for name, more in {"first": [], "seed": ["--seed", "1"], "rate": ["--lr", "1e-3"], "first again": []}.items():
        assert command("--budget", "95%", *more) == 0
        found[name] = {key: weight.clone() for key, weight in saved(tmp_path / "out").named_parameters()}

    def alike(a, b):
        return found[a].keys() == found[b].keys() and all(map(torch.equal, found[a].values(), found[b].values()))

    assert alike("first", "first again") and not alike("first", "seed") and not alike("first", "rate")
    assert len([*(tmp_path / "out" / "records").glob("*/scores-16-?-*.safetensors")]) == 2


def test_a_correction_of_low_rank_learns_at_a_rate_of_its_own(command, monkeypatch):
    recipes = []
    monkeypatch.setattr(run, "distill", lambda *args, **_: recipes.append(args[3]))
    assert command("--budget", "95%", "--light", "0", "--recover", "lora") == 0
    assert command("--budget", "95%", "--light", "0", "--recover", "lora", "--lr", "1e-3") == 0
    assert [(recipe.lora_rank, recipe.lr, recipe.mlps_only) for recipe in recipes] == [
        (16, 2e-3, False),
        (16, 1e-3, False),
    ]

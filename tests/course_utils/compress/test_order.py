"""Each setting that changes what is learned, and no other, gives another folder, and each way to learn has its rate."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from own_command import saved

from course_utils.compress.order import Order

ORDER = Order(model="llama", budget=(80, "%"), recover="mlps")
LEARNED = {
    "length": 512, "rows": 8, "seed": 1, "accumulate": 2, "lr": 1e-3, "dtype": "bfloat16", "recover": "all"
}  # fmt: skip
OTHER = {  # changes nothing that is learned, or has its name in the path (a teacher, a version, steps)
    "model": "gpt2", "budget": (90, "%"), "dry_run": True, "as_json": True, "out": Path("x"), "export": "gguf",
    "multiple_of": 8, "tensor_parallel": 2, "text": ("a",), "domain": "wiki", "judge": ("b",), "correction": 3,
    "finalists": 2, "light": 1, "steps": 7, "recompute": True, "vocabulary": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("name", [field.name for field in fields(Order)])
def test_a_folder_is_named_after_all_that_decides_what_is_learned(name):
    other = replace(ORDER, **{name: (LEARNED | OTHER)[name]})
    assert (other.learning_key("text") != ORDER.learning_key("text")) == (name in LEARNED)
    assert ORDER.learning_key("another text") != ORDER.learning_key("text")


def test_a_recipe_is_what_was_asked_and_each_way_to_learn_has_its_rate():
    order = replace(ORDER, accumulate=2, seed=3, dtype="bfloat16", recompute=True)
    recipe = order.recipe(5, alpha=1.0)
    assert (recipe.steps, recipe.accumulate, recipe.seed, recipe.precision) == (5, 2, 3, torch.bfloat16)
    assert (recipe.alpha, recipe.recompute, recipe.mlps_only, recipe.lora_rank, recipe.lr) == (1, True, True, 0, 2e-4)
    lora = replace(ORDER, recover="lora")
    both = lora.recipe(1), replace(lora, lr=1e-3).recipe(1)
    assert [(made.lora_rank, made.lr, made.mlps_only) for made in both] == [(16, 2e-3, False), (16, 1e-3, False)]


def test_the_settings_beside_a_model_name_no_place():
    order = replace(ORDER, model="/home/me/secret", text=("/home/me",), judge=("/home/you",), out=Path("/home"))
    assert "/home" not in str(order.settings()) and order.settings()["steps"] == 400


def test_another_wish_goes_its_own_way(command, tmp_path):
    """What an earlier run left isn't taken for it, nor in its way when all else is done."""
    found = {}
    for name, more in {"first": [], "seed": ["--seed", "1"], "rate": ["--lr", "1e-3"], "first again": []}.items():
        assert command("--budget", "95%", *more) == 0
        found[name] = {key: weight.clone() for key, weight in saved(tmp_path / "out").named_parameters()}

    def alike(a, b):
        return found[a].keys() == found[b].keys() and all(map(torch.equal, found[a].values(), found[b].values()))

    assert alike("first", "first again") and not alike("first", "seed") and not alike("first", "rate")
    assert len([*(tmp_path / "out" / "records").glob("*/scores-and-means-16-?-*.safetensors")]) == 2

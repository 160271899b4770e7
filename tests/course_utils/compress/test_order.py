"""Each setting that changes what is learned, and no other, gives another folder."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest

from course_utils.compress.order import RATES, Order

ORDER = Order(model="llama", budget=(80, "%"), recover="mlps")
OTHER = {
    "length": 512, "rows": 8, "seed": 1, "accumulate": 2, "lr": 1e-3, "dtype": "bfloat16", "recover": "all",
    # What follows changes nothing that is learned, or has its name in the path (a teacher, a version, steps).
    "model": "gpt2", "budget": (90, "%"), "dry_run": True, "as_json": True, "out": Path("x"), "export": "gguf",
    "multiple_of": 8, "tensor_parallel": 2, "text": ("a",), "domain": "wiki", "judge": ("b",), "correction": 3,
    "finalists": 2, "light": 1, "steps": 7, "recompute": True,
}  # fmt: skip
LEARNED = ("length", "rows", "seed", "accumulate", "lr", "dtype", "recover")


@pytest.mark.parametrize("name", [field.name for field in fields(Order)])
def test_a_folder_is_named_after_all_that_decides_what_is_learned(name):
    other = replace(ORDER, **{name: OTHER[name]})
    assert (other.learning_key("text") != ORDER.learning_key("text")) == (name in LEARNED)


def test_text_and_each_rate_give_another_folder():
    assert ORDER.learning_key("text") != ORDER.learning_key("another")
    assert {replace(ORDER, recover=how).rate for how in RATES} == {2e-4, 2e-3} and replace(ORDER, lr=1.0).rate == 1.0


def test_the_settings_beside_a_model_name_no_place():
    order = Order(
        model="/home/me/secret", budget=(80, "%"), text=("/home/me",), judge=("/home/you",), out=Path("/home")
    )
    assert "/home" not in str(order.settings()) and order.settings()["steps"] == 400

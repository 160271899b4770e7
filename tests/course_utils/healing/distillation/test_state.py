"""What makes a run another run, and rows that a teacher was never asked about; test_training stops and goes on."""

from __future__ import annotations

import pytest
from tiny import tiny_batches, tiny_model

from course_utils.healing.distillation import Recipe
from course_utils.healing.distillation.state import name_of, refuse_unknown, run_of
from course_utils.text.batches import read_batches, rows_of

BATCHES = list(read_batches(tiny_batches(), vocab_size=97, device="cpu"))


def test_each_part_of_a_run_makes_it_another():
    recipe, model = Recipe(steps=3, lr=1e-4), tiny_model()
    first = run_of(recipe, "a teacher", model, BATCHES, [])
    others = {
        "lr": run_of(Recipe(steps=3, lr=2e-4), "a teacher", model, BATCHES, []),
        "teacher": run_of(recipe, "another", model, BATCHES, []),
        "student before training": run_of(recipe, "a teacher", tiny_model(seed=1), BATCHES, []),
        "text": run_of(recipe, "a teacher", model, BATCHES[::-1], []),
        "validation text": run_of(recipe, "a teacher", model, BATCHES, BATCHES[:1]),
    }
    for what, run in others.items():
        assert [name for name in first if run[name] != first[name]] == [what]
    assert first["student before training"] == name_of(model) and first["validation text"] == "none"
    assert run_of(recipe, "a teacher", tiny_model(), BATCHES, []) == first


def test_rows_that_no_teacher_was_asked_about_are_counted():
    known = {row for batch in BATCHES[:-1] for row in rows_of(batch)}
    refuse_unknown(BATCHES[:-1], known, place="its answers", maker="ask")
    with pytest.raises(ValueError, match=r"2 of 6 rows of text are not in its answers\. Give ask all rows"):
        refuse_unknown(BATCHES, known, place="its answers", maker="ask")

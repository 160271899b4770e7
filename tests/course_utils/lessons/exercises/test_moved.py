"""Notebooks from before a lesson got another number still find its checks."""

import importlib

import pytest

OLD = {("11", "check_trial"): "14", ("12", "check_floor"): "11", ("13", "check_own_mix"): "12"}


@pytest.mark.parametrize(("old", "now"), OLD.items())
def test_check_is_found_in_its_old_module_and_the_present_notebook_named(old, now):
    number, check = old
    modules = {n: importlib.import_module(f"course_utils.lessons.exercises.lesson_{n}") for n in (number, now)}
    with pytest.warns(FutureWarning, match=rf"number {now} now.* {now}_\w+\.ipynb"):
        assert getattr(modules[number], check) is getattr(modules[now], check)


def test_check_that_was_never_there_is_not_found():
    with pytest.raises(ImportError, match="cannot import name 'check_prune_width'"):
        from course_utils.lessons.exercises.lesson_11 import check_prune_width  # noqa: F401
    with pytest.raises(AttributeError, match="check_router_weights"):
        getattr(importlib.import_module("course_utils.lessons.exercises.lesson_11"), "check_router_weights")  # noqa: B009

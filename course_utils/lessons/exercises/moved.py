"""Checks of lessons that have got another number: a notebook from before still imports them from the old module."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any

_SLUGS = {"11": "what_breaks_first", "12": "mixtures_of_experts", "14": "a_model_like_the_labs_make"}


def to_lesson(number: str) -> Callable[[str], Any]:
    """A module's `__getattr__`, which finds the checks that have moved to the module of lesson `number`.

    It warns, and names the notebook to open. Any other name isn't there: AttributeError, as ever.
    """

    def find(name: str) -> Any:
        module = importlib.import_module(f"course_utils.lessons.exercises.lesson_{number}")
        if not name.startswith("check_") or name not in vars(module):
            raise AttributeError(f"no exercise has the check {name!r} here")
        warnings.warn(
            f"This lesson is number {number} now. Your notebook goes on working; the present one is "
            f"{number}_{_SLUGS[number]}.ipynb, which `python3 course.py lab` puts beside it.",
            FutureWarning,
            stacklevel=2,
        )
        return vars(module)[name]

    return find

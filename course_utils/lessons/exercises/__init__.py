"""Checks that tell a learner, in one line, where an exercise stands; ``checking`` says how one is written."""

from course_utils.lessons.exercises.checking import (
    Attempt,
    alike,
    assigned,
    exercise,
    expect,
    number,
    require,
    run,
    take_a_try,
    told,
    true_or_false,
    untouched,
    whole_number,
)

__all__ = [
    "Attempt",
    "alike",
    "assigned",
    "exercise",
    "expect",
    "number",
    "require",
    "run",
    "take_a_try",
    "told",
    "true_or_false",
    "untouched",
    "whole_number",
]

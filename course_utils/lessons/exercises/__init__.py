"""Checks that tell a learner, in one line, where an exercise stands; ``checking`` says how one is written."""

from course_utils.lessons.exercises.checking import (
    Attempt,
    assigned,
    exercise,
    hooks_left,
    hooks_watched,
    named_error,
    require,
    true_or_false,
)

__all__ = [
    "Attempt",
    "assigned",
    "exercise",
    "hooks_left",
    "hooks_watched",
    "named_error",
    "require",
    "true_or_false",
]

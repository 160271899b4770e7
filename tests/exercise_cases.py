"""The test of an exercise's check, from its cases alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


def cases_of(
    check: Callable[[Any], bool], *, stubs: list, mistakes: list[tuple[Any, str]], answers: list
) -> Callable[..., None]:
    """A parametrised test: stubs are not solved yet, mistakes are named by the text beside them, answers are right."""
    cases = [
        *(("not solved yet", "", stub) for stub in stubs),
        *(("not yet", named, attempt) for attempt, named in mistakes),
        *(("correct", "", answer) for answer in answers),
    ]

    @pytest.mark.parametrize(
        ("verdict", "named", "attempt"), cases, ids=[named or verdict for verdict, named, _ in cases]
    )
    def test(verdict, named, attempt, capsys):
        solved = check(attempt)
        out = capsys.readouterr().out
        assert f": {verdict}. " in out, out
        assert named in out, out
        assert solved is (verdict == "correct")

    return test

"""The test of an exercise's check, from what it declares: its stub, its mistakes, its answer, and what is added."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest


def cases_of(
    check: Callable[..., bool],
    *given: Any,
    mistakes: Sequence[tuple[Any, str]] = (),
    answers: Sequence[Any] = (),
    stubs: Sequence[Any] = (),
    bound: bool = False,
    **named: Any,
) -> Callable[..., None]:
    """A parametrised test: a stub is not solved yet, each mistake gets its sentence, the answers are right.

    Args:
        check: the mistakes and the answer that it declares are tried, too.
        *given: handed to the check behind the attempt.
        mistakes: more of them, each with a part of its message.
        answers: more of them.
        stubs: more of them than a function, or a value, of three dots.
        bound: the declared functions get ``given`` first.
        **named: handed to the check by name.
    """
    bind: Callable[[Any], Any] = (lambda function: partial(function, *given)) if bound else (lambda function: function)
    declared = [(bind(wrong), said) for wrong, said in getattr(check, "mistakes", ())]
    right = [*(bind(answer) for answer in [getattr(check, "answer", None)] if answer), *answers]
    stub = (lambda *_, **__: ...) if callable(right[0]) and not isinstance(right[0], type) else ...
    cases = [
        *(("not solved yet", "", attempt) for attempt in (stub, *stubs)),
        *(("not yet", said, attempt) for attempt, said in (*declared, *mistakes)),
        *(("correct", "", answer) for answer in right),
    ]

    @pytest.mark.parametrize(("verdict", "said", "attempt"), cases, ids=[said or verdict for verdict, said, _ in cases])
    def test(verdict, said, attempt, capsys):
        solved = check(attempt, *given, **named)
        out = capsys.readouterr().out
        assert f": {verdict}. " in out, out
        assert said in out, out
        assert solved is (verdict == "correct")

    return test

"""What a verdict is: a sentence of a lesson, tied to a check on the numbers of a run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from course_tools.lessons.verdicts.tables import Tables
from course_utils.verdicts import OPEN, outcome

ABSENT = "not run"


@dataclass(frozen=True)
class Verdict:
    """What a run says about a sentence.

    Attributes:
        outcome: of `course_utils.verdicts.outcome`, or `ABSENT` where its cells were not run as the course wrote them.
        sentence: of the lesson.
    """

    outcome: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.outcome}: {self.sentence}"


Check = Callable[[Tables], Verdict]


def verdict(sentence: str) -> Callable[[Callable[[Tables], Iterable[float]]], Check]:
    """Turn a function into a check of a sentence.

    The function takes a run's tables and gives margins, each above 0 where the run speaks for the sentence.
    """

    def decorate(margins: Callable[[Tables], Iterable[float]]) -> Check:
        @functools.wraps(margins)
        def check(tables: Tables) -> Verdict:
            try:
                found = [*margins(tables)]
            except (LookupError, ValueError):  # a table, a line or a number is missing
                return Verdict(ABSENT, sentence)
            except ZeroDivisionError:  # a share of nothing
                return Verdict(OPEN, sentence)
            return Verdict(outcome(found), sentence)

        return check

    return decorate

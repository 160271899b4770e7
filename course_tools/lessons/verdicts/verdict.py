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


@dataclass(frozen=True)
class Check:
    """A sentence, and what tells from a run's tables whether it shows it.

    Attributes:
        sentence: of the lesson.
        margins: gives numbers, each above 0 where the run speaks for the sentence.
    """

    sentence: str
    margins: Callable[[Tables], Iterable[float]]

    def __call__(self, tables: Tables) -> Verdict:
        """What a run says."""
        try:
            found = [*self.margins(tables)]
        except (LookupError, ValueError):  # a table, a line or a number is missing
            return Verdict(ABSENT, self.sentence)
        except ZeroDivisionError:  # a share of nothing
            return Verdict(OPEN, self.sentence)
        return Verdict(outcome(found), self.sentence)


def verdict(sentence: str) -> Callable[[Callable[[Tables], Iterable[float]]], Check]:
    """Turn a function that gives margins into the check of a sentence."""
    return functools.partial(Check, sentence)

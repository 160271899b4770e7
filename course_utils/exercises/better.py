"""A check of what the learner chose: it has to beat a baseline on held-out text."""

from __future__ import annotations

from course_utils.evaluation import Perplexity, perplexity_ratio
from course_utils.exercises.checking import require
from course_utils.reports import with_interval


def require_better(mine: Perplexity, baseline: Perplexity, *, told: str, worse: str, luck: str) -> None:
    """Inside a check: print the ratio of two perplexities, and stop unless the learner's is surely the lower one.

    Args:
        mine: of what the learner chose, on held-out text.
        baseline: of what it has to beat, on the same rows.
        told: printed before the ratio and its 95 % interval.
        worse: a sentence for the learner whose choice is no better.
        luck: a sentence for the learner whose interval reaches 1.
    """
    ratio, low, high = perplexity_ratio(mine, baseline)
    print(f"{told} {with_interval(ratio, low, high)}")
    require(ratio < 1, worse)
    require(high < 1, luck)

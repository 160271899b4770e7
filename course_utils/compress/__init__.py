"""A small model from a larger one, as leading labs make it: all axes scored at once, sizes searched under a budget.

    scores = importance(teacher, calibration.batches(4))
    found = candidates(teacher, Budget(113e6))
    table = rank(teacher, found, scores, selection, folder="build/search", train=blocks, recipe=light)
    student = shrink(teacher, found[0], scores)

Recovery is ``distillation.distill``. Muralidharan et al. 2024 (Minitron), arXiv 2407.14679.
"""

from course_utils.compress.ranking import rank
from course_utils.compress.scores import AXES, Importance, importance
from course_utils.compress.search import Budget, Candidate, candidates, outline_of, shrink

__all__ = ["AXES", "Budget", "Candidate", "Importance", "candidates", "importance", "outline_of", "rank", "shrink"]

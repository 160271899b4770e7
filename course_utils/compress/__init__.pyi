from .ranking import rank
from .scores import AXES, Importance, importance
from .search import Budget, Candidate, candidates, outline_of, shrink

__all__ = [
    "AXES",
    "Budget",
    "Candidate",
    "Importance",
    "candidates",
    "importance",
    "outline_of",
    "rank",
    "shrink",
]

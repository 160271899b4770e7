from .exercises import exercise, require
from .verdicts import claim, here

__all__ = [
    "claim",
    "exercise",
    "here",
    "require",
]

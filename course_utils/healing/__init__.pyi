from .distillation import CheckpointMismatch, Recipe, distill
from .solving import refit

__all__ = [
    "CheckpointMismatch",
    "Recipe",
    "distill",
    "refit",
]

"""Knowledge distillation: a pruned model learns back what it lost, from the model that it was cut from.

    history = distill(teacher, student, blocks.batches(4), steps=400, lr=2e-4, checkpoint_dir="build/recovery")

``Recipe`` has every setting. ``teacher_states`` keeps what a teacher thinks of a text in memory, for several students.
``memory`` says beforehand whether a run fits.
"""

from course_utils.healing.distillation.checkpoint import CheckpointMismatch, History
from course_utils.healing.distillation.recipe import Recipe
from course_utils.healing.distillation.training import distill

__all__ = ["CheckpointMismatch", "History", "Recipe", "distill"]

"""What a model can't be asked for, refused before anything is changed: by its state or by its family.

``action`` is what was asked for, such as "remove blocks".
"""

from __future__ import annotations

from transformers import PreTrainedModel

from course_utils.models.architectures import Architecture
from course_utils.models.families import FAMILIES
from course_utils.support.checks import check_types


def refuse_adaptive(architecture: Architecture, action: str) -> None:
    """Refuse to change an adaptive model: its blocks were ranked and patched, so they must stay as they are."""
    if architecture.adaptive:
        raise ValueError(
            f"Can't {action} of an adaptive model. Undo it first with make_adaptive(model, None); afterwards "
            "calibrate again, because the model is another one."
        )


def refuse_missing_weights(architecture: Architecture, action: str) -> None:
    """Refuse what needs the weights' numbers where some are on the meta device, which holds shapes alone."""
    weights = list(architecture.model.parameters())
    missing = sum(weight.is_meta for weight in weights)
    if missing:
        raise ValueError(
            f"Can't {action}: {missing} of {len(weights)} weights are on the 'meta' device, which holds "
            "shapes and no numbers. Load the whole model onto one device, without a device_map that offloads parts."
        )


def refuse_offloaded_weights(architecture: Architecture, action: str) -> None:
    """Refuse to slice weights that accelerate keeps elsewhere: it would bring them back whole.

    A model that is on the meta device as a whole is let through: its sizes can be tried.
    """
    kinds = {weight.is_meta for weight in architecture.model.parameters()}
    if kinds == {True, False} or any(hasattr(module, "_hf_hook") for module in architecture.model.modules()):
        refuse_missing_weights(architecture, action)


def refuse_bound_heads(architecture: Architecture, action: str) -> None:
    """Refuse a cut of heads or hidden channels where the family's configuration has no head size of its own."""
    if not architecture.family.own_head_size:
        able = ", ".join(name for name, family in FAMILIES.items() if family.own_head_size)
        raise ValueError(
            f"Can't {action} of a {architecture.name} model: its head size is always hidden size / heads, so its "
            "configuration can't describe fewer heads or fewer channels, and its LayerNorms subtract a mean over "
            f"all channels. Prune its neurons or blocks; this axis exists in {able}."
        )


@check_types
def refuse_strangers(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """Refuse a student and a teacher that can't work side by side: one object, or on two devices."""
    if teacher is student:
        raise ValueError("Teacher and student are the same object; prune a copy: copy.deepcopy(teacher).")
    if teacher.device != student.device:
        raise ValueError(f"The teacher is on {teacher.device}, the student on {student.device}; put both on one.")

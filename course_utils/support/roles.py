"""The models that lessons speak of: which one stands in the roles "gpt2" and "llama", and who may replace it.

"moe" is the course's own mixture of experts; nothing replaces it. Names only, known before anything is loaded;
``models`` loads them.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

# Each with the variable that puts another model in its place.
ROLES = {"gpt2": "COURSE_GPT2", "llama": "COURSE_LLAMA"}
# Lesson 13's model, the same in every profile but smoke.
MIXTURE = "moe"
MIXTURE_NAME = "course-moe"
# The models that the numbers in the lessons' text are of.
EMBEDDED_MODELS = {"gpt2": "course-gpt2", "llama": "SmolLM2-135M-Instruct"}
# Tried from left to right; after the last comes the embedded model.
HUB_MODELS = {
    "gpt2": ("distilgpt2",),
    "llama": ("meta-llama/Llama-3.2-1B", "HuggingFaceTB/SmolLM2-360M"),
}
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)


def chosen_model(role: str) -> str | None:
    """The folder or hub id that ``COURSE_GPT2`` or ``COURSE_LLAMA`` puts in a role; None where nothing is chosen.

    Args:
        role: one of ``ROLES``.

    Raises:
        ValueError: an unknown role, or what is chosen is neither a folder with a model nor a possible hub id.
    """
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(f"'role' must be one of {', '.join(ROLES)}; got {role!r}.")
    chosen = os.environ.get(ROLES[role])
    if not chosen:
        return None
    if not (Path(chosen) / "config.json").is_file() and (Path(chosen).exists() or not _HUB_ID.fullmatch(chosen)):
        raise ValueError(
            f"{ROLES[role]} is {chosen!r}, which is neither a folder with a model (that holds a config.json) nor a hub "
            "id like 'Qwen/Qwen3-0.6B'. Mend it, or leave it unset."
        )
    return chosen


def names_in(profile: str) -> dict[str, str]:
    """The model in each role under a profile, as far as names tell; a folder by its own name, without its path.

    >>> names_in("embedded")
    {'gpt2': 'course-gpt2', 'llama': 'SmolLM2-135M-Instruct'}

    Args:
        profile: one of ``session.PROFILES``.

    Raises:
        ValueError: an unknown profile; see ``chosen_model`` as well.
    """
    by_profile = {
        "smoke": dict.fromkeys(ROLES, "random"),
        "embedded": EMBEDDED_MODELS,
        "hub": {role: _on_the_hub(role) for role in ROLES},
    }
    if not isinstance(profile, str) or profile not in by_profile:
        raise ValueError(f"'profile' must be one of {', '.join(by_profile)}; got {profile!r}.")
    chosen = {role: name for role in ROLES if (name := chosen_model(role))}
    shown = {role: Path(name).name if os.path.isdir(name) else name for role, name in chosen.items()}
    return by_profile[profile] | shown


def _on_the_hub(role: str) -> str:
    first, *others = HUB_MODELS[role]
    return first + "".join(f", or {name} without access" for name in others)

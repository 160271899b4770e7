"""Start of a lesson: profile, the models in their roles, device, dtype, seeds, and a short table of versions.

A lesson names its models by role, "gpt2" or "llama". Which model stands there is known before anything is loaded;
``models.load_model`` loads it. "moe" is the course's own mixture of experts, which nothing replaces.
"""

from __future__ import annotations

import functools
import os
import platform
import random
import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PROFILES = ("smoke", "embedded", "hub")
# Each role with the variable that puts another model there.
ROLES = {"gpt2": "COURSE_GPT2", "llama": "COURSE_LLAMA"}
# Lesson 12's model, the same in every profile but smoke.
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
SEED = 0
_PROBE_SECONDS = 3.0


@dataclass(frozen=True)
class Session:
    """What a lesson runs with.

    Attributes:
        lesson: its number, such as "03".
        profile: one of ``PROFILES``.
        device: "cuda" if there is one, otherwise the CPU.
        dtype: for experiments on the Llama, ``load_model("llama", dtype=session.dtype)``: what the device multiplies
            fast (``fast_dtype``). Exactness is shown in float32.
        seed: what Python, numpy and torch were seeded with.
    """

    lesson: str
    profile: str
    device: torch.device
    dtype: torch.dtype
    seed: int


def start(lesson: str, *, profile: str | None = None) -> Session:
    """Seed everything, settle the profile for the rest of the process, print a table, return the session.

    Args:
        lesson: number of the lesson, such as "03".
        profile: one of ``PROFILES``; default: ``COURSE_PROFILE``, or chosen by ``current_profile``. It is exported as
            ``COURSE_PROFILE``, so that everything that runs later agrees.

    Raises:
        ValueError: ``lesson`` isn't a string, the profile, given here or in ``COURSE_PROFILE``, is unknown, or a model
            that the environment puts in a role can't be one (``chosen_model``). Nothing was changed.
    """
    if not isinstance(lesson, str):
        raise ValueError(f"'lesson' is the lesson's number as a string, such as '03'; got {lesson!r}.")
    import numpy
    import torch

    chosen = _checked(profile, "profile") if profile is not None else current_profile()
    names = names_in(chosen)
    os.environ["COURSE_PROFILE"] = chosen
    random.seed(SEED)
    numpy.random.seed(SEED)
    torch.manual_seed(SEED)
    device = default_device()
    session = Session(lesson, chosen, device, fast_dtype(device), SEED)
    print(_table(session, names, machine(device)))
    return session


def current_profile() -> str:
    """``COURSE_PROFILE``, or automatic: "hub" where there is a GPU and the hub answers, otherwise "embedded".

    Raises:
        ValueError: ``COURSE_PROFILE`` is not one of ``PROFILES``.
    """
    chosen = os.environ.get("COURSE_PROFILE")
    if chosen:
        return _checked(chosen, "COURSE_PROFILE")
    return _automatic_profile()


@functools.cache  # asks the network once, so that all calls in a process agree
def _automatic_profile() -> str:
    return "hub" if default_device().type == "cuda" and _hub_answers() else "embedded"


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
    """The name of the model in each role under a profile; of a folder its own name, without its path.

    Raises:
        ValueError: an unknown profile; see ``chosen_model`` as well.

    >>> names_in("embedded")
    {'gpt2': 'course-gpt2', 'llama': 'SmolLM2-135M-Instruct'}
    """
    names = {
        "smoke": dict.fromkeys(ROLES, "random"),
        "embedded": EMBEDDED_MODELS,
        "hub": {role: _on_the_hub(models) for role, models in HUB_MODELS.items()},
    }[_checked(profile, "'profile'")]
    chosen = {role: name for role in ROLES if (name := chosen_model(role))}
    return names | {role: Path(name).name if os.path.isdir(name) else name for role, name in chosen.items()}


def _on_the_hub(models: tuple[str, ...]) -> str:
    return models[0] + "".join(f", or {name} without access" for name in models[1:])


def default_device() -> torch.device:
    """The first CUDA device, otherwise the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fast_dtype(device: torch.device) -> torch.dtype:
    """The 16-bit type that ``device`` multiplies natively, several times faster than float32; else float32.

    GPUs: bfloat16, or float16 on those that only emulate it (Colab's T4). CPUs: bfloat16 with AVX-512 BF16 or AMX.

    Raises:
        TypeError: it isn't a device.
    """
    import torch

    if not isinstance(device, torch.device):
        raise TypeError(f"'device' must be a torch.device; got {device!r}.")
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # older torches can't say
    native = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return torch.bfloat16 if native else torch.float32


def safe_dtype(dtype: torch.dtype) -> torch.dtype:
    """``dtype`` for models that may be broken: float32 in place of float16, whose range their activations can leave.

    Such a lesson then takes 4 bytes per weight on a GPU without bfloat16 (Colab's T4).

    >>> import torch
    >>> safe_dtype(torch.float16), safe_dtype(torch.bfloat16)
    (torch.float32, torch.bfloat16)

    Raises:
        TypeError: it isn't a dtype.
    """
    import torch

    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"'dtype' must be a torch.dtype; got {dtype!r}.")
    return torch.float32 if dtype == torch.float16 else dtype


def machine(device: torch.device) -> dict[str, str]:
    """Versions of what computes, and the machine in words; no host name, no path."""
    import psutil
    import torch

    gigabytes = psutil.virtual_memory().total / 1e9
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU only"
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": metadata.version("transformers"),
        "machine": f"{cores()} cores, {gigabytes:.0f} GB memory, {card}",
    }


def _checked(profile: str, source: str) -> str:
    if not isinstance(profile, str) or profile not in PROFILES:
        raise ValueError(f"{source} is {profile!r}; choose one of {', '.join(PROFILES)}, or leave it unset.")
    return profile


def _hub_answers() -> bool:
    """Whether the Hugging Face hub (or the mirror in HF_ENDPOINT) answers within a few seconds."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        answer = get_session().head(constants.ENDPOINT, timeout=_PROBE_SECONDS, follow_redirects=True)
    except Exception:  # whatever the client's HTTP library raises: no answer is an answer
        return False
    return answer.status_code < 500


def _table(session: Session, names: dict[str, str], machine: dict[str, str]) -> str:
    """All of it in two columns. Below: how to get the models of the text's numbers, where others stand in the roles."""
    rows = {
        "lesson": session.lesson,
        "profile": session.profile,
        **names,
        **machine,
        "fast dtype": str(session.dtype).removeprefix("torch."),
        "seed": str(session.seed),
    }
    lines = [f"{name:<13}{value}" for name, value in rows.items()]
    if names != EMBEDDED_MODELS:
        of = " and ".join(EMBEDDED_MODELS.values())
        settings = {"COURSE_PROFILE": "embedded"} | {ROLES[role]: "" for role in ROLES if chosen_model(role)}
        lines.append(f"The numbers in the text are of {of}. For these, run in a cell of its own, then this one again:")
        lines += [f"%env {variable}={value}" for variable, value in settings.items()]
    return "\n".join(lines)

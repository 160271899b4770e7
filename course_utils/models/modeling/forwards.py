"""Another forward for one module, beneath whatever accelerate has wrapped around it.

accelerate's hooks (``device_map`` over several devices, offloading) stand in the module's ``forward`` and call what was
there before, which they keep as ``_old_forward``. There a replacement belongs, or it would throw the hooks away.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

from torch import nn


def replace_forward(module: nn.Module, forward: Callable[..., Any]) -> None:
    """Let a function, called with the module first, stand in for its class's own forward."""
    setattr(module, "_old_forward" if hasattr(module, "_hf_hook") else "forward", MethodType(forward, module))


def restore_forward(module: nn.Module) -> None:
    """Undo ``replace_forward``, whether hooks came or went meanwhile."""
    if hasattr(module, "_hf_hook"):
        replace_forward(module, type(module).forward)
    else:
        del module.forward

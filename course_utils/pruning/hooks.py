"""Looking into a model while it runs: the states that a hook is handed, and evaluation mode while hooks are there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


def entering(args: tuple, kwargs: dict) -> Tensor:
    """The hidden states [rows, length, hidden] that a module was called with."""
    return kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]


def leaving(output: Tensor | tuple) -> Tensor:
    """The hidden states that a module returned, alone or first in a tuple."""
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def evaluating(model: nn.Module, *hooks: RemovableHandle) -> Iterator[None]:
    """Evaluation mode for a while; then each module is back in its own mode and the hooks are gone."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for hook in hooks:
            hook.remove()

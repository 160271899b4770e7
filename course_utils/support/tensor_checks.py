"""Bad tensors, models and devices, refused as ``checks`` refuses plain values; apart, since torch loads slowly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def finite(scores: Sequence[Tensor], what: str) -> None:
    """Refuse scores, one tensor a block, that hold NaN or infinite values.

    Raises:
        ValueError: naming the blocks.
    """
    wrong = [i for i, s in enumerate(scores) if not torch.isfinite(s).all()]
    if wrong:
        raise ValueError(f"{what} hold NaN or infinite values in blocks {wrong}: check the model's weights and dtype.")


def int64(name: str, value: Any, shape: str) -> Tensor:
    """Return a tensor of 64-bit integers.

    Args:
        name: the argument's, for the message.
        value: what was given.
        shape: its dimensions' names, for the message, such as "[rows, length]".

    Raises:
        ValueError: it isn't one, or has more or fewer dimensions.

    >>> int64("num_bytes", [3, 4], "[rows]")
    Traceback (most recent call last):
    ValueError: 'num_bytes' must be an int64 tensor [rows]; got list.
    """
    if not isinstance(value, Tensor) or value.dtype != torch.int64 or value.dim() != shape.count(",") + 1:
        given = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"'{name}' must be an int64 tensor {shape}; got {given}.")
    return value


def module(name: str, value: Any) -> nn.Module:
    """Return a model; of which kind is for others to say.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(value, nn.Module):
        raise TypeError(f"'{name}' must be a model, as load_model returns it first; got {value!r}.")
    return value


def device(value: Any) -> torch.device:
    """Return a device that this machine has.

    Raises:
        ValueError: it is no device, or one that isn't there.

    >>> device("gpu")
    Traceback (most recent call last):
    ValueError: 'device' must be a device that this machine has, such as 'cpu'; got 'gpu'.
    """
    try:
        torch.empty(0, device=torch.device(value))
    except (RuntimeError, AssertionError, TypeError, ValueError, NotImplementedError):  # torch has no error of its own
        raise ValueError(f"'device' must be a device that this machine has, such as 'cpu'; got {value!r}.") from None
    return torch.device(value)

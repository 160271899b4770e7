"""Bad arguments are refused with one wording for each kind: what was given, what is allowed.

A check returns the value where it is good and raises a ValueError where it isn't. ``check_types`` refuses by a
function's type hints what is of another kind altogether, such as the name of a model in place of the model.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import operator
import os
import reprlib
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

_P = ParamSpec("_P")
_R = TypeVar("_R")
_NUMBERS = {int, float, bool}
_PLAIN = {*_NUMBERS, str, type(None)}
_LISTS = np.ndarray | Tensor | pd.Series  # may be given for a list


def whole_number(name: str, value: Any, *, least: int = 0, most: int | None = None, meaning: str = "") -> int:
    """Return a whole number from ``least`` to ``most`` as an int. True and False are no numbers; numpy's integers are.

    Args:
        name: the argument's, for the message.
        value: what was given.
        least: the smallest allowed.
        most: the largest allowed; None for no limit.
        meaning: what the upper limit is, for the message, such as "the live attentions".

    >>> whole_number("steps", 3, least=1)
    3
    >>> whole_number("count", True, most=5, meaning="the live attentions")
    Traceback (most recent call last):
    ValueError: 'count' must be a whole number from 0 to 5, the live attentions; got True.
    """
    if not _is_whole(value, least, most):
        raise ValueError(f"'{name}' must be a whole number {_limits(least, most, meaning)}; got {value!r}.")
    return index(value)


def whole_numbers(
    name: str, values: Any, *, least: int = 0, most: int | None = None, meaning: str = ""
) -> tuple[int, ...]:
    """Return whole numbers, each within the limits, as a tuple of ints; see ``whole_number``. There may be none.

    >>> whole_numbers("left_out", [4, 2.0], most=4)
    Traceback (most recent call last):
    ValueError: 'left_out' must hold whole numbers from 0 to 4; got [4, 2.0].
    """
    try:
        given = tuple(values)
    except TypeError:
        given = (None,)
    if not all(_is_whole(value, least, most) for value in given):
        raise ValueError(f"'{name}' must hold whole numbers {_limits(least, most, meaning)}; got {values!r}.")
    return tuple(map(index, given))


def index(value: Any) -> int:
    """Return an integer of any kind as an int; True is none, whoever made it (older numpy takes its own for 1).

    Raises:
        TypeError: it isn't an integer.
    """
    if isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool"):
        raise TypeError(f"{value!r} is no integer.")
    return operator.index(value)


def _is_whole(value: Any, least: int, most: int | None) -> bool:
    try:
        number = index(value)
    except TypeError:
        return False
    return least <= number and (most is None or number <= most)


def _limits(least: int, most: int | None, meaning: str) -> str:
    return (f"of at least {least}" if most is None else f"from {least} to {most}") + (meaning and f", {meaning}")


def number(name: str, value: Any) -> float:
    """Return a number as a float, which may be nan or infinite. True and False are no numbers."""
    if not isinstance(value, bool | str | bytes):
        with contextlib.suppress(TypeError, ValueError):
            return float(value)
    raise ValueError(f"'{name}' must be a number; got {value!r}.")


def is_number(value: object) -> bool:
    """Whether a value is a finite real number; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def positive(name: str, value: Any) -> float:
    """Return a finite number above 0."""
    if not is_number(value) or not value > 0:
        raise ValueError(f"'{name}' must be a number above 0; got {value!r}.")
    return value


def at_least_zero(name: str, value: Any) -> float:
    """Return a finite number that isn't negative."""
    if not is_number(value) or value < 0:
        raise ValueError(f"'{name}' must be a number of at least 0; got {value!r}.")
    return value


def share(name: str, value: Any) -> float:
    """Return a number from 0 to 1, both included."""
    if not is_number(value) or not 0 <= value <= 1:
        raise ValueError(f"'{name}' is a share, from 0 to 1; got {value!r}.")
    return value


def ratio(value: Any) -> float:
    """Return the share of something to remove, in [0, 1)."""
    if not is_number(value) or not 0 <= value < 1:
        raise ValueError(f"'ratio' is the share to remove, in [0, 1); got {value!r}. For 20 % give 0.2.")
    return value


def flag(name: str, value: object) -> bool:
    """Return True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"'{name}' must be True or False; got {value!r}.")
    return value


def one_of(name: str, value: object, allowed: Collection[object]) -> object:
    """Return a value that is among the allowed ones."""
    if not any(_equal(value, one) for one in allowed):  # what can't be hashed is none of them either
        raise ValueError(f"'{name}' must be one of {', '.join(map(str, allowed))}; got {value!r}.")
    return value


def _equal(a: object, b: object) -> bool:
    try:
        return bool(a == b)
    except (ValueError, TypeError, RuntimeError):  # an array compares each of its numbers
        return False


def text(name: str, value: Any) -> str:
    """Return a string."""
    if not isinstance(value, str):
        raise ValueError(f"'{name}' must be a string; got {value!r}.")
    return value


def strings(name: str, values: Any, *, least: int = 1) -> list[str]:
    """Return a list of strings, at least one of them or, with ``least=0``, perhaps none.

    >>> strings("prompts", "Hello")  # one string by itself is no list of strings
    Traceback (most recent call last):
    ValueError: 'prompts' must be a non-empty list of strings; got 'Hello'.
    """
    iterable = isinstance(values, Iterable) and not isinstance(values, str | bytes)
    given = list(values) if iterable else []
    if not iterable or len(given) < least or not all(isinstance(value, str) for value in given):
        raise ValueError(f"'{name}' must be a {'non-empty ' if least else ''}list of strings; got {values!r}.")
    return given


def not_empty(name: str, values: Any) -> Any:
    """Return a collection that isn't empty."""
    if not len(values):
        raise ValueError(f"'{name}' is empty: give at least one.")
    return values


def block_numbers(indices: Sequence[int], count: int, *, name: str = "Block numbers") -> list[int]:
    """Return different block numbers from 0 to ``count`` - 1, sorted; there may be none.

    Args:
        indices: what was given, in any order.
        count: how many blocks there are.
        name: what they are called in the message.

    >>> block_numbers([3, 0], count=4)
    [0, 3]
    >>> block_numbers([3, 4], count=4)
    Traceback (most recent call last):
    ValueError: Block numbers must lie from 0 to 3; got [4].
    """
    try:
        numbers = [index(i) for i in indices]
    except TypeError:
        raise ValueError(f"{name} must be a list of integers; got {indices!r}.") from None
    wrong = [i for i in numbers if not 0 <= i < count]
    if wrong:
        raise ValueError(f"{name} must lie from 0 to {count - 1}; got {wrong}.")
    if len(set(numbers)) != len(numbers):
        raise ValueError(f"{name} must not repeat; got {numbers}.")
    return sorted(numbers)


def path(name: str, value: Any) -> Path:
    """Return a path, which may be given as a string."""
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str):
        raise ValueError(f"'{name}' must be a path, as a string or a Path; got {value!r}.")
    return Path(value)


def finite(scores: Sequence[Tensor], what: str) -> None:
    """Refuse scores, one tensor per block, that hold NaN or infinite values, with the numbers of the blocks."""
    wrong = [i for i, s in enumerate(scores) if not torch.isfinite(s).all()]
    if wrong:
        raise ValueError(f"{what} hold NaN or infinite values in blocks {wrong}: check the model's weights and dtype.")


def int64(name: str, value: Any, shape: str) -> Tensor:
    """Return a tensor of 64-bit integers with as many dimensions as ``shape`` names, such as "[rows, length]".

    >>> int64("num_bytes", [3, 4], "[rows]")
    Traceback (most recent call last):
    ValueError: 'num_bytes' must be an int64 tensor [rows]; got list.
    """
    if not isinstance(value, Tensor) or value.dtype != torch.int64 or value.dim() != shape.count(",") + 1:
        given = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"'{name}' must be an int64 tensor {shape}; got {given}.")
    return value


def module(name: str, value: Any) -> nn.Module:
    """Return a model of any kind.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(value, nn.Module):
        raise TypeError(f"'{name}' must be a model, as load_model returns it first; got {value!r}.")
    return value


def device(value: Any) -> torch.device:
    """Return a device that this machine has.

    >>> device("gpu")
    Traceback (most recent call last):
    ValueError: 'device' must be a device that this machine has, such as 'cpu'; got 'gpu'.
    """
    try:
        torch.empty(0, device=torch.device(value))
    except (RuntimeError, AssertionError, TypeError, ValueError, NotImplementedError):  # torch has no error of its own
        raise ValueError(f"'device' must be a device that this machine has, such as 'cpu'; got {value!r}.") from None
    return torch.device(value)


def check_types(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Refuse an argument that is of another type than its hint says, by its name, before the function begins.

    Checked are classes, lists and mappings with what they hold, functions, and unions of these. An ``Iterable`` isn't
    looked into, because that would use it up. Numbers and strings, by themselves or in a ``Sequence``, are left to the
    function, which knows their limits.

    Raises:
        TypeError: from the function that comes back.

    >>> @check_types
    ... def mean(values: Tensor) -> float:
    ...     return values.mean().item()
    >>> mean([1, 2])
    Traceback (most recent call last):
    TypeError: 'values' must be of type Tensor; got [1, 2].
    """
    signature = inspect.signature(function)

    @functools.cache  # hints are looked up at the first call: by then all modules are there
    def checkable() -> dict[str, Any]:
        hints = get_type_hints(function)
        several = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        single = [name for name, parameter in signature.parameters.items() if parameter.kind not in several]
        return {name: hints[name] for name in single if name in hints and not _left_alone(hints[name])}

    @functools.wraps(function)
    def checked(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        arguments = signature.bind(*args, **kwargs).arguments
        for name, hint in checkable().items():
            if name in arguments and not _fits(arguments[name], hint):
                wanted = inspect.formatannotation(signature.parameters[name].annotation).strip("'")
                raise TypeError(f"'{name}' must be of type {wanted}; got {reprlib.repr(arguments[name])}.")
        return function(*args, **kwargs)

    return checked


def _left_alone(hint: Any) -> bool:
    kind, inner = get_origin(hint), get_args(hint)
    if _is_union(kind):
        return all(map(_left_alone, inner))
    return hint in _PLAIN or hint is Any or (kind is Sequence and inner[0] in (int, str))


def _is_union(kind: Any) -> bool:
    return kind in (Union, types.UnionType)


def _fits(value: Any, hint: Any) -> bool:
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if _is_union(kind):
        return any(_fits(value, member) for member in inner)
    if kind is Callable:
        return callable(value)
    if kind in _NUMBERS:
        return isinstance(value, Real | np.generic | Tensor)
    if not isinstance(kind, type) or kind is Any:  # a variable, or whatever
        return True
    if not inner or not issubclass(kind, Iterable):
        return isinstance(value, kind)
    if issubclass(kind, Mapping):
        return isinstance(value, Mapping) and all(_fits(item, inner[1]) for item in value.values())
    if issubclass(kind, tuple) and Ellipsis not in inner:
        return isinstance(value, tuple | list) and len(value) == len(inner) and all(map(_fits, value, inner))
    if isinstance(value, str | bytes) or not isinstance(value, kind | _LISTS):
        return False
    return not issubclass(kind, Collection) or isinstance(value, _LISTS) or all(_fits(item, inner[0]) for item in value)

"""Bad arguments, refused with one wording for each kind: what was given, what is allowed."""

from __future__ import annotations

import dis
import functools
import inspect
import math
import operator
import re
import reprlib
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Sized
from numbers import Real
from types import NoneType, UnionType
from typing import Any, ParamSpec, TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

_P = ParamSpec("_P")
_R = TypeVar("_R")
_NO_DEVICE = "'device' must be a device that this machine has, such as 'cpu'; got {!r}."


def whole_number(name: str, value: Any, *, least: int = 0, most: int | None = None, meaning: str = "") -> int:
    """Return ``value`` as an int. True and False are no numbers; numpy's integers are.

    Args:
        name: the argument's, for the message.
        value: what was given.
        least: the smallest allowed.
        most: the largest allowed; None for no limit.
        meaning: what the upper limit is, for the message, such as "the live attentions".

    Raises:
        ValueError: it isn't a whole number, or lies outside.

    >>> whole_number("steps", 3, least=1)
    3
    >>> whole_number("count", True, most=5, meaning="the live attentions")
    Traceback (most recent call last):
    ValueError: 'count' must be a whole number from 0 to 5, the live attentions; got True.
    """
    if not _is_whole(value, least, most):
        raise ValueError(f"'{name}' must be a whole number {_limits(least, most, meaning)}; got {value!r}.")
    return operator.index(value)


def whole_numbers(
    name: str, values: Any, *, least: int = 0, most: int | None = None, meaning: str = ""
) -> tuple[int, ...]:
    """Return ``values`` as a tuple of ints; each must be a whole number within the limits. None at all is allowed.

    Args:
        name: the argument's, for the message.
        values: what was given.
        least: the smallest allowed.
        most: the largest allowed; None for no limit.
        meaning: what the upper limit is, for the message.

    Raises:
        ValueError: it isn't such a list.

    >>> whole_numbers("left_out", [4, 2.0], most=4)
    Traceback (most recent call last):
    ValueError: 'left_out' must hold whole numbers from 0 to 4; got [4, 2.0].
    """
    given = tuple(values) if isinstance(values, Iterable) else (None,)
    if not all(_is_whole(value, least, most) for value in given):
        raise ValueError(f"'{name}' must hold whole numbers {_limits(least, most, meaning)}; got {values!r}.")
    return tuple(map(operator.index, given))


def _is_whole(value: Any, least: int, most: int | None) -> bool:
    try:
        number = operator.index(value)
    except TypeError:
        return False
    return not isinstance(value, bool) and least <= number and (most is None or number <= most)


def _limits(least: int, most: int | None, meaning: str) -> str:
    return (f"of at least {least}" if most is None else f"from {least} to {most}") + (meaning and f", {meaning}")


def positive(name: str, value: Any) -> float:
    """Return a finite number above 0.

    Raises:
        ValueError: it isn't one.
    """
    if not is_number(value) or not value > 0:
        raise ValueError(f"'{name}' must be a number above 0; got {value!r}.")
    return value


def at_least_zero(name: str, value: Any) -> float:
    """Return a finite number that isn't negative.

    Raises:
        ValueError: it isn't one.
    """
    if not is_number(value) or value < 0:
        raise ValueError(f"'{name}' must be a number of at least 0; got {value!r}.")
    return value


def share(name: str, value: Any) -> float:
    """Return a number from 0 to 1, both included.

    Raises:
        ValueError: it isn't one.
    """
    if not is_number(value) or not 0 <= value <= 1:
        raise ValueError(f"'{name}' is a share, from 0 to 1; got {value!r}.")
    return value


def ratio(value: Any) -> float:
    """Return the share of something to remove, in [0, 1).

    Raises:
        ValueError: it isn't one.
    """
    if not is_number(value) or not 0 <= value < 1:
        raise ValueError(f"'ratio' is the share to remove, in [0, 1); got {value!r}. For 20 % give 0.2.")
    return value


def flag(name: str, value: object) -> bool:
    """Return True or False.

    Raises:
        ValueError: it is neither.
    """
    if not isinstance(value, bool):
        raise ValueError(f"'{name}' must be True or False; got {value!r}.")
    return value


def one_of(name: str, value: object, allowed: Collection[object]) -> object:
    """Return a value that is among the allowed ones.

    Raises:
        ValueError: it isn't.
    """
    if value not in allowed:
        raise ValueError(f"'{name}' must be one of {', '.join(map(str, allowed))}; got {value!r}.")
    return value


def strings(name: str, values: Any) -> list[str]:
    """Return ``values`` as a list of at least one string; one string by itself is no list of strings.

    Raises:
        ValueError: it isn't such a list.

    >>> strings("prompts", "Hello")
    Traceback (most recent call last):
    ValueError: 'prompts' must be a non-empty list of strings; got 'Hello'.
    """
    given = [] if isinstance(values, str) or not isinstance(values, Iterable) else list(values)
    if not given or not all(isinstance(value, str) for value in given):
        raise ValueError(f"'{name}' must be a non-empty list of strings; got {values!r}.")
    return given


def block_numbers(indices: Sequence[int], count: int, *, name: str = "Block numbers") -> list[int]:
    """Return different block numbers from 0 to ``count`` - 1, sorted.

    Args:
        indices: what was given, in any order; may be empty.
        count: how many blocks there are.
        name: what they are called in the message.

    Raises:
        ValueError: one is out of range, repeated or no integer.

    >>> block_numbers([3, 0], count=4)
    [0, 3]
    >>> block_numbers([3, 4], count=4)
    Traceback (most recent call last):
    ValueError: Block numbers must lie from 0 to 3; got [4].
    """
    try:
        if any(isinstance(i, bool) for i in indices):
            raise TypeError
        numbers = [operator.index(i) for i in indices]
    except TypeError:
        raise ValueError(f"{name} must be a list of integers; got {indices!r}.") from None
    wrong = [i for i in numbers if not 0 <= i < count]
    if wrong:
        raise ValueError(f"{name} must lie from 0 to {count - 1}; got {wrong}.")
    if len(set(numbers)) != len(numbers):
        raise ValueError(f"{name} must not repeat; got {numbers}.")
    return sorted(numbers)


def finite(scores: Sequence[Tensor], what: str) -> None:
    """Refuse scores, one tensor a block, that hold NaN or infinite values.

    Raises:
        ValueError: naming the blocks.
    """
    wrong = [i for i, s in enumerate(scores) if not torch.isfinite(s).all()]
    if wrong:
        raise ValueError(f"{what} hold NaN or infinite values in blocks {wrong}: check the model's weights and dtype.")


def is_number(value: object) -> bool:
    """Whether a value is a finite real number; True and False are not.

    >>> is_number(0.5), is_number(True), is_number(float("nan"))
    (True, False, False)
    """
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def module(name: str, value: Any) -> nn.Module:
    """Return a model; of which kind is for others to say.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(value, nn.Module):
        raise TypeError(f"'{name}' must be a model, as load_model returns it first; got {_short(value)}.")
    return value


def device(value: Any) -> torch.device:
    """Return a device that this machine has.

    Raises:
        ValueError: it is no device, or one that isn't there.

    >>> device("gpu")
    Traceback (most recent call last):
    ValueError: 'device' must be a device that this machine has, such as 'cpu'; got 'gpu'.
    """
    if not _is_device(value):
        raise ValueError(_NO_DEVICE.format(value))
    return torch.device(value)


def _is_device(value: Any) -> bool:
    try:
        torch.empty(0, device=torch.device(value))
    except (RuntimeError, AssertionError, TypeError, ValueError, NotImplementedError):  # torch has no error of its own
        return False
    return True


def named(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorate a function so that a bare error inside it says which argument caused it.

    Looked at only after a failure, and only then: a call that works costs nothing and may be given anything that works.
    An argument is to blame when it isn't of the kind that its type hint says, is empty, or lacks a column or key.

    >>> @named
    ... def first_word(text: str) -> str:
    ...     return text.split()[0]
    >>> first_word("two words")
    'two'
    >>> first_word(2)
    Traceback (most recent call last):
    TypeError: 'text' must be of the kind str; got 2.
    """

    @functools.wraps(function)
    def called(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            fault = _fault(function, args, kwargs, error)
            if fault is None:
                raise
            raise fault from error

    return called


def _fault(
    function: Callable, args: tuple[object, ...], kwargs: Mapping[str, object], error: Exception
) -> ValueError | TypeError | None:
    """The error that names the argument to blame; None where none is, or where the error says enough itself."""
    # Errors of a class of their own say what they mean: unsupported models, no such file, memory used up.
    own_class = type(error).__module__.partition(".")[0] not in ("builtins", "numpy")
    if own_class or isinstance(error, OSError | MemoryError) or _on_purpose(error):
        return None
    parameters = inspect.signature(function).parameters
    try:
        bound = inspect.signature(function).bind(*args, **kwargs).arguments
    except TypeError:  # arguments that are missing or unknown are named by Python
        return None
    packed = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    given = {name: value for name, value in bound.items() if parameters[name].kind not in packed}
    for name, value in given.items():
        annotation = parameters[name].annotation
        if not _fits(value, _hint(annotation, function)):
            if isinstance(error, ValueError | TypeError) and _names(str(error), name):
                return None
            return TypeError(f"'{name}' must be of the kind {annotation}; got {_short(value)}.")
    for name, value in given.items():
        if _is_empty(value) and value is not parameters[name].default:
            return ValueError(f"'{name}' must not be empty; got {_short(value)}.")
    for name, value in given.items():
        if name == "device" and value is not None and not _is_device(value):
            return ValueError(_NO_DEVICE.format(value))
        if isinstance(error, KeyError) and isinstance(value, Mapping | pd.DataFrame):
            for missing in error.args:
                if missing not in value:
                    return ValueError(f"'{name}' has no {missing!r}; it has {', '.join(map(str, value))}.")
    arrays = {name: value for name, value in given.items() if isinstance(value, Tensor | np.ndarray)}
    shapes = " and ".join(f"'{name}' of shape {list(value.shape)}" for name, value in arrays.items())
    return ValueError(f"Can't work with {shapes}: {error}") if arrays else None


def _on_purpose(error: Exception) -> bool:
    """Whether the library raised an error by a statement, so that its words were chosen for whoever called."""
    entry = error.__traceback__
    while entry is not None and entry.tb_next is not None:
        entry = entry.tb_next
    if entry is None or not entry.tb_frame.f_globals["__name__"].startswith("course_utils."):
        return False
    code = entry.tb_frame.f_code
    if code.co_filename == __file__ and code.co_qualname.partition(".")[0] in ("named", "module"):
        return False  # of a function further in, whose arguments have other names
    return code.co_code[entry.tb_lasti] == dis.opmap["RAISE_VARARGS"]


def _hint(annotation: Any, function: Callable) -> Any:
    """What an annotation stands for; one that only type checkers can look up stays text."""
    try:
        return eval(annotation, inspect.unwrap(function).__globals__) if isinstance(annotation, str) else annotation
    except NameError:
        return annotation


def _is_empty(value: object) -> bool:
    if isinstance(value, Tensor | np.ndarray):
        return 0 in value.shape
    return isinstance(value, Sized) and not len(value)


def _short(value: object) -> str:
    return f"a {type(value).__name__}" if isinstance(value, pd.DataFrame | Tensor) else reprlib.repr(value)


def _names(message: str, name: str) -> bool:
    words = re.escape(name.rstrip("s").replace("_", " "))
    return f"'{name}'" in message or (len(name) > 3 and re.search(rf"\b{words}", message.lower()) is not None)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the kind that a type hint says, with its parts; what hints can't tell fits."""
    kind, parts = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, str):
        return any(known.__name__ == hint for known in type(value).__mro__)
    if hint is Any:
        return True
    if kind in (typing.Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if hint in (None, NoneType):
        return value is None
    if hint in (int, float):
        return _is_whole(value, -(2**63), None) if hint is int else is_number(value)
    if hint is np.ndarray:
        return isinstance(value, np.ndarray | pd.Series)
    kind = kind or hint
    if kind is tuple and parts and parts[-1] is not Ellipsis:
        return (
            isinstance(value, Sequence)
            and not isinstance(value, str | bytes)
            and len(value) == len(parts)
            and all(map(_fits, value, parts))
        )
    if not isinstance(kind, type):
        return True
    if kind in (Sequence, Iterable, Collection, list, tuple):  # arrays and sets will do where they do
        listed = isinstance(value, Sized if kind is Sequence else Iterable) and isinstance(value, Iterable)
        if not listed or isinstance(value, str | bytes | Mapping | pd.DataFrame):
            return False
        return not parts or not isinstance(value, Sequence) or all(_fits(item, parts[0]) for item in value)
    if isinstance(value, Mapping) and len(parts) == 2:
        return isinstance(value, kind) and all(_fits(item, parts[1]) for item in value.values())
    return isinstance(value, kind)

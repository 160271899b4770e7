"""Bad arguments, refused with one wording for each kind: what was given, what is allowed."""

from __future__ import annotations

import contextlib
import math
import operator
import os
from collections.abc import Collection, Iterable, Sequence
from numbers import Real
from pathlib import Path
from typing import Any


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
    return index(value)


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

    >>> index(True)
    Traceback (most recent call last):
    TypeError: True is no integer.
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
    """Return a number as a float; nan and infinite ones too.

    Raises:
        ValueError: it isn't one, and True and False aren't.

    >>> number("at", "x")
    Traceback (most recent call last):
    ValueError: 'at' must be a number; got 'x'.
    """
    if not isinstance(value, bool | str | bytes):
        with contextlib.suppress(TypeError, ValueError):
            return float(value)
    raise ValueError(f"'{name}' must be a number; got {value!r}.")


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
    if not any(_equal(value, one) for one in allowed):  # what can't be hashed is none of them either
        raise ValueError(f"'{name}' must be one of {', '.join(map(str, allowed))}; got {value!r}.")
    return value


def _equal(a: object, b: object) -> bool:
    try:
        return bool(a == b)
    except (ValueError, TypeError, RuntimeError):  # an array compares each of its numbers
        return False


def text(name: str, value: Any) -> str:
    """Return a string.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, str):
        raise ValueError(f"'{name}' must be a string; got {value!r}.")
    return value


def strings(name: str, values: Any, *, least: int = 1) -> list[str]:
    """Return ``values`` as a list of strings; one string by itself is no list of strings.

    Args:
        name: the argument's, for the message.
        values: what was given.
        least: how many there must be: at least one, or 0.

    Raises:
        ValueError: it isn't such a list.

    >>> strings("prompts", "Hello")
    Traceback (most recent call last):
    ValueError: 'prompts' must be a non-empty list of strings; got 'Hello'.
    """
    iterable = isinstance(values, Iterable) and not isinstance(values, str | bytes)
    given = list(values) if iterable else []
    if not iterable or len(given) < least or not all(isinstance(value, str) for value in given):
        raise ValueError(f"'{name}' must be a {'non-empty ' if least else ''}list of strings; got {values!r}.")
    return given


def not_empty(name: str, values: Any) -> Any:
    """Return what holds something.

    Raises:
        ValueError: it holds nothing.
    """
    if not len(values):
        raise ValueError(f"'{name}' is empty: give at least one.")
    return values


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
    """Return a path, which may be given as a string.

    Raises:
        ValueError: it is neither.
    """
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str):
        raise ValueError(f"'{name}' must be a path, as a string or a Path; got {value!r}.")
    return Path(value)


def is_number(value: object) -> bool:
    """Whether a value is a finite real number; True and False are not.

    >>> is_number(0.5), is_number(True), is_number(float("nan"))
    (True, False, False)
    """
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)

"""A model given as its name, a table given as its file: refused before anything happens, by a function's type hints.

    @check_types
    def prune(model: PreTrainedModel, scores: Sequence[Tensor], ...): ...

Numbers, strings and flags are left to the function, which knows their limits (``checks``).
"""

from __future__ import annotations

import functools
import inspect
import reprlib
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from numbers import Real
from typing import Any, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import pandas as pd
from torch import Tensor

_P = ParamSpec("_P")
_R = TypeVar("_R")
_NUMBERS = {int, float, bool}
_PLAIN = {*_NUMBERS, str, type(None)}
_LISTS = np.ndarray | Tensor | pd.Series  # stand for a list


def check_types(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Refuse an argument that is of another type than its hint says, by its name.

    Checked are classes, lists and mappings with what they hold, functions, and unions of these. Not looked into is what
    a look would use up (``Iterable``), and left alone are numbers and strings, by themselves or in a ``Sequence``.

    Raises:
        TypeError: from the function that comes back, before it begins.

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

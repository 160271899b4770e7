"""Packages that only a part of the library needs: if one is missing, the error names the extra that brings it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class ExtraMissing(ModuleNotFoundError):
    """A package that an extra brings isn't installed; the message has the command."""


@contextmanager
def brought(extra: str) -> Iterator[None]:
    """Stand around imports of what an extra in pyproject.toml brings.

    >>> with brought("plots"):
    ...     import no_such_package
    Traceback (most recent call last):
    course_utils.support.extras.ExtraMissing: This needs no_such_package: pip install 'pruning-llms[plots]'

    Raises:
        ExtraMissing: a package isn't there.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ExtraMissing(f"This needs {error.name}: pip install 'pruning-llms[{extra}]'", name=error.name) from error

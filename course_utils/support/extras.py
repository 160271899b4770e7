"""Packages that only a part of the library needs: who lacks one is told which extra of the installation brings it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class ExtraMissing(ModuleNotFoundError):
    """A package isn't installed that an extra brings; the message has the command."""


@contextmanager
def brought(extra: str) -> Iterator[None]:
    """Around the imports of what an extra of the installation brings.

    >>> with brought("plots"):
    ...     import no_such_package
    Traceback (most recent call last):
    course_utils.support.extras.ExtraMissing: This needs no_such_package: pip install 'pruning-llms[plots]'

    Args:
        extra: its name in pyproject.toml.

    Raises:
        ExtraMissing: a package isn't there.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ExtraMissing(f"This needs {error.name}: pip install 'pruning-llms[{extra}]'", name=error.name) from error

"""Files that are written whole or not at all."""

from __future__ import annotations

import glob
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Hand out the name of a new file beside ``path``; where the block ends well, that file takes its place at once.

    After an error, or Ctrl-C, the old file is as it was and the new one is gone; what a killed process left, the next
    writer clears away. Two processes that write the same file don't meet: the last one wins.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "new" / "file.txt"
    >>> with replacing(target) as fresh:
    ...     _ = fresh.write_text("whole")
    >>> target.read_text()
    'whole'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*-*.tmp"):
        if not psutil.pid_exists(int(left.name.split(".")[-2].partition("-")[0])):
            left.unlink(missing_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        yield fresh
        with fresh.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def _write_bytes(path: str | os.PathLike, data: bytes) -> bool:
    """Write ``data`` atomically unless the file holds it already; return whether it changed."""
    path = Path(path)
    if path.exists() and path.read_bytes() == data:
        return False
    with replacing(path) as fresh:
        fresh.write_bytes(data)
    return True


def write_text(path: str | os.PathLike, text: str) -> bool:
    """Write ``text`` atomically, in UTF-8, with the newlines as they are."""
    return _write_bytes(path, text.encode("utf-8"))


def write_json(path: str | os.PathLike, value: object, *, indent: int = 2) -> bool:
    """``write_text`` of readable JSON with a newline at its end.

    Raises:
        ValueError: a number is NaN or infinite, which JSON can't hold.
    """
    return write_text(path, json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n")

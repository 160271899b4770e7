"""Files that are written whole or not at all, and measurements that they keep."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

# A full disk, a quota that is used up, a file that is larger than allowed.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Hand out the name of a new file beside ``path``; where the block ends well, that file takes its place at once.

    After an error, or Ctrl-C, the old file is as it was and the new one is gone. The next writer clears away what a
    killed process left. Two processes may write the same file at the same time: the last one wins.

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
        with naming(path):
            yield fresh
            with fresh.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


@contextmanager
def naming(place: Path, *, instead_of: Path | None = None) -> Iterator[None]:
    """An error of the disk, whoever meets it while the context is open, becomes an OSError that names ``place``.

    Python says what went wrong, but not which file a write was for; safetensors and tokenizers have errors of their own
    for a full disk; and numpy forgets the reason.

    Args:
        place: what the user asked for.
        instead_of: the beginning of temporary names that the user hasn't heard of; other named files stay named.
    """
    try:
        yield
    except Exception as error:
        told = _of_the_disk(error)
        named = told is not None and told.filename is not None
        if told is None or (named and not (instead_of and str(told.filename).startswith(str(instead_of)))):
            raise
        raise OSError(told.errno, told.strerror, str(place)) from error


def _of_the_disk(error: Exception) -> OSError | None:
    """The error as Python has it; None where it isn't the disk's, or where a library's own isn't about room."""
    if isinstance(error, OSError) and error.errno:
        return error
    if isinstance(error, OSError) and re.fullmatch(r"\d+ requested and \d+ written", str(error)):  # numpy's
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    number = re.search(r"\(os error (\d+)\)|\bcode: (\d+)", str(error))  # Rust's
    if number is None:
        return None
    code = int(number[1] or number[2])
    told = OSError(code, os.strerror(code), None, code)  # Windows has numbers of its own, which come last
    return told if told.errno in NO_ROOM else None


def write_text(path: str | os.PathLike, text: str) -> bool:
    """Write text whole, in UTF-8, unless the file holds it already; return whether it changed."""
    path, data = Path(path), text.encode("utf-8")
    if path.exists() and path.read_bytes() == data:
        return False
    with replacing(path) as fresh:
        fresh.write_bytes(data)
    return True


def write_json(path: str | os.PathLike, value: object, *, indent: int = 2) -> bool:
    """``write_text`` of readable JSON with a newline at its end.

    Raises:
        ValueError: a number is NaN or infinite, which JSON can't hold.
    """
    return write_text(path, json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


def measured_once(
    folder: str | os.PathLike[str],
    name: str,
    circumstances: Mapping[str, Any],
    measure: Callable[[], Mapping[str, Any]],
    *,
    agree: Callable[[Any], Any] = lambda record: record,
) -> tuple[dict[str, Any], Path]:
    """What was measured under these circumstances: read from a JSON file, or measured now and written to it.

    Args:
        folder: of the file.
        name: the beginning of the file's name; a digest of the circumstances follows.
        circumstances: all that decides what is measured, as JSON can hold it.
        measure: returns what JSON can hold, too; it may take minutes.
        agree: where several processes measure together: what all of them take, given what this one has, or None.

    Returns:
        The record, with its "circumstances", and its file.

    >>> import tempfile
    >>> folder, speeds = tempfile.mkdtemp(), iter([3, 4, 5])
    >>> [measured_once(folder, "speed", {"of": of}, lambda: {"is": next(speeds)})[0]["is"] for of in "aba"]
    [3, 4, 3]
    """
    key = hashlib.sha256(json.dumps(circumstances, sort_keys=True).encode()).hexdigest()[:16]
    path = Path(folder) / f"{name}-{key}.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    record = agree(found if found.get("circumstances") == circumstances else None)
    if record is None:
        record = agree({**measure(), "circumstances": circumstances})
        write_json(path, record)
    return record, path

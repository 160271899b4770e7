"""Programs that the course starts: they wait patiently, and they end when the reader says so."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

# Where a lesson is timed they sleep later, because a sleeping thread wakes too late for a clock.
TIMED_THREADS = {"GOMP_SPINCOUNT": "10000"}
# GNU's allocator gives each tensor of over 32 MB back at once, and the system clears every page again for the next one:
# a tenth of the processor's time in lesson 07, for 1 % less memory. Not where a lesson is timed: the reader's programs
# don't have it.
KEPT_MEMORY = {"GLIBC_TUNABLES": f"glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold={2**28}"}
_GRACE = 10  # seconds that a program gets to end by itself


def call(command: Sequence[str], *, folder: Path, environment: Mapping[str, str]) -> int:
    """Run a Python command to its end and return its status; where we are stopped, it ends with all that it started.

    Ctrl-C reaches only us: a program that is told, too, would answer with a page of tracebacks.

    Args:
        command: what comes after `python`.
        folder: its working directory.
        environment: all its variables.
    """
    apart: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        apart = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    process = subprocess.Popen([sys.executable, *command], cwd=folder, env=environment, **apart)
    try:
        return process.wait()
    finally:
        if process.poll() is None:
            end(process.pid)


def end(pid: int) -> None:
    """End a process, if it still runs, and then everything that it started."""
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
        process.terminate()
    except psutil.NoSuchProcess:
        return
    psutil.wait_procs([process], timeout=_GRACE)
    left = [member for member in family if member.is_running()]
    for member in left:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(left, timeout=_GRACE)

"""How a command starts, and how it ends whatever happens to it: in a sentence and with a status, not in a traceback.

The status is 0 for success, 1 where something failed, 2 for a wrong call, 130 after Ctrl-C.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from course_utils.support.extras import ExtraMissing
from course_utils.support.files import NO_ROOM
from course_utils.text.assets import AssetError

# The threads of GCC's OpenMP (PyTorch on Linux) spin while they wait for work. Beside another busy program that is many
# times slower than sleeping. docs/troubleshooting.md has the figures, and why other systems need nothing.
SLEEPING_THREADS = {"GOMP_SPINCOUNT": "1000"}
_NOT_WRITTEN = (errno.EACCES, errno.EPERM, errno.EROFS, *NO_ROOM)


def with_sleeping_threads(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which OpenMP's threads sleep while they wait, unless its owner has chosen for himself."""
    chosen = {} if "OMP_WAIT_POLICY" in environment else SLEEPING_THREADS
    return {**chosen, **environment}


def run(main: Callable[[], int]) -> int:
    """Run a program, and return its status. A user can stop it at any moment, and it says no more than that.

    Args:
        main: does everything, and imports what takes seconds.
    """
    # `kill` and a closed terminal let every block clean up, as Ctrl-C does: no kernel or test is left behind.
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:  # nohup has it ignored
            signal.signal(number, lambda number, _frame: sys.exit(128 + number))
    try:
        status = main()
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return _stopped()
    except BrokenPipeError:  # the program that read our lines has ended, as in `course.py check | head -3`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it ends
        return 1


def answer(command: Callable[[], int], *, place: Path, remedy: str) -> int:
    """Run a command, and return its status. Of an error that was written for the reader they see the sentence alone.

    Args:
        command: does the work.
        place: what couldn't be written, where the system doesn't say.
        remedy: what to do then.
    """
    if not sys.stderr.isatty():  # a log needs no bar that was drawn two hundred times
        os.environ.setdefault("TQDM_MININTERVAL", "30")
    try:
        return command()
    except (AssetError, ExtraMissing, FloatingPointError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno not in _NOT_WRITTEN:
            raise
        print(_not_written(error, place, remedy), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return _stopped()


def _stopped() -> int:
    print("\nStopped.", file=sys.stderr)
    return 130


def _not_written(error: OSError, place: Path, remedy: str) -> str:
    """A sentence on a place that the system doesn't let us write, and what to do."""
    place = Path(error.filename or place)
    place = place.parent if place.suffix == ".tmp" else place  # half-written files have names of their own
    if error.errno == errno.ENOSPC:
        return f"The disk of {place} is full. Free some space, and run the same command again."
    if error.errno == errno.EDQUOT:
        return f"Your share of the disk of {place} is used up. Free some space, and run the same command again."
    return f"{place} can't be written ({error.strerror}). {remedy}"

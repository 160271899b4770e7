"""Execute lesson notebooks cell by cell, and measure them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import cast

import psutil
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import NoSuchKernel
from jupyter_client.provisioning import LocalProvisioner
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from course_utils.compress.program import with_sleeping_threads
from course_utils.support.session import ROLES, chosen_model

CELL_TIMEOUT = 1800  # seconds; a cell that takes longer is stuck
_SAMPLING = 0.1  # seconds between two looks at a kernel's memory


@dataclass(frozen=True)
class Failure:
    """Which cell stopped a lesson: its number among the code cells (from 1; 0 for none), its first line, the error."""

    cell: int
    first_line: str
    error: str

    def __str__(self) -> str:
        where = f"code cell {self.cell} ({self.first_line})" if self.cell else "its start"
        return f"{where}: {self.error}"


@dataclass(frozen=True)
class Result:
    """One executed lesson: wall time in seconds, peak resident memory of its kernel in bytes, and what went wrong."""

    name: str
    profile: str
    seconds: float
    peak_bytes: int
    failure: Failure | None


def kernel_environment(profile: str) -> dict[str, str]:
    """The environment of a lesson's kernel: this process's own, the profile, inline figures, no progress bars.

    OpenMP's threads sleep while they wait, unless the reader has chosen.

    The kernel imports this very course_utils, whatever is installed. Off the hub nothing may ask the network for a
    model that the reader didn't choose: a lesson that would must fail here, not in a reader's train.
    """
    package = str(Path(__file__).resolve().parents[2])
    path = {"PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))}
    quiet = {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    figures = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    chosen = {variable: name for role, variable in ROLES.items() if (name := chosen_model(role))}
    folders = {variable: os.path.abspath(name) for variable, name in chosen.items() if os.path.isdir(name)}
    asks = profile == "hub" or folders.keys() != chosen.keys()
    offline = {} if asks else {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    ours = {**path, **quiet, **figures, **offline, **folders, "COURSE_PROFILE": profile}
    return {**with_sleeping_threads(os.environ), **ours}


def execute(
    notebook: NotebookNode,
    *,
    name: str,
    profile: str,
    folder: Path,
    on_cell: Callable[[int, int], None] = lambda done, total: None,
    variables: Mapping[str, str] = MappingProxyType({}),
) -> Result:
    """Run a notebook in place, in a kernel of its own whose working directory is `folder`.

    Stops at the first cell that fails; the outputs so far, the error included, stay in the notebook. The kernel has
    ended when this returns or raises, KeyboardInterrupt included.

    Args:
        notebook: gets the outputs.
        name: of the lesson, for the result.
        profile: one of `session.PROFILES`.
        folder: created if need be; the kernel's own messages go to `kernel.log` there.
        on_cell: called with (code cells done, code cells in all) before each one and after the last.
        variables: of the kernel's environment, in the place of `kernel_environment`'s.
    """
    folder.mkdir(parents=True, exist_ok=True)
    code = [index for index, cell in enumerate(notebook.cells) if cell.cell_type == "code" and cell.source.strip()]
    failure, peak, begin = None, 0, time.perf_counter()
    with (folder / "kernel.log").open("w+b") as log:

        async def watch(pid: int) -> None:
            nonlocal peak
            while True:
                peak = max(peak, sum(_resident(pid)))
                await asyncio.sleep(_SAMPLING)

        async def run() -> Failure | None:
            client = NotebookClient(
                notebook,
                kernel_name="python3",
                timeout=CELL_TIMEOUT,
                record_timing=False,
                resources={"metadata": {"path": str(folder)}},
            )
            client.log.setLevel(logging.CRITICAL)  # what it logs, we tell
            async with _kernel(client, env={**kernel_environment(profile), **variables}, stderr=log) as pid:
                watching = asyncio.create_task(watch(pid))
                try:
                    for done, index in enumerate(code):
                        on_cell(done, len(code))
                        error = await _error_of(client, index)
                        if error:
                            return Failure(done + 1, first_line(notebook.cells[index].source), error)
                finally:
                    watching.cancel()
            on_cell(len(code), len(code))
            return None

        try:
            # asyncio turns Ctrl-C into a cancellation, so that the kernel is ended before KeyboardInterrupt is raised.
            # The loop is named because the kernel's messages can't use the one that Windows has by default.
            with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as loop:
                failure = loop.run(run())
        except _NotStarted as error:
            log.seek(0)
            last = log.read().decode("utf-8", errors="replace").strip().splitlines()[-1:]
            reason = "; ".join([str(error), *last])
            failure = Failure(0, "", f"the kernel did not start ({reason}). `python3 course.py check` may know why.")
    return Result(name, profile, time.perf_counter() - begin, peak, failure)


class _NotStarted(Exception):
    """A kernel that could not be started, or died before it answered; the message is the reason."""


@contextlib.asynccontextmanager
async def _kernel(client: NotebookClient, **options: object) -> AsyncIterator[int]:
    """A kernel's process, gone afterwards; the client's own handler of Ctrl-C trips over its own feet."""
    manager = cast(AsyncKernelManager, client.create_kernel_manager())
    finished = False
    try:
        try:
            await client.async_start_new_kernel(**options)
            await client.async_start_new_kernel_client()
        except (RuntimeError, OSError, NoSuchKernel) as error:
            raise _NotStarted(str(error)) from error
        yield cast(int, cast(LocalProvisioner, manager.provisioner).pid)
        finished = True
    finally:
        if client.kc is not None:
            client.kc.stop_channels()
        if manager.has_kernel:
            await manager.shutdown_kernel(now=not finished)  # with time to clean up only where it isn't busy


async def _error_of(client: NotebookClient, index: int) -> str:
    """Execute a cell; what went wrong, in a line, or nothing."""
    try:
        await client.async_execute_cell(client.nb.cells[index], index, execution_count=client.code_cells_executed + 1)
    except CellExecutionError as stopped:
        return f"{stopped.ename}: {(stopped.evalue.splitlines() or [''])[0]}"
    except CellTimeoutError:
        return f"ran longer than {CELL_TIMEOUT} seconds"
    except DeadKernelError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():  # Ctrl-C, which nbclient takes for a death
            raise asyncio.CancelledError from None
        return "the kernel died; most often it ran out of memory. Close other programs and run this lesson again."
    return ""


def gigabytes(size: int) -> str:
    """Bytes as "1.2 GB"."""
    return f"{size / 1e9:.1f} GB"


def _resident(pid: int) -> Iterator[int]:
    with contextlib.suppress(psutil.NoSuchProcess):  # it may end between two looks
        process = psutil.Process(pid)
        yield process.memory_info().rss
        for child in process.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                yield child.memory_info().rss


def first_line(source: str) -> str:
    """The first line of a cell that isn't a comment."""
    lines = [line.strip() for line in source.splitlines()]
    return next((line for line in lines if line and not line.startswith("#")), lines[0] if lines else "")

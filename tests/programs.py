"""Programs that tests start: wait for one, press Ctrl-C on it, run one without the course."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def wait_for(path: Path, process: subprocess.Popen) -> None:
    """Until the program has written a file; fails if it ends, or a long time passes, before."""
    deadline = time.monotonic() + 120
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert path.exists(), process.communicate()


def press_ctrl_c(process: subprocess.Popen, *, whole_group: bool) -> tuple[str, str]:
    """To the whole group, as a terminal does, or to the program alone; returns what it wrote when it has ended."""
    (os.killpg if whole_group else os.kill)(process.pid, signal.SIGINT)
    return process.communicate(timeout=60)


def assert_all_equal_elsewhere(script: str, folder: Path) -> None:
    """A script that loads checkpoints in a fresh process, offline, and closes with "all equal"."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(folder / "modules")}
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, env=environment, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert run.stdout.strip().endswith("all equal"), run.stderr[-2000:]

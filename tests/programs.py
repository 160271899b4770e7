"""Programs that tests start: wait for one, press Ctrl-C on it, run one without the course, or two that share a work."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

TESTS = Path(__file__).resolve().parent
TWO = """
import sys
sys.path[:0] = {paths!r}
import torch
from accelerate import PartialState
import {module}
given = getattr({module}, {scenario!r})({folder!r})
if PartialState().is_main_process:
    torch.save((PartialState().num_processes, given), {path!r})
"""


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


def in_two_processes(scenario: Callable[[str], Any], folder: Path) -> Any:
    """What a function of a test module, called with ``folder`` in two processes, returns in the first."""
    script, path, module = folder / "run.py", folder / "result.pt", Path(inspect.getfile(scenario))
    paths = [str(module.parent), str(TESTS), str(TESTS.parent)]  # that module, the makers, this clone's packages
    names = {"module": module.stem, "scenario": scenario.__name__, "folder": str(folder), "path": str(path)}
    script.write_text(TWO.format(paths=paths, **names), encoding="utf-8")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [*launch, str(script)], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stderr[-20_000:]  # of both, the last to fail last
    processes, given = torch.load(path, weights_only=False)
    assert processes == 2
    return given


def shard_by_hand(*, load_once: bool = False) -> None:
    """From now on ``distill`` finds what ``accelerate launch --use_fsdp --fsdp_version 2`` sets, which wants a GPU."""
    from accelerate import Accelerator, FullyShardedDataParallelPlugin, PartialState
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType

    from course_utils.healing.distillation import processes

    def sharding(**options: Any) -> Accelerator:
        accelerator = Accelerator(**options)
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=load_once
        )
        for state in (PartialState, AcceleratorState):
            state._shared_state["distributed_type"] = DistributedType.FSDP
        return accelerator

    processes.Accelerator = sharding

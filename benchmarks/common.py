"""What the benchmark scripts share: the same text, the machine in words, results written all or not at all."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import psutil
import torch

from course_utils.files import write_text

FOLDER = Path(__file__).parent


def seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def machine() -> str:
    """Cores, memory, processor, threads and load; no names of hosts, users or folders."""
    load = f", load average {os.getloadavg()[0]:.1f} when the run ended" if hasattr(os, "getloadavg") else ""
    return (
        f"{os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB, {_processor()}, "
        f"{platform.system()}; torch threads: {torch.get_num_threads()}{load}"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def versions(*packages: str) -> str:
    return ", ".join(f"{package} {version(package)}" for package in packages)


def today() -> str:
    return datetime.now(UTC).date().isoformat()


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """The first column is text, the others are numbers or short words."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_results(name: str, text: str, data: object) -> None:
    """Write ``name.md`` and ``name.json`` beside the scripts, each in one step."""
    write_text(FOLDER / f"{name}.json", json.dumps(data, indent=1) + "\n")
    write_text(FOLDER / f"{name}.md", text)
    print(f"wrote {name}.md and {name}.json in {FOLDER.name}/")

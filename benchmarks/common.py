"""What the questions share: how one is asked and answered, turns on the clock, the machine in words, tables."""

from __future__ import annotations

import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
import psutil
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from course_utils.benchmarking import median_interval
from course_utils.files import write_text
from course_utils.session import default_device

FOLDER = Path(os.environ.get("COURSE_BENCHMARKS") or Path(__file__).parent)  # where answers are written


VERDICTS = {True: "met", False: "**not met**", None: ""}


@dataclass(frozen=True)
class Finding:
    """One line of the summary: what was measured, and whether it reaches the bar that was set beforehand."""

    what: str
    value: str
    bar: str = ""
    met: bool | None = None  # None: no bar was set


@dataclass(frozen=True)
class Question:
    """A question that a run answers.

    Attributes:
        name: of its module and of its files.
        title: the question in words.
        minutes: that a run takes on two idle cores.
        packages: whose versions the answer depends on, beside torch and transformers.
        measure: (data) -> None: fills a dictionary that JSON can hold. What stands there already from a run that was
            cut off needn't be measured again.
        report: data -> Markdown, a pure function.
        findings: data -> the lines of the summary.
        figure: data -> a picture, or None.
        threads: that torch gets; None for all.
    """

    name: str
    title: str
    minutes: int
    measure: Callable[[dict], None]
    report: Callable[[dict], str]
    findings: Callable[[dict], list[Finding]]
    packages: tuple[str, ...] = ()
    figure: Callable[[dict], Figure] | None = None
    threads: int | None = None

    def path(self, suffix: str) -> Path:
        """The file of this question's answer."""
        return FOLDER / f"{self.name}{suffix}"

    def answer(self) -> dict | None:
        """What a finished run measured; None before there was one."""
        try:
            return json.loads(self.path(".json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None

    def text(self, data: dict) -> str:
        """The page that tells the answer."""
        run = data["run"]
        packages = ", ".join(f"{name} {number}" for name, number in run["versions"].items())
        picture = f"\n\n![{self.title}]({self.name}.png)" if self.figure else ""
        head = f"# {self.title}\n\nWritten by `python -m benchmarks {self.name}` on {run['date']}: {packages}.\n"
        return f"{head}Machine: {run['machine']}.\n\n{self.report(data).strip()}{bars(self.findings(data))}{picture}\n"

    def ask(self) -> None:
        """Measure, and write data, page and figure; what a run that was cut off had measured is taken up."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        partial = Partial(self.path(".partial.json"))
        run = {"versions": {name: version(name) for name in ("torch", "transformers", *self.packages)}}
        self.measure(partial)
        data = {"run": run | {"date": datetime.now(UTC).date().isoformat(), "machine": machine()}} | partial
        self.write(data)
        partial.path.unlink(missing_ok=True)

    def write(self, data: dict) -> None:
        """Write an answer: the picture first, and the data, which say that the question is answered, last."""
        if self.figure is not None:
            self.figure(data).savefig(self.path(".png"), dpi=100, bbox_inches="tight")
        write_text(self.path(".md"), self.text(data))
        write_text(self.path(".json"), json.dumps(data, indent=1) + "\n")


class Partial(dict):
    """What is measured so far; each entry is on disk before the next one is measured."""

    def __init__(self, path: Path) -> None:
        super().__init__(json.loads(path.read_text(encoding="utf-8")) if path.exists() else {})
        self.path = path

    def __setitem__(self, key: str, value: object) -> None:
        super().__setitem__(key, value)
        write_text(self.path, json.dumps(self) + "\n")


# Measuring


def seconds(call: Callable[[], object]) -> float:
    """Wall-clock seconds of a call; an accelerator has finished before the clock is read."""
    finish()
    began = time.perf_counter()
    call()
    finish()
    return time.perf_counter() - began


def finish() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def device() -> torch.device:
    """A CUDA card where there is one."""
    return default_device()


def take_turns(calls: Mapping[str, Callable[[], object]], *, rounds: int) -> dict[str, list[float]]:
    """Seconds of each call in each round; a round warms up, and every other one runs in reverse order."""
    laps: dict[str, list[float]] = {name: [] for name in calls}
    for turn in tqdm(range(-1, rounds), desc="Rounds", unit="round", leave=False, file=sys.stderr):
        for name in list(calls)[:: -1 if turn % 2 else 1]:
            taken = seconds(calls[name])
            if turn >= 0:
                laps[name].append(taken)
    return laps


def ratio(laps: Sequence[float], reference: Sequence[float]) -> tuple[float, float, float]:
    """The median over rounds of ``laps / reference``, and its 95 % interval."""
    ratios = [a / b for a, b in zip(laps, reference, strict=True)]
    return (median(ratios), *median_interval(ratios))


def slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Of the straight line through points on logarithmic axes: 1 where double the size takes double the value."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def slope_interval(sizes: Sequence[float], laps: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """The median of each round's slope, and its 95 % interval; ``laps`` holds the rounds of each size."""
    slopes = [slope(sizes, values) for values in zip(*laps, strict=True)]
    return (median(slopes), *median_interval(slopes))


# Words


def with_range(value: tuple[float, float, float], digits: int = 2) -> str:
    """A value and its interval.

    >>> with_range((1.234, 1.1, 1.3))
    '1.23 (1.10–1.30)'
    """
    middle, low, high = (f"{number:.{digits}f}" for number in value)
    return f"{middle} ({low}–{high})"


def machine() -> str:
    """Cores, memory, processor, card, threads and load; no names of hosts, users or folders."""
    load = f", load average {os.getloadavg()[0]:.1f} when the run ended" if hasattr(os, "getloadavg") else ""
    card = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"{os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB, {_processor()}{card}, "
        f"{platform.system()}; torch threads: {torch.get_num_threads()}{load}"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The first column is text, the others are numbers or short words."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def bars(findings: Sequence[Finding]) -> str:
    """The end of a page: each bar, what was reached, and whether that is enough; nothing where no bar was set."""
    rows = [[each.what, each.value, each.bar, VERDICTS[each.met]] for each in findings if each.bar]
    table = markdown_table(["measured", "value", "bar", ""], rows)
    return f"\n\n## Bars, set before measuring\n\n{table}" if rows else ""


def mib(count: float) -> str:
    """Bytes in MiB: two digits where that says more."""
    value = count / 2**20
    return f"{value:,.0f}" if value >= 10 or math.isclose(value, 0) else f"{value:.2g}"

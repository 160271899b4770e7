"""What both questions share: how one is asked and answered, the machine in words, intervals and tables."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median

import psutil
import torch
from matplotlib.figure import Figure

from course_utils.measuring.benchmarking import median_interval
from course_utils.support.files import write_text
from experiments.record import Kept

FOLDER = Path(__file__).parent  # where answers are written
HEADER = ["measured", "value", "bar", ""]


@dataclass(frozen=True)
class Finding:
    """One line of the summary: what was measured, and whether it reaches the bar that was set beforehand."""

    what: str
    value: str
    bar: str
    met: bool

    def cells(self) -> list[str]:
        """The line as cells of a table, below ``HEADER``."""
        return [self.what, self.value, self.bar, "met" if self.met else "**not met**"]


@dataclass(frozen=True)
class Question:
    """A question that a run answers.

    ``measure`` fills a dictionary that JSON can hold. It need not measure again what stands there already, because a
    run that was cut off had measured it. All else is made of that dictionary alone.
    """

    name: str  # of its module and of its files
    title: str  # the question in words
    minutes: int  # that a run takes on two idle cores
    measure: Callable[[dict], None]
    report: Callable[[dict], str]  # Markdown
    findings: Callable[[dict], list[Finding]]  # the lines of the summary
    packages: tuple[str, ...] = ()  # whose versions the answer depends on, beside torch and transformers
    figure: Callable[[dict], Figure] | None = None

    def path(self, suffix: str) -> Path:
        """The file of this question's answer."""
        return FOLDER / f"{self.name}{suffix}"

    def answer(self) -> dict | None:
        """What a finished run measured; None before there was one."""
        path = self.path(".json")
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def text(self, data: dict) -> str:
        """The page that tells the answer; it ends with the bars."""
        run = data["run"]
        packages = ", ".join(f"{name} {number}" for name, number in run["versions"].items())
        head = f"# {self.title}\n\nWritten by `python -m benchmarks {self.name}` on {run['date']}: {packages}.\n"
        bars = markdown_table(HEADER, [finding.cells() for finding in self.findings(data)])
        picture = f"\n\n![{self.title}]({self.name}.png)" if self.figure else ""
        body = f"{self.report(data).strip()}\n\n## Bars, set before measuring\n\n{bars}{picture}\n"
        return f"{head}Machine: {run['machine']}.\n\n{body}"

    def ask(self) -> None:
        """Measure, and write picture, page and data; what a run that was cut off had measured is taken up.

        The data come last, because they say that the question is answered.
        """
        partial = Kept(self.path(".partial.json"))
        versions = {name: version(name) for name in ("torch", "transformers", *self.packages)}
        self.measure(partial)
        run = {"versions": versions, "date": datetime.now(UTC).date().isoformat(), "machine": machine()}
        data = {"run": run} | partial
        if self.figure is not None:
            self.figure(data).savefig(self.path(".png"), dpi=100, bbox_inches="tight")
        write_text(self.path(".md"), self.text(data))
        write_text(self.path(".json"), json.dumps(data, indent=1) + "\n")
        partial.path.unlink(missing_ok=True)


def ratio(seconds: Sequence[float], reference: Sequence[float]) -> tuple[float, float, float]:
    """The median over rounds of ``seconds / reference``, and its 95 % interval."""
    ratios = [a / b for a, b in zip(seconds, reference, strict=True)]
    return (median(ratios), *median_interval(ratios))


def with_range(value: tuple[float, float, float], digits: int = 2) -> str:
    """A value and its interval.

    >>> with_range((1.234, 1.1, 1.3))
    '1.23 (1.10–1.30)'
    """
    middle, low, high = (f"{number:.{digits}f}" for number in value)
    return f"{middle} ({low}–{high})"


def machine() -> str:
    """Cores, memory, processor, card, threads and load; no names of hosts, users or folders."""
    info, processor = Path("/proc/cpuinfo"), platform.processor() or platform.machine()
    if info.exists():
        lines = info.read_text(encoding="utf-8").splitlines()
        processor = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), processor)
    card = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    load = f", load average {os.getloadavg()[0]:.1f} when the run ended" if hasattr(os, "getloadavg") else ""
    return (
        f"{os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB, {processor}{card}, "
        f"{platform.system()}; torch threads: {torch.get_num_threads()}{load}"
    )


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The first column is text, the others are numbers or short words."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)

"""What the commands show in a terminal: how far running lessons are, and tables."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nbformat import NotebookNode
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from course_tools.lessons import runner

if TYPE_CHECKING:
    from course_tools.learner.progress import Standing
    from course_tools.rehearsal.rehearse import Rehearsed

_HEARTBEAT = 15  # seconds between two lines about a running lesson where there is no terminal to draw a bar in


class Reporter:
    """Shows how far lessons and cells are: two bars in a terminal, plain lines elsewhere.

    Args:
        console: where to show it.
        lessons: how many there will be.
        folder: in which each lesson gets a folder of its own to run in.
    """

    def __init__(self, console: Console, lessons: int, *, folder: Path) -> None:
        self._console, self._total, self._done, self._folder = console, lessons, 0, folder
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
        self._bars = Progress(*columns, TimeElapsedColumn(), console=console, transient=True)
        self._live = console.is_terminal

    def __enter__(self) -> Reporter:
        if self._live:
            self._bars.start()
            self._lessons = self._bars.add_task("lessons", total=self._total)
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._bars.stop()

    def execute(self, notebook: NotebookNode, name: str, profile: str) -> runner.Result:
        """`runner.execute` in a folder of its own, with progress and a closing line."""
        bar = self._bars.add_task(name, total=None) if self._live else None
        if not self._live:
            self.say(f"[{self._done + 1}/{self._total}] {name} …")
        last = time.monotonic()

        def on_cell(done: int, total: int) -> None:
            nonlocal last
            if bar is not None:
                self._bars.update(bar, completed=done, total=total, description=f"{name} cells")
            elif done < total and time.monotonic() - last > _HEARTBEAT:
                last = time.monotonic()
                self.say(f"      cell {done + 1} of {total}")

        result = runner.execute(notebook, name=name, profile=profile, folder=self._folder / name, on_cell=on_cell)
        self._done += 1
        if bar is not None:
            self._bars.remove_task(bar)
            self._bars.advance(self._lessons)
        state = f"failed at {result.failure}" if result.failure else "ok"
        self.say(f"[{self._done}/{self._total}] {name} {state}, {result.seconds:.0f} s")
        return result

    def say(self, line: str) -> None:
        """Print a line, above the bars if there are any."""
        self._console.print(line, markup=False)


def results_table(results: Sequence[runner.Result]) -> Table:
    """How lessons ran: a row per lesson."""
    table = Table("lesson", "profile", "seconds", "peak memory", "result")
    for column in table.columns[2:4]:
        column.justify = "right"
    for result in results:
        state = Text("failed", style="bold red") if result.failure else Text("ok", style="green")
        seconds, memory = f"{result.seconds:.0f}", runner.gigabytes(result.peak_bytes)
        table.add_row(result.name, result.profile, seconds, memory, state)
    return table


def rehearsal_table(done: Sequence[Rehearsed]) -> Table:
    """How much memory lessons took on the pretended card and its host: a row per lesson."""
    table = Table("lesson", "GPU GiB", "host GiB", "took min", "result")
    for column in table.columns[1:4]:
        column.justify = "right"
    for rehearsed in done:
        gpu, host = (f"{rehearsed.highest(device)[f'{device}_peak'] / 2**30:.2f}" for device in ("gpu", "host"))
        state = Text("refused", style="bold red") if any(rehearsed.refusals()) else Text("ok", style="green")
        name = rehearsed.name.partition("_")[0] + " solved" * rehearsed.name.endswith("_solved")
        table.add_row(name, gpu, host, f"{rehearsed.seconds / 60:.0f}", state)
    return table


def standings_table(standings: Sequence[Standing]) -> Table:
    """How far a learner is: a row per lesson, and one for all. It fits 80 columns."""
    table = Table(Column("lesson", no_wrap=True), "exercises", "questions", "done", "minutes left", show_footer=True)
    for column in table.columns[1:]:
        column.justify = "right"
    counts = [_counts(standing) for standing in standings]
    for standing, count in zip(standings, counts, strict=True):
        table.add_row(standing.lesson.name, *_shown(*count))
    for column, total in zip(table.columns, ["together", *_shown(*map(sum, zip(*counts, strict=True)))], strict=True):
        column.footer = total
    return table


def _counts(standing: Standing) -> tuple[int, ...]:
    """Exercises solved and all, questions right and answered, minutes left and all."""
    answered = len(standing.answers) - standing.answers.count(None)
    exercises = len(standing.solved), len(standing.exercises)
    return *exercises, standing.right, answered, standing.minutes_left, standing.lesson.minutes


def _shown(solved: int, exercises: int, right: int, answered: int, left: int, minutes: int) -> list[str]:
    questions = f"{right} of {answered}" if answered else "–"
    return [f"{solved} of {exercises}", questions, f"{1 - left / minutes:.0%}", str(left)]

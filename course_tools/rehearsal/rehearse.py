"""Rehearse a lesson at full size, without a GPU and without the hub: does it fit Colab's free T4?

A model of Llama-3.2-1B's shape (or another, see ``shapes``) with random weights is made once. The lesson runs in the
hub profile on a pretended T4 (``pretend_gpu``), which counts every byte on it; the memory of the process without these
is the host's. Samples are smaller than the lesson's (``kernel.SAMPLES``), never the models or the batches.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from course_tools.lessons import runner
from course_tools.rehearsal.card import GIBIBYTE, shown
from course_tools.rehearsal.shapes import Shape, make_checkpoint, parameters
from course_utils.support.session import ROLES

GPU_BUDGET, HOST_BUDGET = 12.5 * GIBIBYTE, 9e9  # bytes of a lesson, at Llama-3.2-1B's size
ASSETS = ("smollm2", "benchmarks")  # whose tokenizer and documents stand for the hub's
_PYTHON = 2e9  # bytes of the host that are Python's and its libraries', whatever the model


@dataclass(frozen=True)
class Rehearsed:
    """One lesson's rehearsal.

    Attributes:
        name: of the lesson, and its form where it is solved.
        share: parameters of the model, as a share of Llama-3.2-1B's; budgets are as much smaller.
        cells: those that ran: "number" (from 1), "first_line", "gpu_peak" and "host_peak" in bytes, their "…_holders".
        seconds: that it took here.
        failure: what stopped it, or nothing.
    """

    name: str
    share: float
    cells: list[dict[str, Any]]
    seconds: float
    failure: str = ""

    def highest(self, device: str) -> dict[str, Any]:
        """The cell with the highest peak on "gpu" or "host"."""
        return max(self.cells, key=lambda cell: cell[f"{device}_peak"], default={f"{device}_peak": 0})

    def refusals(self) -> Iterator[str]:
        """What is wrong, a sentence each."""
        if self.failure:
            yield f"{self.name} failed at {self.failure}"
        host_budget = _PYTHON + (HOST_BUDGET - _PYTHON) * self.share
        for device, where, budget in (
            ("gpu", "on the GPU", GPU_BUDGET * self.share),
            ("host", "in host memory", host_budget),
        ):
            cell = self.highest(device)
            if cell[f"{device}_peak"] > budget:
                held = "; ".join(f"{what}: {shown(size)}" for what, size in cell[f"{device}_holders"][:5])
                yield (
                    f"{self.name} holds {shown(cell[f'{device}_peak'])} {where} in code cell {cell['number']} "
                    f"({cell['first_line']}), {shown(budget)} are allowed. What held it: {held or 'no model by name'}."
                )


def rehearse(
    notebook: NotebookNode, *, name: str, shape: Shape, folder: Path, tokenizers: Mapping[str, Path]
) -> Rehearsed:
    """Rehearse one lesson.

    Args:
        notebook: without outputs; gets those of the run.
        name: of the lesson.
        shape: of the models.
        folder: for the models and the kernel's files; models that lie there are used again.
        tokenizers: for each role, a folder with its tokenizer.
    """
    chosen = {
        variable: str(make_checkpoint(getattr(shape, role), folder / "models", tokenizers[role]).absolute())
        for role, variable in ROLES.items()
    }
    record = folder.absolute() / "work" / name / "cells.jsonl"
    record.parent.mkdir(parents=True, exist_ok=True)
    record.unlink(missing_ok=True)
    begin = (
        f"from course_tools.rehearsal.kernel import begin\n\nbegin({str(record)!r}, {shape.share!r}, get_ipython());"
    )
    notebook.cells.insert(0, nbformat.v4.new_code_cell(begin))
    # What the card's tensors leave in the heap when they go would count as the host's: large ones get their own pages,
    # and huge ones, because to be given gigabytes in pages of 4 kB takes a quarter of the time.
    pages = {"GLIBC_TUNABLES": f"glibc.malloc.mmap_threshold={2**20}:glibc.malloc.hugetlb=1"}
    result = runner.execute(notebook, name=name, profile="hub", folder=record.parent, variables=chosen | pages)
    del notebook.cells[0]
    failure = ""
    if result.failure:
        failure = str(replace(result.failure, cell=max(0, result.failure.cell - 1)))
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    lines = record.read_text(encoding="utf-8").splitlines() if record.exists() else []
    cells = [{**cell, "first_line": runner.first_line(code[cell["number"] - 1])} for cell in map(json.loads, lines)]
    return Rehearsed(name, shape.share, cells, result.seconds, failure)


def explanation(shape: Shape) -> str:
    """What the table's numbers are, and what was left out, for the reader of the report."""
    scaled = (
        f" The model stands in for it: card and budgets are {shape.share:.0%} of the real ones."
        if shape.stand_in
        else ""
    )
    return (
        f"Model: {parameters(shape.llama) / 1e6:,.0f} M parameters, random.{scaled}\n"
        "GPU peak: every tensor's bytes on the pretended T4, each storage once, without what an operation needs inside "
        "and without the driver's own (0.3 to 0.5 GiB). Host peak: the process's resident memory without these.\n"
        f"Budgets: {GPU_BUDGET / GIBIBYTE:.1f} GiB on the GPU, {HOST_BUDGET / 1e9:.0f} GB on the host.\n"
        "Fewer than in the lesson: prompts, documents, rows of abilities, timed rounds. "
        "Large products of matrices add up one summand in 32, so equalities aren't asserted. "
        "Benchmark documents are the embedded ones."
    )

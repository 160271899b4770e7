"""Rehearse a lesson at full size, without a GPU and without the hub: does it fit Colab's free T4?

A model of Llama-3.2-1B's shape (or another, see `shapes`) with random weights is made once and served from a hub on
loopback. The lesson runs in the hub profile on a pretended T4 (`pretend_gpu`), which counts every byte on it; the
memory of the process without these is the host's. Samples are smaller than the lesson's (`session.at_most`), never the
models or the batches.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from course_tools.lessons import runner
from course_tools.rehearsal.card import GIBIBYTE, shown
from course_tools.rehearsal.hub_server import serve_hub
from course_tools.rehearsal.shapes import Shape, check_space, make_checkpoint, parameters
from course_utils.files import write_json
from course_utils.roles import HUB_MODELS
from course_utils.session import SAMPLES

GPU_BUDGET, HOST_BUDGET = 12.5 * GIBIBYTE, 9e9  # bytes of a lesson, at Llama-3.2-1B's size
ASSETS = ("smollm2", "benchmarks")  # whose tokenizer and documents stand for the hub's
_SAMPLES = 3  # for COURSE_SAMPLES; from its second step on a training holds all that it ever holds


@dataclass(frozen=True)
class Cell:
    """What a code cell held: its number (from 1), its first line, and what the kernel wrote down."""

    number: int
    first_line: str
    gpu_peak: int = 0
    gpu_holders: Sequence[tuple[str, int]] = ()
    host_peak: int = 0
    host_holders: Sequence[tuple[str, int]] = ()

    @property
    def where(self) -> str:
        """The cell as messages name it."""
        return f"code cell {self.number} ({self.first_line})"


@dataclass(frozen=True)
class Rehearsed:
    """One lesson's rehearsal.

    Attributes:
        name: of the lesson.
        share: parameters of the model, as a share of Llama-3.2-1B's; budgets are as much smaller.
        cells: those that ran.
        seconds: that it took here.
        failure: what stopped it, or nothing.
    """

    name: str
    share: float
    cells: tuple[Cell, ...]
    seconds: float
    failure: str = ""

    @property
    def peaks(self) -> tuple[int, int]:
        """The highest on the card and in main memory, in bytes."""
        return (self.gpu.gpu_peak, self.host.host_peak) if self.cells else (0, 0)

    @property
    def gpu(self) -> Cell:
        """The cell with the highest peak on the card."""
        return max(self.cells, key=lambda cell: cell.gpu_peak)

    @property
    def host(self) -> Cell:
        """The cell with the highest peak in main memory."""
        return max(self.cells, key=lambda cell: cell.host_peak)

    def refusals(self) -> Iterator[str]:
        """What is wrong, a sentence each."""
        if self.failure:
            yield f"{self.name} failed at {self.failure}"
        if not self.cells:
            return
        gpu, host = self.gpu, self.host
        for cell, peak, budget, device, holders in (
            (gpu, gpu.gpu_peak, GPU_BUDGET * self.share, "on the GPU", gpu.gpu_holders),
            (host, host.host_peak, HOST_BUDGET * host_share(self.share), "in host memory", host.host_holders),
        ):
            if peak > budget:
                held = "; ".join(f"{what}: {shown(size)}" for what, size in holders[:5])
                yield (
                    f"{self.name} holds {shown(peak)} {device} in {cell.where}, {shown(budget)} are allowed. "
                    f"What held it: {held or 'no model by name'}."
                )


def host_share(share: float) -> float:
    """How much of the host's budget a smaller model leaves: two gigabytes are Python's and its libraries'."""
    return (2e9 + (HOST_BUDGET - 2e9) * min(share, 1.0)) / HOST_BUDGET


def rehearse(
    notebook: NotebookNode, *, name: str, shape: Shape, folder: Path, tokenizers: Mapping[str, Path]
) -> Rehearsed:
    """Rehearse one lesson.

    Args:
        notebook: its exercises form without outputs; gets the outputs of the run.
        name: of the lesson.
        shape: of the models.
        folder: for the models, the hub's cache and the kernel's files; models that lie there are used again.
        tokenizers: for each role, a folder with its tokenizer.

    Raises:
        RehearsalError: no disk space, or the models can't be written.
    """
    models = {
        shape.chosen: make_checkpoint(shape.llama, folder / "models", tokenizers["llama"]),
        HUB_MODELS["gpt2"][0]: make_checkpoint(shape.gpt2, folder / "models", tokenizers["gpt2"]),
    }
    record = folder / "work" / name / "cells.jsonl"
    record.parent.mkdir(parents=True, exist_ok=True)
    record.unlink(missing_ok=True)
    begin = _BEGIN.format(record=str(record), share=shape.share)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(begin))
    chosen = {"COURSE_GPT2": "", "COURSE_LLAMA": "" if shape.chosen == HUB_MODELS["llama"][0] else shape.chosen}
    check_space(folder, 1.1 * sum(file.stat().st_size for model in models.values() for file in model.iterdir()))
    # What the card's tensors leave in the heap when they go would count as the host's: large ones get their own pages,
    # and huge ones, because to be given gigabytes in pages of 4 kB takes a quarter of the time.
    pages = {"GLIBC_TUNABLES": f"glibc.malloc.mmap_threshold={2**20}:glibc.malloc.hugetlb=1"}
    with serve_hub(models) as address:
        # One cache a shape: the hub's client takes what lies there under the same id and commit for the same model.
        cache = folder / "hub" / "-".join(model.name for model in models.values())
        hub = {"HF_ENDPOINT": address, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0", "HF_TOKEN": ""}
        limited = {SAMPLES: str(_SAMPLES)}
        result = runner.execute(
            notebook, name=name, profile="hub", folder=record.parent, variables={**hub, **chosen, **limited, **pages}
        )
    del notebook.cells[0]
    failure = ""
    if result.failure:
        failure = str(replace(result.failure, cell=max(0, result.failure.cell - 1)))
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    return Rehearsed(name, shape.share, tuple(_read(record, code)), result.seconds, failure)


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
        f"Fewer than in the lesson: what {SAMPLES}={_SAMPLES} limits (steps of planting, prompts, documents, timed "
        "rounds). Large products of matrices add up one summand of 32, so equalities aren't asserted. "
        "Benchmark documents are the embedded ones."
    )


def write_record(rehearsed: Rehearsed, path: Path) -> None:
    """All that was found, as JSON."""
    write_json(path, asdict(rehearsed) | {"refused": list(rehearsed.refusals())})


_BEGIN = """from course_tools.rehearsal.kernel import begin

begin({record!r}, {share!r}, get_ipython());"""


def _read(record: Path, code: Sequence[str]) -> Iterator[Cell]:
    lines = record.read_text(encoding="utf-8").splitlines() if record.exists() else []
    for line in map(json.loads, lines):
        yield Cell(first_line=runner.first_line(code[line["number"] - 1]), **line)

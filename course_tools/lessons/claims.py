"""What runs say of a lesson's claims: a reader's, the saved one, and those of other machines and draws.

    python -m course_tools.lessons.claims NN [RUN ...]

runs a lesson as each of `RUNS` would and records the margins of its claims in `recorded_claims/NN.json`. It takes as
many times the lesson's own minutes as there are runs. Claims of cells tagged `timed` depend on the machine's clock, so
they are left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import nbformat
from nbformat import NotebookNode

from course_tools.lessons import authoring, notebooks, runner
from course_tools.lessons.cells import tags_of
from course_utils.lessons.verdicts import CLAIMS, outcome
from course_utils.support.files import write_text

ROOT = Path(__file__).resolve().parents[2]
_RECORDED = Path(__file__).parent / "recorded_claims"
# What `session.fast_dtype` is told of the processor.
_CAPABILITIES = {"float32": "{}", "bfloat16": '{"avx512_bf16": True}'}
_FIRST_CELL = """\
import torch

from course_utils.support import session

torch.cpu.get_capabilities = lambda: {capabilities}
session.SEED = {draw}"""


class Claim(NamedTuple):
    """A sentence of a lesson, and the margins that a run gave: see `course_utils.lessons.verdicts.claim`."""

    sentence: str
    margins: Sequence[float]

    @property
    def outcome(self) -> str:
        """What the run says of the sentence, as `course_utils.lessons.verdicts.outcome` names it."""
        return outcome(self.margins)

    def __str__(self) -> str:
        return f"{self.outcome}: {self.sentence}"


@dataclass(frozen=True)
class Run:
    """A way to run a lesson.

    Attributes:
        says: what it stands for.
        form: of the numbers in models that take `session.dtype`.
        draw: the session's seed: 0 for the lesson as it is; with another one it draws other texts and random cuts.
        variables: of the kernel's environment, which switch instructions of the processor off.
    """

    says: str
    form: str = "float32"
    draw: int = 0
    variables: Mapping[str, str] = field(default_factory=dict)


RUNS = {
    "laptop": Run(
        "AVX2 and float32, as laptops without AVX-512",
        variables={"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    ),
    "workstation": Run("AVX-512 and float32"),
    "old": Run(
        "SSE and float32, as processors without AVX",
        variables={
            "ATEN_CPU_CAPABILITY": "default",
            "ONEDNN_MAX_CPU_ISA": "SSE41",
            "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        },
    ),
    "server": Run(
        "bfloat16 by other kernels than the saved run's",
        "bfloat16",
        variables={"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    ),
    "second draw": Run("other texts and random cuts", draw=1),
    "third draw": Run("again others", draw=2),
}


def claims_of(notebook: NotebookNode) -> list[Claim]:
    """The claims that an executed notebook holds, in the order of its cells."""
    cells = [cell for cell in notebook.cells if "timed" not in tags_of(cell)]
    outputs = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    return [Claim(**found) for data in outputs for found in data.get(CLAIMS, [])]


def recorded(number: str) -> dict[str, dict[str, list[float]]]:
    """The margins that runs of a lesson gave: {name in `RUNS`: {sentence: margins}}; empty before there is a record."""
    path = _RECORDED / f"{number}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def main(arguments: Sequence[str] | None = None) -> int:
    """Record runs of a lesson; return an exit status."""
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}")
    parser.add_argument("lesson", metavar="NN")
    told = "; ".join(f"{name}: {run.says}" for name, run in RUNS.items())
    parser.add_argument("runs", nargs="*", metavar="RUN", help=f"all by default. {told}")
    args = parser.parse_args(arguments)
    unknown = sorted({*args.runs} - {*RUNS})
    if unknown:
        parser.error(f"there is no run {', '.join(unknown)}; choose among {', '.join(RUNS)}")
    (path,) = authoring.find_lessons(ROOT / "lessons", [args.lesson])
    lesson = authoring.read_lesson(path)
    for name in args.runs or RUNS:
        notebook = prepared(lesson, RUNS[name])
        result = runner.execute(
            notebook,
            name=lesson.name,
            profile="embedded",
            folder=ROOT / "build" / "claims" / name,
            variables=RUNS[name].variables,
        )
        if result.failure:
            print(f"{name}: stopped at {result.failure}", file=sys.stderr)
            return 1
        found = claims_of(notebook)
        _record(lesson.number, name, found)
        print(f"{name}: recorded", *found, sep="\n  ", flush=True)
    return 0


def prepared(lesson: authoring.Lesson, run: Run) -> NotebookNode:
    """The notebook to execute: a cell above the lesson's tells it of another machine, and of another draw."""
    notebook = notebooks.build_notebook(lesson, notebooks.Course.read(ROOT), "exercises")
    source = _FIRST_CELL.format(capabilities=_CAPABILITIES[run.form], draw=run.draw)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(source))
    return notebook


def _record(number: str, name: str, found: Sequence[Claim]) -> None:
    """Write a run's margins into the record, in place of its earlier ones; one claim per line."""
    runs = recorded(number) | {name: {claim.sentence: [*claim.margins] for claim in found}}
    parts = []
    for run in filter(runs.get, RUNS):
        lines = [f"  {json.dumps(text, ensure_ascii=False)}: {json.dumps(runs[run][text])}" for text in runs[run]]
        parts.append(f" {json.dumps(run)}: {{\n" + ",\n".join(lines) + "\n }")
    write_text(_RECORDED / f"{number}.json", "{\n" + ",\n".join(parts) + "\n}\n")


if __name__ == "__main__":
    sys.exit(main())

"""Record what verdicts read, from a lesson as other machines and other draws run it.

    python -m course_tools.lessons.verdicts.recording NN [RUN ...]

writes `lesson_NN.json` beside `lesson_NN.py`: for each of `RUNS`, the tables and lines that the lesson's verdicts read,
and no others. It takes as many times the lesson's own minutes as there are runs.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nbformat import NotebookNode

from course_tools.lessons import authoring, notebooks, runner
from course_tools.lessons.verdicts import judging
from course_tools.lessons.verdicts.tables import Tables
from course_tools.lessons.verdicts.verdict import ABSENT
from course_utils.files import write_text

ROOT = Path(__file__).resolve().parents[3]
# What `session.fast_dtype` is told of the processor.
_CAPABILITIES = {"float32": "{}", "bfloat16": '{"avx512_bf16": True}'}
_BEFORE = """\
import torch

from course_utils import session

torch.cpu.get_capabilities = lambda: {capabilities}
session.SEED = {draw}

"""


@dataclass(frozen=True)
class Run:
    """A way to run a lesson.

    Attributes:
        says: what it stands for.
        form: of the numbers in models that take `session.dtype`.
        draw: 0 for the lesson as it is; otherwise other texts, and nineteen other random cuts, are drawn.
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
            folder=ROOT / "build" / "verdicts" / name,
            variables=RUNS[name].variables,
        )
        if result.failure:
            print(f"{name}: stopped at {result.failure}", file=sys.stderr)
            return 1
        add(lesson.number, name, Tables.of(notebook))
        print(f"{name}: recorded", *judging.judge(lesson.number, Tables.of(notebook)), sep="\n  ", flush=True)
    return 0


def prepared(lesson: authoring.Lesson, run: Run) -> NotebookNode:
    """The notebook to execute: told of another machine, and with other seeds where it is another draw."""
    notebook = notebooks.build_notebook(lesson, notebooks.Course.read(ROOT), "exercises")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in code if run.draw else []:
        # Not the last default of a function: what a lesson reads from its record stays what it is.
        source = re.sub(r"\b(seed|draw)=0\b(?!\):)", rf"\1={run.draw}", cell.source)
        for cuts in (9, 19):
            source = re.sub(rf"\brange\({cuts}\)", f"range({19 * run.draw}, {19 * run.draw + cuts})", source)
        cell.source = source
    code[0].source = _BEFORE.format(capabilities=_CAPABILITIES[run.form], draw=run.draw) + code[0].source
    return notebook


def add(number: str, name: str, tables: Tables) -> None:
    """Put what the verdicts read of a run into the lesson's record, in the place of what stands there."""
    runs = judging.recorded(number) | {name: _read_by_verdicts(number, tables)}
    lines = [f"{json.dumps(run)}: {json.dumps(runs[run].to_data(), ensure_ascii=False)}" for run in RUNS if run in runs]
    write_text(judging.record_of(number), "{\n" + ",\n".join(lines) + "\n}\n")


def _read_by_verdicts(number: str, tables: Tables) -> Tables:
    """The parts of a run without which a verdict can't be given."""
    parts = [*tables.parts()]
    absent = _absent(number, tables)
    return Tables.together(
        part
        for place, part in enumerate(parts)
        if _absent(number, Tables.together([*parts[:place], *parts[place + 1 :]])) > absent
    )


def _absent(number: str, tables: Tables) -> int:
    return sum(found.outcome == ABSENT for found in judging.judge(number, tables))


if __name__ == "__main__":
    sys.exit(main())

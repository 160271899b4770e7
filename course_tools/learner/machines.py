"""How far a run may be from the saved one: measured, by running lessons as other machines would.

    python -m course_tools.learner.machines MACHINE [NN ...]    run lessons so, and keep what they print
    python -m course_tools.learner.machines                     judge each machine by what the others allow

The numbers go to `verify.OTHERS`; `python course.py build` then puts them beside the saved ones, where `verify` finds
them. A machine is this one with some of its instructions switched off: what it can't show is another PyTorch. Two of a
number format are needed to say how far a number may be off, a third one to judge that.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from course_tools.learner import verify
from course_tools.lessons import authoring, notebooks, runner
from course_tools.lessons.printed import Number
from course_utils.files import write_text

ROOT = Path(__file__).resolve().parents[2]
# Put before the install cell: the processor says that it multiplies no 16-bit numbers, so `session.dtype` is float32.
_PLAIN = "import torch\n\ntorch.cpu.get_capabilities = dict\n"


@dataclass(frozen=True)
class Machine:
    """What a lesson's kernel is told of the machine: variables, and the number format (`session.fast_dtype`)."""

    says: str
    form: str
    variables: Mapping[str, str]


MACHINES = {
    "laptop": Machine(
        "AVX2 and float32, as laptops without AVX-512",
        "float32",
        {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    ),
    "workstation": Machine("AVX-512 and float32", "float32", {}),
    "old": Machine(
        "SSE and float32, as processors without AVX",
        "float32",
        {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
    ),
    "server": Machine(
        "bfloat16 by other kernels, as servers of another kind",
        "bfloat16",
        {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    ),
}


def main(arguments: Sequence[str] | None = None, *, target: Path = verify.OTHERS, folder: Path | None = None) -> int:
    """Run lessons as a machine would, or judge the machines; return an exit status.

    Args:
        arguments: the machine and numbers of lessons; default: the program's own.
        target: the file to add to.
        folder: gets the executed notebooks; default: build/machines/MACHINE.
    """
    parser = argparse.ArgumentParser(prog="python -m course_tools.learner.machines")
    told = "; ".join(f"{name}: {machine.says}" for name, machine in MACHINES.items())
    parser.add_argument("machine", nargs="?", choices=MACHINES, help=told)
    parser.add_argument("lessons", nargs="*", metavar="NN", help="all of them by default")
    args = parser.parse_args(arguments)
    if args.machine is None:
        for name, (outside, compared) in judged(verify.read_expected(), verify.read_others(target)).items():
            print(f"{name}: {outside} of {compared} numbers are further off than the other machines allow")
        return 0
    folder, failed = folder or ROOT / "build" / "machines" / args.machine, False
    for path in authoring.find_lessons(ROOT / "lessons", args.lessons):
        problem = measure(authoring.read_lesson(path), args.machine, target=target, folder=folder)
        print(f"{path.stem}: {problem or 'measured'}", flush=True)
        failed |= bool(problem)
    return int(failed)


def measure(lesson: authoring.Lesson, name: str, *, target: Path, folder: Path) -> str:
    """Run a lesson, in the exercise form and embedded profile, as a machine would; what went wrong, or nothing.

    Args:
        lesson: which.
        name: of `MACHINES`.
        target: the file that gets its numbers, in the place of earlier ones.
        folder: gets the executed notebook.
    """
    machine = MACHINES[name]
    notebook = notebooks.build_notebook(lesson, notebooks.Course.read(ROOT), "exercises")
    if machine.form == "float32":
        install = next(cell for cell in notebook.cells if cell.cell_type == "code")
        install.source = _PLAIN + install.source
    result = runner.execute(
        notebook, name=lesson.name, profile=verify.COMPARED, folder=folder / "work", variables=machine.variables
    )
    write_text(folder / f"{lesson.name}.ipynb", notebooks.to_text(notebook))
    if result.failure:
        return f"stopped at {result.failure}"
    cells = [{key: cell[key] for key in ("id", "numbers")} for cell in verify.expected_of(notebook)]
    others = verify.read_others(target)
    others.setdefault(name, {"format": machine.form, "lessons": {}})["lessons"][lesson.name] = cells
    write_text(target, _to_text(others))
    return ""


def judged(expected: Mapping[str, list[dict]], others: Mapping[str, Mapping]) -> dict[str, tuple[int, int]]:
    """{machine: (numbers further off than the others of its format allow, numbers compared)}, where two others are.

    Args:
        expected: {lesson: cells}, the saved runs.
        others: as `verify.read_others` has them.
    """
    found = {}
    for name, machine in others.items():
        rest = {other: content for other, content in others.items() if other != name}
        outside = compared = 0
        for lesson in machine["lessons"]:
            known = verify.with_others(lesson, expected.get(lesson, []), rest)
            mine = verify.with_others(lesson, expected.get(lesson, []), {name: machine})
            for cell, seen, what in zip(known, mine, verify.wanted(known, machine["format"]), strict=True):
                runs = len(cell.get("elsewhere", {}).get(machine["format"], [])) + (machine["format"] == verify.SAVED)
                for printed in seen.get("elsewhere", {}).get(machine["format"], []):
                    if runs > 1 and what.slack is not None and len(printed) == len(what.numbers):
                        outside += len(verify.outside([Number(text) for text in printed], what))
                        compared += len(printed)
        if compared:
            found[name] = (outside, compared)
    return found


def _to_text(others: Mapping[str, Mapping]) -> str:
    """The file, a line a cell."""
    machines = []
    for name, machine in sorted(others.items()):
        lessons = [
            f"{json.dumps(lesson)}: [\n" + ",\n".join(map(json.dumps, cells)) + "\n]"
            for lesson, cells in sorted(machine["lessons"].items())
        ]
        head = f'{json.dumps(name)}: {{"format": {json.dumps(machine["format"])}, "lessons": {{\n'
        machines.append(head + ",\n".join(lessons) + "\n}}")
    return "{\n" + ",\n".join(machines) + "\n}\n"


if __name__ == "__main__":
    sys.exit(main())

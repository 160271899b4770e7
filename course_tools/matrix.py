"""The tests on every Python, and on both ends of the versions that the course supports.

    python -m course_tools.matrix [NAME ...] [--lessons [--profile smoke]]

    3.11, 3.12, 3.13   the newest version of everything, on that Python
    oldest             the lower bounds of pyproject.toml, on the oldest Python
    colab              the versions of course_tools/colab_packages.txt, on Colab's Python

Each has an environment of its own in build/matrix/NAME, made once (on Linux with CUDA builds about 5 GB; delete the
folder to make it afresh). What pip and the tests wrote lies beside it. A Python that isn't found is skipped. Results
are kept, so name what is left after an interruption; the exit status is 1 where one of the named failed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from course_tools import colab, requirements
from course_tools.processes import with_sleeping_threads
from course_utils.support.files import write_text

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "matrix"
PYTHONS = ("3.11", "3.12", "3.13")
SHOWN = ["torch", "transformers", "datasets"]
COLUMNS = ["environment", "python", *SHOWN, "what", "result"]
COMMANDS = {
    "tests": ("-P", "-m", "course_tools", "test", "--fast"),
    "lessons": ("-P", "-m", "course_tools", "run", "--profile", "embedded"),
    "smoke lessons": ("-m", "pytest", "-q", "-m", "smoke", "-n", "2", "--maxschedchunk", "1", "tests/test_lessons.py"),
}


@dataclass(frozen=True)
class Environment:
    """A Python ("3.11") and the versions to hold fixed in it, lines as pip's constraints have them."""

    name: str
    python: str
    constraints: tuple[str, ...] = ()


def environments() -> list[Environment]:
    """All of them, in the order of the table."""
    dependencies = requirements.needed("lessons")
    ours = {canonicalize_name(Requirement(text).name) for text in dependencies} | {"huggingface-hub", "tokenizers"}
    held = colab.pins(colab.FREEZE.read_text(encoding="utf-8"))
    return [
        *(Environment(python, python) for python in PYTHONS),
        Environment("oldest", PYTHONS[0], lower_bounds(dependencies)),
        Environment("colab", colab.PYTHON, tuple(f"{name}=={held[name]}" for name in sorted(ours & set(held)))),
    ]


def lower_bounds(dependencies: list[str]) -> tuple[str, ...]:
    """The oldest version that each range allows, as pins: ``torch>=2.9`` gives ``torch==2.9``, which is 2.9.0.

    >>> lower_bounds(["torch>=2.9", "transformers>=5.14,<6"])
    ('torch==2.9', 'transformers==5.14')
    """
    wanted = {one.name: one.specifier for one in map(Requirement, dependencies)}
    lowest = {name: next(part.version for part in parts if part.operator == ">=") for name, parts in wanted.items()}
    return tuple(f"{name}=={version}" for name, version in lowest.items())


def find_python(version: str) -> str | None:
    """The path of an interpreter of this version ("3.12"): this one, or one on the PATH; None where there is none."""
    return sys.executable if version == "{}.{}".format(*sys.version_info) else shutil.which(f"python{version}")


def prepare(environment: Environment, python: str) -> Path | None:
    """Make the environment unless that is done; the path of its Python, or None where pip failed."""
    folder = FOLDER / environment.name
    inside = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    constraints, stamp = FOLDER / f"{environment.name}.txt", folder / "stamp"
    wanted = json.dumps([environment.constraints, requirements.needed("dev")])
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return inside
    shutil.rmtree(folder, ignore_errors=True)
    write_text(constraints, "\n".join(environment.constraints))
    install = ["-m", "pip", "install", "--no-input", "--progress-bar", "off", "--constraint", str(constraints)]
    log = FOLDER / f"{environment.name}-install.log"
    for command in ([python, "-m", "venv", str(folder)], [str(inside), *install, "--editable", ".[dev]"]):
        if _logged(command, log):
            return None
    write_text(stamp, wanted)
    return inside


def check(environment: Environment, what: str) -> dict[str, str]:
    """One row of the table: the versions that were used and how it went."""
    row = {"environment": environment.name, "python": environment.python, "what": what}
    python = find_python(environment.python)
    if python is None:
        return row | {"result": f"skipped: no Python {environment.python} here"}
    print(f"{environment.name}: making the environment, if need be …", flush=True)
    inside = prepare(environment, python)
    if inside is None:
        return row | {"result": f"failed: pip, see {_shown(FOLDER / f'{environment.name}-install.log')}"}
    ask = f"from importlib.metadata import version; print(*map(version, {SHOWN}))"
    versions = subprocess.run([inside, "-c", ask], capture_output=True, text=True, check=True).stdout.split()
    row |= dict(zip(SHOWN, versions, strict=True))
    print(f"{environment.name}: {what} with {', '.join(f'{name} {row[name]}' for name in SHOWN)} …", flush=True)
    log, start = FOLDER / f"{environment.name}-{what.replace(' ', '-')}.log", time.monotonic()
    status = _logged([str(inside), *COMMANDS[what]], log)
    last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
    said = f"passed after {time.monotonic() - start:.0f} s" if status == 0 else f"failed: {_shown(log)}"
    return row | {"result": " · ".join([said, *last])}


def main(arguments: list[str] | None = None) -> int:
    """Check the named environments, or all, and print the table of all results so far."""
    known = {environment.name: environment for environment in environments()}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}; all by default")
    parser.add_argument("--lessons", action="store_true", help="run the lessons instead of the fast tests")
    profiles = ("embedded", "smoke")
    parser.add_argument("--profile", choices=profiles, default="embedded", help="of the lessons; smoke takes minutes")
    args = parser.parse_args(arguments)
    if unknown := set(args.names) - set(known):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    what = {"embedded": "lessons", "smoke": "smoke lessons"}[args.profile] if args.lessons else "tests"
    record, failed = FOLDER / "results.json", False
    results = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    for name in args.names or known:
        row = check(known[name], what)
        failed |= row["result"].startswith("failed")
        results[f"{name} {what}"] = row
        write_text(record, json.dumps(results, indent=1, sort_keys=True) + "\n")
    print(table(list(results.values())))
    return int(failed)


def table(rows: list[dict[str, str]]) -> str:
    """The rows as a Markdown table; a cell that a row doesn't have stays empty."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *([row.get(column, "") for column in COLUMNS] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _logged(command: list[str], log: Path) -> int:
    """Run a command in the root, its output in a file; the exit status."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        return subprocess.call(
            command,
            cwd=ROOT,
            env=with_sleeping_threads(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )


if __name__ == "__main__":
    sys.exit(main())

"""``python -m benchmarks [QUESTION …]``: ask what is open, one after the other, each in a process of its own."""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from course_utils.files import write_text

if TYPE_CHECKING:
    from benchmarks.common import Question

QUESTIONS = (
    "width", "peers", "attention_selection", "distillation", "variant", "model_size", "tokens",
)  # fmt: skip
BEGIN, END = "<!-- written by python -m benchmarks -->\n", "<!-- end -->\n"


def question(name: str) -> Question:
    return importlib.import_module(f"benchmarks.{name}").QUESTION


def summary() -> str:
    """A table of all findings, and of what is open."""
    from benchmarks.common import VERDICTS, markdown_table

    rows = []
    for name in QUESTIONS:
        asked = question(name)
        data = asked.answer()
        if data is None:
            rows.append([asked.title, f"open: `python -m benchmarks {name}`, about {asked.minutes} min", "", "", ""])
            continue
        link = f"[{asked.title}]({name}.md)"
        for finding in asked.findings(data):
            rows.append([link, finding.what, finding.value, finding.bar, VERDICTS[finding.met]])
            link = ""
    return markdown_table(["question", "measured", "value", "bar", ""], rows)


def with_summary(page: str) -> str:
    before, _, rest = page.partition(BEGIN)
    return before + BEGIN + summary() + "\n" + END + rest.partition(END)[2]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help=f"{', '.join(QUESTIONS)}; all when none")
    parser.add_argument("--again", action="store_true", help="ask what is answered already, too")
    parser.add_argument("--to", type=Path, help="write elsewhere and leave the course's own answers alone")
    options = parser.parse_args(arguments)
    if unknown := set(options.questions) - set(QUESTIONS):
        parser.error(f"no such question: {', '.join(sorted(unknown))}. There are {', '.join(QUESTIONS)}.")
    if options.to is not None:
        options.to.mkdir(parents=True, exist_ok=True)
        os.environ["COURSE_BENCHMARKS"] = str(options.to.resolve())  # read by benchmarks.common, here and in children

    from tqdm import tqdm

    from benchmarks.common import FOLDER

    failed = []
    names = options.questions or QUESTIONS
    bar = tqdm(names, unit="question")
    for name in bar:
        bar.set_description(name)
        asked = question(name)
        data = asked.answer()
        if data is not None and not options.again:
            write_text(asked.path(".md"), asked.text(data))  # in the words of today
            tqdm.write(f"{name}: answered already, see {name}.md (--again asks anew)")
            continue
        done = subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False)
        if done.returncode:
            failed.append(name)
            tqdm.write(f"{name}: FAILED, see above; what it had measured is kept, and the next run goes on from there")
        else:
            tqdm.write((FOLDER / f"{name}.md").read_text(encoding="utf-8"))
    page = FOLDER / "README.md"
    if page.exists():
        write_text(page, with_summary(page.read_text(encoding="utf-8")))
    else:
        print(summary())
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

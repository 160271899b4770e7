"""``python -m benchmarks [QUESTION …]``: ask what is open, one after the other, each in a process of its own."""

from __future__ import annotations

import argparse
import subprocess
import sys

from benchmarks import depth, peers, scaling
from benchmarks.common import FOLDER, HEADER, markdown_table
from course_utils.support.files import write_text

QUESTIONS = {question.name: question for question in (peers.QUESTION, depth.QUESTION, scaling.QUESTION)}
BEGIN, END = "<!-- written by python -m benchmarks -->\n", "<!-- end -->\n"


def summary() -> str:
    """A table of all findings, and of what is open."""
    rows = []
    for question in QUESTIONS.values():
        data = question.answer()
        if data is None:
            open_still = f"open: `python -m benchmarks {question.name}`, about {question.minutes} min"
            rows.append([question.title, open_still, "", "", ""])
            continue
        link = f"[{question.title}]({question.name}.md)"
        for finding in question.findings(data):
            rows.append([link, *finding.cells()])
            link = ""
    return markdown_table(["question", *HEADER], rows)


def with_summary(page: str) -> str:
    """README.md with its table written anew."""
    before, _, rest = page.partition(BEGIN)
    return before + BEGIN + summary() + "\n" + END + rest.partition(END)[2]


def main(arguments: list[str] | None = None) -> int:
    """Ask the questions, and write the summary; 1 where one of them failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help=f"{', '.join(QUESTIONS)}; all when none")
    parser.add_argument("--again", action="store_true", help="ask what is answered already, too")
    options = parser.parse_args(arguments)
    if unknown := set(options.questions) - QUESTIONS.keys():
        parser.error(f"no such question: {', '.join(sorted(unknown))}. There are {', '.join(QUESTIONS)}.")
    status = 0
    for name in options.questions or QUESTIONS:
        question = QUESTIONS[name]
        data = question.answer()
        if data is not None and not options.again:
            write_text(question.path(".md"), question.text(data))  # in the words of today
            print(f"{name}: answered already, see {name}.md (--again asks anew)")
        elif subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode:
            print(f"{name}: FAILED, see above; what it had measured is kept, and the next run goes on from there")
            status = 1
    page = FOLDER / "README.md"
    write_text(page, with_summary(page.read_text(encoding="utf-8")))
    return status


if __name__ == "__main__":
    sys.exit(main())

"""The cells of a lesson: their tags, their words, seen at once or folded, their code as a tree, what a page shows."""

from __future__ import annotations

import ast
import re

from nbformat import NotebookNode

from course_utils.lessons.verdicts import CLAIMS

EXERCISE = re.compile(
    r"^### Exercise (?P<number>\d+) · (?P<difficulty>[●○]{3}) · (?P<minutes>\d+) minutes$", re.MULTILINE
)
_FOLDED = re.compile(r"<details><summary>(?P<summary>.*?)</summary>(?P<inside>.*?)</details>", re.DOTALL)
_REASON = re.compile(r"^  > ?(.*)$", re.MULTILINE)
# Blocks of code, addresses, tags, and the mark of a quiz's right option.
_NO_WORDS = re.compile(r"^(`{3,}).*?^\1`*$|(?<=\])\([^()\s]+\)|<[^>]*>|^- \[x\]", re.MULTILINE | re.DOTALL)
_MAGIC = re.compile(r"^(\s*)[%!].*$", re.MULTILINE)


def tags_of(cell: NotebookNode) -> list[str]:
    """The tags of a cell."""
    return cell.metadata.get("tags", [])


def shown_outputs(cell: NotebookNode) -> list[NotebookNode]:
    """What a page shows of a code cell: neither its claims nor what it wrote to standard error."""
    outputs = (output for output in cell.outputs if output.get("name") != "stderr")
    return [output for output in outputs if CLAIMS not in output.get("data", {})]


def shown_and_folded(cell: NotebookNode) -> tuple[str, str]:
    """The text of a text cell that is seen at once, and the text that has to be unfolded, such as a quiz's reasons."""
    folding = _REASON if "quiz" in tags_of(cell) else _FOLDED
    folded = [match[match.lastindex] for match in folding.finditer(cell.source)]
    return folding.sub(lambda match: match.groupdict().get("summary", ""), cell.source), "\n\n".join(folded)


def words_of(text: str) -> list[str]:
    """The words of Markdown as one reads them: no blocks of code, no addresses, no tags."""
    return re.findall(r"\S*\w\S*", _NO_WORDS.sub(" ", text))


def parsed(cell: NotebookNode) -> ast.Module:
    """The code of a cell, Jupyter's own commands left out; nothing of a cell that is meant to be wrong."""
    try:
        return ast.parse(_MAGIC.sub(r"\1pass", cell.source))
    except SyntaxError:
        return ast.Module(body=[], type_ignores=[])

"""The cells of a lesson: their tags, their text without what is folded, and the outputs that a page shows."""

from __future__ import annotations

import re

from nbformat import NotebookNode

from course_utils.lessons.verdicts import CLAIMS

EXERCISE = re.compile(
    r"^### Exercise (?P<number>\d+) · (?P<difficulty>[●○]{3}) · (?P<minutes>\d+) minutes$", re.MULTILINE
)
_FOLDED = re.compile(r"<details>.*?</details>", re.DOTALL)


def tags_of(cell: NotebookNode) -> list[str]:
    """The tags of a cell."""
    return cell.metadata.get("tags", [])


def shown_outputs(cell: NotebookNode) -> list[NotebookNode]:
    """What a page shows of a code cell: neither its claims nor what it wrote to standard error."""
    outputs = (output for output in cell.outputs if output.get("name") != "stderr")
    return [output for output in outputs if CLAIMS not in output.get("data", {})]


def without_folds(text: str) -> str:
    """The text that a reader sees before they unfold anything."""
    return _FOLDED.sub("", text)

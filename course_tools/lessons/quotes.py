"""Numbers that a lesson's prose quotes from its saved run, held against what that run printed.

Quoted are the answers under "Predict before you run" and paragraphs that begin with `SAVED_RUN`. Each number there must
stand in a printed output or a table of the same notebook, equal after rounding to the digits that are quoted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from nbformat import NotebookNode

from course_tools.lessons.authoring import WHAT_WE_SAW

SAVED_RUN = "**Saved run.**"
_ANSWER = re.compile(re.escape(WHAT_WE_SAW) + r"(.*?)</details>", re.DOTALL)
_PARAGRAPH = re.compile(re.escape(SAVED_RUN) + r"(.*?)(?=\n\s*\n|\Z)", re.DOTALL)
# What holds digits and is no measurement: code, links, references to a lesson, names such as Llama-3.2-1B or Q4_1.
_NAMES = re.compile(
    r"`[^`]*`|\]\([^)]*\)|<[^>]*>"
    r"|\b(?:lessons?|exercises?|questions?|sections?)\s+\d+(?:(?:,| and| to)\s+\d+)*"
    r"|[A-Za-z][\w./-]*\d[\w./-]*|\b\d[\d.]*[A-Za-z]\w*",
    re.IGNORECASE,
)
_NUMBER = re.compile(
    r"(?P<number>(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:e(?P<power>[+-]?\d+))?"
    r"\s?(?P<unit>%|thousand|million|billion)?"
)
_UNITS = {None: 1.0, "%": 0.01, "thousand": 1e3, "million": 1e6, "billion": 1e9}


@dataclass(frozen=True)
class Quoted:
    """A number as it is written: its value, and half a unit of its last digit."""

    text: str
    value: float
    tolerance: float

    def is_rounded(self, shown: float) -> bool:
        """Whether `shown`, or the same as a percentage, rounds to it."""
        slack = self.tolerance * (1 + 1e-9) + 1e-12
        return any(abs(candidate - self.value) <= slack for candidate in (shown, shown / 100, shown * 100))


def numbers(text: str) -> Iterator[Quoted]:
    """The numbers of a text without their signs; names with digits in them are no numbers."""
    for match in _NUMBER.finditer(_NAMES.sub(" ", text)):
        digits = match["number"].replace(",", "")
        scale = _UNITS[match["unit"]] * 10.0 ** int(match["power"] or 0)
        decimals = len(digits.partition(".")[2])
        yield Quoted(match[0].strip(), float(digits) * scale, 0.5 * 10.0**-decimals * scale)


def quotations(notebook: NotebookNode) -> Iterator[str]:
    """The texts of a notebook that quote its saved run."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            yield from _ANSWER.findall(cell.source)
            yield from _PARAGRAPH.findall(_ANSWER.sub("", cell.source))


def printed(notebook: NotebookNode) -> str:
    """What the cells printed, and their tables; not the sentences that describe pictures."""
    texts = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if not any(kind.startswith("image/") for kind in data):
                texts += [output.get("text", ""), data.get("text/html", ""), data.get("text/plain", "")]
    return re.sub(r"<[^>]*>", " ", "\n".join(texts)).replace("\N{MINUS SIGN}", "-")


def unsupported(notebook: NotebookNode) -> list[str]:
    """Each quoted number that the notebook's saved outputs don't show, with the words around it."""
    shown = [number.value for number in numbers(printed(notebook))]
    problems = []
    for text in quotations(notebook):
        for number in numbers(text):
            if not any(number.is_rounded(value) for value in shown):
                place = text.find(number.text)
                around = " ".join(text[max(0, place - 50) : place + 30].split())
                problems.append(f"{number.text} in “…{around}…”")
    return problems

"""Numbers that a lesson's prose quotes from its saved run, held against what that run printed.

Quoted are the answers under "Predict before you run" and paragraphs that begin with `SAVED_RUN` or `SUMMED_UP`. Each
number there must stand in a printed output or a table, equal after rounding to the digits that are quoted, and near by:
in a whole notebook nearly any number stands somewhere, so a stale one would pass. What is summed up may be anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from nbformat import NotebookNode

from course_tools.lessons.authoring import WHAT_WE_SAW

SAVED_RUN, SUMMED_UP = "**Saved run.**", "**Saved run, summed up.**"
NEAR = 6  # of the outputs with numbers before a text, and as many behind it, may be quoted
_ANSWER = re.compile(re.escape(WHAT_WE_SAW) + r"(.*?)</details>", re.DOTALL)
_PARAGRAPH, _SUMMARY = (
    re.compile(re.escape(begin) + r"(.*?)(?=\n\s*\n|\Z)", re.DOTALL) for begin in (SAVED_RUN, SUMMED_UP)
)
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


def quotations(notebook: NotebookNode) -> Iterator[tuple[int, str, bool]]:
    """The texts of a notebook that quote its saved run: the cell, the text, and whether it sums up."""
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            for text in _ANSWER.findall(cell.source):
                yield number, text, False
            for pattern in (_PARAGRAPH, _SUMMARY):
                for text in pattern.findall(_ANSWER.sub("", cell.source)):
                    yield number, text, pattern is _SUMMARY


def printed(cell: NotebookNode) -> str:
    """What a cell printed, and its tables; not the sentences that describe pictures."""
    texts = []
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        if not any(kind.startswith("image/") for kind in data):
            texts += [output.get("text", ""), data.get("text/html", ""), data.get("text/plain", "")]
    return re.sub(r"<[^>]*>", " ", "\n".join(texts)).replace("\N{MINUS SIGN}", "-")


def unsupported(notebook: NotebookNode) -> list[str]:
    """Each quoted number that the saved outputs near it don't show, with the words around it."""
    shown = {number: [found.value for found in numbers(printed(cell))] for number, cell in enumerate(notebook.cells)}
    shown = {number: values for number, values in shown.items() if values}
    problems = []
    for cell, text, sums_up in quotations(notebook):
        before, behind = [n for n in shown if n < cell], [n for n in shown if n > cell]
        near = before + behind if sums_up else before[-NEAR:] + behind[:NEAR]
        values = [value for number in near for value in shown[number]]
        for number in numbers(text):
            if not any(map(number.is_rounded, values)):
                place = text.find(number.text)
                around = " ".join(text[max(0, place - 50) : place + 30].split())
                problems.append(f"{number.text} in “…{around}…”")
    return problems

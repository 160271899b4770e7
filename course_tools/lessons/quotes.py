"""Numbers that a lesson's prose quotes from its saved run, held against what that run printed.

Quoted are the answers under "Predict before you run" and paragraphs that begin with `SAVED_RUN`. Each number there must
stand in a printed output or a table, equal after rounding to the digits that are quoted, and near by: in a whole
notebook nearly any number stands somewhere, so a stale one would pass.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import NamedTuple

from nbformat import NotebookNode

from course_tools.lessons.authoring import WHAT_WE_SAW
from course_tools.lessons.printed import NUMBER, Number, tables_of, texts_of

SAVED_RUN = "**Saved run.**"
NEAR = 6  # of the outputs with numbers before a text, and as many behind it, may be quoted
_ANSWER = re.compile(re.escape(WHAT_WE_SAW) + r"(.*?)</details>", re.DOTALL)
_PARAGRAPH = re.compile(re.escape(SAVED_RUN) + r"(.*?)(?=\n\s*\n|\Z)", re.DOTALL)
# What holds digits and is no measurement: code, links, references to a lesson, names such as Llama-3.2-1B or Q4_1.
_NAMES = re.compile(
    r"`[^`]*`|\]\([^)]*\)|<[^>]*>"
    r"|\b(?:lessons?|exercises?|questions?|sections?)\s+\d+(?:(?:,| and| to)\s+\d+)*"
    r"|[A-Za-z][\w./-]*\d[\w./-]*|\b\d[\d.]*[A-Za-z]\w*",
    re.IGNORECASE,
)
_QUANTITY = re.compile(rf"(?P<number>{NUMBER.pattern})\s?(?P<unit>%|thousand|million|billion)?")
_UNITS = {None: 1.0, "%": 0.01, "thousand": 1e3, "million": 1e6, "billion": 1e9}


class Quantity(NamedTuple):
    """A number as it is written: its value without its sign, and half a unit of its last digit."""

    text: str
    value: float
    slack: float


def quantities(text: str) -> Iterator[Quantity]:
    """The quantities of a text; names with digits in them are none."""
    for match in _QUANTITY.finditer(_NAMES.sub(" ", text)):
        number, unit = Number(match["number"]), _UNITS[match["unit"]]
        yield Quantity(match[0].strip(), abs(number.value) * unit, 0.5 * number.unit * unit)


def _quotations(notebook: NotebookNode) -> Iterator[tuple[int, str]]:
    """The texts of a notebook that quote its saved run, each with its cell."""
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            for text in [*_ANSWER.findall(cell.source), *_PARAGRAPH.findall(_ANSWER.sub("", cell.source))]:
                yield number, text


def unsupported(notebook: NotebookNode) -> list[str]:
    """Each quoted number that the saved outputs near it don't show, with the words around it."""
    shown = {place: [*_shown(cell)] for place, cell in enumerate(notebook.cells)}
    shown = {place: values for place, values in shown.items() if values}
    problems = []
    for cell, text in _quotations(notebook):
        before, behind = [place for place in shown if place < cell], [place for place in shown if place > cell]
        near = before[-NEAR:] + behind[:NEAR]
        values = [value for place in near for value in shown[place]]
        for quoted in quantities(text):
            if not _is_among(values, quoted):
                place = text.find(quoted.text)
                around = " ".join(text[max(0, place - 50) : place + 30].split())
                problems.append(f"{quoted.text} in “…{around}…”")
    return problems


def _shown(cell: NotebookNode) -> Iterator[float]:
    """What a cell printed, and its tables with their names; not the sentences that describe pictures."""
    outputs = cell.get("outputs", [])
    for text in [*texts_of(outputs), *map(str, tables_of(outputs))]:
        yield from (quantity.value for quantity in quantities(text))


def _is_among(values: Collection[float], quoted: Quantity) -> bool:
    """Whether one of the values, or the same as a percentage, rounds to what is quoted."""
    slack = quoted.slack * (1 + 1e-9) + 1e-12
    return any(abs(value * scale - quoted.value) <= slack for value in values for scale in (1, 0.01, 100))

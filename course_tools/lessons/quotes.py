"""Numbers that a lesson's prose quotes from its saved run, held against what that run printed.

Quoted are the answers under "Predict before you run" and paragraphs that begin with `SAVED_RUN`. Each number there must
stand in a printed output or a table, equal after rounding to the digits that are quoted, and near by: in a whole
notebook nearly any number stands somewhere, so a stale one would pass.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
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

    def rounds(self, value: float) -> bool:
        """Whether a value, or the same as a percentage, rounds to this."""
        slack = self.slack * (1 + 1e-9) + 1e-12
        return any(abs(value * scale - self.value) <= slack for scale in (1, 0.01, 100))


def quantities(text: str) -> Iterator[Quantity]:
    """The quantities of a text; names with digits in them are none."""
    for match in _QUANTITY.finditer(_NAMES.sub(" ", text)):
        number, unit = Number(match["number"]), _UNITS[match["unit"]]
        yield Quantity(match[0].strip(), abs(number.value) * unit, 0.5 * number.unit * unit)


def unsupported(notebook: NotebookNode) -> list[str]:
    """Each quoted number that the saved outputs near it don't show, with the words around it."""
    shown = [(place, values) for place, cell in enumerate(notebook.cells) if (values := _shown(cell))]
    problems = []
    for place, cell in enumerate(notebook.cells):
        if cell.cell_type != "markdown":
            continue
        before = [values for other, values in shown if other < place]
        behind = [values for other, values in shown if other > place]
        near = [value for values in before[-NEAR:] + behind[:NEAR] for value in values]
        for text in [*_ANSWER.findall(cell.source), *_PARAGRAPH.findall(_ANSWER.sub("", cell.source))]:
            for quoted in quantities(text):
                if not any(map(quoted.rounds, near)):
                    start = text.find(quoted.text)
                    around = " ".join(text[max(0, start - 50) : start + 30].split())
                    problems.append(f"{quoted.text} in “…{around}…”")
    return problems


def _shown(cell: NotebookNode) -> list[float]:
    """What a cell printed, and its tables with their names; not the sentences that describe pictures."""
    outputs = cell.get("outputs", [])
    texts = [*texts_of(outputs), *map(str, tables_of(outputs))]
    return [quantity.value for text in texts for quantity in quantities(text)]

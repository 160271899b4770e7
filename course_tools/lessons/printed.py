"""What a run printed: its texts, its tables and its numbers."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bs4 import BeautifulSoup
from nbformat import NotebookNode

# "1,024", "-0.5", ".31", "4e-06"; nothing of "Q4_1", "3.11.7" or "32x".
NUMBER = re.compile(
    r"(?<![\w.])[-+\N{MINUS SIGN}]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:e[-+]?\d+)?(?!\w|\.\d)"
)
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_LONGEST = 12  # words in a cell of a table; with more, it is something that a model wrote
_WRITTEN = " … "  # parts a prompt from what a model wrote


class Number(NamedTuple):
    """A number as it is printed."""

    text: str

    @property
    def value(self) -> float:
        """As a float."""
        return float(self.text.replace(",", "").replace("\N{MINUS SIGN}", "-"))

    @property
    def unit(self) -> float:
        """One in its last printed digit."""
        digits, _, power = self.text.partition("e")
        return 10.0 ** (int(power or 0) - len(digits.partition(".")[2]))

    def is_near(self, other: Number, share: float) -> bool:
        """Whether it differs by at most a share of the other one, or by one in the last printed digit."""
        allowed = max(share * abs(other.value), self.unit, other.unit)
        return abs(self.value - other.value) <= allowed * (1 + 1e-9)


@dataclass(frozen=True)
class Table:
    """A table that pandas or a report wrote, all of it text.

    Attributes:
        columns: their names, those of the index first.
        rows: (names, values); a name that spans rows stands in the first of them alone.
        caption: above it; "" for none.
    """

    columns: Sequence[str]
    rows: Sequence[tuple[Sequence[str], Sequence[str]]]
    caption: str = ""

    def __str__(self) -> str:
        """The whole table, one line per row."""
        rows = [[*names, *values] for names, values in self.rows]
        return "\n".join([self.caption, *("  ".join(row) for row in [self.columns, *rows])])


def joined(outputs: Iterable[NotebookNode]) -> list[NotebookNode]:
    """Copies without what is on standard error; pieces of one stream are one, since a kernel cuts them by its clock."""
    kept: list[NotebookNode] = []
    for output in copy.deepcopy([output for output in outputs if output.get("name") != "stderr"]):
        if output.output_type == "stream" and kept and kept[-1].output_type == "stream":
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept


def texts_of(outputs: Iterable[NotebookNode]) -> Iterator[str]:
    """Printed text, and the text of results that are no table and no picture."""
    for output in joined(outputs):
        data = output.get("data", {})
        if output.output_type == "stream":
            yield output.text
        elif "text/plain" in data and "text/html" not in data and "image/png" not in data:
            yield data["text/plain"]


def tables_of(outputs: Iterable[Mapping]) -> Iterator[Table]:
    """The tables of outputs."""
    for output in outputs:
        data = output.get("data", {})
        if "text/html" in data and "image/png" not in data:
            yield _read_table(data["text/html"])


def under_headings(notebook: NotebookNode) -> Iterator[tuple[str, NotebookNode]]:
    """Each code cell with the heading above it."""
    heading = ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            heading = [heading, *_HEADING.findall(cell.source)][-1]
        else:
            yield heading, cell


def numbers_of(outputs: Iterable[NotebookNode]) -> list[Number]:
    """The numbers that outputs show, texts before tables; what a model wrote is left out."""
    lines = [line for text in texts_of(outputs) for line in text.splitlines() if _WRITTEN not in line]
    for table in tables_of(outputs):
        if table.columns[:1] != ["prompt"]:  # else the columns are prompts, and below them stands what models wrote
            values = [value for _, values in table.rows for value in values]
            lines += [value for value in values if len(value.split()) <= _LONGEST]
    return [Number(number) for line in lines for number in NUMBER.findall(line)]


def _read_table(page: str) -> Table:
    """Read the HTML of a table."""
    html = BeautifulSoup(page, "html.parser")
    columns: list[str] = []
    rows: list[tuple[list[str], list[str]]] = []
    for line in html("tr"):
        every, names, values = ([cell.get_text().strip() for cell in line(kind)] for kind in (["th", "td"], "th", "td"))
        if not line.find_parent("thead"):
            rows += [(names, values)] if every else []
        elif not columns or sum(map(bool, every)) > 1:  # a second line of the head names the index alone
            columns = every
    return Table(columns, rows, html.caption.get_text() if html.caption else "")

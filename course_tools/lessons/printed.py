"""What a run printed: its tables, and its numbers, each with what stands beside it."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from bs4 import BeautifulSoup
from nbformat import NotebookNode

# "1,024", "-0.5", ".31", "4e-06"; nothing of "Q4_1", "3.11.7" or "32x".
NUMBER = re.compile(
    r"(?<![\w.])[-+\N{MINUS SIGN}]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:e[-+]?\d+)?(?!\w|\.\d)"
)
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_LONGEST = 12  # words in a cell of a table; with more, it is something that a model wrote
_WRITTEN = " … "  # parts a prompt from what a model wrote


@dataclass(frozen=True)
class Number:
    """A printed number and what stands beside it: the line it is in, or its row and column."""

    text: str
    label: str = ""

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
        rows: (names, values); a name that spans rows stands in each of them.
        caption: above it; "" for none.
    """

    columns: Sequence[str]
    rows: Sequence[tuple[Sequence[str], Sequence[str]]]
    caption: str = ""

    def __str__(self) -> str:
        """All of it, a row a line."""
        rows = [[*names, *values] for names, values in self.rows]
        return "\n".join([self.caption, *("  ".join(row) for row in [self.columns, *rows])])

    def cells(self) -> Iterator[tuple[str, str, str]]:
        """(row, column, text) of each value."""
        for names, values in self.rows:
            columns = self.columns[-len(values) :] if values else []
            yield from ((", ".join(names), column, text) for column, text in zip(columns, values, strict=False))


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


def numbers_in(text: str, label: str = "") -> list[Number]:
    """The numbers of a text."""
    return [Number(number, label) for number in NUMBER.findall(text)]


def numbers_of(outputs: Iterable[NotebookNode]) -> Iterator[Number]:
    """The numbers that outputs show, in order; what a model wrote is left out."""
    for output in joined(outputs):
        for text in texts_of([output]):
            for line in text.splitlines():
                if _WRITTEN not in line:
                    yield from numbers_in(line, " ".join(NUMBER.sub("…", line).split())[:60])
        for table in tables_of([output]):
            if table.columns[:1] != ["prompt"]:  # else the columns are prompts, and below them stands what models wrote
                for row, column, text in table.cells():
                    if len(text.split()) <= _LONGEST:
                        yield from numbers_in(text, f"{row} · {column}"[:60])


def _read_table(page: str) -> Table:
    """Read the HTML of a table."""
    html = BeautifulSoup(page, "html.parser")
    columns: list[str] = []
    rows: list[tuple[list[str], list[str]]] = []
    for line in html("tr"):
        names, values = ([cell.get_text().strip() for cell in line(kind)] for kind in ("th", "td"))
        if line.find_parent("thead"):
            every = [cell.get_text().strip() for cell in line(["th", "td"])]
            if not columns or sum(map(bool, every)) > 1:  # a second line names the index alone
                columns = every
        elif names or values:
            above = rows[-1][0] if rows else []  # a name that spans rows stands in the first of them
            rows.append((above[: max(0, len(above) - len(names))] + names, values))
    return Table(columns, rows, html.caption.get_text() if html.caption else "")

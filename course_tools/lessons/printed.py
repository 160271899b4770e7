"""Numbers that a run printed, each with what stands beside it; times are left out, they belong to the machine."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from html.parser import HTMLParser

from nbformat import NotebookNode

_NUMBER = re.compile(r"(?<![\w.])[-+\N{MINUS SIGN}]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e[-+]?\d+)?(?![\w])")
_TIMED = re.compile(
    r"second|\bms\b|\btimes?\b|minutes|prefill|decode|tokens/s|speed|faster|slower|\bGB/s|\d s\b|measured, MB",
    re.IGNORECASE,
)
_OF_TIMES = re.compile(r"^(ratio|ci_low|ci_high|estimate)$")  # columns that belong to a time in the same table
_EXACT = re.compile(r"parameters", re.IGNORECASE)
_NOISE = 1e-3  # numbers below it say that two ways of computing agree; they differ in how they round
_LONGEST = 12  # words in a cell of a table; with more, it is something that a model wrote


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

    def agrees(self, expected: Number, tolerance: float) -> bool:
        """Whether it is what was expected; counts of parameters are equal or wrong."""
        if _EXACT.search(self.label):
            return self.value == expected.value
        if max(abs(self.value), abs(expected.value)) < _NOISE:
            return True
        slack = tolerance * abs(expected.value) + max(self.unit, expected.unit)
        return abs(self.value - expected.value) <= slack * (1 + 1e-9)


def texts_of(outputs: Iterable[Mapping]) -> Iterator[str]:
    """Printed text, and the text of results that are no table and no picture."""
    for output in outputs:
        data = output.get("data", {})
        if output.get("output_type") == "stream" and output.get("name") == "stdout":
            yield output["text"]
        elif "text/plain" in data and "text/html" not in data and "image/png" not in data:
            yield data["text/plain"]


def numbers_of(outputs: Iterable[Mapping]) -> Iterator[Number]:
    """The numbers that outputs show, in order; times are left out."""
    for output in outputs:
        for text in texts_of([output]):
            for line in text.splitlines():
                if not _TIMED.search(line) and " … " not in line:  # an ellipsis parts prompts from what a model wrote
                    label = " ".join(_NUMBER.sub("…", line).split())[:60]
                    yield from (Number(number, label) for number in _NUMBER.findall(line))
        if "text/html" in output.get("data", {}) and "image/png" not in output["data"]:
            yield from _numbers_of_table(output["data"]["text/html"])


def picked(saved: NotebookNode, wanted: Mapping[str, tuple[str, int]]) -> dict[str, str]:
    """Numbers that a saved run shows, by names of one's own, as they are printed.

    Args:
        saved: the notebook.
        wanted: {name: a number's label, and which of the numbers with this label, from 0}.

    Raises:
        KeyError: the run doesn't show one of them; the key is its label.
    """
    found: dict[str, list[str]] = {}
    for cell in saved.cells:
        for number in numbers_of(cell.get("outputs", [])):
            found.setdefault(number.label, []).append(number.text)
    for label, position in wanted.values():
        if len(found.get(label, [])) <= position:
            raise KeyError(label)
    return {name: found[label][position] for name, (label, position) in wanted.items()}


def _numbers_of_table(page: str) -> Iterator[Number]:
    """The numbers in the cells of a pandas table, with the names of row and column."""
    table = _Table()
    table.feed(page)
    if table.columns[:1] == ["prompt"]:  # the columns are prompts, and below them stands what models wrote
        return
    timed = any(_TIMED.search(name) for name in table.columns)
    for names, values in table.rows:
        for column, text in zip(table.columns[-len(values) :] if values else [], values, strict=False):
            row = ", ".join(names)
            machines = _TIMED.search(f"{row} {column}") or (timed and _OF_TIMES.match(column))
            if not machines and len(text.split()) <= _LONGEST:
                yield from (Number(number, f"{row} · {column}"[:60]) for number in _NUMBER.findall(text))


class _Table(HTMLParser):
    """Names of columns, and rows as (their names, their values)."""

    def __init__(self) -> None:
        super().__init__()
        self.columns: list[str] = []
        self.rows: list[tuple[list[str], list[str]]] = []
        self._cells: list[tuple[str, str]] = []
        self._open = self._part = ""

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag in ("thead", "tbody"):
            self._part = tag
        elif tag == "tr":
            self._cells = []
        elif tag in ("td", "th"):
            self._open = tag
            self._cells.append((tag, ""))

    def handle_data(self, data: str) -> None:
        if self._open:
            tag, text = self._cells[-1]
            self._cells[-1] = (tag, text + data)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._open = ""
        elif tag == "tr" and self._part == "thead":
            names = [text.strip() for _, text in self._cells]
            if not self.columns or sum(map(bool, names)) > 1:  # a second line names the index alone
                self.columns = names
        elif tag == "tr" and self._cells:
            values = [text.strip() for kind, text in self._cells if kind == "td"]
            names = [text.strip() for kind, text in self._cells if kind == "th"]
            above = self.rows[-1][0] if self.rows else []  # a name that spans rows stands in the first of them
            self.rows.append((above[: max(0, len(above) - len(names))] + names, values))

"""The tables and the printed lines of a run, found by the heading above them and by their own words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from nbformat import NotebookNode

from course_tools.lessons.printed import Table, numbers_in, tables_of, texts_of, under_headings


@dataclass(frozen=True)
class Tables:
    """What a run shows.

    Attributes:
        tables: (heading, table); a table without a caption gets the line that its cell printed last.
        lines: (heading, line).
    """

    tables: tuple[tuple[str, Table], ...]
    lines: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, run: NotebookNode) -> Tables:
        """Those of an executed notebook."""
        tables, lines = [], []
        for heading, cell in under_headings(run):
            outputs = cell.get("outputs", [])
            told = [line for text in texts_of(outputs) for line in text.splitlines() if line]
            lines += [(heading, line) for line in told]
            above = ["", *(line for line in told if not line.startswith("here: "))]  # those are verdicts
            for table in tables_of(outputs):
                caption = table.caption or above[-1]
                tables.append((heading, Table(table.columns, table.rows, caption)))
        return cls(tuple(tables), tuple(lines))

    @classmethod
    def from_data(cls, data: Mapping) -> Tables:
        """What `to_data` gave."""
        tables = [(heading, Table(**table)) for heading, table in data["tables"]]
        return cls(tuple(tables), tuple(map(tuple, data["lines"])))

    def to_data(self) -> dict[str, list]:
        """As JSON can hold it."""
        return {"tables": [[heading, vars(table)] for heading, table in self.tables], "lines": [*map(list, self.lines)]}

    def parts(self) -> Iterator[Tables]:
        """Each table and each line by itself."""
        yield from (Tables((table,), ()) for table in self.tables)
        yield from (Tables((), (line,)) for line in self.lines)

    @classmethod
    def together(cls, parts: Iterable[Tables]) -> Tables:
        """What several show."""
        parts = [*parts]
        return cls(
            tuple(table for part in parts for table in part.tables),
            tuple(line for part in parts for line in part.lines),
        )

    def table(self, heading: str, caption: str = "") -> Table:
        """The table below a heading whose caption begins so; "" for the one without.

        Raises:
            LookupError: there is none.
        """
        for above, table in self.tables:
            if above == heading and (table.caption.startswith(caption) if caption else not table.caption):
                return table
        raise LookupError(f"no table {caption!r} below “{heading}”")

    def line(self, heading: str, begin: str) -> list[float]:
        """The numbers of the printed line below a heading that begins so.

        Raises:
            LookupError: there is none.
        """
        for above, line in self.lines:
            if above == heading and line.startswith(begin):
                return [number.value for number in numbers_in(line)]
        raise LookupError(f"no line {begin!r} below “{heading}”")

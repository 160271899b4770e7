"""A lesson's verdicts on a run, and on the machines and draws that were recorded for it."""

from __future__ import annotations

import importlib
import importlib.util
import json
from pathlib import Path

from course_tools.lessons.verdicts.tables import Tables
from course_tools.lessons.verdicts.verdict import Check, Verdict

_HERE = Path(__file__).parent


def checks_of(number: str) -> tuple[Check, ...]:
    """A lesson's checks, all that `lesson_NN` defines, in its order; none where it has no such module yet."""
    name = f"{__package__}.lesson_{number}"
    defined = vars(importlib.import_module(name)).values() if importlib.util.find_spec(name) else ()
    return tuple(part for part in defined if isinstance(part, Check))


def judge(number: str, tables: Tables) -> list[Verdict]:
    """What a run shows of each of a lesson's sentences."""
    return [check(tables) for check in checks_of(number)]


def record_of(number: str) -> Path:
    """The file with a lesson's recorded runs."""
    return _HERE / f"lesson_{number}.json"


def recorded(number: str) -> dict[str, Tables]:
    """The recorded runs of a lesson, by the names of `recording.RUNS`; none before there is a record."""
    path = record_of(number)
    runs = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {name: Tables.from_data(data) for name, data in runs.items()}

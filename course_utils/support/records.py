"""Records of experiments that take too long for a lesson: what each cut costs each row of text.

One format for all of them, written by ``experiments/record.py``: an entry for each model and text, with each row's sum,
so that comparisons stay paired.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from course_utils.support import checks

FOLDER = Path(__file__).parents[1] / "data" / "records"
_TEXTS = ("text", "draw", "dtype")  # what two entries must share to be compared row by row; and "model", where told


def read_record(name: str) -> pd.DataFrame:
    """The entries of a shipped record, and what each cut cost.

    Args:
        name: of the record, such as "keep_the_mean".

    Returns:
        A row for each model and text, the uncut ones included: what names the model (columns of the record's own,
        "criterion" among them, and "model" where several were cut), "text", "draw" (of the rows), "dtype" (of the
        weights), "rows" (float64 [rows], nats per token of each row, minus those of the uncut model), "damage" (their
        mean, nats per token) and "nats" (the model's own loss, nats per token). Where "text" is a task, each row is a
        document, and its numbers are those of the task, such as 1 for a right answer, in place of nats.
        ``attrs["settings"]`` are the experiment's.

    Raises:
        ValueError: there is no such record; the message lists those there are.
    """
    checks.one_of("name", name, sorted(path.stem for path in FOLDER.glob("*.json")))
    record = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    # Of each row; a document of a task has one.
    predictions = [entry.pop("predictions", record["predictions"]) for entry in record["entries"]]
    entries = pd.DataFrame(record["entries"])
    nats = [np.array(sums) / count for sums, count in zip(entries.pop("sums"), predictions, strict=True)]
    shared = [*_TEXTS, *(["model"] if "model" in entries else [])]
    places = list(entries[shared].itertuples(index=False, name=None))
    uncut = {place: row for place, row, criterion in zip(places, nats, entries.criterion, strict=True) if not criterion}
    entries["rows"] = [row - uncut[place] for place, row in zip(places, nats, strict=True)]
    entries["damage"] = [row.mean() for row in entries["rows"]]
    entries["nats"] = [row.mean() for row in nats]
    entries.attrs["settings"] = record["settings"]
    return entries

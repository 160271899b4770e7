"""What experiments that cut a model in many ways share: measuring, resuming, and the record that lessons read.

``course_utils.records`` reads it. An entry is a model and a text: what names the model, the text, the draw of its rows,
the dtype of the weights, and the sum of nats over each row's predictions. A task's documents stand for rows of one
prediction each.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from tqdm import tqdm
from transformers import PreTrainedModel

from course_utils.evaluation import perplexity
from course_utils.files import write_text
from course_utils.texts import TokenBlocks


@dataclass(frozen=True)
class Arm:
    """A model to measure.

    Attributes:
        key: what names it among all arms, ready for JSON: "criterion" ("" for the uncut model), "draw", "dtype", ...
        make: gives the model, when its turn comes.
        texts: rows to measure it on, by their names.
        tasks: what else to measure, by name: gives a number for each of a task's documents, such as 1 where it's right.
    """

    key: Mapping[str, object]
    make: Callable[[], PreTrainedModel]
    texts: Mapping[str, TokenBlocks]
    tasks: Mapping[str, Callable[[PreTrainedModel], Sequence[float]]] = field(default_factory=dict)


def write_record(arms: Iterable[Arm], out: Path, *, work: Path, settings: Mapping[str, object], total: int) -> None:
    """Measure the arms, each once, and write the record. Killed, the next call goes on behind the last whole arm.

    Args:
        arms: all of them, in order; all rows have the same length.
        out: the record.
        work: a file that keeps what is measured, a line an arm.
        settings: of the experiment, ready for JSON.
        total: how many arms there are, for the bar.
    """
    work.parent.mkdir(parents=True, exist_ok=True)
    lines = work.read_text(encoding="utf-8").split("\n")[:-1] if work.exists() else []  # the last is half or empty
    done = {line["key"]: line["entries"] for line in map(json.loads, lines)}
    write_text(work, "".join(f"{line}\n" for line in lines))
    entries, predictions = [], 0
    with work.open("a", encoding="utf-8") as file:
        for arm in tqdm(arms, total=total, desc=out.stem, smoothing=0.05):
            predictions = next(iter(arm.texts.values())).input_ids.shape[1] - 1
            key = json.dumps(arm.key, sort_keys=True)
            if key not in done:
                done[key] = _measured(arm)
                file.write(json.dumps({"key": key, "entries": done[key]}) + "\n")
                file.flush()
            entries += done[key]
    head = {
        "settings": dict(settings),
        "machine": f"{os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB, {platform.system()}",
        "predictions": predictions,  # of each row
    }
    body = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in entries)
    write_text(out, json.dumps(head)[:-1] + ', "entries": [\n' + body + "\n]}\n")
    print(f"written to {out}")


def _measured(arm: Arm) -> list[dict[str, object]]:
    model, entries = arm.make(), []
    for text, rows in arm.texts.items():
        sums = perplexity(model, rows, batch_size=16).row_nll
        entries.append({**arm.key, "text": text, "sums": sums.round(2).tolist()})
    for task, measure in arm.tasks.items():
        entries.append({**arm.key, "text": task, "predictions": 1, "sums": list(measure(model))})
    return entries

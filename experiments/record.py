"""What experiments share: their command line, work that a killed run takes up again, and the records that lessons read.

``support.records`` reads what ``write_record`` writes. An entry is for a model and a text: what names the model, the
text, the draw of its rows, the dtype of the weights, and the sum of nats over each row's predictions. A task's
documents stand for rows of one prediction each.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from course_utils.measuring import perplexity
from course_utils.models import cast_weights, load_model, variant
from course_utils.support.files import write_json, write_text
from course_utils.support.records import FOLDER
from course_utils.text.rows import TokenBlocks

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DATA = FOLDER.parent
LLAMA = "SmolLM2-135M-Instruct"  # what the embedded Llama is called in records


def command(description: str, record: str) -> argparse.ArgumentParser:
    """A command line with --work, a folder of build/ that keeps what is done, and --out, the record.

    Args:
        description: a module's docstring, whose first line --help shows.
        record: the record's name in course_utils/data/, such as "records/leave_out".
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("build", Path(record).name))
    parser.add_argument("--out", type=Path, default=DATA / f"{record}.json")
    return parser


def machine() -> str:
    """The machine in words."""
    return f"{os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB, {platform.system()}"


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """What ``make`` gives, as JSON holds it: made now and written to a file, or read where an earlier run wrote it."""
    if not path.exists():
        write_json(path, make())
    return json.loads(path.read_text(encoding="utf-8"))


class Kept(dict):
    """A dictionary of what was found out so far, in a JSON file; each entry is on disk before the next one is found."""

    def __init__(self, path: Path) -> None:
        super().__init__(json.loads(path.read_text(encoding="utf-8")) if path.exists() else {})
        self.path = path

    def __setitem__(self, key: str, value: object) -> None:
        super().__setitem__(key, value)
        write_json(self.path, self)

    def once(self, key: str, find: Callable[[], Any]) -> Any:
        """What was found out under a name, now or before."""
        if key not in self:
            self[key] = find()
        return self[key]


@dataclass(frozen=True)
class Arm:
    """A model to measure.

    Its key names it among all arms, ready for JSON: "criterion" ("" for the uncut model), "draw", "dtype", ...
    """

    key: Mapping[str, object]
    make: Callable[[], PreTrainedModel]
    texts: Mapping[str, TokenBlocks]  # rows to measure it on
    # What else to measure: gives a number for each of a task's documents, such as 1 where it's right.
    tasks: Mapping[str, Callable[[PreTrainedModel], Sequence[float]]] = field(default_factory=dict)


def in_dtype(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """A variant whose weights are in a dtype."""
    cast = variant(model)
    cast_weights(cast, dtype)
    return cast


def in_each_dtype(role: str, arms: Callable[..., Iterator[Arm]]) -> Iterator[Arm]:
    """``arms(model, tokenizer, name)`` of an embedded model in float32, then in bfloat16."""
    for name, dtype in DTYPES.items():
        yield from arms(*load_model(role, dtype=dtype), name)


def write_record(arms: Iterable[Arm], out: Path, *, work: Path, settings: Mapping[str, object], total: int) -> None:
    """Measure the arms, whose rows all have the same length, and write the record.

    "done.jsonl" in ``work`` gets a line for each arm. After a run was killed the next one goes on behind the last line.
    ``settings`` are ready for JSON; ``total`` says how many arms there are, about, for the bar.
    """
    done_file = work / "done.jsonl"
    lines = done_file.read_text(encoding="utf-8").split("\n")[:-1] if done_file.exists() else []  # the last may be half
    write_text(done_file, "".join(f"{line}\n" for line in lines))
    done = {line["key"]: line["entries"] for line in map(json.loads, lines)}
    entries, predictions = [], 0
    with done_file.open("a", encoding="utf-8") as file:
        for arm in tqdm(arms, total=total, desc=out.stem, smoothing=0.05):
            predictions = next(iter(arm.texts.values())).input_ids.shape[1] - 1
            key = json.dumps(arm.key, sort_keys=True)
            if key not in done:
                done[key] = _measured(arm)
                file.write(json.dumps({"key": key, "entries": done[key]}) + "\n")
                file.flush()
            entries += done[key]
    write_entries(entries, out, settings=settings, predictions=predictions)


def write_entries(
    entries: Iterable[Mapping[str, object]], out: Path, *, settings: Mapping[str, object], predictions: int
) -> None:
    """Write the record, an entry a line. ``predictions`` are those of each row where an entry says nothing else."""
    head = {"settings": dict(settings), "machine": machine(), "predictions": predictions}
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

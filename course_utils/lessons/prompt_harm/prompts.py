"""The prompts: four kinds, from one word to well over a thousand tokens, on calibration or on evaluation documents."""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from transformers import PreTrainedTokenizerBase

from course_utils.support import checks
from course_utils.support.checks import check_types
from course_utils.text.domains import DOMAINS, documents

KINDS = {"passage": 0.4, "question": 0.25, "arithmetic": 0.2, "retrieval": 0.15}  # each with its share of the prompts
WORDS = {"passage": (1, 1400), "retrieval": (40, 1200)}  # the shortest and the longest text
_SENTENCE_END = re.compile(r"[.!?]\s+|\n")
_COLOURS = ("red", "blue", "green", "yellow", "white", "black", "grey", "brown", "orange", "purple")
_THINGS = ("door", "safe", "locker", "bicycle", "suitcase", "gate", "cabinet", "garage", "mailbox", "office")


@dataclass(frozen=True)
class Case:
    """One prompt.

    Attributes:
        kind: one of ``KINDS``.
        text: what the model reads, the chat template's words included.
        document: where it comes from; prompts of one document resemble each other.
    """

    kind: str
    text: str
    document: str

    @property
    def digest(self) -> str:
        """Eight characters that tell it from others."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:8]


@check_types
def cases(tokenizer: PreTrainedTokenizerBase, split: str, *, count: int, seed: int = 0) -> list[Case]:
    """Prompts of four kinds, from one word to well over a thousand tokens, shuffled.

    "passage": the beginning of a text, to be continued. "question": a science question (ARC-Easy). "arithmetic": a sum
    of two to twenty numbers. "retrieval": a passage that hides a number, and a question for it. All but passages stand
    in the tokenizer's chat template, where it has one.

    Args:
        tokenizer: the model's.
        split: "calibration" or "evaluation"; they share no document, question or sum.
        count: how many prompts, in the shares of ``KINDS``; at least 10.
        seed: of the draw.

    Raises:
        AssetError: the texts are not in the cache and can't be fetched.
    """
    checks.one_of("split", split, ("calibration", "evaluation"))
    checks.whole_number("count", count, least=10, meaning="at least one prompt of each kind")
    checks.whole_number("seed", seed)
    draw = random.Random(f"{split} {seed}")
    found: list[Case] = []
    for kind, share in KINDS.items():
        found += _MAKERS[kind](tokenizer, split, round(share * count), draw)
    draw.shuffle(found)
    return found


def _chat(tokenizer: PreTrainedTokenizerBase, question: str) -> str:
    """A question as the model was taught to read it."""
    if tokenizer.chat_template is None:
        return f"Question: {question}\nAnswer:"
    message = [{"role": "user", "content": question}]
    return cast("str", tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))


def _excerpts(split: str, count: int, words: tuple[int, int], draw: random.Random) -> Iterator[tuple[str, str]]:
    """(text, document) pairs: the domains in turn, lengths drawn evenly on a logarithmic scale, from a sentence on."""
    pools = {domain: documents(domain, split) for domain in DOMAINS}
    made = 0
    while made < count:
        domain = DOMAINS[made % len(DOMAINS)]
        number = draw.randrange(len(pools[domain]))
        text = pools[domain][number]
        length = round(math.exp(draw.uniform(*map(math.log, words))))
        starts = [0, *(match.end() for match in _SENTENCE_END.finditer(text))]
        excerpt = text[draw.choice(starts) :].split(maxsplit=length)
        if len(excerpt) > length:  # otherwise the document ends before
            made += 1
            yield " ".join(excerpt[:length]), f"{domain} {number}"


def _passages(_: PreTrainedTokenizerBase, split: str, count: int, draw: random.Random) -> list[Case]:
    return [Case("passage", text, name) for text, name in _excerpts(split, count, WORDS["passage"], draw)]


def _questions(tokenizer: PreTrainedTokenizerBase, split: str, count: int, draw: random.Random) -> list[Case]:
    from course_utils.measuring.benchmark_tasks import build_tasks  # lm-eval takes seconds to import

    asked = [document["question"] for document in build_tasks(["arc_easy"], None)["arc_easy"].test_docs()]
    numbers = [i for i in range(len(asked)) if (i % 5 == 0) == (split == "calibration")]
    chosen = draw.sample(numbers, count)
    return [Case("question", _chat(tokenizer, asked[i]), f"arc_easy {i}") for i in chosen]


def _sums(tokenizer: PreTrainedTokenizerBase, split: str, count: int, draw: random.Random) -> list[Case]:
    """Even first numbers calibrate, odd ones judge."""
    result = []
    for i in range(count):
        terms = [2 * draw.randrange(5, 50) + (split == "evaluation")]
        terms += [draw.randrange(10, 100) for _ in range(round(math.exp(draw.uniform(0, math.log(19)))))]
        text = f"What is {terms[0]}" + "".join(f" {draw.choice('+-')} {term}" for term in terms[1:]) + "?"
        result.append(Case("arithmetic", _chat(tokenizer, text), f"{split} sum {i}"))
    return result


def _retrievals(tokenizer: PreTrainedTokenizerBase, split: str, count: int, draw: random.Random) -> list[Case]:
    result = []
    for text, name in _excerpts(split, count, WORDS["retrieval"], draw):
        thing = f"{draw.choice(_COLOURS)} {draw.choice(_THINGS)}"
        sentences = re.split(r"(?<=[.!?])\s+", text)
        sentences.insert(
            draw.randrange(len(sentences) + 1), f"The code of the {thing} is {draw.randrange(1000, 9999)}."
        )
        question = f"{' '.join(sentences)}\n\nWhat is the code of the {thing}?"
        result.append(Case("retrieval", _chat(tokenizer, question), name))
    return result


_MAKERS = {"passage": _passages, "question": _questions, "arithmetic": _sums, "retrieval": _retrievals}

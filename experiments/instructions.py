"""Sixty prompts of our own, each with something that a program can check: six of each of ten kinds.

They are such as the embedded instruct model of 135 million parameters mostly follows: by what it can't do anyway,
nothing would be seen of a cut. Asked for are form and a word or two, not sense.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

_WORD = re.compile(r"[a-z0-9'’-]+")


@dataclass(frozen=True)
class Instruction:
    """A prompt, and whether an answer does what it says.

    Attributes:
        kind: which of the ten.
        prompt: what the user writes.
        follows: answer -> whether it does.
    """

    kind: str
    prompt: str
    follows: Callable[[str], bool]


def _lines(answer: str) -> list[str]:
    return [line.strip() for line in answer.splitlines() if line.strip()]


def _holds(*parts: str) -> Callable[[str], bool]:
    """These stand in it, large or small."""
    return lambda answer: all(part.lower() in answer.lower() for part in parts)


def _holds_word(word: str) -> Callable[[str], bool]:
    return lambda answer: word in _WORD.findall(answer.lower())


def _is_numbered(count: int) -> Callable[[str], bool]:
    """Some line begins with each number from 1 on."""
    return lambda answer: all(
        any(line.startswith(f"{number}.") for line in _lines(answer)) for number in range(1, count + 1)
    )


def _begins(words: str) -> Callable[[str], bool]:
    return lambda answer: answer.strip().lstrip('"“').startswith(words)


def _has_lines(count: int) -> Callable[[str], bool]:
    return lambda answer: len(_lines(answer)) >= count


_FACTS = {
    "What is the capital of France?": "Paris",
    "What is the capital of Italy?": "Rome",
    "What is the capital of Japan?": "Tokyo",
    "Who wrote Romeo and Juliet?": "Shakespeare",
    "What gas do plants take in from the air?": "carbon dioxide",
    "What is the largest planet of our solar system?": "Jupiter",
}
_SENTENCES = (
    "The cat sleeps on the sofa.", "We will meet at noon.", "The train leaves in ten minutes.",
    "Nobody knows the answer.", "It was a long and cold winter.", "Two plus two is four.",
)  # fmt: skip
_THINGS = ("fruits", "animals", "countries", "colors", "sports", "jobs")
_TASKS = ("plant a tree", "boil an egg", "learn a language", "clean a window", "bake bread", "save money")
_FUNCTIONS = {
    "add": "adds two numbers",
    "square": "squares a number",
    "is_even": "says whether a number is even",
    "count_words": "counts the words of a string",
    "area": "computes the area of a rectangle",
    "factorial": "computes a factorial",
}
_USED = {
    "a garden": "morning",
    "a journey": "train",
    "the weather": "storm",
    "a dog": "happy",
    "a city": "night",
    "a birthday": "cake",
}
_NAMES = ("Anna", "Peter", "Maria", "Tom", "Julia", "David")
_HEROES = ("a dragon", "a farmer", "two sisters", "a lost key", "a wise owl", "a small boat")
_SUBJECTS = ("the moon", "autumn", "a river", "the rain", "a tree", "the stars")
_PAIRS = (
    ("cats", "dogs"), ("coffee", "tea"), ("summer", "winter"), ("trains", "planes"), ("books", "films"),
    ("gold", "silver"),
)  # fmt: skip

INSTRUCTIONS: tuple[Instruction, ...] = (
    *(Instruction("fact", question, _holds(answer)) for question, answer in _FACTS.items()),
    *(Instruction("repeat", f"Repeat this sentence exactly: {said}", _holds(said)) for said in _SENTENCES),
    *(Instruction("list of five", f"Give me a numbered list of five {name}.", _is_numbered(5)) for name in _THINGS),
    *(
        Instruction("three steps", f"How do I {task}? Answer with a numbered list of three steps.", _is_numbered(3))
        for task in _TASKS
    ),
    *(
        Instruction("function", f"Write a Python function called {name} that {does}.", _holds(f"def {name}("))
        for name, does in _FUNCTIONS.items()
    ),
    *(
        Instruction("word", f"Write one sentence about {about}. Use the word '{word}'.", _holds_word(word))
        for about, word in _USED.items()
    ),
    *(
        Instruction(
            "letter",
            f"Write a short email to {name} to say that the meeting is moved to Friday.",
            _holds(name, "friday"),
        )
        for name in _NAMES
    ),
    *(
        Instruction(
            "story",
            f"Write a very short story about {hero}. Begin with 'Once upon a time'.",
            _begins("Once upon a time"),
        )
        for hero in _HEROES
    ),
    *(Instruction("poem", f"Write a poem of four lines about {subject}.", _has_lines(4)) for subject in _SUBJECTS),
    *(
        Instruction("compare", f"Compare {one} and {other} in two sentences.", _holds(one, other))
        for one, other in _PAIRS
    ),
)

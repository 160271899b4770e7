"""Agendas for teaching: what is done in which order; the minutes come from the lessons.

A lesson takes its minutes without its exercises, and those exercises that are done in the room. Written into
docs/teaching.md by `python3 course.py build`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from course_tools.lessons.authoring import Lesson, exercises_of

BEGIN, END = "<!-- agendas: written by `python3 course.py build` -->", "<!-- end of agendas -->"


@dataclass(frozen=True)
class Part:
    """What is done with a lesson: `exercises` are the numbers of those done in the room."""

    lesson: str
    how: str
    exercises: tuple[int, ...] = ()


@dataclass(frozen=True)
class Pause:
    """Anything that is no lesson, in its own minutes; 0 for a break that the agenda doesn't count."""

    name: str
    minutes: int
    how: str = ""


SET_UP = Pause("set-up", 15, "everyone runs `python3 course.py check`; pair up those with a FAIL")
IDEA = Pause(
    "what pruning is", 15, "the README's section; structured against unstructured, pruning against quantization"
)
BREAK, LUNCH, CLOSE = Pause("break", 15), Pause("lunch", 0), Pause("close", 10, "take-aways, what to try at home")
_FIRST = Part(
    "01", "live to the masked-equals-pruned assertion, exercises in pairs, then the nineteen random cuts", (1, 2, 3)
)
_SECOND = Part("02", "every light is green: let the room find the mistake before the text does", (1, 2))
_THIRD = Part("03", "does your criterion beat random? Then halve your way to the two neurons behind a disaster", (3,))
AGENDAS: dict[str, tuple[Part | Pause, ...]] = {
    "Half a day": (SET_UP, IDEA, _FIRST, BREAK, _SECOND, _THIRD, CLOSE),
    "Half a day on bias": (
        SET_UP,
        Part("08", "vote blind on three pairs of pictures; then a hand inside: who carries the pronoun?", (1, 3)),
        BREAK,
        Part("09", "plant a bias together, and let the room vote on what becomes of the woman", (2, 3)),
        Pause("close", 20, "what would you need to see before you believed that somebody lowered a bias?"),
    ),
    "Half a day on speed and small models": (
        Pause(
            "set-up",
            15,
            "everyone runs `python3 course.py check`: at `engine` it must say `llama.cpp, from …`; close everything "
            "else, plug laptops in",
        ),
        Part(
            "10",
            "write the clock before anybody measures, and read the A/A row first; then the room counts requests; "
            "numbers are each laptop's own, and that is the point",
            (1, 2, 4),
        ),
        BREAK,
        Part(
            "11",
            "the recipe's steps on the board: which arm shows that a step is useless? Write the search in pairs; then "
            "vote: a fifth cut off, or all of it in four bits?",
            (3, 4),
        ),
        BREAK,
        Part("12", "two cuts, one loss: vote for each ability which of them takes it; count the flips in pairs", (4,)),
        Pause(
            "close", 15, "everyone names one bottleneck of their own work, and which cut, or fewer bits, relieves it"
        ),
    ),
    "Half a day on who pays": (
        SET_UP,
        Part("12", "two cuts, one loss: vote for each ability which of them takes it; count flips in pairs", (2, 4)),
        BREAK,
        Part("13", "scored on Wikipedia alone, which kind loses most? Vote, then everyone cuts", (1, 2, 3)),
        Pause("close", 15, "what does your model serve, and which of it is in the text that you would calibrate on?"),
    ),
    "One day": (
        SET_UP,
        IDEA,
        _FIRST,
        BREAK,
        _SECOND,
        _THIRD,
        LUNCH,
        Part("04", "predict what six blocks cost beside one of them, then leave out runs", (2,)),
        Part("05", "two bypasses: vote by perplexity, then the equality; prove in pairs that one adds nothing", (2,)),
        BREAK,
        Part("07", "predict what comes back without a gradient; the five words by hand; the record's curves"),
        CLOSE,
    ),
    "Two days": (
        SET_UP,
        IDEA,
        Part("01", _FIRST.how, (1, 2, 3, 4)),
        BREAK,
        Part("02", _SECOND.how, (1, 2, 3, 4)),
        LUNCH,
        Part("03", _THIRD.how, (1, 2, 3, 4)),
        BREAK,
        Part("04", "predict what six blocks cost beside one of them, then leave out runs", (2, 3, 4)),
        Pause("close of the first day", 10, "which criterion would you take home, and what did it beat?"),
        Part("05", "two bypasses: vote by perplexity, then the equality; in pairs prove one, and write one", (2, 3)),
        Part("06", "let the room vote which prompts should lose more; then what each third suffers, and saves", (1, 3)),
        BREAK,
        Part("07", "predict what comes back without a gradient, and solve; the five words by hand; the curves", (1, 2)),
        LUNCH,
        Part("08", "vote blind on three pairs of pictures; then a hand inside: who carries the pronoun?", (1, 3)),
        BREAK,
        Part("09", "plant a bias together, and let the room vote on what becomes of the woman", (2, 3)),
        CLOSE,
    ),
}


def minutes(part: Part | Pause, lessons: Mapping[str, Lesson]) -> int:
    """How long a part takes.

    Raises:
        ValueError: an exercise that the lesson doesn't have.
    """
    if isinstance(part, Pause):
        return part.minutes
    lesson = lessons[part.lesson]
    each = {one.number: one.minutes for one in exercises_of(lesson)}
    unknown = [number for number in part.exercises if number not in each]
    if unknown:
        raise ValueError(f"Lesson {part.lesson} has no exercise {unknown[0]}; it has {', '.join(map(str, each))}.")
    return lesson.minutes - sum(each.values()) + sum(each[number] for number in part.exercises)


def tables(lessons: Mapping[str, Lesson]) -> str:
    """All agendas as Markdown, each with its sum."""
    pages = []
    for name, parts in AGENDAS.items():
        total = sum(minutes(part, lessons) for part in parts)
        rows = [f"### {name} ({total // 60} h {total % 60:02d})", "", "| minutes | what | how |", "|---|---|---|"]
        rows += [f"| {minutes(part, lessons) or ''} | {_name(part)} | {part.how} |" for part in parts]
        pages.append("\n".join(rows))
    return "\n\n".join(pages)


def fill(page: str, lessons: Mapping[str, Lesson]) -> str:
    """The page with the agendas between its two markers; without these lines, as it is."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    return f"{before}{begin}\n{tables(lessons)}\n{end}{after}" if end else page


def _name(part: Part | Pause) -> str:
    if isinstance(part, Pause):
        return part.name
    numbers = ", ".join(map(str, part.exercises))
    exercises = f", exercise{'s' * (len(part.exercises) > 1)} {numbers}" if numbers else ""
    return f"lesson {part.lesson}{exercises}"

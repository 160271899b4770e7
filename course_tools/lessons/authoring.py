"""Lesson sources: `lessons/NN_slug.py` read into a `Lesson`, and held to the rules of docs/authoring.md."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import jupytext
from nbformat import NotebookNode

from course_tools.lessons.cells import EXERCISE, tags_of
from course_tools.lessons.minutes import NOT_IN_HEADER, middle_of
from course_utils.text.assets import ASSETS

# `timed`: what the cell prints depends on this machine's times. The last is Jupyter's: the cell is meant to fail.
_TAGS = ("install", "exercise", "quiz", "notes", "timed", "raises-exception")
_LONGEST_CELL = 40  # lines of code that one can take in at a glance
WHAT_WE_SAW = "<details><summary>What we saw (saved run, embedded profile)</summary>"
QUESTION = "## The question"
PREDICTION = re.compile(r"predict before you run", re.IGNORECASE)
DEEPER = "deeper"  # the folder of notebooks that go on where a lesson ends, and the word that names all of them
_HINT = "<details><summary>Hint</summary>"
_BLOCKS = re.compile(
    r"\A(?P<before>.*?)^# BEGIN SOLUTION\n(?P<solution>.*?)^# END SOLUTION\n"
    r"\s*^# BEGIN STUB\n(?P<stub>.*?)^# END STUB\n(?P<after>.*)\Z",
    re.MULTILINE | re.DOTALL,
)
_OPTION = re.compile(r"^- \[([ x])\] ", re.MULTILINE)
_ANSWER = re.compile(r"^\*\*Answer\.\*\* (.+?)(?=\n\s*\n|\Z)", re.MULTILINE | re.DOTALL)
_RESULT = re.compile(r"\*\*At the end you have\*\* (.+?)\.(?= \*\*|  )")
_MARKER = re.compile(r"^\s*# (BEGIN|END) (SOLUTION|STUB)\b", re.MULTILINE)


class LessonError(ValueError):
    """A lesson source breaks the authoring rules; the message names the file, the cell and the remedy."""


@dataclass(frozen=True)
class ExerciseCell:
    """An exercise cell taken apart: shared code before and after, the answer, and what the learner starts from.

    `check` is the name of the function that `after` calls in the end.
    """

    before: str
    solution: str
    stub: str
    after: str
    check: str

    def code(self, middle: str) -> str:
        """The cell with the stub or the solution in the middle; ";" keeps the check's True or False from showing."""
        return "\n\n".join(part for part in (self.before, middle, self.after) if part) + ";"


@dataclass(frozen=True)
class Exercise:
    """An exercise of a lesson: its number, the name of its check, its difficulty as it is printed, and its minutes."""

    number: int
    check: str
    difficulty: str
    minutes: int

    @property
    def effort(self) -> str:
        """Difficulty and minutes as its heading says them."""
        return f"{self.difficulty} · {self.minutes} minutes"


@dataclass(frozen=True)
class Option:
    """One answer to choose in a quiz: what it says, whether it is the right one, and why or why not."""

    text: str
    right: bool
    reason: str


@dataclass(frozen=True)
class Question:
    """A question of a lesson's quiz with three or four options, one of them right."""

    text: str
    options: tuple[Option, ...]


@dataclass(frozen=True)
class Lesson:
    """A checked lesson source.

    Attributes:
        path: the source file.
        title: without the number.
        prerequisites: what to know first, in a few words.
        assets: what it opens off the hub, keys of `course_utils.text.assets.ASSETS`.
        concepts: the names of what is new in it.
        cells: the source's cells in order.
        time: what a reader needs who does the exercises, "90 minutes" or a span such as "about two hours".
        timed: whether times are what it is about, so that it needs the machine to itself.
    """

    path: Path
    title: str
    prerequisites: str
    assets: list[str]
    concepts: tuple[str, ...]
    cells: tuple[NotebookNode, ...]
    time: str
    timed: bool = False

    @property
    def minutes(self) -> int:
        """The middle of `time`."""
        return middle_of(self.time)

    @property
    def name(self) -> str:
        """The stem of the source file, "03_slug"."""
        return self.path.stem

    @property
    def number(self) -> str:
        """Two digits, "03"; those of its lesson and a letter, "03a", where it goes deeper."""
        return self.name.partition("_")[0]

    @property
    def deeper(self) -> bool:
        """Whether it is an optional notebook that goes on where a lesson ends."""
        return len(self.number) > 2

    @property
    def heading(self) -> str:
        """Number and title, "03 · Some title"."""
        return f"{self.number} · {self.title}"

    @property
    def quiz(self) -> tuple[Question, ...]:
        """The questions at its end."""
        return tuple(read_question(cell.source) for cell in self.cells if "quiz" in tags_of(cell))

    @property
    def question(self) -> str:
        """What a lesson asks, the first paragraph of its first cell; "" where there is none."""
        begin, *paragraphs = re.split(r"\n\s*\n", self.cells[0].source)
        return paragraphs[0] if begin == QUESTION and paragraphs else ""

    @property
    def answer(self) -> str:
        """What its first cell answers, without the word "Answer."; "" where there is none."""
        return (_ANSWER.search(self.cells[0].source) or ["", ""])[1].strip()

    @property
    def result(self) -> str:
        """What a reader has at its end, from the teacher's notes; "" where they don't say."""
        told = " ".join(" ".join(cell.source.split()) + "  " for cell in self.cells if "notes" in tags_of(cell))
        return (_RESULT.search(told) or ["", ""])[1]


def find_lessons(folder: Path, numbers: Iterable[str] = ()) -> list[Path]:
    """The lesson sources in `folder`, ordered; only those with one of `numbers` ("3" and "03" alike) if any are given.

    Deeper notebooks, in a folder of their own below it, come only when they are named: "03a", or "deeper" for all.

    Raises:
        LessonError: a name is not NN_slug.py (NNa_slug.py for a deeper notebook), or two share a number.
        ValueError: no lesson has one of the numbers; the message lists what there is.
    """
    lessons, deeper = _numbered(folder, r"\d\d", "03"), _numbered(folder / DEEPER, r"\d\d[a-z]", "03a")
    wanted = [number.zfill(2 + number[-1:].isalpha()) for number in numbers if number != DEEPER]
    if DEEPER in numbers:
        wanted += deeper
    elif not wanted:
        wanted = [*lessons]
    known = lessons | deeper
    unknown = [number for number in wanted if number not in known]
    if unknown:
        raise ValueError(f"There is no lesson {', '.join(unknown)}; there is: {', '.join(known) or 'none yet'}.")
    return [path for number, path in known.items() if number in wanted]


def _numbered(folder: Path, number: str, example: str) -> dict[str, Path]:
    """{number: source} of a folder, ordered."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.py")):
        match = re.fullmatch(rf"({number})_[a-z0-9_]+\.py", path.name)
        if match is None:
            raise LessonError(
                f"{path.name}: call what stands in {folder.name}/ NN_slug.py, lower case, for instance "
                f"{example}_some_title.py."
            )
        if match[1] in found:
            raise LessonError(
                f"{path.name}: number {match[1]} belongs to {found[match[1]].name} already; renumber one."
            )
        found[match[1]] = path
    return found


def read_lesson(path: Path) -> Lesson:
    """Read and check a lesson source.

    Raises:
        LessonError: it breaks a rule of docs/authoring.md.
    """
    notebook = jupytext.reads(path.read_text(encoding="utf-8"), fmt="py:percent")
    try:
        lesson = Lesson(path=path, cells=tuple(notebook.cells), **_header(path, notebook.metadata.get("course")))
        for problem in _problems(lesson):
            raise LessonError(problem)
    except (ValueError, SyntaxError) as error:
        raise LessonError(f"{path.name}: {error}") from None
    return lesson


def exercises_of(lesson: Lesson) -> Iterator[Exercise]:
    """The exercises of a lesson, in order."""
    for before, cell in pairwise(lesson.cells):
        if "exercise" in tags_of(cell):
            number, difficulty, minutes = EXERCISE.findall(before.source)[0]
            yield Exercise(int(number), take_apart(cell.source).check, difficulty, int(minutes))


def assets_of(lessons: Iterable[Lesson]) -> list[str]:
    """Every asset that one of the lessons opens, once, in the order of `ASSETS`."""
    opened = {name for lesson in lessons for name in lesson.assets}
    return [name for name in ASSETS if name in opened]


def take_apart(source: str) -> ExerciseCell:
    """Split the source of an exercise cell at its markers.

    Raises:
        LessonError: the markers are not exactly one solution followed by one stub, the stub is not commented out, or
            nothing is checked after it.
    """
    blocks = _BLOCKS.match(source + "\n")
    if blocks is None or len(_MARKER.findall(source)) != 4:
        raise LessonError(
            "an exercise cell needs exactly one block # BEGIN SOLUTION … # END SOLUTION and, after it, one block "
            "# BEGIN STUB … # END STUB, each marker alone at the start of its line."
        )
    stub = blocks["stub"].rstrip().split("\n")
    if not blocks["solution"].strip() or not any(stub):
        raise LessonError("the solution or the stub of an exercise cell is empty.")
    bare = [line for line in stub if line.strip() and line != "#" and not line.startswith("# ")]
    if bare:
        raise LessonError(f'each line of a stub starts with "# "; this one does not: {bare[0]!r}.')
    after = blocks["after"].strip("\n")
    check = re.search(r"^(check_\w+)\(.*\)\Z", after, re.MULTILINE | re.DOTALL)
    if check is None or len(ast.parse(check[0]).body) != 1:
        raise LessonError("an exercise cell ends with its check, a call check_…(…) after # END STUB, and nothing more.")
    return ExerciseCell(
        before=blocks["before"].strip("\n"),
        solution=blocks["solution"].strip("\n"),
        stub="\n".join(line[2:] for line in stub).strip("\n"),
        after=after,
        check=check[1],
    )


def read_question(source: str) -> Question:
    """Read a quiz cell: the question, then its options `- [ ] …` or `- [x] …`, each with its reason `  > …` below it.

    Raises:
        LessonError: it isn't three or four options with one right one, or a text or reason is missing.
    """
    text, *parts = _OPTION.split(source.strip())
    options = []
    for mark, part in zip(parts[::2], parts[1::2], strict=True):
        said, _, reason = part.partition("\n  >")
        words = " ".join(reason.replace("\n  >", " ").split())
        options.append(Option(" ".join(said.split()), mark == "x", words))
    if not text.strip() or len(options) not in (3, 4) or sum(option.right for option in options) != 1:
        raise LessonError("a quiz cell is a question and three or four options `- [ ] …`, the one right one `- [x] …`.")
    for option in options:
        if not option.text or not option.reason:
            raise LessonError(f"the option {option.text!r} needs a text and, below it, its reason: a line `  > …`.")
    return Question(text.strip(), tuple(options))


def _header(path: Path, header: Any) -> dict[str, Any]:
    """The fields of a `Lesson` that its header says, checked."""
    kinds: dict[str, Any] = {"title": str, "prerequisites": str, "minutes": int | str, "assets": list, "concepts": list}
    kinds["timed"] = bool
    number = path.name.partition("_")[0]
    if isinstance(header, dict) and number in NOT_IN_HEADER:
        header = {"minutes": NOT_IN_HEADER[number]} | header
    if not isinstance(header, dict) or {*header, "timed"} != {*kinds}:
        raise LessonError(
            "the header needs `jupyter:` with a mapping `course:` below it that has exactly title, prerequisites, "
            "minutes, assets and concepts, and `timed` where times matter; it has "
            f"{sorted(header) if isinstance(header, dict) else header!r}."
        )
    for key, value in header.items():
        if not isinstance(value, kinds[key]) or value == "":
            raise LessonError(f"`{key}` in the header can't be {value!r}.")
    unknown = [name for name in header["assets"] if name not in ASSETS]
    if unknown:
        raise LessonError(f"`assets` names {unknown[0]!r}; choose from {', '.join(ASSETS)}.")
    concepts = tuple(header["concepts"])
    if not concepts or not all(isinstance(name, str) and name for name in concepts):
        raise LessonError(f"`concepts` must name what is new, as [coherence, a paired interval]; it is {concepts!r}.")
    minutes = header.pop("minutes")
    time = minutes if isinstance(minutes, str) else f"{minutes} minutes"
    middle_of(time)  # refused here if it is none
    return {**header, "concepts": concepts, "time": time}


def _problems(lesson: Lesson) -> Iterator[str]:
    code = [cell for cell in lesson.cells if cell.cell_type == "code"]
    for position, cell in enumerate(lesson.cells, start=1):
        if cell.cell_type not in ("code", "markdown"):
            yield f"cell {position} is {cell.cell_type}; use code and markdown cells only."
        unknown = [tag for tag in tags_of(cell) if tag not in _TAGS]
        if unknown:
            yield f"cell {position} has the unknown tag {unknown[0]!r}; the builder knows {', '.join(_TAGS)}."
        if PREDICTION.search(cell.source) and WHAT_WE_SAW not in cell.source:
            yield f"cell {position} asks to predict and has no answer; end it with {WHAT_WE_SAW} … </details>."
        if cell.cell_type == "markdown" and re.match(r"# \S", cell.source):
            yield f"cell {position} is a title; the builder writes it from the header, start headings at `##`."
        if cell.cell_type == "code" and "exercise" not in tags_of(cell):
            if _MARKER.search(cell.source):
                yield f'cell {position} has BEGIN/END markers but no tag; write `# %% tags=["exercise"]` above it.'
            if len(cell.source.splitlines()) > _LONGEST_CELL:
                lines = len(cell.source.splitlines())
                yield f"cell {position} has {lines} lines; {_LONGEST_CELL} is the most. Split it."
    if ["install" in tags_of(cell) for cell in code] != [True] + [False] * (len(code) - 1) or code[0].source.strip():
        yield (
            'the first code cell, and only that one, is `# %% tags=["install"]` with nothing below it; the builder '
            "fills it."
        )
    if not any(re.search(rf'\bstart\("{lesson.number}"', cell.source) for cell in code):
        yield f'no cell calls start("{lesson.number}").'
    yield from _exercise_problems(lesson)
    allowed = (0, 1, 2, 3) if lesson.deeper else (2, 3)
    if len(lesson.quiz) not in allowed:
        number = " or ".join(map(str, allowed))
        yield (
            f"{len(lesson.quiz)} quiz questions; a lesson has {number}, each a text cell "
            '`# %% [markdown] tags=["quiz"]`.'
        )


def _exercise_problems(lesson: Lesson) -> Iterator[str]:
    count = 0
    for before, cell in pairwise(lesson.cells):
        if "exercise" not in tags_of(cell):
            continue
        count += 1
        try:
            exercise = take_apart(cell.source)
        except LessonError as error:
            raise LessonError(f"exercise {count}: {error}") from None
        longest = max(len(exercise.code(part).splitlines()) for part in (exercise.stub, exercise.solution))
        if longest > _LONGEST_CELL:
            yield f"exercise {count} has {longest} lines; {_LONGEST_CELL} is the most."
        if [heading["number"] for heading in EXERCISE.finditer(before.source)] != [str(count)]:
            yield (
                f"exercise {count}: the markdown cell just above it needs the heading "
                f"`### Exercise {count} · ●○○ · 5 minutes` (with its own difficulty and minutes)."
            )
        if _HINT not in before.source or "</details>" not in before.source:
            yield f"exercise {count}: the text above it needs a hint, {_HINT} … </details>."
    titled = sum(len(EXERCISE.findall(cell.source)) for cell in lesson.cells if cell.cell_type == "markdown")
    if titled != count:
        yield f'{titled} exercise headings but {count} cells tagged "exercise"; each heading is followed by its cell.'

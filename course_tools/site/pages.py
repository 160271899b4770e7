"""The course's site: sources staged from lessons, notebooks and docs/, then built by Sphinx.

Nothing is told twice. Pages lie under the repository's own paths, so that a link between two files is a link between
two pages; a link to a file that has no page leads to the repository.
"""

from __future__ import annotations

import base64
import html
import io
import os
import random
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import nbformat
from markdown_it import MarkdownIt
from nbformat import NotebookNode
from PIL import Image

from course_tools import processes
from course_tools.lessons.authoring import DEEPER, Lesson, Question, find_lessons, read_lesson
from course_tools.lessons.cells import shown_outputs, tags_of, without_folds
from course_tools.lessons.notebooks import (
    BADGE,
    INSTALL_TITLE,
    Course,
    notebook_paths,
    repository_path,
    without_empty_headers,
)
from course_tools.site import calculator
from course_tools.site.meanings import with_meanings
from course_utils.support.files import write_text

LOCAL_BADGE = "docs/images/open-in-colab.svg"
_INDEX = "docs/index.md"
_AT_THE_ROOT = ("CONTRIBUTING.md", "CHANGELOG.md")
_LINK = re.compile(r"(?<=\]\()([^()\s]+)(?=\))")
_FENCE = re.compile(r"^(`{3,}|~{3,}).*?^\1`*$", re.MULTILINE | re.DOTALL)
_PLACE = re.compile(r"^<!-- site: (\w+) -->$", re.MULTILINE)
_QUESTION = re.compile(r"### Question (\d+)\n")
_TERM = re.compile(r"^- \*\*(?P<term>[^*]+)\*\* \((?P<lesson>\d\d)\): (?P<meaning>.+(?:\n  .+)*)$", re.MULTILINE)
_MERMAID = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LAYER = re.compile(r'^ +\w+\["<b>(?P<name>\w+)</b><br>(?P<modules>[^"]*)"\]$', re.MULTILINE)
_CARD = (560, 560)  # pixels of a card's picture, at most
_SEED = 4  # of the order of options: one with which no place is right too often


class SiteError(ValueError):
    """A source of the site is not as the site needs it; the message names the file and the remedy."""


@dataclass(frozen=True)
class Term:
    """A term of the glossary: what it means, and the number of the lesson that introduces it."""

    name: str
    lesson: str
    meaning: str


def build(root: Path, folder: Path) -> int:
    """Build the site of the clone at `root` into `folder`, from nothing; return Sphinx's exit status.

    A warning is an error. The staged sources lie beside the site, in a folder named `folder`-source.
    """
    staged = folder.with_name(f"{folder.name}-source")
    for old in (folder, staged):
        shutil.rmtree(old, ignore_errors=True)
    stage(root, staged)
    options = ["-b", "html", "-c", str(root / "docs"), "-d", str(staged / ".doctrees"), "-W", "--keep-going", "-q"]
    command = ["-P", "-m", "sphinx", *options, str(staged), str(folder)]
    return abs(processes.call(command, folder=Path(__file__).resolve().parents[2], environment=os.environ))


def stage(root: Path, folder: Path) -> None:
    """Write every source of the site below `folder`.

    Raises:
        SiteError: a source is not as the site needs it.
        LessonError: a lesson breaks the authoring rules.
    """
    sources = Sources(root)
    for path, text in sources.pages():
        write_text(folder / path, text)
    shutil.copytree(root / "docs" / "images", folder / "docs" / "images")
    (folder / "cards").mkdir()
    for number, (picture, _) in sources.remembered.items():
        picture.save(folder / "cards" / f"{number}.png", optimize=True)


class Sources:
    """All that the site is made of, read from the clone at `root`."""

    def __init__(self, root: Path) -> None:
        self.root, self.course = root, Course.read(root)
        self.lessons = [read_lesson(path) for path in find_lessons(root / "lessons")]
        self.deeper = [read_lesson(path) for path in find_lessons(root / "lessons", [DEEPER])]
        docs = sorted(path.relative_to(root).as_posix() for path in (root / "docs").glob("*.md"))
        saved = [
            path.relative_to(root).as_posix()
            for lesson in [*self.lessons, *self.deeper]
            for path in self._notebooks(lesson).values()
        ]
        #: repository path -> page of the site
        self.places = {path: path for path in (*docs, *saved, *_AT_THE_ROOT) if (root / path).exists()}
        self.places |= {_INDEX: "index.md", "README.md": "index.md"}

    def pages(self) -> Iterator[tuple[str, str]]:
        """(path below the site's sources, text) of every page."""
        for path, place in self.places.items():
            if path.endswith(".md") and path != "README.md":
                yield place, self.linked(self._filled((self.root / path).read_text(encoding="utf-8"), path), path)
        for lesson in [*self.lessons, *self.deeper]:
            for form, file in self._notebooks(lesson).items():
                yield file.relative_to(self.root).as_posix(), nbformat.writes(self.lesson_page(lesson, form))
        yield "lessons.md", self._lessons_page()
        yield "quizzes.md", self._quizzes_page()
        yield "solutions.md", self._solutions_page()

    @cached_property
    def terms(self) -> list[Term]:
        """The glossary's terms, as docs/glossary.md lists them."""
        text = (self.root / "docs" / "glossary.md").read_text(encoding="utf-8")
        return [
            Term(found["term"], found["lesson"], " ".join(found["meaning"].split())) for found in _TERM.finditer(text)
        ]

    @cached_property
    def saved(self) -> dict[str, NotebookNode]:
        """Each lesson as it is committed, unsolved; by its number."""
        return {one.number: nbformat.read(self._notebooks(one)["exercises"], as_version=4) for one in self.lessons}

    def linked(self, text: str, path: str) -> str:
        """The text of the repository's file `path` with its links as the site has them, code left alone."""
        return outside_code(text, lambda part: _LINK.sub(lambda link: self._target(link[0], path), part))

    def lesson_page(self, lesson: Lesson, form: str) -> NotebookNode:
        """A saved notebook as a page: title first, a local badge, pictures with their sentences, and what moves."""
        file = self._notebooks(lesson)[form]
        path = file.relative_to(self.root).as_posix()
        notebook = without_empty_headers(nbformat.read(file, as_version=4))
        # A shared link shows this, and not the row of badges, which sphinxext.opengraph would take.
        about = f"{lesson.heading}." + (f" At the end you have {lesson.result}." if lesson.result else "")
        notebook.metadata |= {"og:description": about, "myst": {"html_meta": {"description": about}}}
        if form == "solutions":
            notebook.metadata["no-search"] = ""  # the lesson itself is found
        row, title, facts = notebook.cells[0].source.split("\n\n", 2)
        notebook.cells[0].source = "\n\n".join([title, row, facts])
        _add_calculator(notebook.cells, lesson)
        glossary = os.path.relpath("docs/glossary.html", PurePosixPath(path).parent)
        known = {term.name: term.meaning for term in self.terms if term.lesson <= lesson.number[:2]}
        seen: set[str] = set()
        for cell in notebook.cells:
            question = _QUESTION.match(cell.source)
            if cell.cell_type == "code":
                cell.outputs = shown_outputs(cell)
                _give_alt(cell)
                if "install" in tags_of(cell):
                    _fold(cell, INSTALL_TITLE)
                elif any(map(_is_picture, cell.outputs)):  # in the lessons such a cell only draws
                    _fold(cell, "How it is drawn")
            elif question:
                number = int(question[1])
                cell.source = question_page(lesson.quiz[number - 1], number, name=f"quiz-{lesson.number}-{number}")
            else:
                cell.source = self.linked(cell.source, path)
                if cell is not notebook.cells[0]:
                    cell.source = with_meanings(cell.source, known, seen, glossary)
        return notebook

    def introduction(self, term: Term) -> str:
        """Link to the section of the lesson that first speaks of a term.

        Raises:
            SiteError: there is no such lesson, or it doesn't speak of it.
        """
        lesson = next((each for each in self.lessons if each.number == term.lesson), None)
        if lesson is None:
            raise SiteError(f"docs/glossary.md: {term.name!r} names lesson {term.lesson}, which isn't there.")
        texts = (cell.source for cell in self.saved[lesson.number].cells[1:] if cell.cell_type == "markdown")
        heading = section_of(term.name, texts)
        if heading is None:
            raise SiteError(
                f"docs/glossary.md: lesson {term.lesson} doesn't say {term.name!r}; name the lesson that introduces "
                "it, or write the term as that lesson does."
            )
        return f"[{lesson.heading}](../notebooks/{lesson.name}.ipynb#{anchor(heading)})"

    def _notebooks(self, lesson: Lesson) -> dict[str, Path]:
        return notebook_paths(lesson, self.root / "notebooks")

    def _target(self, link: str, path: str) -> str:
        """Where a link in the repository's file `path` leads on the site."""
        here = PurePosixPath(self.places[path]).parent.as_posix()
        if link == BADGE:
            return os.path.relpath(LOCAL_BADGE, here)
        prefix = self.course.page("")
        name, _, section = link.removeprefix(prefix).partition("#")
        if re.match(r"[a-z]+:", name) or not name or link.startswith("/"):
            return link
        if link.startswith(prefix):
            goal = name
        else:
            goal = os.path.normpath(PurePosixPath(path).parent / name).replace(os.sep, "/")
        section = f"#{section}" if section else ""
        if goal in self.places:
            return os.path.relpath(self.places[goal], here).replace(os.sep, "/") + section
        if goal.startswith("docs/images/"):
            return os.path.relpath(goal, here).replace(os.sep, "/")
        return self.course.page(goal) + section if (self.root / goal).exists() else link

    def _filled(self, text: str, path: str) -> str:
        """The page with what is generated in the places that it marks, and drawings as the site draws them."""
        parts: Mapping[str, Callable[[], str]] = {
            "numbers": self._numbers, "ways": self._ways, "lessons": self._cards, "contents": self._contents,
        }  # fmt: skip

        def fill(place: re.Match) -> str:
            if place[1] not in parts:
                raise SiteError(f"{path}: <!-- site: {place[1]} --> is none of {', '.join(parts)}.")
            return parts[place[1]]()

        if path == "docs/glossary.md":
            text = self._glossary(text)
        return _MERMAID.sub(lambda drawing: layers_page(drawing[1]), _PLACE.sub(fill, text))

    def _numbers(self) -> str:
        exercises = sum("exercise" in tags_of(cell) for lesson in self.lessons for cell in lesson.cells)
        questions = sum(len(lesson.quiz) for lesson in self.lessons)
        figures = sum(len(_pictures(notebook)) for notebook in self.saved.values())
        hours = sum(lesson.minutes for lesson in self.lessons) / 60
        facts = {
            "lessons": len(self.lessons), "hours with the exercises": f"{hours:.0f}",
            "exercises that check themselves": exercises, "quiz questions with reasons": questions,
            "figures, each explained": figures,
        }  # fmt: skip
        rows = [f'<div><dt>{what}</dt><dd class="numbers-count">{count}</dd></div>' for what, count in facts.items()]
        return raw(f'<dl class="numbers">{"".join(rows)}</dl>')

    def _ways(self) -> str:
        """The two quickest: lesson 01 in Colab, and here."""
        first = self.lessons[0]
        page = f"notebooks/{first.name}"
        buttons = {
            f"{{button-link}} {self.course.colab(f'{page}.ipynb')}\n:color: primary": "Open lesson {} in Colab",
            f"{{button-ref}} {page}\n:ref-type: doc\n:color: primary\n:outline:": "Read lesson {} here",
        }
        return "\n\n".join(f"```{head}\n\n{text.format(first.number)}\n```" for head, text in buttons.items())

    @cached_property
    def remembered(self) -> dict[str, tuple[Image.Image, str]]:
        """Each lesson's figure to remember, as small as a card, and its sentence; by the lesson's number."""
        found = {}
        for number, notebook in self.saved.items():
            if pictures := _pictures(notebook):
                data, about = pictures[0]["data"]["image/png"], pictures[0]["metadata"]["image/png"]
                picture = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
                picture.thumbnail(_CARD)
                found[number] = picture, about["alt"]
        return found

    def _cards(self) -> str:
        cards = []
        for lesson in self.lessons:
            options = [f":link: notebooks/{lesson.name}", ":link-type: doc"]
            if lesson.number in self.remembered:
                options += [f":img-top: cards/{lesson.number}.png", f":img-alt: {self.remembered[lesson.number][1]}"]
            text = f"{lesson.time}: {lesson.result or lesson.prerequisites}"
            cards.append("\n".join([f":::{{grid-item-card}} {lesson.heading}", *options, text, ":::"]))
        return "\n".join(["::::{grid} 1 2 3 3", ":gutter: 2", "", *cards, "::::"])

    def _contents(self) -> str:
        """The navigation, hidden in the landing page: lessons, practice, reference, and what else docs/ has."""
        whole = sorted([*self.lessons, *self.deeper], key=lambda lesson: lesson.number)
        lessons = ["lessons", *(repository_path(lesson).removesuffix(".ipynb") for lesson in whole)]
        chapters = {
            "Lessons": lessons,
            "Practise": ["quizzes", "solutions", "docs/glossary"],
            "Teach": ["docs/teaching"],
            "Look up": ["docs/library", "docs/compress", "docs/mixtures", "Its modules <api/course_utils/index>"],
            "Work on it": ["docs/house", "docs/authoring", "CONTRIBUTING", "CHANGELOG"],
        }
        placed = {entry for entries in chapters.values() for entry in entries}
        pages = (place.removesuffix(".md") for place in self.places.values() if place.startswith("docs/"))
        chapters["Look up"] += [page for page in pages if page not in placed]
        return "\n\n".join(toctree(entries, caption) for caption, entries in chapters.items())

    def _lessons_page(self) -> str:
        parts = ["# The lessons", "Read them here with their saved outputs, or run them in Colab or on a laptop."]
        for lesson in self.lessons:
            path = f"notebooks/{lesson.name}.ipynb"
            parts += [
                f"## [{lesson.heading}]({path})",
                f"[![Open in Colab]({LOCAL_BADGE})]({self.course.colab(path)}) · {lesson.time} · "
                f"[solutions](notebooks/solutions/{lesson.name}.ipynb) · [quiz](quizzes.md#{anchor(lesson.heading)})",
                f"Before this: {lesson.prerequisites}.",
                *(
                    f"Go deeper: [{more.heading}]({repository_path(more)}) ({more.time})."
                    for more in self.deeper
                    if more.number.startswith(lesson.number)
                ),
                f"{lesson.question}\n\n{_open_answer(lesson)}",
            ]
        return "\n\n".join(parts) + "\n"

    def _quizzes_page(self) -> str:
        parts = ["# Quizzes", "Choose an answer, and read why it is right or tempting. Nothing leaves this page."]
        for lesson in self.lessons:
            parts += [f"## {lesson.heading}", f"[To the lesson](notebooks/{lesson.name}.ipynb)"]
            parts += [
                question_page(question, number, name=f"quizzes-{lesson.number}-{number}")
                for number, question in enumerate(lesson.quiz, start=1)
            ]
        return "\n\n".join(parts) + "\n"

    def _solutions_page(self) -> str:
        solved = {
            lesson.heading: paths["solutions"].relative_to(self.root).as_posix()
            for lesson in [*self.lessons, *self.deeper]
            if "solutions" in (paths := self._notebooks(lesson))
        }
        rows = [f"- [{heading}]({path})" for heading, path in solved.items()]
        return "\n\n".join([
            "# Solutions", "The lessons with every exercise solved, executed. Ten minutes of trying come first.",
            "\n".join(rows), toctree(path.removesuffix(".ipynb") for path in solved.values()),
        ]) + "\n"  # fmt: skip

    def _glossary(self, text: str) -> str:
        """The list of terms as a glossary that other pages and the search know, each with its lesson."""
        entries = [
            f"{term.name}\n  {term.meaning} {self.introduction(term)}"
            for term in sorted(self.terms, key=lambda term: term.name.lower())
        ]
        before = text[: match.start()] if (match := _TERM.search(text)) else text
        return before + "```{glossary}\n" + "\n\n".join(entries) + "\n```\n"


def outside_code(text: str, change: Callable[[str], str]) -> str:
    """The Markdown with `change` applied to all but its fenced code."""
    parts, end = [], 0
    for fence in _FENCE.finditer(text):
        parts += [change(text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, change(text[end:])])


def question_page(question: Question, number: int, *, name: str) -> str:
    """A quiz question as radio buttons; course.js shows the reason of the chosen one. Without script, all are folded.

    Each page has an order of options of its own, always the same, so that remembering a place doesn't help.

    Args:
        question: what is asked.
        number: its heading's.
        name: of its radio buttons, unlike any other's on the site.
    """
    inline = MarkdownIt("commonmark").renderInline
    shuffled = random.Random(f"{_SEED} {name}").sample(question.options, len(question.options))
    options = "\n".join(
        f'<label><input type="radio" name="{name}" value="{letter}"> <span>{inline(option.text)}</span></label>\n'
        f'<p class="quiz-reason" data-right="{str(option.right).lower()}" hidden>{inline(option.reason)}</p>'
        for letter, option in zip("ABCD", shuffled, strict=False)
    )
    folded = "".join(
        f"<li>{inline(option.text)} <strong>{'Right.' if option.right else 'No.'}</strong> {inline(option.reason)}</li>"
        for option in shuffled
    )
    form = (
        f'<form class="quiz">\n<fieldset aria-labelledby="{name}">\n{options}\n</fieldset>\n'
        '<button type="button" hidden>Check my answer</button>\n<div role="status" class="quiz-verdict"></div>\n'
        "</form>\n"
        f"<details><summary>All answers and reasons</summary><ul>{folded}</ul></details>"
    )
    asked = f'<div id="{name}">\n\n{question.text}\n\n</div>'
    return "\n\n".join([f"### Question {number}", asked, raw(form)])


def calculator_page() -> str:
    """The calculator, a section of its own."""
    says = (
        "Put in a model and a machine: this lesson's formulae say how much must be held, and how long a token takes "
        "at least."
    )
    return "\n\n".join(["## A calculator", says, raw(calculator.form())])


def layers_page(drawing: str) -> str:
    """The map's Mermaid drawing of layers as a list, top first: browsers need no script for it."""
    rows = [
        f"<li><strong>{layer['name']}</strong> {html.escape(layer['modules'])}</li>"
        for layer in _LAYER.finditer(drawing)
    ]
    if not rows:
        raise SiteError(
            "This Mermaid drawing is no stack of layers, and the site has no script to draw it; write a list."
        )
    return raw(f'<ol class="layers" aria-label="Layers, from the top down">{"".join(rows)}</ol>')


def section_of(term: str, texts: Iterable[str]) -> str | None:
    """The heading, "## …" without its marks, under which Markdown texts first say a term; None if they never do."""
    heading = None
    pattern = re.compile(rf"(?<!\w){re.escape(term)}", re.IGNORECASE)
    for part in (part for text in texts for part in re.split(r"^(?=##)", text, flags=re.MULTILINE)):
        if part.startswith("##"):
            heading = part.partition("\n")[0].lstrip("# ")
        if pattern.search(re.sub(r"[*`]", "", " ".join(part.split()))):
            return heading
    return None


def anchor(heading: str) -> str:
    """The address of a heading within its page, as MyST (and GitHub) makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower().strip()).replace(" ", "-")


def toctree(entries: Iterable[str], caption: str = "") -> str:
    """A hidden table of contents, in Markdown."""
    options = [":hidden:", ":maxdepth: 1", *([f":caption: {caption}"] if caption else [])]
    return "\n".join(["```{toctree}", *options, "", *entries, "```"])


def raw(code: str) -> str:
    """HTML that goes through Sphinx as it is, in Markdown."""
    return f"````{{raw}} html\n{code}\n````"


def _open_answer(lesson: Lesson) -> str:
    """What a lesson answers; nothing where its learner shall find it, and it is folded."""
    return lesson.answer if lesson.answer in without_folds(lesson.cells[0].source) else ""


def _fold(cell: NotebookNode, title: str) -> None:
    """Fold a cell's code under a title."""
    cell.metadata["tags"] = [*tags_of(cell), "hide-input"]
    cell.metadata.setdefault("mystnb", {})["code_prompt_show"] = title


def _give_alt(cell: NotebookNode) -> None:
    """Hand the sentence of a cell's picture to myst-nb, which looks for it in the cell's own metadata."""
    pictures = [*filter(_is_picture, cell.outputs)]
    if len(pictures) > 1:
        raise SiteError(f"A cell shows {len(pictures)} pictures; the site needs a cell each: {cell.source[:80]!r}")
    if pictures:
        cell.metadata["mystnb"] = {"image": {"alt": pictures[0].metadata["image/png"]["alt"]}}


def _add_calculator(cells: list[NotebookNode], lesson: Lesson) -> None:
    """Add what only a page can have."""
    if lesson.number == calculator.LESSON:
        quiz = [cell.source for cell in cells].index("## Quiz")
        cells.insert(quiz, nbformat.v4.new_markdown_cell(calculator_page(), id="calculator"))


def _pictures(notebook: NotebookNode) -> list[NotebookNode]:
    return [output for cell in notebook.cells for output in cell.get("outputs", []) if _is_picture(output)]


def _is_picture(output: NotebookNode) -> bool:
    return "image/png" in output.get("data", {})

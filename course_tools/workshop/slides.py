"""Slides from the lessons: reveal.js in a folder of its own, with speaker notes, that need no network.

Nothing is written twice. A slide holds one thought: a section's first sentences with its formula, a picture, a table,
a prediction with the numbers it begins from, an exercise with all of its text, a poll. The rest goes to the speaker,
with what a teacher wants at hand: cells tagged "notes" in the lesson's source, its time, hints, what the run printed,
what the saved run showed after a prediction, and the wrong turns that a check knows by name.
"""

from __future__ import annotations

import ast
import html
import re
import shutil
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

import nbformat
from nbconvert import SlidesExporter
from nbformat import NotebookNode

from course_tools.lessons.authoring import PREDICTION, WHAT_WE_SAW, Lesson, Question, exercises_of, read_question
from course_tools.lessons.cells import tags_of
from course_tools.lessons.notebooks import content_id
from course_tools.lessons.webpages import MARKDOWN, PICTURES
from course_utils.support.files import write_text

WIDTH, HEIGHT = 1280, 720
MOST = 30  # slides of a deck
LINES = 13  # of text that a slide holds in its normal size
TASK = 15  # lines of an exercise, which shrinks: whoever solves it wants to see all of it
SMALLEST = 0.5  # what the page may shrink a slide to, so that it fits; a test looks for smaller ones
ROWS = 12  # of a table; the notebook has the rest
_CHARACTERS = 70  # in a line
_SENTENCES = 240  # characters that a section's first sentences may have together
_DETAILS = re.compile(r"<details><summary>(.*?)</summary>(.*?)</details>", re.DOTALL)
_EXERCISE = re.compile(r"^### Exercise (\d+)\b", re.MULTILINE)
_SENTENCE = re.compile(r"(?<=[.?!:])\s+(?=[A-Z*`$])")
_UNTOLD = ("References", "Go deeper")


Part = str | NotebookNode  # Markdown, or an output


@dataclass
class Slide:
    """One view, filled from above: `kind` is "slide" for the first of a section, "subslide" below it."""

    kind: str
    parts: list[Part] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def heading(self) -> str:
        """What stands on top."""
        return str(self.parts[0]).lstrip("# ")

    @property
    def lines(self) -> float:
        """About how many lines of text it takes."""
        return sum(map(lines_of, self.parts))

    @property
    def has_result(self) -> bool:
        """Whether it shows a picture or a table of the run."""
        return not all(isinstance(part, str) for part in self.parts)

    @property
    def predicts(self) -> bool:
        """Whether it ends with something to predict."""
        return bool(PREDICTION.search(str(self.parts[-1])))

    def takes(self, part: Part, most: int = LINES) -> bool:
        """Whether the part fits below what is there; right below a heading it always does."""
        return len(self.parts) < 2 or self.lines + lines_of(part) <= most


def slides_of(lesson: Lesson, saved: NotebookNode, checks: str) -> list[Slide]:
    """The slides of a lesson.

    Args:
        lesson: the source.
        saved: its notebook with outputs, in the exercise form.
        checks: the source of its checks, from `checks_of`.
    """
    outputs = defaultdict(list)
    for cell in saved.cells:
        if cell.cell_type == "code":
            outputs[content_id(cell)].append(cell.outputs)
    told = [cell.source for cell in lesson.cells if "notes" in tags_of(cell)]
    title = f"# {lesson.heading}\n\nPruning LLMs, a course\n\nBefore this: {lesson.prerequisites}"
    made = [Slide("slide", [title], [*told, f"**Time:** {lesson.time} alone, with all exercises."])]
    exercises = {one.number: one for one in exercises_of(lesson)}
    section, polls, listing = lesson.title, 0, ""
    for cell in lesson.cells:
        tags = tags_of(cell)
        if {"install", "notes", "exercise"} & set(tags):
            continue
        if cell.cell_type == "code":
            of_cell = outputs[content_id(cell)].pop(0) if outputs[content_id(cell)] else []
            listing = "".join(output.get("text", "") for output in of_cell).strip()
            for output in of_cell:
                _show(output, section, made)
            continue
        if "\n" in listing and PREDICTION.match(cell.source.lstrip("*")):  # nobody predicts from what they don't see
            _add(f"```\n{listing}\n```", section, made)
        listing = ""
        if "quiz" in tags:
            polls += 1
            made.append(_poll(polls, read_question(cell.source)))
        else:
            for text in re.split(r"^(?=##+ )", cell.source, flags=re.MULTILINE):
                heading = (re.match(r"##+ (.+)", text) or ["", ""])[1]
                if heading not in _UNTOLD and text.strip():
                    section = heading if heading and not _EXERCISE.match(text) else section
                    _tell(text, section, made)
                    made[-1].notes += _notes(text, exercises, checks)
    return [slide for slide in made if slide is made[0] or len(slide.parts) > 1]


def _show(output: NotebookNode, section: str, made: list[Slide]) -> None:
    """A picture or a table on a slide of its own; what was printed is for the speaker."""
    data = output.get("data", {})
    text = (output.get("text") or data.get("text/plain", "")).strip()
    if {"image/png", "text/html"} & set(data):
        _add(shortened(output), section, made)
    elif text and not text.startswith("lesson  "):  # what `start` printed of the machine
        made[-1].notes.append(f"**The run printed**\n\n```\n{text}\n```")


def _add(part: Part, section: str, made: list[Slide]) -> None:
    """Put a part on the section's own slide, or on a new one: nothing stands below a result or a prediction."""
    last = made[-1]
    if last.heading != section or last.has_result or last.predicts or not last.takes(part):
        made.append(Slide("subslide", [f"## {section}"]))
    made[-1].parts.append(part)


def _tell(text: str, section: str, made: list[Slide]) -> None:
    """The text of a section: its first thought on a slide with what is to be predicted, the rest to the speaker."""
    every = [*blocks(_DETAILS.sub("", text))]
    opening = every[0].startswith("#")
    if opening:
        made.append(Slide("slide" if every[0].startswith("## ") else "subslide", [every.pop(0)]))
    if _EXERCISE.match(text):
        _set(every, made)
        return
    left: dict[int, list[str]] = {}
    for block in every:
        if PREDICTION.search(block):
            _add(block, section, made)
            opening = False
            continue
        short = first_sentences(block) if is_prose(block) else block
        shown = opening and (not is_prose(block) or len(made[-1].parts) == 1) and made[-1].takes(short)
        if shown:
            made[-1].parts.append(short)
        if not shown or short != block:
            left.setdefault(len(made) - 1, []).append(block)
    for number, told in left.items():
        made[number].notes.append("**To say**\n\n" + "\n\n".join(told))


def _set(task: Iterable[str], made: list[Slide]) -> None:
    """All of an exercise's text, on more than one slide where it is long."""
    for block in task:
        if not made[-1].takes(block, TASK):
            made.append(Slide("subslide", [f"### {made[-1].heading}"]))
        made[-1].parts.append(block)


def is_prose(block: str) -> bool:
    """Whether it is a paragraph: no table, list, formula or code."""
    return not block.startswith(("|", "- ", "1. ", "$$", "```"))


def first_sentences(paragraph: str) -> str:
    """As many as are short together, but at least one; what follows a colon is left out with the colon's sentence."""
    kept: list[str] = []
    for sentence in _SENTENCE.split(" ".join(paragraph.split())):
        if kept and len(" ".join([*kept, sentence])) > _SENTENCES:
            break
        kept.append(sentence)
    return " ".join(kept[:-1] if len(kept) > 1 and kept[-1].endswith(":") else kept)


def shortened(output: NotebookNode) -> NotebookNode:
    """An output as a slide shows it: of a table no more than `ROWS` rows."""
    page = output.get("data", {}).get("text/html", "")
    rows = page.count("<tr")
    if rows <= ROWS + 1:
        return output
    head, *pieces = re.split(r"(?=<tr)", page)
    more = f"</tbody></table><p>… and {rows - ROWS - 1} more rows in the notebook.</p>"
    kept = "".join([head, *pieces[: ROWS + 1], more])
    return nbformat.from_dict({**output, "data": {"text/html": kept}})


def lines_of(part: Part) -> float:
    """About how many lines of text it takes, the gap below it included."""
    if isinstance(part, str):
        return _lines_of_text(part)
    data = part.get("data", {})
    return LINES - 2 if "image/png" in data else data["text/html"].count("<tr") + 1


def deck(slides: Iterable[Slide], *, title: str) -> str:
    """The page of a lesson's slides; it looks for reveal.js in the folder `reveal` beside it."""
    cells = [cell for slide in slides for cell in _cells(slide)]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"title": title})
    looks = {"raw_template": _beside("deck.html.j2") + PICTURES, "reveal_url_prefix": "reveal", "reveal_theme": "white"}
    exporter = SlidesExporter(filters={"markdown2html": MARKDOWN}, **looks)
    exporter.reveal_width, exporter.reveal_height = str(WIDTH), str(HEIGHT)
    exporter.exclude_input = exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    resources = {"metadata": {"name": title}, "slide": {"width": WIDTH, "height": HEIGHT}}
    page, _ = exporter.from_notebook_node(notebook, resources)
    return page


def write_decks(pages: dict[str, tuple[str, str]], reveal: Path, folder: Path) -> Path:
    """Write decks, reveal.js and an index into a folder that can be copied anywhere; return the index.

    Args:
        pages: {file name without ending: (title, page)}.
        reveal: the folder of reveal.js, `assets.fetch("reveal")`.
        folder: gets all of it.
    """
    for part in ("dist", "plugin/notes"):
        shutil.copytree(reveal / part, folder / "reveal" / part, dirs_exist_ok=True)
    shutil.copyfile(reveal / "LICENSE", folder / "reveal" / "LICENSE")
    for name, (_, page) in pages.items():
        write_text(folder / f"{name}.html", page)
    rows = "\n".join(
        f'<li><a href="{name}.html">{html.escape(title)}</a> (<a href="{name}.html?print-pdf">to print</a>)</li>'
        for name, (title, _) in pages.items()
    )
    write_text(folder / "index.html", Template(_beside("decks.html")).substitute(rows=rows))
    return folder / "index.html"


def _beside(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def checks_of(lesson: Lesson, root: Path) -> str:
    """The source of a lesson's checks and of what several lessons' checks share, in the clone at `root`."""
    folder = root / "course_utils" / "lessons" / "exercises"
    names = (f"lesson_{lesson.number[:2]}", "cuts")
    return "\n".join((folder / f"{name}.py").read_text(encoding="utf-8") for name in names)


def wrong_turns(check: str, checks: str) -> list[str]:
    """The mistakes that a check names, in its words: the sentences in its source, in helpers and tables it uses."""
    named: dict[str, ast.stmt] = {}
    for node in ast.parse(checks).body:
        if isinstance(node, ast.FunctionDef):
            named[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):  # case -> its reason, or a sentence that is needed twice
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            named |= {target.id: node for target in targets if isinstance(target, ast.Name)}
    return list(dict.fromkeys(_sentences(named[check], named, {check})))


def _sentences(node: ast.AST, named: dict[str, ast.stmt], seen: set[str]) -> Iterator[str]:
    """Each string of four words and more that ends like a sentence; values in an f-string become "…"."""
    text = ""
    if isinstance(node, ast.JoinedStr):
        text = "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        text = node.value
    elif isinstance(node, ast.Name) and node.id in named and node.id not in seen:
        seen.add(node.id)
        yield from _sentences(named[node.id], named, seen)
    elif isinstance(node, ast.FunctionDef):
        decorators = (word for call in node.decorator_list for word in getattr(call, "keywords", ()))
        declared = [word.value for word in decorators if word.arg == "mistakes"]
        for part in [*declared, *node.body[ast.get_docstring(node) is not None :]]:
            yield from _sentences(part, named, seen)
    else:
        for child in ast.iter_child_nodes(node):
            yield from _sentences(child, named, seen)
    text = text.removeprefix("…").lstrip(" :,")
    if len(text.split()) >= 4 and text[-1] in ".!?":
        yield text[0].upper() + text[1:]


def _notes(text: str, exercises: dict, checks: str) -> Iterator[str]:
    """What the speaker gets beside a text: its folded parts, and what the check of an exercise knows."""
    for summary, inside in _DETAILS.findall(text):
        name = "What the saved run showed" if summary in WHAT_WE_SAW else summary
        yield f"**{name}**\n\n{inside.strip()}"
    if number := _EXERCISE.match(text):
        turns = wrong_turns(exercises[int(number[1])].check, checks)
        if turns:
            yield "\n".join(["**Wrong turns that the check names**", "", *(f"- {turn}" for turn in turns)])


def _lines_of_text(block: str) -> int:
    if block.startswith("#"):
        return 2
    rows = block.splitlines()
    if block.startswith(("|", "```")):
        return len(rows) + 1
    joined: list[str] = []
    for row in rows:
        if joined and not re.match(r"\s*([-*]|\d+\.) ", row):
            joined[-1] += " " + row.strip()
        else:
            joined.append(row)
    return sum(len(textwrap.wrap(row, _CHARACTERS)) for row in joined) + 1


def blocks(text: str) -> Iterator[str]:
    """Paragraphs, tables, lists and fenced code of a Markdown text; a long list comes in its items."""
    for index, piece in enumerate(re.split(r"^(```.*?^```)$", text.strip(), flags=re.DOTALL | re.MULTILINE)):
        if index % 2:
            yield piece
            continue
        for block in re.split(r"\n\s*\n", piece):
            for line in filter(None, [block.strip()]):
                heading, _, rest = line.partition("\n") if line.startswith("#") else ("", "", line)
                yield from filter(None, [heading])
                if re.match(r"- ", rest) and lines_of(rest) > LINES:
                    yield from re.split(r"\n(?=- )", rest)
                else:
                    yield from filter(None, [rest])


def _poll(number: int, question: Question) -> Slide:
    letters = dict(zip("ABCD", question.options, strict=False))
    options = "\n\n".join(f"**{letter}.** {option.text}" for letter, option in letters.items())
    right = next(letter for letter, option in letters.items() if option.right)
    reasons = "\n".join(f"- **{letter}.** {option.reason}" for letter, option in letters.items() if not option.right)
    notes = (
        f"**Poll.** Let the room vote first, then talk in pairs, then vote again.\n\n**{right} is right.** "
        f"{letters[right].reason}\n\n**Wrong answers to expect, and what to say**\n\n{reasons}"
    )
    return Slide("subslide", [f"### Question {number}", f"{question.text}\n\n{options}"], [notes])


def _cells(slide: Slide) -> Iterator[NotebookNode]:
    """The slide as notebook cells: the first carries its kind, the others stand below it."""
    kind = slide.kind
    for part in slide.parts:
        look = {"slideshow": {"slide_type": kind}}
        if isinstance(part, str):
            yield nbformat.v4.new_markdown_cell(part, metadata=look)
        else:
            yield nbformat.v4.new_code_cell("", outputs=[part], metadata=look)
        kind = "-"
    if slide.notes:
        yield nbformat.v4.new_markdown_cell("\n\n".join(slide.notes), metadata={"slideshow": {"slide_type": "notes"}})

"""Notebooks from lesson sources: `lessons/NN_slug.py` becomes an exercise form and a solutions form.

The same source always gives the same bytes: cell ids come from the cells' content, there are no execution counts and no
metadata from the machine. Saved outputs live in the committed notebooks; they are kept while the lesson's code stays as
it is, import lines excepted, and dropped when it changes. Both forms get theirs from one run, of `both_forms`.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import io
import re
import textwrap
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

import nbformat
from nbformat import NotebookNode
from PIL import Image

from course_tools.lessons.authoring import DEEPER, ExerciseCell, Lesson, Question, read_question, take_apart
from course_tools.lessons.cells import tags_of
from course_tools.lessons.printed import joined
from course_tools.processes import TIMED_THREADS
from course_utils.compress.program import SLEEPING_THREADS

_Folder = TypeVar("_Folder", Path, PurePosixPath)
FORMS = ("exercises", "solutions")
TABLE_BEGIN, TABLE_END = "<!-- lessons: written by `python3 course.py build` -->", "<!-- end of lessons -->"
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
_SOLVED = "solved"  # tag of a solved copy in `both_forms`
INSTALL_TITLE = "Install the course (on Colab; elsewhere it does nothing)"
# The first code cell, folded under its title; then its lines for each thread setting and each place to install from.
_INSTALL = """\
# @title {title}
import importlib.util
import os

if "OMP_WAIT_POLICY" not in os.environ:  # threads that wait sleep, not spin
{threads}
if importlib.util.find_spec("course_utils") is None:
    if any(os.path.exists(f"{{up}}course.py") for up in ("", "../", "../../")):
        raise ModuleNotFoundError("This Python has no course. In its clone run: python3 course.py lab (on Windows py)")
{attempts}
    if importlib.util.find_spec("course_utils") is None:  # pip failed
        remedy = "On Colab run this cell again; on Kaggle switch the internet on in the settings first."
        raise ModuleNotFoundError(f"The course was not installed; pip says why above. {{remedy}}")"""
_THREADS = '    os.environ.setdefault("{name}", "{value}")'
_THREADS_WHERE_TIMED = (
    '    if os.environ.get("{name}", "{value}") == "{value}":\n        os.environ["{name}"] = "{longer}"'
)
_ATTEMPT = """\
    %pip install -q "{requirement}"
    importlib.invalidate_caches()"""
_NEXT = """
    if importlib.util.find_spec("course_utils") is None:
"""
_FOLDED = {"cellView": "form", "jupyter": {"source_hidden": True}}  # on Colab, and in JupyterLab
_IMPORT = re.compile(r"^(?:from \S+ )?import (?:\([^)]*\)|.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Course:
    """Where the course is published; `[tool.course]` of pyproject.toml.

    Attributes:
        repository: "owner/name" on GitHub.
        ref: branch or tag that badges and install cells name.
        wheel: address of the release's wheel, which installs faster and needs no git; "" for none.
    """

    repository: str
    ref: str
    wheel: str = ""

    @classmethod
    def read(cls, root: Path) -> Course:
        """The setting of the clone at `root`."""
        settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
        return cls(**settings["tool"]["course"])

    def page(self, path: str) -> str:
        """Address of a file of the repository."""
        return f"https://github.com/{self.repository}/blob/{self.ref}/{path}"

    @property
    def site(self) -> str:
        """Address of the web site, on GitHub Pages."""
        owner, name = self.repository.split("/")
        return f"https://{owner}.github.io/{name}/"

    def colab(self, path: str) -> str:
        """Address that opens a notebook of the repository in Colab."""
        return f"https://colab.research.google.com/github/{self.repository}/blob/{self.ref}/{path}"

    @property
    def requirements(self) -> list[str]:
        """What pip installs for the lessons; each place is tried when the one before it failed."""
        places = [self.wheel, f"git+https://github.com/{self.repository}@{self.ref}"]
        return [f"pruning-llms[lessons] @ {place}" for place in places if place]


def build_notebook(lesson: Lesson, course: Course, form: str) -> NotebookNode:
    """The lesson in one of `FORMS`, without outputs."""
    cells, questions = [_markdown(_title(lesson, course, form))], 0
    for cell in lesson.cells:
        tags = tags_of(cell)
        if "notes" in tags:  # for teachers; `slides` shows them to the speaker
            continue
        if "install" in tags:
            cells.append(_code(_install(course, timed=lesson.timed), tags))
            cells[-1].metadata.update(copy.deepcopy(_FOLDED))
        elif "exercise" in tags:
            exercise = take_apart(cell.source)
            if form == "solutions":
                cells.append(_code(exercise.code(exercise.solution), tags))
            else:
                cells += [_code(exercise.code(exercise.stub), tags), _markdown(_answer(exercise))]
        elif "quiz" in tags:
            questions += 1
            cells.append(_markdown(_quiz(questions, read_question(cell.source))))
        elif cell.cell_type == "markdown":
            above = f"]({DEEPER}/", f"](../{DEEPER}/"  # solutions stand in a folder of their own
            cells.append(_markdown(cell.source.replace(*above) if form == "solutions" else cell.source))
        else:
            cells.append(_code(cell.source, tags))
    _number(cells)
    return nbformat.v4.new_notebook(cells=cells, metadata=_metadata())


def both_forms(lesson: Lesson, course: Course) -> NotebookNode:
    """The exercise form with a solved copy after each exercise: one run of it is a run of both forms."""
    notebook, *solutions = (build_notebook(lesson, course, form) for form in notebook_paths(lesson, PurePosixPath()))
    solved = (cell for solution in solutions for cell in _exercise_cells(solution))
    cells = []
    for cell in notebook.cells:
        cells.append(cell)
        if "exercise" in tags_of(cell):
            copy_of = next(solved)
            copy_of.metadata["tags"] = [*tags_of(copy_of), _SOLVED]
            cells.append(copy_of)
    notebook.cells = cells
    return notebook


def form_of(executed: NotebookNode, form: str) -> NotebookNode:
    """The cells of one of `FORMS` in an executed notebook of `both_forms`; another notebook as it is."""
    pairs = [cell for cell in _exercise_cells(executed) if _SOLVED in tags_of(cell)]
    if not pairs:
        return executed
    left_out = [cell for cell in _exercise_cells(executed) if (_SOLVED in tags_of(cell)) == (form == "exercises")]
    ids = {cell.id for cell in left_out}
    return nbformat.from_dict({**executed, "cells": [cell for cell in executed.cells if cell.id not in ids]})


def _keep_outputs(notebook: NotebookNode, earlier: NotebookNode) -> None:
    """Copy the outputs of `earlier` into `notebook` if it has the same code, install cell and imports left out."""
    new, old = (
        [cell for cell in each.cells if cell.cell_type == "code" and "install" not in tags_of(cell)]
        for each in (notebook, earlier)
    )
    if [*map(_without_imports, new)] == [*map(_without_imports, old)]:
        for cell, before in zip(new, old, strict=True):
            cell.outputs = tidy_outputs(before.outputs)


def _without_imports(cell: NotebookNode) -> str:
    """The code of a cell without its import lines: what it prints doesn't depend on where a name has its home."""
    return _IMPORT.sub("", cell.source).strip()


def tidy_outputs(outputs: Iterable[NotebookNode]) -> list[NotebookNode]:
    """A cell's outputs as they are committed.

    Standard error (progress bars, warnings with paths of this machine), widgets, execution counts and the frames of an
    error are left out, and pieces of one stream are joined. Pictures get a palette, which makes them a third of the
    size without a visible difference.
    """
    kept: list[NotebookNode] = []
    for output in joined(output for output in outputs if not any("widget" in kind for kind in output.get("data", {}))):
        if output.output_type == "error":  # an error shown on purpose: its frames are paths of this machine
            output.traceback = [f"{output.ename}: {output.evalue}"]
        if "execution_count" in output:
            output.execution_count = None
        if "image/png" in output.get("data", {}):
            output.data["image/png"] = _with_palette(output.data["image/png"])
        kept.append(output)
    return kept


def _with_palette(png: str) -> str:
    """A PNG in base64 with at most 256 colours; one that has a palette or lets something shine through stays."""
    with Image.open(io.BytesIO(base64.b64decode(png))) as image:
        if image.mode not in ("RGB", "RGBA") or (
            image.mode == "RGBA" and image.getchannel("A").getextrema() != (255, 255)
        ):
            return png
        # Median cut spoils the ends of colour bars; this keeps rare colours, and k-means evens out the rest.
        few = image.convert("RGB").quantize(method=Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE)
    data = io.BytesIO()
    few.save(data, "PNG", optimize=True)
    return base64.b64encode(data.getvalue()).decode("ascii")


def without_empty_headers(notebook: NotebookNode) -> NotebookNode:
    """The notebook, changed in place: the corner of a pandas table is a cell, not a header without a word."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "text/html" in output.get("data", {}):
                output.data["text/html"] = "".join(output.data["text/html"]).replace("<th></th>", "<td></td>")
    return notebook


def notebook_paths(lesson: Lesson, folder: _Folder) -> dict[str, _Folder]:
    """Where the forms of a lesson belong below the notebooks folder; a deeper one may have no exercises to solve."""
    place = folder / DEEPER if lesson.deeper else folder
    paths = {"exercises": place / f"{lesson.name}.ipynb"}
    if not lesson.deeper or any("exercise" in tags_of(cell) for cell in lesson.cells):
        paths["solutions"] = place / "solutions" / f"{lesson.name}.ipynb"
    return paths


def repository_path(lesson: Lesson) -> str:
    """Where the exercise form of a lesson stands in the repository."""
    return str(notebook_paths(lesson, PurePosixPath("notebooks"))["exercises"])


def render(lesson: Lesson, course: Course, folder: Path, *, executed: NotebookNode | None = None) -> dict[Path, str]:
    """The text of both notebooks of a lesson as they should stand below `folder`, by path.

    Outputs come from `executed`, a run of `both_forms`, or else from the notebook that is there already if it has the
    same code.
    """
    texts = {}
    for form, path in notebook_paths(lesson, folder).items():
        notebook = build_notebook(lesson, course, form)
        if executed is not None:
            _keep_outputs(notebook, form_of(executed, form))
        elif path.exists():
            _keep_outputs(notebook, nbformat.read(path, as_version=4))
        texts[path] = to_text(notebook)
    return texts


def fill_table(page: str, lessons: Iterable[Lesson], course: Course) -> str:
    """The page with the table of lessons and its sum between `TABLE_BEGIN` and `TABLE_END`; without these, as it is.

    Deeper notebooks follow in a line of their own, and aren't in the sum.
    """
    before, begin, rest = page.partition(TABLE_BEGIN)
    _, end, after = rest.partition(TABLE_END)
    if not end:
        return page
    rows, minutes, deeper = ["| | lesson | at the end you have | minutes | |", "|---|---|---|---|---|"], 0, []
    for lesson in lessons:
        path = repository_path(lesson)
        if lesson.deeper:
            deeper.append(f"[{lesson.number} · {lesson.title}]({path}) ({lesson.time})")
            continue
        minutes += lesson.minutes
        rows.append(
            f"| {lesson.number} | [{lesson.title}]({path}) | {lesson.result} | {lesson.time.removesuffix(' minutes')} "
            f"| [![Open in Colab]({BADGE})]({course.colab(path)}) |"
        )
    rows += ["", f"Minutes are of learning, with the exercises: {minutes:,} together, about {minutes / 60:.0f} hours."]
    if deeper:
        rows += ["", f"Go deeper, where you like: {', '.join(deeper)}."]
    return "\n".join([before + begin, *rows, end + after])


def content_id(cell: NotebookNode) -> str:
    """Twelve hexadecimal digits that stand for a cell's kind and source."""
    return hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:12]


def to_text(notebook: NotebookNode) -> str:
    """The notebook as JSON: sorted keys, one trailing newline, checked against the notebook schema."""
    nbformat.validate(notebook)
    return nbformat.writes(notebook).rstrip("\n") + "\n"


_NO_COMPLETION = (
    "**Exercises:** on Colab, first switch the AI completion off (*Tools > Settings > AI Assistance*): it would solve "
    "them for you."
)


def _title(lesson: Lesson, course: Course, form: str) -> str:
    paths = notebook_paths(lesson, PurePosixPath("notebooks"))
    others = [other for other in paths if other != form]
    row = [
        f"[![Open in Colab]({BADGE})]({course.colab(f'{paths[form]}')})",
        *(f"[{other}]({course.page(f'{paths[other]}')})" for other in others),
        f"[source]({course.page('/'.join(['lessons', *[DEEPER] * lesson.deeper, f'{lesson.name}.py']))})",
    ]
    return "\n".join(
        [
            " · ".join(row),
            "",
            f"# {lesson.heading}" + (" (solutions)" if form == "solutions" else ""),
            "",
            f"**Time:** {lesson.time}  ",
            "**Hardware:** any computer; with a GPU (on Colab a free T4) larger models  ",
            f"**Before this:** {lesson.prerequisites}" + ("  " if others else ""),
            *([_NO_COMPLETION] if others else []),  # no other form: no exercises
        ]
    )


def _install(course: Course, *, timed: bool) -> str:
    setting = _THREADS_WHERE_TIMED if timed else _THREADS
    lines = [setting.format(name=n, value=value, longer=TIMED_THREADS[n]) for n, value in SLEEPING_THREADS.items()]
    first, *others = (_ATTEMPT.format(requirement=requirement) for requirement in course.requirements)
    attempts = first + "".join(_NEXT + textwrap.indent(attempt, "    ") for attempt in others)
    return _INSTALL.format(title=INSTALL_TITLE, threads="\n".join(lines), attempts=attempts)


def _quiz(number: int, question: Question) -> str:
    """A question with lettered options, and below it, folded, which is right and what each has for or against it."""
    options = dict(zip("ABCD", question.options, strict=False))
    said = [f"- **{letter}.** {option.text}" for letter, option in options.items()]
    why = [f"- **{letter}{', right.' if option.right else '.'}** {option.reason}" for letter, option in options.items()]
    folded = ["<details><summary>Answer and reasons</summary>", "", *why, "", "</details>"]
    return "\n".join([f"### Question {number}", "", question.text, "", *said, "", *folded])


def _answer(exercise: ExerciseCell) -> str:
    return f"<details><summary>Answer</summary>\n\n```python\n{exercise.solution}\n```\n\n</details>"


def _metadata() -> dict:
    return {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "accelerator": "GPU",  # preselects a free T4 on Colab; without it the lesson runs all the same
        "colab": {"gpuType": "T4", "toc_visible": True},
    }


def _markdown(source: str) -> NotebookNode:
    return nbformat.v4.new_markdown_cell(source)


def _code(source: str, tags: list[str]) -> NotebookNode:
    return nbformat.v4.new_code_cell(source, metadata={"tags": list(tags)} if tags else {})


def _number(cells: list[NotebookNode]) -> None:
    """Ids from content, so that an edit changes the id of the edited cell alone; a repeated cell gets a suffix."""
    seen: dict[str, int] = {}
    for cell in cells:
        digest = content_id(cell)
        repeats = seen[digest] = seen.get(digest, 0) + 1
        cell.id = digest if repeats == 1 else f"{digest}-{repeats}"


def _exercise_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if "exercise" in tags_of(cell)]

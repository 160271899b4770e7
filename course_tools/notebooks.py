"""Notebooks from lesson sources: `lessons/NN_slug.py` becomes an exercise form and a solutions form.

docs/authoring.md describes the source format. The same source always gives the same bytes: cell ids come from the
cells' content, there are no execution counts and no metadata from the machine. Saved outputs live in the committed
notebook; they are kept while the lesson's code stays as it is, and dropped when it changes.
"""

from __future__ import annotations

import ast
import base64
import copy
import hashlib
import io
import re
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode
from PIL import Image

from course_tools.processes import SLEEPING_THREADS
from course_utils.assets import ASSETS

FORMS = ("exercises", "solutions")
TAGS = ("install", "exercise", "raises-exception")  # the last is Jupyter's own: the cell is meant to fail
HARDWARE = {
    "cpu": "any computer; no GPU needed",
    "gpu": "a GPU helps (on Colab a free T4); works without one",
}
TABLE_BEGIN, TABLE_END = "<!-- lessons: written by `python course.py build` -->", "<!-- end of lessons -->"
_BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
_FILE_NAME = re.compile(r"(\d\d)_[a-z0-9_]+\.py")
_EXERCISE_HEADING = re.compile(r"^### Exercise (\d+) · [●○]{3} · \d+ minutes$", re.MULTILINE)
_HINT = "<details><summary>Hint</summary>"
_BLOCKS = re.compile(
    r"\A(?P<before>.*?)^# BEGIN SOLUTION\n(?P<solution>.*?)^# END SOLUTION\n"
    r"\s*^# BEGIN STUB\n(?P<stub>.*?)^# END STUB\n(?P<after>.*)\Z",
    re.MULTILINE | re.DOTALL,
)
_MARKER = re.compile(r"^\s*# (BEGIN|END) (SOLUTION|STUB)\b", re.MULTILINE)


class LessonError(ValueError):
    """A lesson source breaks the authoring rules; the message names the file, the cell and the remedy."""


@dataclass(frozen=True)
class Course:
    """Where the course is published; `[tool.course]` of pyproject.toml."""

    repository: str
    ref: str

    @classmethod
    def read(cls, root: Path) -> Course:
        """The setting of the clone at `root`."""
        settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
        return cls(**settings["tool"]["course"])

    def page(self, path: str) -> str:
        """Address of a file of the repository."""
        return f"https://github.com/{self.repository}/blob/{self.ref}/{path}"

    def colab(self, path: str) -> str:
        """Address that opens a notebook of the repository in Colab."""
        return f"https://colab.research.google.com/github/{self.repository}/blob/{self.ref}/{path}"

    @property
    def requirement(self) -> str:
        """What pip installs the package from."""
        return f"pruning-llms @ git+https://github.com/{self.repository}@{self.ref}"


@dataclass(frozen=True)
class Exercise:
    """An exercise cell taken apart: shared code before and after, the answer, and what the learner starts from."""

    before: str
    solution: str
    stub: str
    after: str

    def code(self, middle: str) -> str:
        """The cell with the stub or the solution in the middle; ";" keeps the check's True or False from showing."""
        return "\n\n".join(part for part in (self.before, middle, self.after) if part) + ";"


@dataclass(frozen=True)
class Lesson:
    """A checked lesson source.

    Attributes:
        path: the source file.
        title: without the number.
        minutes: for self-study, with the exercises.
        hardware: a key of `HARDWARE`.
        prerequisites: what to know first, in a few words.
        assets: what it opens off the hub, keys of `course_utils.assets.ASSETS`.
        cells: the source's cells in order, each an nbformat cell with `source` and `metadata`.
    """

    path: Path
    title: str
    minutes: int
    hardware: str
    prerequisites: str
    assets: list[str]
    cells: tuple[NotebookNode, ...]

    @property
    def name(self) -> str:
        """The stem of the source file, "03_slug"."""
        return self.path.stem

    @property
    def number(self) -> str:
        """Two digits, "03"."""
        return self.name[:2]


def find_lessons(folder: Path, numbers: Iterable[str] = ()) -> list[Path]:
    """The lesson sources in `folder`, ordered; only those with one of `numbers` ("3" and "03" alike) if any are given.

    Raises:
        LessonError: a name is not NN_slug.py, or two share a number.
        ValueError: no lesson has one of the numbers; the message lists what there is.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.py")):
        match = _FILE_NAME.fullmatch(path.name)
        if match is None:
            raise LessonError(f"{path.name}: call a lesson NN_slug.py, lower case, for instance 03_some_title.py.")
        if match[1] in found:
            raise LessonError(
                f"{path.name}: number {match[1]} belongs to {found[match[1]].name} already; renumber one."
            )
        found[match[1]] = path
    wanted = [number.zfill(2) for number in numbers]
    unknown = [number for number in wanted if number not in found]
    if unknown:
        raise ValueError(f"There is no lesson {', '.join(unknown)}; there is: {', '.join(found) or 'none yet'}.")
    return [path for number, path in found.items() if not wanted or number in wanted]


def read_lesson(path: Path) -> Lesson:
    """Read and check a lesson source.

    Raises:
        LessonError: it breaks a rule of docs/authoring.md.
    """
    notebook = jupytext.reads(path.read_text(encoding="utf-8"), fmt="py:percent")
    lesson = Lesson(path=path, cells=tuple(notebook.cells), **_header(path, notebook.metadata))
    _check_structure(lesson)
    return lesson


def assets_of(lessons: Iterable[Lesson]) -> list[str]:
    """Every asset that one of the lessons opens, once, in the order of `ASSETS`."""
    opened = {name for lesson in lessons for name in lesson.assets}
    return [name for name in ASSETS if name in opened]


def build_notebook(lesson: Lesson, course: Course, form: str) -> NotebookNode:
    """The lesson in one of `FORMS`, without outputs.

    Raises:
        ValueError: unknown form.
    """
    if form not in FORMS:
        raise ValueError(f"Unknown form {form!r}; choose one of {', '.join(FORMS)}.")
    cells = [_markdown(_title(lesson, course, form))]
    for cell in lesson.cells:
        tags = cell.metadata.get("tags", [])
        if "install" in tags:
            cells.append(_code(_install(course), tags))
        elif "exercise" in tags:
            exercise = take_apart(cell.source)
            if form == "solutions":
                cells.append(_code(exercise.code(exercise.solution), tags))
            else:
                cells += [_code(exercise.code(exercise.stub), tags), _markdown(_answer(exercise))]
        elif cell.cell_type == "markdown":
            cells.append(_markdown(cell.source))
        else:
            cells.append(_code(cell.source, tags))
    _number(cells)
    return nbformat.v4.new_notebook(cells=cells, metadata=_metadata(lesson))


def keep_outputs(notebook: NotebookNode, earlier: NotebookNode) -> bool:
    """Copy the outputs of `earlier` into `notebook` if its lesson code is the same; the install cell doesn't count.

    Returns whether they were copied.
    """
    new, old = _code_cells(notebook), _code_cells(earlier)
    if [cell.source for cell in new] != [cell.source for cell in old]:
        return False
    for cell, before in zip(new, old, strict=True):
        cell.outputs = tidy_outputs(before.outputs)
    return True


def tidy_outputs(outputs: Iterable[NotebookNode]) -> list[NotebookNode]:
    """What is worth committing of a cell's outputs.

    Left out: everything on standard error (progress bars, warnings with paths of this machine), widgets, execution
    counts, the frames of an error. Pieces of one stream are joined, since where a kernel cuts them depends on timing.
    Pictures get a palette: a third of the size, and the difference can't be seen.
    """
    kept: list[NotebookNode] = []
    for output in copy.deepcopy(list(outputs)):
        if output.output_type == "stream":
            if output.name == "stderr":
                continue
            if kept and kept[-1].output_type == "stream":
                kept[-1].text += output.text
                continue
        if any("widget" in kind for kind in output.get("data", {})):
            continue
        if output.output_type == "error":  # an error shown on purpose: its frames are paths of this machine
            output.traceback = [f"{output.ename}: {output.evalue}"]
        if "execution_count" in output:
            output.execution_count = None
        if "image/png" in output.get("data", {}):
            output.data["image/png"] = with_palette(output.data["image/png"])
        kept.append(output)
    return kept


def with_palette(png: str) -> str:
    """A PNG in base64 with at most 256 colours; one that has a palette or lets something shine through stays."""
    with Image.open(io.BytesIO(base64.b64decode(png))) as image:
        if image.mode not in ("RGB", "RGBA") or (image.mode == "RGBA" and image.getextrema()[3] != (255, 255)):
            return png
        # Median cut spoils the ends of colour bars; this keeps rare colours, and k-means evens out the rest.
        few = image.convert("RGB").quantize(method=Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE)
    data = io.BytesIO()
    few.save(data, "PNG", optimize=True)
    return base64.b64encode(data.getvalue()).decode("ascii")


def notebook_paths(lesson: Lesson, folder: Path) -> dict[str, Path]:
    """Where the forms of a lesson belong below the notebooks folder."""
    return {
        "exercises": folder / f"{lesson.name}.ipynb",
        "solutions": folder / "solutions" / f"{lesson.name}.ipynb",
    }


def render(lesson: Lesson, course: Course, folder: Path, *, executed: NotebookNode | None = None) -> dict[Path, str]:
    """The text of both notebooks of a lesson as they should stand below `folder`, by path.

    The outputs of the exercise form come from `executed`, or else from the notebook that is there already if it has
    the same code; solutions have none.
    """
    texts = {}
    for form, path in notebook_paths(lesson, folder).items():
        notebook = build_notebook(lesson, course, form)
        if form == "exercises" and executed is not None:
            keep_outputs(notebook, executed)
        elif form == "exercises" and path.exists():
            keep_outputs(notebook, nbformat.read(path, as_version=4))
        texts[path] = to_text(notebook)
    return texts


def fill_table(page: str, lessons: Iterable[Lesson], course: Course) -> str:
    """The page with the table of lessons between `TABLE_BEGIN` and `TABLE_END`; without these lines, as it is."""
    before, begin, rest = page.partition(TABLE_BEGIN)
    _, end, after = rest.partition(TABLE_END)
    if not end:
        return page
    rows = ["| | lesson | minutes | | |", "|---|---|---|---|---|"]
    for lesson in lessons:
        path = f"notebooks/{lesson.name}.ipynb"
        rows.append(
            f"| {lesson.number} | [{lesson.title}]({path}) | {lesson.minutes} "
            f"| [![Open in Colab]({_BADGE})]({course.colab(path)}) "
            f"| [solutions](notebooks/solutions/{lesson.name}.ipynb) |"
        )
    return "\n".join([before + begin, *rows, end + after])


def to_text(notebook: NotebookNode) -> str:
    """The notebook as JSON: sorted keys, one trailing newline, checked against the notebook schema."""
    nbformat.validate(notebook)
    return nbformat.writes(notebook).rstrip("\n") + "\n"


def take_apart(source: str) -> Exercise:
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
    exercise = Exercise(
        before=blocks["before"].strip("\n"),
        solution=blocks["solution"].strip("\n"),
        stub="\n".join(line[2:] for line in stub).strip("\n"),
        after=blocks["after"].strip("\n"),
    )
    if not _ends_with_check(exercise.after):
        raise LessonError("an exercise cell ends with its check, a call check_…(…) after # END STUB, and nothing more.")
    return exercise


def _ends_with_check(code: str) -> bool:
    try:
        last = ast.parse(code).body[-1]
    except (SyntaxError, IndexError):
        return False
    named = isinstance(last, ast.Expr) and isinstance(last.value, ast.Call) and isinstance(last.value.func, ast.Name)
    return named and last.value.func.id.startswith("check_") and code.endswith(")")


def _header(path: Path, metadata: NotebookNode) -> dict:
    """The `course` mapping of the source's header, checked."""
    header = metadata.get("course")
    kinds = {"title": str, "minutes": int, "hardware": str, "prerequisites": str, "assets": list}
    if not isinstance(header, dict) or set(header) != set(kinds):
        raise LessonError(
            f"{path.name}: the header needs `jupyter:` with a mapping `course:` below it that has exactly "
            f"{', '.join(kinds)}; it has {sorted(header) if isinstance(header, dict) else header!r}."
        )
    for key, kind in kinds.items():
        if not isinstance(header[key], kind) or (not header[key] and kind is not list):
            raise LessonError(f"{path.name}: `{key}` in the header must be a {kind.__name__}, not {header[key]!r}.")
    if header["hardware"] not in HARDWARE:
        raise LessonError(f"{path.name}: `hardware` is {header['hardware']!r}; choose one of {', '.join(HARDWARE)}.")
    unknown = [name for name in header["assets"] if name not in ASSETS]
    if unknown:
        raise LessonError(f"{path.name}: `assets` names {unknown[0]!r}; choose from {', '.join(ASSETS)}.")
    return dict(header)


def _check_structure(lesson: Lesson) -> None:
    for problem in _problems(lesson):
        raise LessonError(f"{lesson.path.name}: {problem}")


def _problems(lesson: Lesson) -> Iterator[str]:
    code = [cell for cell in lesson.cells if cell.cell_type == "code"]
    for position, cell in enumerate(lesson.cells, start=1):
        if cell.cell_type not in ("code", "markdown"):
            yield f"cell {position} is {cell.cell_type}; use code and markdown cells only."
        for tag in cell.metadata.get("tags", []):
            if tag not in TAGS:
                yield f"cell {position} has the unknown tag {tag!r}; the builder knows {', '.join(TAGS)}."
        if cell.cell_type == "markdown" and re.match(r"# \S", cell.source):
            yield f"cell {position} is a title; the builder writes it from the header, start headings at `##`."
        is_exercise = "exercise" in cell.metadata.get("tags", [])
        if cell.cell_type == "code" and not is_exercise and _MARKER.search(cell.source):
            yield f'cell {position} has BEGIN/END markers but no tag; write `# %% tags=["exercise"]` above it.'
    installs = [cell for cell in code if "install" in cell.metadata.get("tags", [])]
    if len(installs) != 1 or code[0] is not installs[0] or installs[0].source.strip():
        yield (
            'the first code cell, and only that one, is `# %% tags=["install"]` with nothing below it; the builder '
            "fills it."
        )
    if not any(re.search(rf'\bstart\("{lesson.number}"', cell.source) for cell in code):
        yield f'no cell calls start("{lesson.number}").'
    yield from _exercise_problems(lesson)


def _exercise_problems(lesson: Lesson) -> Iterator[str]:
    count = 0
    for before, cell in zip((None, *lesson.cells), lesson.cells, strict=False):
        if "exercise" not in cell.metadata.get("tags", []):
            continue
        count += 1
        try:
            take_apart(cell.source)
        except LessonError as error:
            yield f"exercise {count}: {error}"
        text = before.source if before is not None and before.cell_type == "markdown" else ""
        headings = _EXERCISE_HEADING.findall(text)
        if headings != [str(count)]:
            yield (
                f"exercise {count}: the markdown cell just above it needs the heading "
                f"`### Exercise {count} · ●○○ · 5 minutes` (with its own difficulty and minutes)."
            )
        if _HINT not in text or "</details>" not in text:
            yield f"exercise {count}: the text above it needs a hint, {_HINT} … </details>."
    titled = sum(len(_EXERCISE_HEADING.findall(cell.source)) for cell in lesson.cells if cell.cell_type == "markdown")
    if titled != count:
        yield f'{titled} exercise headings but {count} cells tagged "exercise"; each heading is followed by its cell.'


def _title(lesson: Lesson, course: Course, form: str) -> str:
    paths = {"exercises": f"notebooks/{lesson.name}.ipynb", "solutions": f"notebooks/solutions/{lesson.name}.ipynb"}
    other = "solutions" if form == "exercises" else "exercises"
    row = [
        f"[![Open in Colab]({_BADGE})]({course.colab(paths[form])})",
        f"[{other}]({course.page(paths[other])})",
        f"[source]({course.page(f'lessons/{lesson.name}.py')})",
    ]
    return "\n".join(
        [
            " · ".join(row),
            "",
            f"# {lesson.number} · {lesson.title}" + (" (solutions)" if form == "solutions" else ""),
            "",
            f"**Time:** {lesson.minutes} minutes  ",
            f"**Hardware:** {HARDWARE[lesson.hardware]}  ",
            f"**Before this:** {lesson.prerequisites}  ",
            "**Exercises:** on Colab, first switch the AI completion off (*Tools > Settings > AI Assistance*): "
            "it would solve them for you.",
        ]
    )


def _install(course: Course) -> str:
    return "\n".join(
        [
            "# Where the course isn't there yet (Colab, Kaggle and the like), this adds it; nothing else is changed.",
            "import importlib.util",
            "import os",
            "from pathlib import Path",
            "",
            "# Threads that wait should sleep, not spin: beside another busy program that is several times faster.",
            'if "OMP_WAIT_POLICY" not in os.environ:',
            *(f'    os.environ.setdefault("{name}", "{value}")' for name, value in SLEEPING_THREADS.items()),
            "",
            'if importlib.util.find_spec("course_utils") is None:',
            '    if any((folder / "course.py").exists() for folder in (Path.cwd(), *Path.cwd().parents)):',
            '        raise ModuleNotFoundError("This Python has no course. In its clone run: python course.py lab")',
            f'    %pip install -q "{course.requirement}"',
            "    importlib.invalidate_caches()",
            '    if importlib.util.find_spec("course_utils") is None:  # pip failed, which does not stop a notebook',
            '        remedy = "On Kaggle, switch the internet on in the settings, and run this cell again."',
            '        raise ModuleNotFoundError(f"The course was not installed; pip says why above. {remedy}")',
        ]
    )


def _answer(exercise: Exercise) -> str:
    return f"<details><summary>Answer</summary>\n\n```python\n{exercise.solution}\n```\n\n</details>"


def _metadata(lesson: Lesson) -> dict:
    metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    if lesson.hardware == "gpu":  # preselects the runtime on Colab
        metadata |= {"accelerator": "GPU", "colab": {"gpuType": "T4", "toc_visible": True}}
    return metadata


def _markdown(source: str) -> NotebookNode:
    return nbformat.v4.new_markdown_cell(source)


def _code(source: str, tags: list[str]) -> NotebookNode:
    return nbformat.v4.new_code_cell(source, metadata={"tags": list(tags)} if tags else {})


def _number(cells: list[NotebookNode]) -> None:
    """Ids from content, so that an edit changes the id of the edited cell alone; a repeated cell gets a suffix."""
    seen: dict[str, int] = {}
    for cell in cells:
        digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:12]
        repeats = seen[digest] = seen.get(digest, 0) + 1
        cell.id = digest if repeats == 1 else f"{digest}-{repeats}"


def _code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [
        cell for cell in notebook.cells if cell.cell_type == "code" and "install" not in cell.metadata.get("tags", [])
    ]

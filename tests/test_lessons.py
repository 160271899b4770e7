"""The lessons themselves: sources well-formed, notebooks fresh and clean, and every one of them runs."""

import ast
import itertools
import re
from pathlib import Path

import nbformat
import pytest
from sample_lesson import LESSON, write_lesson

from course_tools.lessons import authoring, notebooks, quotes, runner

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
COURSE = notebooks.Course.read(ROOT)
PATHS = authoring.find_lessons(ROOT / "lessons")

# What a saved output may not show: where the course was run, secrets, noise, addresses other than sources to read.
PRIVATE = re.compile(r"/home/\w|/root\b|/Users/\w|/tmp/\w|[A-Z]:\\\\?Users|site-packages|\bhf_[A-Za-z0-9]{20,}")
ADDRESS = re.compile(r"https?://(?!(?:\w+\.)*(?:arxiv\.org|doi\.org|github\.com|huggingface\.co|w3\.org)\b)[^\s\"'<]+")

each_lesson = pytest.mark.parametrize("path", PATHS, ids=[path.stem for path in PATHS])


def saved(path, form="exercises"):
    return nbformat.read(notebooks.notebook_paths(authoring.read_lesson(path), NOTEBOOKS)[form], as_version=4)


def outputs_of(notebook):
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def texts_of(output):
    data = output.get("data", {})
    return [
        output.get("text", ""),
        *output.get("traceback", []),
        *(text for kind, text in data.items() if not kind.startswith("image/")),
    ]


@each_lesson
def test_notebooks_are_fresh(path):
    for file, text in notebooks.render(authoring.read_lesson(path), COURSE, NOTEBOOKS).items():
        assert file.exists(), f"{file.name} is missing: run `python course.py build {path.stem[:2]} --execute`"
        assert file.read_text(encoding="utf-8") == text, f"stale: run `python course.py build {path.stem[:2]}`"


def test_no_function_is_pasted_from_lesson_to_lesson():
    """What two lessons need has one home, in course_utils."""
    homes: dict[str, str] = {}
    for path in PATHS:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                owner = homes.setdefault("\n".join(map(ast.unparse, body)), path.stem)
                assert owner == path.stem, f"{node.name} of {path.stem} is in {owner}, too"


def test_no_notebook_without_a_lesson():
    built = {file.stem for file in NOTEBOOKS.rglob("[0-9][0-9]_*.ipynb") if ".ipynb_checkpoints" not in file.parts}
    assert built <= {path.stem for path in PATHS}


def test_table_in_the_readme_is_fresh():
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    lessons = [authoring.read_lesson(path) for path in PATHS]
    assert notebooks.fill_table(page, lessons, COURSE) == page, "run `python course.py build`"


@each_lesson
def test_badges_and_install_cell_point_to_this_course(path):
    for form, folder in {"exercises": "notebooks", "solutions": "notebooks/solutions"}.items():
        cells = saved(path, form).cells
        address = f"{COURSE.repository}/blob/{COURSE.ref}/{folder}/{path.stem}.ipynb"
        assert f"(https://colab.research.google.com/github/{address})" in cells[0].source
        install = next(cell.source for cell in cells if cell.cell_type == "code")
        assert f'"pruning-llms @ git+https://github.com/{COURSE.repository}@{COURSE.ref}"' in install


@each_lesson
@pytest.mark.parametrize("form", notebooks.FORMS)
def test_saved_outputs_are_there_and_clean(path, form):
    notebook = saved(path, form)
    assert outputs_of(notebook), f"no saved outputs: run `python course.py build {path.stem[:2]} --execute`"
    assert "widgets" not in notebook.metadata
    for output in outputs_of(notebook):
        assert output.get("name") != "stderr"
        for text in map(str, texts_of(output)):
            assert not PRIVATE.search(text), PRIVATE.search(text)
            assert not ADDRESS.search(text), ADDRESS.search(text)


@each_lesson
def test_saved_solutions_are_correct(path):
    for number, cell in enumerate(exercise_cells(saved(path, "solutions")), start=1):
        assert f"Exercise {number}: correct." in printed(cell)


@each_lesson
def test_every_picture_has_its_sentence_and_its_text(path):
    """For those who don't see it, the alternative text; for everyone, what it shows, in the cell below it."""
    cells = saved(path).cells
    for cell, below in itertools.pairwise(cells):
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                alt = output.metadata.get("image/png", {}).get("alt", "")
                assert len(alt.split()) >= 5, f"end the figure with show(…): {cell.source[:200]}"
                assert not re.match("#|!|<details", below.source) and below.cell_type == "markdown", (
                    f"say in the cell below what this figure shows: {cell.source[:200]}"
                )


@each_lesson
def test_what_the_prose_quotes_stands_in_the_saved_outputs(path):
    assert quotes.unsupported(saved(path)) == []


@each_lesson
def test_structure_is_complete(path):
    cells = saved(path).cells
    headings = [line for cell in cells if cell.cell_type == "markdown" for line in cell.source.splitlines()]
    for heading in ("## What you will learn", "## Three questions", "## Take-aways", "## References"):
        assert heading in headings, f"no heading {heading!r}"
    exercises = [number for number, cell in enumerate(cells) if "exercise" in cell.metadata.get("tags", [])]
    assert exercises, "no exercises"
    for number in exercises:
        assert "<summary>Hint</summary>" in cells[number - 1].source
        assert "check_" in cells[number].source
        assert "<summary>Answer</summary>" in cells[number + 1].source


@each_lesson
def test_each_check_is_used(path):
    checks = ROOT / "course_utils" / "exercises" / f"lesson_{path.stem[:2]}.py"
    defined = {node.name for node in ast.parse(checks.read_text(encoding="utf-8")).body if hasattr(node, "name")}
    called = set(re.findall(r"^(check_\w+)\(", "\n".join(cell.source for cell in saved(path).cells), re.MULTILINE))
    assert called == {name for name in defined if name.startswith("check_")}


@pytest.mark.embedded
@each_lesson
def test_lesson_runs_unsolved_and_its_solutions_are_accepted(path, tmp_path, capsys):
    """One run of the reader's notebook; after each stub, its solution is tried in the same place."""
    lesson = authoring.read_lesson(path)
    notebook = notebooks.both_forms(lesson, COURSE)
    with capsys.disabled():
        print(f"\n{lesson.name} ", end="", flush=True)
        only_declared(notebook, lesson)
        result = runner.execute(notebook, name=lesson.name, profile="embedded", folder=tmp_path)
        print(f"{result.seconds:.0f} s, {runner.gigabytes(result.peak_bytes)} ", end="", flush=True)
    assert result.failure is None, str(result.failure)
    says = {"exercises": "not solved yet.", "solutions": "correct."}
    for form, verdict in says.items():
        cells = exercise_cells(notebooks.form_of(notebook, form))
        for number, cell in enumerate(cells, start=1):
            assert f"Exercise {number}: {verdict}" in printed(cell), printed(cell)


def test_lesson_that_opens_what_it_does_not_declare_fails(tmp_path, monkeypatch):
    opens = LESSON.replace("6 * 7", 'from course_utils import assets\n\nassets.fetch("texts")')
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(runner, "CELL_TIMEOUT", 60)
    for declared, error in {"": "ValueError: Unknown asset 'texts'", "texts": "AssetError: pip could not"}.items():
        lesson = authoring.read_lesson(write_lesson(tmp_path, opens.replace("[]", f"[{declared}]")))
        notebook = notebooks.build_notebook(lesson, COURSE, "exercises")
        only_declared(notebook, lesson)
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", "")
        result = runner.execute(notebook, name=lesson.name, profile="embedded", folder=tmp_path)
        assert result.failure.error.startswith(error)


def only_declared(notebook, lesson):
    """Make the lesson's run know only the assets that its header names, so that opening another one fails."""
    install = next(cell for cell in notebook.cells if cell.cell_type == "code")
    install.source += (
        "\nfrom course_utils.assets import ASSETS"
        f"\nfor name in ASSETS.keys() - {set(lesson.assets)!r}:"
        "\n    del ASSETS[name]"
    )


def exercise_cells(notebook):
    return [cell for cell in notebook.cells if "exercise" in authoring.tags_of(cell)]


def printed(cell):
    return "".join(output.get("text", "") for output in cell.outputs)

"""The lessons themselves: sources well-formed, notebooks fresh and clean, and every one of them runs."""

import ast
import itertools
import re
from pathlib import Path

import nbformat
import pytest
from retyped import passed_by, trial_of
from sample_lesson import LESSON, write_lesson

from course_tools.lessons import authoring, notebooks, quotes, runner
from course_tools.lessons.cells import tags_of

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
COURSE = notebooks.Course.read(ROOT)
LESSONS = [authoring.read_lesson(path) for path in authoring.find_lessons(ROOT / "lessons")]
DEEPER = [authoring.read_lesson(path) for path in authoring.find_lessons(ROOT / "lessons", [authoring.DEEPER])]

# What a saved output may not show: where the course was run, secrets, noise, addresses other than sources to read.
PRIVATE = re.compile(r"/home/\w|/root\b|/Users/\w|/tmp/\w|[A-Z]:\\\\?Users|site-packages|\bhf_[A-Za-z0-9]{20,}")
ADDRESS = re.compile(r"https?://(?!(?:\w+\.)*(?:arxiv\.org|doi\.org|github\.com|huggingface\.co|w3\.org)\b)[^\s\"'<]+")

each_lesson = pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.name)
each_notebook = pytest.mark.parametrize("lesson", [*LESSONS, *DEEPER], ids=lambda lesson: lesson.name)


def saved(lesson, form="exercises"):
    return nbformat.read(notebooks.notebook_paths(lesson, NOTEBOOKS)[form], as_version=4)


def outputs_of(notebook):
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def texts_of(output):
    data = output.get("data", {})
    return [
        output.get("text", ""),
        *output.get("traceback", []),
        *(text for kind, text in data.items() if not kind.startswith("image/")),
    ]


@each_notebook
def test_notebooks_are_fresh(lesson):
    for file, text in notebooks.render(lesson, COURSE, NOTEBOOKS).items():
        assert file.exists(), f"{file.name} is missing: run `python3 course.py build {lesson.number} --execute`"
        assert file.read_text(encoding="utf-8") == text, f"stale: run `python3 course.py build {lesson.number}`"


def test_no_notebook_without_a_lesson():
    built = {file.stem for file in NOTEBOOKS.rglob("[0-9][0-9]*_*.ipynb") if ".ipynb_checkpoints" not in file.parts}
    assert built <= {lesson.name for lesson in [*LESSONS, *DEEPER]}


def test_table_in_the_readme_is_fresh():
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    assert notebooks.fill_table(page, [*LESSONS, *DEEPER], COURSE) == page, "run `python3 course.py build`"


@each_notebook
def test_saved_outputs_are_there_and_clean(lesson):
    for form in notebooks.notebook_paths(lesson, NOTEBOOKS):
        notebook = saved(lesson, form)
        assert outputs_of(notebook), f"no saved outputs: run `python3 course.py build {lesson.number} --execute`"
        assert "widgets" not in notebook.metadata
        for output in outputs_of(notebook):
            assert output.get("name") != "stderr"
            for text in map(str, texts_of(output)):
                assert not PRIVATE.search(text), PRIVATE.search(text)
                assert not ADDRESS.search(text), ADDRESS.search(text)


@each_lesson
def test_saved_solutions_are_correct(lesson):
    for number, cell in enumerate(exercise_cells(saved(lesson, "solutions")), start=1):
        assert f"Exercise {number}: correct." in printed(cell)


@each_notebook
def test_every_picture_has_its_sentence_and_its_text(lesson):
    """For those who don't see it, the alternative text; for everyone, what it shows, in the cell below it."""
    cells = saved(lesson).cells
    for cell, below in itertools.pairwise(cells):
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                alt = output.metadata.get("image/png", {}).get("alt", "")
                assert len(alt.split()) >= 5, f"end the figure with show(…): {cell.source[:200]}"
                assert not re.match("#|!|<details", below.source) and below.cell_type == "markdown", (
                    f"say in the cell below what this figure shows: {cell.source[:200]}"
                )


@each_notebook
def test_what_the_prose_quotes_stands_in_the_saved_outputs(lesson):
    assert quotes.unsupported(saved(lesson)) == []


@each_lesson
def test_structure_is_complete(lesson):
    text = "\n".join(cell.source for cell in lesson.cells if cell.cell_type == "markdown")
    headings = {"## The question", "## Quiz", "## Take-aways", "## References"}
    assert headings <= {*text.splitlines()}


@each_lesson
def test_each_check_is_used(lesson):
    checks = ROOT / "course_utils" / "lessons" / "exercises" / f"lesson_{lesson.number}.py"
    defined = {node.name for node in ast.parse(checks.read_text(encoding="utf-8")).body if hasattr(node, "name")}
    own = [each for each in [*LESSONS, *DEEPER] if each.number.startswith(lesson.number)]
    code = "\n".join(cell.source for each in own for cell in saved(each).cells)
    called = set(re.findall(r"^(check_\w+)\(", code, re.MULTILINE))
    assert called == {name for name in defined if name.startswith("check_")}


@pytest.mark.parametrize("deeper", DEEPER, ids=lambda deeper: deeper.name)
def test_deeper_notebook_is_linked_at_the_end_of_its_lesson(deeper):
    (lesson,) = (lesson for lesson in LESSONS if lesson.number == deeper.number[:2])
    assert f"(deeper/{deeper.name}.ipynb)" in "".join(cell.source for cell in saved(lesson).cells[-3:])


def has_changed(lesson):
    """Whether its saved notebook shows outputs of other code than its source has, or none."""
    file = notebooks.notebook_paths(lesson, NOTEBOOKS)["exercises"]
    return not outputs_of(nbformat.reads(notebooks.render(lesson, COURSE, NOTEBOOKS)[file], as_version=4))


def runs(lesson):
    """Parameter of a test that runs the lesson; tests/conftest.py tells when it begins and what it took."""
    return pytest.param(lesson, id=lesson.name, marks=[pytest.mark.timed] if lesson.timed else [])


# The weekly workflow runs all deeper notebooks; here only those that nobody has run yet as they are.
CHANGED = [lesson for lesson in DEEPER if has_changed(lesson)]
each_lesson_runs = pytest.mark.parametrize("lesson", [*map(runs, [*LESSONS, *CHANGED])])


@pytest.mark.embedded
@each_lesson_runs
def test_lesson_runs_unsolved_and_its_solutions_are_accepted(lesson, tmp_path, record_property):
    """But for the last exercise's, which takes the longest: it is tried where outputs are saved, and weekly."""
    run_both_forms(lesson, "embedded", tmp_path, record_property, last=False)


@pytest.mark.smoke
@each_lesson_runs
def test_lesson_runs_in_the_smoke_profile(lesson, tmp_path, record_property):
    """On random models and made-up text, in seconds: every cell runs, and every solution is judged.

    Not all are right there: some have to beat others, and on random models one choice is as good as another.
    """
    run_both_forms(lesson, "smoke", tmp_path, record_property)


@pytest.mark.retyped
@pytest.mark.parametrize("lesson", [*map(runs, LESSONS)])
def test_lesson_runs_solved_and_no_variable_passes_its_last_exercise(lesson, tmp_path, record_property):
    """Variables are retyped as its answer, after all solutions."""
    notebook = run_both_forms(lesson, "embedded", tmp_path, record_property, more=[trial_of(lesson)])
    assert passed_by(notebook.cells[-1]) == []


def run_both_forms(lesson, profile, folder, record_property, *, last=True, more=()):
    """One run of the reader's notebook; after each stub, its solution is tried in the same place; then more cells."""
    notebook = notebooks.both_forms(lesson, COURSE)
    exercises = len(exercise_cells(notebook)) // 2
    if exercises and not last:
        notebook.cells.remove(exercise_cells(notebook)[-1])
    notebook.cells += more
    only_declared(notebook, lesson.assets)
    result = runner.execute(notebook, name=lesson.name, profile=profile, folder=folder)
    record_property("took", f"{result.seconds:.0f} s, {runner.gigabytes(result.peak_bytes)}")
    assert result.failure is None, str(result.failure)
    judged = r"correct\." if profile == "embedded" else r"(correct|not yet)\."
    for form, verdict in {"exercises": r"not solved yet\.", "solutions": judged}.items():
        cells = exercise_cells(notebooks.form_of(notebook, form))
        assert len(cells) == max(0, exercises - (form == "solutions" and not last))
        for number, cell in enumerate(cells, start=1):
            assert re.search(f"Exercise {number}: {verdict}", printed(cell)), printed(cell)
    return notebook


def test_lessons_about_time_measure_some():
    for lesson in LESSONS:
        measures = any("measure_speed(" in cell.source for cell in lesson.cells if cell.cell_type == "code")
        assert measures or not lesson.timed, f"{lesson.name} says that it is about time"


def test_lesson_that_opens_what_it_does_not_declare_fails(tmp_path, monkeypatch):
    opens = LESSON.replace("6 * 7", 'from course_utils import assets\n\nassets.fetch("texts")')
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(runner, "CELL_TIMEOUT", 60)
    for declared, error in {"": "ValueError: Unknown asset 'texts'", "texts": "AssetError: pip could not"}.items():
        lesson = authoring.read_lesson(write_lesson(tmp_path, opens.replace("[]", f"[{declared}]")))
        notebook = notebooks.build_notebook(lesson, COURSE, "exercises")
        only_declared(notebook, lesson.assets)
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", "")
        result = runner.execute(notebook, name=lesson.name, profile="embedded", folder=tmp_path)
        assert result.failure.error.startswith(error)


def only_declared(notebook, names):
    """Make the lesson's run know only these assets, so that opening another one fails."""
    install = next(cell for cell in notebook.cells if cell.cell_type == "code")
    install.source += (
        f"\nfrom course_utils.text.assets import ASSETS\n"
        f"for name in ASSETS.keys() - {set(names)!r}:\n    del ASSETS[name]"
    )


def exercise_cells(notebook):
    return [cell for cell in notebook.cells if "exercise" in tags_of(cell)]


def printed(cell):
    return "".join(output.get("text", "") for output in cell.outputs)

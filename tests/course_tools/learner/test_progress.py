"""Progress: read from what Jupyter saved, and nothing claimed that can't be read."""

import dataclasses
import datetime
import shutil

import nbformat
import pytest
from sample_lesson import LESSON, write_lesson

from course_tools.learner import progress, terminal_quiz
from course_tools.lessons import notebooks, runner
from course_tools.lessons.authoring import read_lesson

COURSE = notebooks.Course("someone/somewhere", "main")
DAY = datetime.date(2026, 1, 2)


@pytest.fixture
def lesson(tmp_path):
    return read_lesson(write_lesson(tmp_path / "lessons"))


@pytest.fixture
def folder(tmp_path, lesson):
    (tmp_path / "mine").mkdir()
    save(tmp_path / "mine" / "01_small.ipynb", notebooks.build_notebook(lesson, COURSE, "exercises"))
    return tmp_path / "mine"


def save(path, notebook):
    path.write_text(notebooks.to_text(notebook), encoding="utf-8")


def exercise_cell(notebook):
    (cell,) = (cell for cell in notebook.cells if "exercise" in cell.metadata.get("tags", []))
    return cell


def edit(path, *, count=2, text="Exercise 1: correct. Doubled.\n"):
    """The exercise's cell as Jupyter saves it after a run."""
    notebook = nbformat.read(path, as_version=4)
    cell = exercise_cell(notebook)
    cell.execution_count, cell.outputs = count, [nbformat.v4.new_output("stream", text=text)]
    save(path, notebook)


def test_fresh_copy_shows_nothing(lesson, folder):
    found = progress.standing(lesson, folder)
    assert (found.cells, found.solved, found.begun) == ((4, 0), frozenset(), False)
    assert progress.standing(lesson, folder / "empty").begun is False


def test_a_real_run_is_read(lesson, folder, tmp_path):
    """A learner runs the lesson unsolved, then solves it: what the kernel saved is what is read."""
    for form, solved in ("exercises", set()), ("solutions", {1}):
        notebook = notebooks.build_notebook(lesson, COURSE, form)
        result = runner.execute(notebook, name="01_small", profile="smoke", folder=tmp_path / "work")
        assert result.failure is None
        save(folder / "01_small.ipynb", notebook)
        found = progress.standing(lesson, folder)
        assert found.cells == (4, 4) and found.solved == solved


@pytest.mark.parametrize(
    "saved",
    [
        {"text": "Exercise 1: not solved yet. Return twice the number.\n"},
        {"text": "Exercise 1: not yet. Twice 3 is 6.\n"},
        {"text": "Exercise 2: correct. Doubled.\n"},
        {"count": None},
    ],
)
def test_only_correct_of_a_cell_that_ran_counts(lesson, folder, saved):
    edit(folder / "01_small.ipynb", **saved)
    assert not progress.standing(lesson, folder).solved


def test_any_copy_counts(lesson, folder):
    shutil.copy(folder / "01_small.ipynb", folder / "01_small.v2.ipynb")
    edit(folder / "01_small.ipynb")
    assert progress.standing(lesson, folder).solved == {1}


@pytest.mark.parametrize(
    ("executed", "solved", "left"), [(0, [], 35), (2, [], 20), (4, [], 5), (4, [1], 0), (0, [1], 30)]
)
def test_minutes_left_are_of_exercises_and_of_cells(executed, solved, left, tmp_path):
    lesson = read_lesson(write_lesson(tmp_path / "lessons", LESSON.replace("minutes: 10", "minutes: 30 to 40 minutes")))
    found = progress.standing(lesson, tmp_path)
    found = dataclasses.replace(found, cells=(4, executed), solved=frozenset(solved))
    assert found.minutes_left == left


def test_next_step(lesson, folder, tmp_path):
    second = read_lesson(write_lesson(tmp_path / "lessons", LESSON.replace('start("01"', 'start("02"'), "02_more"))

    def step():
        return progress.next_step([progress.standing(one, folder) for one in (lesson, second)])

    assert step() == "Next: lesson 01, A small lesson (10 minutes): `python3 course.py lab`"
    edit(folder / "01_small.ipynb", text="Exercise 1: not yet.")
    assert step() == "Next: lesson 01, exercise 1 · ●○○ · 5 minutes"
    edit(folder / "01_small.ipynb")
    assert step() == "Next: the questions of lesson 01: `python3 course.py quiz 01`"
    terminal_quiz.ask(lesson, folder, read=lambda prompt: "B", say=lambda line: None)
    assert step().startswith("Next: lesson 02")
    save(folder / "02_more.ipynb", nbformat.read(folder / "01_small.ipynb", as_version=4))
    assert step().startswith("All exercises are solved"), "the two lessons ask the same questions"


def test_certificate_says_what_was_measured(lesson, folder, tmp_path):
    other = LESSON.replace('start("01"', 'start("02"').replace(
        "times 2?", "by two?"
    )  # questions are told by their text
    idle = read_lesson(write_lesson(tmp_path / "lessons", other, "02_more"))
    edit(folder / "01_small.ipynb")
    terminal_quiz.ask(lesson, folder, read=lambda prompt: "B", say=lambda line: None)
    found = [progress.standing(one, folder) for one in (lesson, idle)]
    page = progress.certificate(found, name=" Ada <b> {x} ", version="1.2", day=DAY)
    assert "Ada &lt;b&gt; {x}" in page and "2026-01-02" in page and "version 1.2" in page
    for part in ("<td>1 of 4</td>", "<td>1 of 1</td>", "<td>3 of 3</td>"):
        assert page.count(part) == 2, "in its row, and in the sum"
    assert "02 · A small lesson" not in page, "it isn't begun"
    assert "http" not in page and str(folder) not in page, "no network, and nothing of the machine"


def test_certificate_is_refused(lesson, folder):
    fresh = [progress.standing(lesson, folder)]
    with pytest.raises(ValueError, match="nothing to certify yet"):
        progress.certificate(fresh, name="Ada", version="1", day=DAY)
    for name in ("", "  ", "x" * 81):
        with pytest.raises(ValueError, match="'name' is what the page is to be made out to"):
            progress.certificate(fresh, name=name, version="1", day=DAY)

"""A lesson's minutes: what is counted, that it agrees with what the saved run shows, and its sections."""

from pathlib import Path

import nbformat
import pytest
from sample_lesson import LESSON, write_lesson

from course_tools.lessons.authoring import find_lessons, read_lesson
from course_tools.lessons.minutes import Load, load_of, loads_of, minutes_by_section
from course_tools.lessons.notebooks import content_id, notebook_paths

ROOT = Path(__file__).resolve().parents[3]
LESSONS = find_lessons(ROOT / "lessons")
each_lesson = pytest.mark.parametrize("path", LESSONS, ids=[path.stem[:2] for path in LESSONS])


def text(source, *tags):
    return nbformat.v4.new_markdown_cell(source, metadata={"tags": list(tags)})


def code(source, *tags):
    return nbformat.v4.new_code_cell(source, metadata={"tags": list(tags)})


def sections_of(lesson):
    return minutes_by_section(lesson.cells, lesson.minutes)


def test_minutes_are_words_cells_pictures_and_exercises():
    load = Load(words=300, cells=4, lines=99, figures=2, tables=1, exercises=10)
    assert load.minutes == 2 + 6 + 2 + 1 + 10
    assert load + load == Load(600, 8, 198, 4, 2, 20)


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (text("Two words.\n\n<details><summary>One</summary>\n\nfour words are folded\n\n</details>"), Load(words=5)),
        (text("### Exercise 1 · ●○○ · 7 minutes\nDo it."), Load(words=6, exercises=7)),
        (text("For the speaker.", "notes"), Load()),
        (code("", "install"), Load(cells=1)),
        (code("check_it(...)", "exercise"), Load()),
        (code("x = 1\n\n# why\ny = 2"), Load(cells=1, lines=3)),
        (code("draw(1)\nshow('A line.')"), Load(cells=1, lines=2, figures=1)),
        (code("%matplotlib inline\ntable.round(2)"), Load(cells=1, lines=2, tables=1)),
        (code("rows['a']"), Load(cells=1, lines=1, tables=1)),
        (code("table;"), Load(cells=1, lines=1)),
        (code("6 * 7"), Load(cells=1, lines=1)),
        (code("for each in two:\n    display(each)"), Load(cells=1, lines=2, tables=1)),
        (code("print(1)"), Load(cells=1, lines=1)),
        (code("folder.cleanup()"), Load(cells=1, lines=1)),
        (code("not python"), Load(cells=1, lines=1)),
    ],
)  # fmt: skip
def test_load_of_a_cell(cell, expected):
    assert load_of([cell]) == expected


def test_a_function_of_the_lesson_shows_a_table_where_it_returns():
    returns, prints = code("def told():\n    return 1"), code("def told():\n    print(1)")
    assert load_of([returns, code("told()")]).tables == 1
    assert load_of([prints, code("told()")]).tables == 0


@each_lesson
def test_figures_and_tables_are_those_of_the_saved_run(path):
    """Counted from the source, so that nothing has to run. Where this fails, let the cell end with what it shows."""
    lesson = read_lesson(path)
    saved = nbformat.read(notebook_paths(lesson, ROOT / "notebooks")["exercises"], as_version=4)
    outputs = {content_id(cell): cell.outputs for cell in saved.cells if cell.cell_type == "code"}
    for cell, load in zip(lesson.cells, loads_of(lesson.cells), strict=True):
        kinds = [output.get("data", {}).keys() for output in outputs.get(content_id(cell), [])]
        figures = sum("image/png" in kind for kind in kinds)
        tables = sum("text/html" in kind and "image/png" not in kind for kind in kinds)
        assert (load.figures, load.tables) == (figures, tables), cell.source


@each_lesson
def test_sections_add_up_to_the_header(path):
    lesson = read_lesson(path)
    found = sections_of(lesson)
    assert sum(found.values()) == lesson.minutes
    assert all(minutes >= 0 for minutes in found.values()) and "" not in found


def test_exercises_take_what_their_headings_say(tmp_path):
    text = LESSON.replace("# ### Exercise 1", "# ## Two\n#\n# ### Exercise 1")
    lesson = read_lesson(write_lesson(tmp_path, text.replace("· 5 minutes", "· 15 minutes")))
    found = sections_of(lesson)
    assert sum(found.values()) == lesson.minutes and found["Two"] >= 15 and set(found) == {"The question", "Two"}


def test_notes_for_the_speaker_take_no_time(tmp_path):
    told = LESSON.replace(
        '# %% tags=["install"]', '# %% [markdown] tags=["notes"]\n# ' + "word " * 500 + '\n\n# %% tags=["install"]'
    )
    both = [
        sections_of(read_lesson(write_lesson(tmp_path / name, text))) for name, text in {"a": LESSON, "b": told}.items()
    ]
    assert both[0] == both[1]

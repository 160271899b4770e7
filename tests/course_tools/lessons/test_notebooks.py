"""The builder: what it makes of a lesson, that it is deterministic, and that it refuses broken sources."""

import base64
import importlib.util
import io
import json
import os
import re
from dataclasses import replace

import nbformat
import numpy as np
import pytest
from PIL import Image
from sample_lesson import DEEPER, LESSON, write_lesson

from course_tools import processes
from course_tools.lessons import authoring, notebooks
from course_tools.lessons.cells import tags_of
from course_utils.compress import program
from course_utils.support.files import write_text

COURSE = notebooks.Course(repository="someone/somewhere", ref="v1")


@pytest.fixture
def lesson(tmp_path):
    return authoring.read_lesson(write_lesson(tmp_path / "lessons"))


def sources(notebook):
    return [cell.source for cell in notebook.cells]


def with_outputs(notebook, *outputs):
    """The notebook as if its third code cell had been executed."""
    notebook = nbformat.from_dict(json.loads(notebooks.to_text(notebook)))
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    code[2].outputs = list(outputs)
    code[2].execution_count = 3
    return notebook


def stream(name, text):
    return nbformat.v4.new_output("stream", name=name, text=text)


def test_title_cell_has_badge_title_and_facts(lesson):
    title = sources(notebooks.build_notebook(lesson, COURSE, "exercises"))[0]
    colab = "https://colab.research.google.com/github/someone/somewhere/blob/v1/notebooks/01_small.ipynb"
    assert title.startswith(f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab})")
    assert "https://github.com/someone/somewhere/blob/v1/notebooks/solutions/01_small.ipynb" in title
    assert "\n# 01 · A small lesson\n" in title
    assert "10 minutes" in title and "**Before this:** nothing" in title and "switch the AI completion off" in title


def test_install_cell_is_folded_under_its_title(lesson):
    """On Colab as a form with a title; JupyterLab shows the first line of what it folds."""
    for form in notebooks.FORMS:
        cells = notebooks.build_notebook(lesson, COURSE, form).cells
        install, *others = (cell for cell in cells if cell.cell_type == "code")
        assert install.source.startswith(f"# @title {notebooks.INSTALL_TITLE}\nimport importlib.util\nimport os\n")
        assert install.metadata == {"tags": ["install"], "cellView": "form", "jupyter": {"source_hidden": True}}
        assert len(install.source.splitlines()) <= 16
        assert not any({"cellView", "jupyter"} & cell.metadata.keys() for cell in others)


def installing(lesson, monkeypatch, folder, *, there, works, course=COURSE):
    """Run the install cell in ``folder``; return how often pip ran. ``works`` says which of its runs, from 1, works."""
    notebook = notebooks.build_notebook(lesson, course, "exercises")
    install = next(cell.source for cell in notebook.cells if cell.cell_type == "code")
    pip = []
    monkeypatch.chdir(folder)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda _: object() if there or (works and len(pip) >= works) else None
    )
    exec(install.replace("%pip", "pip.append(1)  #"), {"pip": pip})
    return len(pip)


def test_install_cell_installs_only_where_the_course_is_not(lesson, monkeypatch, tmp_path):
    assert installing(lesson, monkeypatch, tmp_path, there=True, works=0) == 0
    assert installing(lesson, monkeypatch, tmp_path, there=False, works=1) == 1


@pytest.mark.parametrize("works", [1, 2])
def test_install_cell_takes_the_release_wheel_and_git_only_if_that_fails(lesson, monkeypatch, tmp_path, works):
    course = notebooks.Course("someone/somewhere", "v1", wheel="https://example.org/x.whl")
    assert installing(lesson, monkeypatch, tmp_path, there=False, works=works, course=course) == works
    cell = notebooks.build_notebook(lesson, course, "exercises").cells
    install = next(part.source for part in cell if part.cell_type == "code")
    places = re.findall(r'%pip install -q "pruning-llms\[lessons\] @ (.+)"', install)
    assert places == ["https://example.org/x.whl", "git+https://github.com/someone/somewhere@v1"]


def test_install_cell_says_that_pip_failed(lesson, monkeypatch, tmp_path):
    with pytest.raises(
        ModuleNotFoundError, match="pip says why above. On Colab run this cell again; on Kaggle switch the"
    ):
        installing(lesson, monkeypatch, tmp_path, there=False, works=0)


def test_install_cell_sends_the_owner_of_a_clone_to_it(lesson, monkeypatch, tmp_path):
    (tmp_path / "course.py").touch()
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "solutions").mkdir()
    for folder in ("", "notebooks", "notebooks/solutions"):
        with pytest.raises(ModuleNotFoundError, match=r"In its clone run: python\S* course\.py lab"):
            installing(lesson, monkeypatch, tmp_path / folder, there=False, works=1)


@pytest.mark.parametrize("timed", [False, True])
def test_install_cell_lets_threads_sleep_and_wait_awake_where_it_is_timed_unless_the_reader_chose(
    timed, lesson, monkeypatch
):
    notebook = notebooks.build_notebook(replace(lesson, timed=timed), COURSE, "exercises")
    install = next(cell.source for cell in notebook.cells if cell.cell_type == "code").replace("%pip", "pass  #")
    ours = processes.TIMED_THREADS if timed else program.SLEEPING_THREADS
    for before, after in [
        ({}, ours),
        (program.SLEEPING_THREADS, ours),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
    ]:
        environment = dict(before)
        monkeypatch.setattr(os, "environ", environment)
        exec(install, {})
        assert environment == after


def test_one_form_has_the_stub_and_the_folded_answer_and_the_other_is_solved(lesson):
    exercises, solutions = (notebooks.build_notebook(lesson, COURSE, form) for form in notebooks.FORMS)
    place = next(i for i, cell in enumerate(exercises.cells) if "exercise" in tags_of(cell))
    code, answer = sources(exercises)[place : place + 2]
    assert code.endswith("def double(x):\n    ...  # your code\n\ncheck_double(double);")
    assert "2 * x" not in code and "BEGIN" not in code and "END" not in code
    assert answer.startswith("<details><summary>Answer</summary>\n\n```python\ndef double(x):\n    return 2 * x\n```")
    assert sources(solutions)[place].endswith("def double(x):\n    return 2 * x\n\ncheck_double(double);")
    assert "(solutions)" in sources(solutions)[0] and "<summary>Answer</summary>" not in "".join(sources(solutions))


@pytest.mark.parametrize("form", notebooks.FORMS)
def test_same_source_same_bytes_and_valid_notebook(form, tmp_path):
    """Also where a cell is repeated: each needs an id of its own."""
    lesson = authoring.read_lesson(write_lesson(tmp_path, LESSON + "\n# %%\n6 * 7\n\n# %%\n6 * 7\n"))
    first, second = (notebooks.build_notebook(lesson, COURSE, form) for _ in range(2))
    assert sources(first).count("6 * 7") == 2 and len({cell.id for cell in first.cells}) == len(first.cells)
    text = notebooks.to_text(first)
    assert text == notebooks.to_text(second) and text.endswith("}\n") and "\r" not in text
    nbformat.validate(json.loads(text))
    assert json.loads(text)["metadata"].keys() == {"kernelspec", "language_info", "accelerator", "colab"}


def test_an_edit_changes_the_id_of_the_edited_cell_only(lesson, tmp_path):
    edited = authoring.read_lesson(write_lesson(tmp_path / "edited", LESSON.replace("6 * 7", "6 * 8")))
    before, after = (notebooks.build_notebook(source, COURSE, "exercises").cells for source in (lesson, edited))
    assert [old.id == new.id for old, new in zip(before, after, strict=True)].count(False) == 1


def test_outputs_are_kept_while_the_code_stays(lesson, tmp_path):
    paths = notebooks.notebook_paths(lesson, tmp_path)
    executed = with_outputs(notebooks.build_notebook(lesson, COURSE, "exercises"), stream("stdout", "seen\n"))
    write_text(paths["exercises"], notebooks.to_text(executed))

    prose = authoring.read_lesson(write_lesson(tmp_path / "prose", LESSON.replace("lesson built", "lesson made")))
    text = notebooks.render(prose, COURSE, tmp_path)[paths["exercises"]]
    assert '"seen\\n"' in text and "lesson made" in text and '"execution_count": 3' not in text

    elsewhere = notebooks.Course("another/place", "main")  # changes the install cell, not the lesson
    assert '"seen\\n"' in notebooks.render(lesson, elsewhere, tmp_path)[paths["exercises"]]

    moved = LESSON.replace("import sys\n", "from os import (\n    path,\n    sep,\n)\nimport sys\n")
    for text, kept in {moved: True, LESSON.replace("6 * 7", "6 * 8"): False}.items():
        other = authoring.read_lesson(write_lesson(tmp_path / "code", text))
        assert ('"seen\\n"' in notebooks.render(other, COURSE, tmp_path)[paths["exercises"]]) == kept


def test_both_forms_lead_to_the_deeper_notebook(tmp_path):
    text = LESSON + "\n# %% [markdown]\n# ## Go deeper\n#\n# [Down](deeper/01a_down.ipynb)\n"
    lesson = authoring.read_lesson(write_lesson(tmp_path, text))
    for form, path in notebooks.notebook_paths(lesson, tmp_path).items():
        (link,) = re.findall(r"\[Down\]\((.*?)\)", "".join(sources(notebooks.build_notebook(lesson, COURSE, form))))
        assert (path.parent / link).resolve() == tmp_path / "deeper" / "01a_down.ipynb"


def test_a_notebook_without_exercises_has_one_form(tmp_path):
    deeper = authoring.read_lesson(write_lesson(tmp_path / "lessons" / "deeper", DEEPER, "01a_down"))
    notebook = notebooks.build_notebook(deeper, COURSE, "exercises")
    assert notebooks.both_forms(deeper, COURSE) == notebook
    assert "**Before this:**" in sources(notebook)[0] and "**Exercises:**" not in sources(notebook)[0]


def test_both_forms_get_their_outputs_from_one_run(lesson, tmp_path):
    notebook = notebooks.both_forms(lesson, COURSE)
    for number, cell in enumerate(cell for cell in notebook.cells if cell.cell_type == "code"):
        cell.outputs = [stream("stdout", f"output {number}\n")]
    files = notebooks.notebook_paths(lesson, tmp_path)
    texts = notebooks.render(lesson, COURSE, tmp_path, executed=notebook)
    shown = {
        form: [
            (cell.source, cell.outputs[0].text)
            for cell in nbformat.reads(texts[path], as_version=4).cells
            if cell.cell_type == "code" and cell.outputs
        ]
        for form, path in files.items()
    }
    assert [text for _, text in shown["exercises"]] == ["output 1\n", "output 2\n", "output 3\n"]
    assert [text for _, text in shown["solutions"]] == ["output 1\n", "output 2\n", "output 4\n"]
    assert "..." in shown["exercises"][-1][0] and "2 * x" in shown["solutions"][-1][0]


def test_quiz_shows_options_and_folds_the_reasons(lesson):
    question = next(
        text for text in sources(notebooks.build_notebook(lesson, COURSE, "exercises")) if "Question 2" in text
    )
    shown, _, folded = question.partition("<details><summary>Answer and reasons</summary>\n")
    assert shown.startswith("### Question 2\n\nWhat is 2 times 2?\n") and "- **C.** 6, or so" in shown
    assert "right" not in shown and "- **B, right.** Doubled." in folded
    assert "- **C.** That is three times, not twice." in folded


def test_tidy_outputs_drops_noise_and_paths_and_joins_streams():
    error = nbformat.v4.new_output("error", ename="ValueError", evalue="too big", traceback=["/home/me/x.py", "line"])
    widget = nbformat.v4.new_output("display_data", {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "x"})
    result = nbformat.v4.new_output("execute_result", {"text/plain": "42"}, execution_count=9)
    outputs = [stream("stdout", "a"), stream("stderr", "50%"), stream("stdout", "b"), widget, result, error]
    tidy = notebooks.tidy_outputs(outputs)
    assert [output.output_type for output in tidy] == ["stream", "execute_result", "error"]
    assert tidy[0].text == "ab" and tidy[1].execution_count is None
    assert tidy[2].traceback == ["ValueError: too big"], "without this machine's paths"
    assert outputs[0].text == "a", "the outputs passed in are left alone"


def test_tidy_outputs_gives_pictures_a_palette():
    pixels = np.full((80, 120, 3), 255, dtype=np.uint8)
    pixels[:40] = np.linspace(0, 255, 120)[:, None]  # a colour bar,
    pixels[:40, :, 2] = 128
    pixels[60, 60] = (200, 0, 0)  # and a single red point
    data = io.BytesIO()
    Image.fromarray(pixels).convert("RGBA").save(data, "PNG")
    picture = nbformat.v4.new_output("display_data", {"image/png": base64.b64encode(data.getvalue()).decode()})
    (tidy,) = notebooks.tidy_outputs([picture])
    shown = Image.open(io.BytesIO(base64.b64decode(tidy.data["image/png"])))
    assert shown.mode == "P"
    assert np.abs(np.asarray(shown.convert("RGB")).astype(int) - pixels).max() <= 4
    assert notebooks.tidy_outputs([tidy]) == [tidy], "done once"


def test_tidy_outputs_leaves_a_transparent_picture():
    data = io.BytesIO()
    Image.new("RGBA", (9, 9), (10, 20, 30, 40)).save(data, "PNG")
    picture = nbformat.v4.new_output("display_data", {"image/png": base64.b64encode(data.getvalue()).decode()})
    assert notebooks.tidy_outputs([picture]) == [picture]


def test_table_of_lessons(lesson):
    page = f"before\n{notebooks.TABLE_BEGIN}\nold\n{notebooks.TABLE_END}\nafter\n"
    filled = notebooks.fill_table(page, [lesson], COURSE)
    assert filled.startswith("before\n") and filled.endswith("\nafter\n") and "old" not in filled
    assert "| 01 | [A small lesson](notebooks/01_small.ipynb) |  | 10 | [![Open in Colab]" in filled
    assert "Minutes are of learning, with the exercises: 10 together, about 0 hours." in filled
    assert notebooks.fill_table(filled, [lesson], COURSE) == filled
    assert notebooks.fill_table("no markers", [lesson], COURSE) == "no markers"

"""The builder: what it makes of a lesson, that it is deterministic, and that it refuses broken sources."""

import base64
import importlib.util
import io
import json
import os

import nbformat
import numpy as np
import pytest
from PIL import Image
from sample_lesson import LESSON, write_lesson

from course_tools import notebooks, processes
from course_utils.files import write_text

COURSE = notebooks.Course(repository="someone/somewhere", ref="v1")


@pytest.fixture
def lesson(tmp_path):
    return notebooks.read_lesson(write_lesson(tmp_path / "lessons"))


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
    assert "5 minutes" in title and "**Before this:** nothing" in title


def test_install_cell_only_adds_and_imports_nothing_that_could_be_swapped(lesson):
    notebook = notebooks.build_notebook(lesson, COURSE, "exercises")
    install = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert '%pip install -q "pruning-llms @ git+https://github.com/someone/somewhere@v1"' in install.source
    imports = [line.strip() for line in install.source.splitlines() if line.startswith(("import ", "from "))]
    assert imports == ["import importlib.util", "import os", "from pathlib import Path"]


def installing(lesson, monkeypatch, folder, *, there, works):
    """Run the install cell in ``folder``; return how often pip ran."""
    notebook = notebooks.build_notebook(lesson, COURSE, "exercises")
    install = next(cell.source for cell in notebook.cells if cell.cell_type == "code")
    pip = []
    monkeypatch.chdir(folder)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object() if there or (pip and works) else None)
    exec(install.replace("%pip", "pip.append(1)  #"), {"pip": pip})
    return len(pip)


def test_install_cell_does_nothing_where_the_course_is(lesson, monkeypatch, tmp_path):
    assert installing(lesson, monkeypatch, tmp_path, there=True, works=True) == 0


def test_install_cell_installs_where_the_notebook_stands_alone(lesson, monkeypatch, tmp_path):
    assert installing(lesson, monkeypatch, tmp_path, there=False, works=True) == 1


def test_install_cell_says_that_pip_failed(lesson, monkeypatch, tmp_path):
    with pytest.raises(ModuleNotFoundError, match="pip says why above. On Kaggle, switch the internet on"):
        installing(lesson, monkeypatch, tmp_path, there=False, works=False)


def test_install_cell_sends_the_owner_of_a_clone_to_it(lesson, monkeypatch, tmp_path):
    (tmp_path / "course.py").touch()
    (tmp_path / "notebooks").mkdir()
    with pytest.raises(ModuleNotFoundError, match=r"In its clone run: python course.py lab"):
        installing(lesson, monkeypatch, tmp_path / "notebooks", there=False, works=True)


def test_install_cell_lets_threads_sleep_unless_the_reader_chose(lesson, monkeypatch):
    notebook = notebooks.build_notebook(lesson, COURSE, "exercises")
    install = next(cell.source for cell in notebook.cells if cell.cell_type == "code").replace("%pip", "pass  #")
    ours = processes.SLEEPING_THREADS
    for before, after in [
        ({}, ours),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
    ]:
        environment = dict(before)
        monkeypatch.setattr(os, "environ", environment)
        exec(install, {})
        assert environment == after


def test_exercise_form_has_the_stub_and_the_folded_answer(lesson):
    notebook = notebooks.build_notebook(lesson, COURSE, "exercises")
    code, answer = sources(notebook)[-2:]
    assert code.endswith("def double(x):\n    ...  # your code\n\ncheck_double(double);")
    assert "2 * x" not in code and "BEGIN" not in code and "END" not in code
    assert answer.startswith("<details><summary>Answer</summary>\n\n```python\ndef double(x):\n    return 2 * x\n```")


def test_solutions_form_is_solved_and_folds_nothing(lesson):
    notebook = notebooks.build_notebook(lesson, COURSE, "solutions")
    assert sources(notebook)[-1].endswith("def double(x):\n    return 2 * x\n\ncheck_double(double);")
    assert "<summary>Answer" not in "".join(sources(notebook))
    assert "(solutions)" in sources(notebook)[0]


def test_unknown_form_is_refused(lesson):
    with pytest.raises(ValueError, match="exercises, solutions"):
        notebooks.build_notebook(lesson, COURSE, "exams")


def test_same_source_same_bytes_and_valid_notebook(lesson, tmp_path):
    texts = [
        notebooks.to_text(notebooks.build_notebook(lesson, COURSE, form)) for form in notebooks.FORMS for _ in range(2)
    ]
    assert texts[0] == texts[1] and texts[2] == texts[3]
    for text in texts:
        assert text.endswith("}\n") and "\r" not in text
        nbformat.validate(json.loads(text))
        assert json.loads(text)["metadata"].keys() == {"kernelspec", "language_info"}


def test_an_edit_changes_the_id_of_the_edited_cell_only(lesson, tmp_path):
    edited = notebooks.read_lesson(write_lesson(tmp_path / "edited", LESSON.replace("6 * 7", "6 * 8")))
    before, after = (notebooks.build_notebook(source, COURSE, "exercises").cells for source in (lesson, edited))
    assert [old.id == new.id for old, new in zip(before, after, strict=True)].count(False) == 1


def test_repeated_cells_get_different_ids(tmp_path):
    lesson = notebooks.read_lesson(write_lesson(tmp_path, LESSON + "\n# %%\n6 * 7\n\n# %%\n6 * 7\n"))
    notebook = notebooks.build_notebook(lesson, COURSE, "exercises")
    assert sources(notebook).count("6 * 7") == 2
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)


def test_gpu_lesson_preselects_a_gpu_on_colab(tmp_path):
    lesson = notebooks.read_lesson(write_lesson(tmp_path, LESSON.replace("hardware: cpu", "hardware: gpu")))
    metadata = notebooks.build_notebook(lesson, COURSE, "exercises").metadata
    assert metadata["accelerator"] == "GPU"
    assert metadata["colab"] == {"gpuType": "T4", "toc_visible": True}


def test_outputs_are_kept_while_the_code_stays(lesson, tmp_path):
    paths = notebooks.notebook_paths(lesson, tmp_path)
    executed = with_outputs(notebooks.build_notebook(lesson, COURSE, "exercises"), stream("stdout", "seen\n"))
    write_text(paths["exercises"], notebooks.to_text(executed))

    prose = notebooks.read_lesson(write_lesson(tmp_path / "prose", LESSON.replace("is built", "is made")))
    text = notebooks.render(prose, COURSE, tmp_path)[paths["exercises"]]
    assert '"seen\\n"' in text and "is made" in text and '"execution_count": 3' not in text

    elsewhere = notebooks.Course("another/place", "main")  # changes the install cell, not the lesson
    assert '"seen\\n"' in notebooks.render(lesson, elsewhere, tmp_path)[paths["exercises"]]

    code = notebooks.read_lesson(write_lesson(tmp_path / "code", LESSON.replace("6 * 7", "6 * 8")))
    assert '"seen\\n"' not in notebooks.render(code, COURSE, tmp_path)[paths["exercises"]]


def test_solutions_are_rendered_without_outputs(lesson, tmp_path):
    path = notebooks.notebook_paths(lesson, tmp_path)["solutions"]
    executed = with_outputs(notebooks.build_notebook(lesson, COURSE, "solutions"), stream("stdout", "seen\n"))
    write_text(path, notebooks.to_text(executed))
    assert '"seen\\n"' not in notebooks.render(lesson, COURSE, tmp_path)[path]


def test_tidy_outputs_drops_noise_and_joins_streams():
    widget = nbformat.v4.new_output("display_data", {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "x"})
    result = nbformat.v4.new_output("execute_result", {"text/plain": "42"}, execution_count=9)
    outputs = [stream("stdout", "a"), stream("stderr", "50%"), stream("stdout", "b"), widget, result]
    tidy = notebooks.tidy_outputs(outputs)
    assert [output.output_type for output in tidy] == ["stream", "execute_result"]
    assert tidy[0].text == "ab" and tidy[1].execution_count is None
    assert outputs[0].text == "a", "the outputs passed in are left alone"


def test_tidy_outputs_keeps_an_error_without_its_paths():
    error = nbformat.v4.new_output("error", ename="ValueError", evalue="too big", traceback=["/home/me/x.py", "line"])
    assert notebooks.tidy_outputs([error])[0].traceback == ["ValueError: too big"]


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


def test_find_lessons_selects_by_number(tmp_path):
    for name in ("01_small", "02_next"):
        write_lesson(tmp_path, name=name)
    assert [path.stem for path in notebooks.find_lessons(tmp_path)] == ["01_small", "02_next"]
    assert [path.stem for path in notebooks.find_lessons(tmp_path, ["2"])] == ["02_next"]
    with pytest.raises(ValueError, match="no lesson 07; there is: 01, 02"):
        notebooks.find_lessons(tmp_path, ["7"])
    assert notebooks.find_lessons(tmp_path / "nowhere") == []


def test_assets_of_several_lessons_come_once_and_in_one_order(tmp_path):
    opened = [["speeches", "smollm2"], ["texts", "speeches"], []]
    texts = [LESSON.replace("assets: []", f"assets: [{', '.join(names)}]") for names in opened]
    lessons = [notebooks.read_lesson(write_lesson(tmp_path, text)) for text in texts]
    assert [lesson.assets for lesson in lessons] == opened
    assert notebooks.assets_of(lessons) == ["smollm2", "texts", "speeches"]


def test_duplicate_number_and_bad_name_are_refused(tmp_path):
    write_lesson(tmp_path, name="01_small")
    write_lesson(tmp_path, name="01_twin")
    with pytest.raises(notebooks.LessonError, match="01_twin.py: number 01 belongs to 01_small.py"):
        notebooks.find_lessons(tmp_path)
    write_lesson(tmp_path / "other", name="Lesson1")
    with pytest.raises(notebooks.LessonError, match="NN_slug.py"):
        notebooks.find_lessons(tmp_path / "other")


def test_table_of_lessons(lesson):
    page = f"before\n{notebooks.TABLE_BEGIN}\nold\n{notebooks.TABLE_END}\nafter\n"
    filled = notebooks.fill_table(page, [lesson], COURSE)
    assert filled.startswith("before\n") and filled.endswith("\nafter\n") and "old" not in filled
    assert "| 01 | [A small lesson](notebooks/01_small.ipynb) | 5 | [![Open in Colab]" in filled
    assert notebooks.fill_table(filled, [lesson], COURSE) == filled
    assert notebooks.fill_table("no markers", [lesson], COURSE) == "no markers"


BROKEN = {
    "no header": (LESSON.partition("# ---\n\n")[2], "the header needs"),
    "header elsewhere": (LESSON.replace("# jupyter:\n#   course:", "# course:"), "the header needs|is raw"),
    "unknown header key": (LESSON.replace("minutes: 5", "minutes: 5\n#     author: me"), "exactly title, minutes"),
    "minutes in words": (LESSON.replace("minutes: 5", "minutes: five"), "`minutes` in the header must be a int"),
    "unknown asset": (LESSON.replace("assets: []", "assets: [moon]"), "`assets` names 'moon'; choose from smollm2"),
    "assets in words": (LESSON.replace("assets: []", "assets: texts"), "`assets` in the header must be a list"),
    "unknown hardware": (LESSON.replace("hardware: cpu", "hardware: tpu"), "choose one of cpu, gpu"),
    "second title": (LESSON.replace("# ## What", "# # What"), "the builder writes it from the header"),
    "no install cell": (LESSON.replace('# %% tags=["install"]\n', ""), "the first code cell"),
    "filled install cell": (
        LESSON.replace('tags=["install"]\n', 'tags=["install"]\nimport torch\n'),
        "nothing below it",
    ),
    "late install cell": (
        LESSON.replace('# %% tags=["install"]\n', "# %%\nx = 1\n\n" + '# %% tags=["install"]\n'),
        "the first code cell",
    ),
    "unknown tag": (LESSON.replace("# %%\nimport sys", '# %% tags=["slow"]\nimport sys'), "unknown tag 'slow'"),
    "other lesson started": (LESSON.replace('start("01"', 'start("02"'), r'no cell calls start\("01"\)'),
    "no check": (LESSON.replace("\ncheck_double(double)", "\nprint(double)"), "ends with its check"),
    "check not last": (LESSON + "print(1)\n", "ends with its check"),
    "no hint": (LESSON.replace("<summary>Hint</summary>", ""), "needs a hint"),
    "no heading": (LESSON.replace("### Exercise 1 · ●○○ · 5 minutes", "### Try it"), "needs the heading"),
    "wrong number": (LESSON.replace("### Exercise 1", "### Exercise 2"), "`### Exercise 1 · "),
    "no stub": (LESSON.partition("# BEGIN STUB")[0] + "check_double(double)\n", "exactly one block"),
    "unbalanced": (LESSON.replace("# END SOLUTION\n", ""), "exactly one block"),
    "stub first": (
        LESSON.replace("SOLUTION", "X").replace("STUB", "SOLUTION").replace("X", "STUB"),
        "exactly one block",
    ),
    "two solutions": (
        LESSON.replace("check_double(double)\n", "# BEGIN SOLUTION\n# END SOLUTION\ncheck_double(double)\n"),
        "exactly one block",
    ),
    "stub not commented": (LESSON.replace("# def double(x):", "def double(x):"), "starts with"),
    "markers without a tag": (LESSON.replace('# %% tags=["exercise"]', "# %%"), "no tag|each heading is followed"),
    "heading without a cell": (
        LESSON + "\n# %% [markdown]\n# ### Exercise 2 · ●○○ · 5 minutes\n# And?\n",
        "2 exercise headings but 1 cells",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_source_is_refused(name, tmp_path):
    text, message = BROKEN[name]
    assert text != LESSON
    with pytest.raises(notebooks.LessonError, match=f"^01_small.py: .*({message})"):
        notebooks.read_lesson(write_lesson(tmp_path, text))

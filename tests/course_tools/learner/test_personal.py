"""The learner's folder: lessons arrive, nothing is ever written over."""

from pathlib import Path

import nbformat
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from course_tools.learner import personal


def lesson(folder, name, *code, text="What it is about."):
    """Write a notebook as the builder would: a title, an install cell, some text and code."""
    folder.mkdir(parents=True, exist_ok=True)
    cells = [nbformat.v4.new_markdown_cell("# Title"), nbformat.v4.new_code_cell("%pip install it")]
    cells[1].metadata["tags"] = ["install"]
    cells += [nbformat.v4.new_markdown_cell(text), *map(nbformat.v4.new_code_cell, code)]
    path = folder / f"{name}.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


@pytest.fixture
def course(tmp_path):
    lesson(tmp_path / "notebooks", "01_first", "1 + 1")
    lesson(tmp_path / "notebooks", "02_second", "2 + 2")
    return tmp_path


def prepare(course):
    return [arrival.path.name for arrival in personal.prepare(course / "notebooks", course / "mine")]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.ipynb")}


def test_lessons_arrive_once_and_a_new_one_later(course):
    assert prepare(course) == ["01_first.ipynb", "02_second.ipynb"]
    assert (course / "mine/01_first.ipynb").read_bytes() == (course / "notebooks/01_first.ipynb").read_bytes()
    assert prepare(course) == []
    lesson(course / "notebooks", "03_third", "3")
    assert prepare(course) == ["03_third.ipynb"]
    (course / "mine/02_second.ipynb").unlink()
    assert prepare(course) == ["02_second.ipynb"], "a copy that the learner removed comes back fresh"


def test_deeper_notebooks_keep_their_folder_and_arrive_like_lessons(course):
    source = lesson(course / "notebooks" / "deeper", "01a_down", "3 + 3")
    lesson(course / "notebooks" / "deeper" / "solutions", "01a_down", "6")
    assert prepare(course) == ["01_first.ipynb", "02_second.ipynb", "01a_down.ipynb"]
    assert (course / "mine/deeper/01a_down.ipynb").read_bytes() == source.read_bytes()
    lesson(course / "notebooks" / "deeper", "01a_down", "4 + 4")
    assert prepare(course) == ["01a_down.v2.ipynb"] and prepare(course) == []
    assert list(contents(course / "mine/deeper")) and not contents(course / "mine/deeper/solutions")


def test_changed_code_arrives_beside_the_work_and_changed_text_does_not(course):
    prepare(course)
    mine = course / "mine/01_first.ipynb"
    mine.write_bytes(mine.read_bytes().replace(b"1 + 1", b"my answer"))
    before = contents(course / "mine")
    source = lesson(course / "notebooks", "01_first", "1 + 1", text="Better words.")
    source.write_bytes(source.read_bytes().replace(b"%pip install it", b"%pip install it==2"))
    assert prepare(course) == [], "neither text nor the install cell is work to do again"
    for version, code in (2, "1 + 2"), (3, "1 + 3"):
        lesson(course / "notebooks", "01_first", code)
        (arrival,) = personal.prepare(course / "notebooks", course / "mine")
        assert arrival.path.name == f"01_first.v{version}.ipynb" and arrival.earlier is not None
        assert f"beside your {arrival.earlier.name}, which stays" in str(arrival)
        assert code in arrival.path.read_text(encoding="utf-8")
    assert before.items() <= contents(course / "mine").items()
    found = [path.name for path in personal.copies(course / "mine", "01_first")]
    assert found == ["01_first.ipynb", "01_first.v2.ipynb", "01_first.v3.ipynb"]


def test_lesson_that_gets_another_number_arrives_beside_the_work_which_is_still_found(course):
    prepare(course)
    lesson(course / "mine", "02_second", "my answer")
    (course / "notebooks/02_second.ipynb").unlink()
    lesson(course / "notebooks", "07_second", "2 + 3")
    assert prepare(course) == ["07_second.ipynb"] and prepare(course) == []
    assert "my answer" in (course / "mine/02_second.ipynb").read_text(encoding="utf-8")
    lesson(course / "mine", "Copy of 07_second", "later")
    found = [path.name for path in personal.copies(course / "mine", "07_second")]
    assert found == ["02_second.ipynb", "07_second.ipynb", "Copy of 07_second.ipynb"]


def test_no_lesson_is_taken_for_another_one(tmp_path):
    names = [path.stem for path in (Path(__file__).resolve().parents[3] / "lessons").rglob("*.py")]
    for name in names:
        lesson(tmp_path, name)
    assert all([path.stem for path in personal.copies(tmp_path, name)] == [name] for name in names)


def test_copies_from_elsewhere_are_left_at_that(course):
    lesson(course / "mine", "Copy of 01_first", "an old one")
    assert prepare(course) == ["02_second.ipynb"]


def test_record_that_is_broken_is_no_reason_to_write_over(course):
    prepare(course)
    before = contents(course / "mine")
    for broken in ("{", "[1]"):
        (course / "mine" / personal.RECORD).write_text(broken, encoding="utf-8")
        prepare(course)
        assert before.items() <= contents(course / "mine").items()


@settings(max_examples=30)
@given(steps=st.lists(st.sampled_from(["lab", "update", "work", "remove", "forget"]), max_size=12))
def test_whatever_happens_work_stays(tmp_path_factory, steps):
    course = tmp_path_factory.mktemp("course")
    folder, work = course / "mine", {}
    lesson(course / "notebooks", "01_first", "0")
    prepare(course)
    for version, step in enumerate(steps, 1):
        if step == "lab":
            prepare(course)
        elif step == "update":
            lesson(course / "notebooks", "01_first", str(version))
        elif step == "work":
            path = personal.copies(folder, "01_first")[-1] if contents(folder) else folder / "01_first.ipynb"
            work[path.name] = lesson(folder, path.stem, f"work {version}").read_bytes()
        elif step == "remove" and contents(folder):
            gone = personal.copies(folder, "01_first")[0]
            gone.unlink()
            work.pop(gone.name, None)
        elif step == "forget":
            (folder / personal.RECORD).unlink(missing_ok=True)
        assert work.items() <= contents(folder).items()


def test_folder_is_chosen(tmp_path, monkeypatch):
    monkeypatch.delenv(personal.VARIABLE, raising=False)
    assert personal.folder_of(tmp_path, None) == tmp_path / "my_course"
    monkeypatch.setenv(personal.VARIABLE, "/somewhere")
    assert personal.folder_of(tmp_path, None) == Path("/somewhere").absolute()
    assert personal.folder_of(tmp_path, "here") == Path("here").absolute()
    assert personal.folder_of(tmp_path, "~/here") == Path.home() / "here"


def test_bad_folders_are_refused(course):
    for own in (course / "notebooks", course / "notebooks" / "solutions"):
        with pytest.raises(ValueError, match="every update writes anew"):
            personal.prepare(course / "notebooks", own)
    (course / "file").write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match=f"can't be written .*--folder, or set {personal.VARIABLE}"):
        personal.prepare(course / "notebooks", course / "file")


def test_git_ignores_the_folder():
    ignored = (Path(__file__).resolve().parents[3] / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert f"{personal.DEFAULT}/" in ignored

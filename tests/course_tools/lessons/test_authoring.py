"""Lesson sources: what is read from them, and that a broken one is refused with its cell and the remedy."""

from pathlib import Path

import pytest
from sample_lesson import DEEPER, LESSON, write_lesson

from course_tools.lessons import authoring

LESSONS = authoring.find_lessons(Path(__file__).resolve().parents[3] / "lessons")


@pytest.fixture
def lesson(tmp_path):
    return authoring.read_lesson(write_lesson(tmp_path / "lessons"))


def test_quiz_is_read_with_its_reasons(lesson):
    first, *others = lesson.quiz
    assert first.text == "What is 1 times 2?" and len(others) == 2
    assert [(option.text, option.right) for option in first.options] == [("1", False), ("2", True), ("3, or so", False)]
    assert first.options[2].reason == "That is three times, not twice."


def test_find_lessons_selects_by_number(tmp_path):
    for name in ("01_small", "02_next"):
        write_lesson(tmp_path, name=name)
    assert [path.stem for path in authoring.find_lessons(tmp_path)] == ["01_small", "02_next"]
    assert [path.stem for path in authoring.find_lessons(tmp_path, ["2"])] == ["02_next"]
    with pytest.raises(ValueError, match="no lesson 07; there is: 01, 02"):
        authoring.find_lessons(tmp_path, ["7"])
    assert authoring.find_lessons(tmp_path / "nowhere") == []


def test_deeper_notebooks_come_when_they_are_named(tmp_path):
    assert authoring.find_lessons(tmp_path, ["deeper"]) == []
    write_lesson(tmp_path)
    for name in ("01a_down", "01b_further"):
        write_lesson(tmp_path / "deeper", DEEPER.replace('"01a"', f'"{name[:3]}"'), name)

    def found(*numbers):
        return [path.stem for path in authoring.find_lessons(tmp_path, numbers)]

    assert found() == found("1") == ["01_small"]
    assert found("deeper") == ["01a_down", "01b_further"]
    assert found("1b") == found("01b") == ["01b_further"] and found("deeper", "01") == ["01_small", *found("deeper")]
    with pytest.raises(ValueError, match="no lesson 02a; there is: 01, 01a, 01b"):
        found("2a")
    write_lesson(tmp_path / "deeper", name="02_no_letter")
    with pytest.raises(
        authoring.LessonError, match="02_no_letter.py: call what stands in deeper/ .* 03a_some_title.py"
    ):
        found()


def test_deeper_notebook_needs_no_exercise(tmp_path):
    lesson = authoring.read_lesson(write_lesson(tmp_path, DEEPER, "01a_down"))
    assert lesson.deeper and lesson.number == "01a" and lesson.quiz == () and lesson.minutes == 4


def test_assets_of_several_lessons_come_once_and_in_one_order(tmp_path):
    opened = [["speeches", "smollm2"], ["texts", "speeches"], []]
    texts = [LESSON.replace("assets: []", f"assets: [{', '.join(names)}]") for names in opened]
    lessons = [authoring.read_lesson(write_lesson(tmp_path, text)) for text in texts]
    assert [lesson.assets for lesson in lessons] == opened
    assert authoring.assets_of(lessons) == ["smollm2", "texts", "speeches"]


@pytest.mark.parametrize(("line", "timed"), [("", False), ("#     timed: true\n", True)])
def test_a_lesson_is_about_time_where_it_says_so(line, timed, tmp_path):
    text = LESSON.replace("#     assets: []\n", f"#     assets: []\n{line}")
    assert authoring.read_lesson(write_lesson(tmp_path, text)).timed is timed


def test_duplicate_number_and_bad_name_are_refused(tmp_path):
    write_lesson(tmp_path, name="01_small")
    write_lesson(tmp_path, name="01_twin")
    with pytest.raises(authoring.LessonError, match="01_twin.py: number 01 belongs to 01_small.py"):
        authoring.find_lessons(tmp_path)
    write_lesson(tmp_path / "other", name="Lesson1")
    with pytest.raises(authoring.LessonError, match="NN_slug.py"):
        authoring.find_lessons(tmp_path / "other")


def swap(old, new):
    assert old in LESSON, old
    return LESSON.replace(old, new)


BROKEN = {
    "no header": (LESSON.partition("# ---\n\n")[2], "the header needs"),
    "unknown header key": (swap("assets: []", "assets: []\n#     author: me"), "exactly title, prereq"),
    "no concepts": (swap("#     concepts: [doubling]\n", ""), "and concepts"),
    "no concept": (swap("[doubling]", "[]"), "`concepts` must name what is new"),
    "concepts in words": (swap("[doubling]", "many"), "`concepts` in the header can't be 'many'"),
    "concept without a name": (swap("[doubling]", "[3]"), "`concepts` must name what is new"),
    "title without words": (swap("title: A small lesson", 'title: ""'), "`title` in the header can't be ''"),
    "unknown asset": (swap("assets: []", "assets: [moon]"), "`assets` names 'moon'; choose from smollm2"),
    "timed by number": (swap("assets: []", "assets: []\n#     timed: 1"), "`timed` in the header can't be 1"),
    "second title": (swap("# ## The", "# # The"), "the builder writes it from the header"),
    "no install cell": (swap('# %% tags=["install"]\n', ""), "the first code cell"),
    "filled install cell": (swap('tags=["install"]\n', 'tags=["install"]\nimport torch\n'), "nothing below it"),
    "late install cell": (
        swap('# %% tags=["install"]\n', "# %%\nx = 1\n\n" + '# %% tags=["install"]\n'),
        "the first code cell",
    ),
    "unknown tag": (swap("# %%\nimport sys", '# %% tags=["slow"]\nimport sys'), "unknown tag 'slow'"),
    "other lesson started": (swap('start("01"', 'start("02"'), r'no cell calls start\("01"\)'),
    "no check": (swap("\ncheck_double(double)", "\nprint(double)"), "ends with its check"),
    "check not last": (swap("\ncheck_double(double)\n", "\ncheck_double(double)\nprint(1)\n"), "ends with"),
    "long cell": (swap("6 * 7", "6 * 7\n" * 40), "has 44 lines; 40 is the most"),
    "long exercise": (swap("    return 2 * x\n", "    x = x\n" * 40), "exercise 1 has .. lines; 40 is the most"),
    "prediction without an answer": (
        swap("How is a lesson built?", "**Predict before you run.** Big?"),
        "asks to predict and has no answer",
    ),
    "one question": (
        "\n# %% [markdown] tags".join(LESSON.split("\n# %% [markdown] tags")[:2]),
        "1 quiz questions; a lesson has 2 or 3",
    ),
    "two right answers": (swap("- [ ] 3\n", "- [x] 3\n"), "the one right one"),
    "no reason": (LESSON.replace("#   > Doubled.\n", "", 1), "the option '2' needs a text and, below it, its reason"),
    "no hint": (swap("<summary>Hint</summary>", ""), "needs a hint"),
    "no heading": (swap("### Exercise 1 · ●○○ · 5 minutes", "### Try it"), "needs the heading"),
    "wrong number": (swap("### Exercise 1", "### Exercise 2"), "`### Exercise 1 · "),
    "no stub": (swap("BEGIN STUB", "BEGIN IT"), "exactly one block"),
    "two solutions": (
        swap("check_double(double)\n", "# BEGIN SOLUTION\n# END SOLUTION\ncheck_double(double)\n"),
        "exactly one block",
    ),
    "stub not commented": (swap("# def double(x):", "def double(x):"), "starts with"),
    "markers without a tag": (swap('# %% tags=["exercise"]', "# %%"), "no tag|each heading is followed"),
    "heading without a cell": (
        LESSON + "\n# %% [markdown]\n# ### Exercise 2 · ●○○ · 5 minutes\n# And?\n",
        "2 exercise headings but 1 cells",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_source_is_refused(name, tmp_path):
    text, message = BROKEN[name]
    assert text != LESSON
    with pytest.raises(authoring.LessonError, match=f"^01_small.py: .*({message})"):
        authoring.read_lesson(write_lesson(tmp_path, text))


def test_result_comes_from_the_notes(tmp_path):
    install = '# %% tags=["install"]'
    notes = '# %% [markdown] tags=["notes"]\n# **The point:** one.\n#\n# **At the end you have** a model\n# of 1.5 MB.'
    for end in ("", "\n#\n# **Usual questions:** none."):
        text = LESSON.replace(install, f"{notes}{end}\n\n{install}")
        assert authoring.read_lesson(write_lesson(tmp_path, text)).result == "a model of 1.5 MB"
    assert authoring.read_lesson(write_lesson(tmp_path)).result == ""


def test_exercises_are_read_with_their_check_and_minutes(lesson):
    (found,) = authoring.exercises_of(lesson)
    assert found == authoring.Exercise(1, "check_double", "●○○", 5) and found.effort == "●○○ · 5 minutes"


@pytest.mark.parametrize("path", LESSONS, ids=[path.stem[:2] for path in LESSONS])
def test_exercises_leave_time_for_the_lesson(path):
    lesson = authoring.read_lesson(path)
    assert 0 < sum(one.minutes for one in authoring.exercises_of(lesson)) < lesson.minutes

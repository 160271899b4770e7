"""The site's sources: links that lead to pages, quizzes with radio buttons, a glossary that tells the truth."""

import math
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup
from sample_lesson import COMPLETE, DEEPER, write_lesson

pytest.importorskip("sphinx", reason="part of the extra site")

from course_tools.lessons import authoring, notebooks
from course_tools.site import pages

ROOT = Path(__file__).resolve().parents[3]
REPOSITORY = '[tool.course]\nrepository = "someone/somewhere"\nref = "v1"\n'
PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
ALT = "A single dot that stands for a figure."


@pytest.fixture(scope="module")
def sources():
    """This course's own."""
    return pages.Sources(ROOT)


@pytest.fixture
def small(tmp_path):
    """A course of one lesson with one picture, and pages that link to each other."""
    (tmp_path / "pyproject.toml").write_text(REPOSITORY, encoding="utf-8")
    lesson = authoring.read_lesson(write_lesson(tmp_path / "lessons"))
    course = notebooks.Course.read(tmp_path)
    for path, text in notebooks.render(lesson, course, tmp_path / "notebooks").items():
        notebook = nbformat.reads(text, as_version=4)
        shown = nbformat.v4.new_output("display_data", {"image/png": PICTURE}, metadata={"image/png": {"alt": ALT}})
        next(cell for cell in notebook.cells if "print(" in cell.source).outputs = [shown]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(nbformat.writes(notebook), encoding="utf-8")
    (tmp_path / "README.md").write_text("# A course\n", encoding="utf-8")
    (tmp_path / "docs/images").mkdir(parents=True)
    (tmp_path / "docs/index.md").write_text("# Welcome\n\n<!-- site: numbers -->\n", encoding="utf-8")
    (tmp_path / "docs/glossary.md").write_text(
        "# Glossary\n\n- **lesson** (01): What\n  one learns.\n", encoding="utf-8"
    )
    return tmp_path


def page(folder, name):
    return dict(pages.Sources(folder).pages())[name]


def test_links_lead_to_pages_and_else_to_the_repository(small):
    text = (
        "[a](../notebooks/01_small.ipynb#what) [b](../README.md) [c](../lessons/01_small.py) "
        "[d](https://x.org/y) "
        "[e](#here) [f](nowhere.md) "
        "[g](https://github.com/someone/somewhere/blob/v1/notebooks/solutions/01_small.ipynb) "
        "![h](images/x.png)\n\n```python\nx[0](../README.md)\n```\n"
    )
    (small / "docs/more.md").write_text(text, encoding="utf-8")
    assert page(small, "docs/more.md") == (
        "[a](../notebooks/01_small.ipynb#what) [b](../index.md) "
        "[c](https://github.com/someone/somewhere/blob/v1/lessons/01_small.py) [d](https://x.org/y) [e](#here) "
        "[f](nowhere.md) [g](../notebooks/solutions/01_small.ipynb) ![h](images/x.png)\n\n"
        "```python\nx[0](../README.md)\n```\n"
    )


def test_lesson_begins_with_its_title_and_a_local_badge(small):
    for form, other in (("", "solutions/01_small.ipynb"), ("solutions/", "../01_small.ipynb")):
        first = nbformat.reads(page(small, f"notebooks/{form}01_small.ipynb"), as_version=4).cells[0].source
        assert first.startswith("# 01 · A small lesson")
        assert f"({'../' * (1 + bool(form))}docs/images/open-in-colab.svg)" in first and f"]({other})" in first
        assert f"somewhere/blob/v1/notebooks/{form}01_small.ipynb" in first, "Colab opens the notebook of that tag"


def test_list_of_lessons_says_question_and_answer_unless_that_is_folded(small):
    def list_of(text):
        lesson = authoring.read_lesson(write_lesson(small / "lessons", text))
        for path, notebook in notebooks.render(lesson, notebooks.Course.read(small), small / "notebooks").items():
            path.write_text(notebook, encoding="utf-8")
        return page(small, "lessons.md")

    assert "How large is twice a number?\n\nAs large as the number and itself" in list_of(COMPLETE)
    folded = COMPLETE.replace("# **Answer.**", "# <details><summary>Answer</summary>\n#\n# **Answer.**")
    said = list_of(folded.replace("twice three is six.\n", "twice three is six.\n#\n# </details>\n"))
    assert "How large is twice a number?" in said and "As large as" not in said


def test_deeper_notebook_has_a_page_below_its_lesson(small):
    lesson = authoring.read_lesson(write_lesson(small / "lessons" / "deeper", DEEPER, "01a_down"))
    for path, notebook in notebooks.render(lesson, notebooks.Course.read(small), small / "notebooks").items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(notebook, encoding="utf-8")
    assert "Further down" in page(small, "notebooks/deeper/01a_down.ipynb")
    assert "Go deeper: [01a · Further down](notebooks/deeper/01a_down.ipynb) (4 minutes)." in page(small, "lessons.md")
    assert "01a" not in page(small, "solutions.md"), "it has no exercise"
    (small / "docs/index.md").write_text("# Welcome\n\n<!-- site: contents -->\n", encoding="utf-8")
    assert "notebooks/01_small\nnotebooks/deeper/01a_down\n" in page(small, "index.md")


def test_picture_keeps_its_sentence_and_two_in_a_cell_are_refused(small):
    cells = nbformat.reads(page(small, "notebooks/01_small.ipynb"), as_version=4).cells
    install, figure = (cell.metadata.mystnb for cell in cells if "mystnb" in cell.metadata)
    assert figure.image.alt == ALT and install.code_prompt_show == notebooks.INSTALL_TITLE
    path = small / "notebooks/01_small.ipynb"
    notebook = nbformat.read(path, as_version=4)
    cell = next(cell for cell in notebook.cells if cell.get("outputs"))
    cell.outputs = cell.outputs * 2
    nbformat.write(notebook, path)
    with pytest.raises(pages.SiteError, match="2 pictures"):
        page(small, "notebooks/01_small.ipynb")


def test_code_that_draws_is_folded_and_no_other(sources):
    for lesson in sources.lessons:
        cells = [cell for cell in sources.lesson_page(lesson, "exercises").cells if cell.cell_type == "code"]
        folded = {cell.id for cell in cells[1:] if "hide-input" in cell.metadata.get("tags", [])}
        drawn = {cell.id for cell in cells if re.search(r"^ *show\(", cell.source, re.MULTILINE)}
        assert folded == drawn, lesson.name


def test_terms_are_linked_from_the_lesson_that_introduces_them_on(sources):
    linked = {}
    for lesson in sources.lessons:
        texts = "".join(cell.source for cell in sources.lesson_page(lesson, "solutions").cells)
        linked[lesson.number] = re.findall(r'class="term" href="../../docs/glossary.html#([^"]+)"', texts)
        assert len(set(linked[lesson.number])) == len(linked[lesson.number]) > 5
    assert "term-chance" in linked["08"] and "term-chance" not in linked["03"], "which says it in passing"


OPTION = re.compile(r'<span>(.+)</span></label>\n<p class="quiz-reason" data-right="(\w+)" hidden>(.+)</p>')


def place_of_right(text):
    return [right for _, right, _ in OPTION.findall(text)].index("true")


def test_question_has_labelled_radio_buttons_each_with_its_reason(small):
    question = authoring.read_question(
        "Two `x`?\n\n- [ ] *one*\n  > Less.\n- [x] a < b\n  > Right so.\n- [ ] c\n  > No."
    )
    text = pages.question_page(question, 2, name="quiz-01-2")
    form = BeautifulSoup(text, "html.parser")
    assert text.startswith("### Question 2\n\n") and "Two `x`?" in text
    assert [(one["name"], one["value"]) for one in form("input")] == [("quiz-01-2", letter) for letter in "ABC"]
    assert sorted(OPTION.findall(text)) == [
        ("<em>one</em>", "false", "Less."), ("a &lt; b", "true", "Right so."), ("c", "false", "No."),
    ]  # fmt: skip
    assert form.fieldset["aria-labelledby"] == form.div["id"] == "quiz-01-2"
    assert all(one.has_attr("hidden") for one in form(["p", "button"])), "without script, answers are folded"
    assert text.count("Right so.") == 2


def test_every_quiz_is_on_its_lesson_and_on_the_quizzes_page(sources):
    staged = dict(sources.pages())
    for lesson in sources.lessons:
        for form in ("", "solutions/"):
            cells = nbformat.reads(staged[f"notebooks/{form}{lesson.name}.ipynb"], as_version=4).cells
            asked = [cell.source for cell in cells if '<form class="quiz">' in cell.source]
            assert len(asked) == len(lesson.quiz)
            for question, source in zip(lesson.quiz, asked, strict=True):
                assert question.text in source
    names = {one["name"] for one in BeautifulSoup(staged["quizzes.md"], "html.parser")("input")}
    assert len(names) == sum(len(lesson.quiz) for lesson in sources.lessons)


def test_order_of_options_stays_differs_from_page_to_page_and_tells_nothing(sources):
    asked = [
        (question, f"{lesson.number}-{number}")
        for lesson in sources.lessons
        for number, question in enumerate(lesson.quiz, start=1)
    ]
    places = {}
    for page in ("quiz", "quizzes"):
        texts = [pages.question_page(question, 1, name=f"{page}-{name}") for question, name in asked]
        again = [pages.question_page(question, 1, name=f"{page}-{name}") for question, name in asked]
        assert texts == again
        places[page] = [place_of_right(text) for text in texts]
        often = max(map(places[page].count, range(4)))
        assert often <= math.ceil(0.45 * len(asked)), f"choose another _SEED in pages.py: {places[page]}"
    assert places["quiz"] != places["quizzes"]


def test_every_term_is_introduced_where_the_glossary_says(sources):
    assert len(sources.terms) >= 40
    assert len({term.name.lower() for term in sources.terms}) == len(sources.terms), "a term stands there twice"
    text = (ROOT / "docs/glossary.md").read_text(encoding="utf-8")
    assert len(re.findall(r"^- ", text, re.MULTILINE)) == len(sources.terms), "a line is not `- **term** (NN): …`"
    for term in sources.terms:
        assert sources.introduction(term)
    assert {term.lesson for term in sources.terms} == {lesson.number for lesson in sources.lessons}


# Lessons that say a term before the one that introduces it, and what they mean by it.
IN_PASSING = {
    "chance": {"03": "to beat or to lose to chance", "04": "what random sets stand for"},
    "first token": {"03": "of a row", "04": "of a row", "05": "of a row", "07": "of a row", "09": "of a row"},
    "hidden channel": {"10": "a number in an exercise"},
    "price of a layer": {"06": "of a layer's cache"},
    "split": {"01": "into two parts"},
}


def prose_of(notebook):
    """A lesson's text cells, without its title cell and its references."""
    texts = [cell.source for cell in notebook.cells[1:] if cell.cell_type == "markdown"]
    return [re.split(r"^## References", text, flags=re.MULTILINE)[0] for text in texts]


def test_no_lesson_says_a_term_before_the_one_that_introduces_it(sources):
    prose, wrong = {number: prose_of(notebook) for number, notebook in sources.saved.items()}, []
    for term in sources.terms:
        says = [number for number, texts in prose.items() if pages.section_of(term.name, texts)]
        says = [number for number in says if number not in IN_PASSING.get(term.name, {})]
        if says[:1] != [term.lesson]:
            wrong.append(f"{term.name} ({term.lesson}): first said in {says[0] if says else 'no lesson'}")
    assert not wrong, "name another lesson in docs/glossary.md, or with a reason in IN_PASSING: " + "; ".join(wrong)
    assert set(IN_PASSING) <= {term.name for term in sources.terms}


def test_glossary_is_an_index_each_term_leads_to_a_section_of_its_lesson(sources):
    text = dict(sources.pages())["docs/glossary.md"]
    entries = re.findall(r"^(\S.*)\n  (.+)$", text.partition("```{glossary}\n")[2], re.MULTILINE)
    assert [name for name, _ in entries] == sorted((term.name for term in sources.terms), key=str.lower)
    lessons = {term.name: term.lesson for term in sources.terms}
    for name, says in entries:
        (goal, section) = re.search(r"\]\(\.\./notebooks/([\w.]+)\.ipynb#([\w-]+)\)$", says).groups()
        (lesson,) = [one for one in sources.lessons if one.name == goal]
        assert lesson.number == lessons[name]
        headings = [heading for cell in lesson.cells for _, heading in HEADING.findall(cell.source)]
        assert section in {pages.anchor(heading) for heading in headings}, name


HEADING = re.compile(r"^(#+) (.+)", re.MULTILINE)


def skipped(texts):
    """Headings that lie more than one level below the one before them."""
    level = 0
    for marks, heading in (found.groups() for text in texts for found in HEADING.finditer(text)):
        if len(marks) > level + 1:
            yield heading
        level = len(marks)


def test_headings_are_in_order(sources):
    """On every page: one title, and no level left out on the way down, so that a reader by ear can jump."""
    for name, text in sources.pages():
        notebook = name.endswith(".ipynb")
        cells = nbformat.reads(text, as_version=4).cells if notebook else []
        texts = [cell.source for cell in cells if cell.cell_type == "markdown"] if notebook else [text]
        parts = [pages._FENCE.sub("", part) for part in texts]
        assert not [*skipped(parts)], name
        titles = [marks for part in parts for marks, _ in HEADING.findall(part) if marks == "#"]
        assert len(titles) == 1, name
    assert [*skipped(["# A\n\n## B", "#### C\n\n## D\n\n### E"])] == ["C"]


def test_wrong_terms_are_noticed(small):
    sources = pages.Sources(small)
    assert sources.terms == [pages.Term("lesson", "01", "What one learns.")]
    assert "(../notebooks/01_small.ipynb#the-question)" in sources.introduction(sources.terms[0])
    with pytest.raises(pages.SiteError, match="doesn't say 'walrus'"):
        sources.introduction(pages.Term("walrus", "01", ""))
    with pytest.raises(pages.SiteError, match="names lesson 07"):
        sources.introduction(pages.Term("lesson", "07", ""))


def test_section_of_a_term():
    texts = [
        "## One\n\nNothing.\n\n### Two",
        "More of `Conv1D`.\n\n## Three\n\nA *KV cache*,\nand",
        "## Four\n\nkv  cache",
    ]
    assert pages.section_of("Conv1D", texts) == "Two"
    assert pages.section_of("KV cache", texts) == "Three"
    assert pages.section_of("rv", texts) is None, "words begin where they begin"


def test_cards_show_the_figure_to_remember_what_one_has_and_how_long_it_takes(small, sources):
    (small / "docs/index.md").write_text("# Welcome\n\n<!-- site: lessons -->\n", encoding="utf-8")
    assert f":img-top: cards/01.png\n:img-alt: {ALT}\n" in page(small, "index.md")
    pages.stage(small, small / "staged")
    assert (small / "staged/cards/01.png").read_bytes().startswith(b"\x89PNG")
    cards = dict(sources.pages())["index.md"]
    assert cards.count(":img-top: cards/") == len(sources.lessons), "each has one"
    assert all(max(picture.size) <= 560 and len(alt.split()) > 4 for picture, alt in sources.remembered.values())


def test_landing_counts_what_is_there(small):
    text = page(small, "index.md")
    for what, count in {"lessons": 1, "exercises that check themselves": 1, "quiz questions with reasons": 3}.items():
        assert f'<dt>{what}</dt><dd class="numbers-count">{count}</dd>' in text


def test_unknown_place_and_drawing_are_refused(small):
    (small / "docs/more.md").write_text("<!-- site: walrus -->\n", encoding="utf-8")
    with pytest.raises(pages.SiteError, match="walrus"):
        page(small, "docs/more.md")
    (small / "docs/more.md").write_text("```mermaid\npie\n```\n", encoding="utf-8")
    with pytest.raises(pages.SiteError, match="Mermaid"):
        page(small, "docs/more.md")


def test_layers_are_a_list(sources):
    text = dict(sources.pages())["docs/house.md"]
    assert "mermaid" not in text and re.search(r'<ol class="layers".*<strong>support</strong> files', text)


def test_nothing_is_left_out_of_the_contents(sources):
    staged = {name.rpartition(".")[0] for name, _ in sources.pages()} - {"index"}
    listed = set(re.findall(r"^[\w/]+$", "\n".join([sources._contents(), sources._solutions_page()]), re.MULTILINE))
    assert staged == listed


def test_shared_link_shows_what_a_lesson_is_and_a_search_finds_it_once(small):
    for form, hidden in (("", False), ("solutions/", True)):
        about = nbformat.reads(page(small, f"notebooks/{form}01_small.ipynb"), as_version=4).metadata
        assert about["og:description"] == about["myst"]["html_meta"]["description"]
        assert about["og:description"].startswith("01 · A small lesson.") and ("no-search" in about) is hidden


OUTSIDE = re.compile(r'<(?:script|img|link|iframe)\b[^>]*?(?:src|href)="(?:https?:)?//[^"]*"')


@pytest.mark.embedded  # no model, but half a minute
def test_site_is_built_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path):
    assert pages.build(ROOT, tmp_path / "site") == 0
    written = list((tmp_path / "site").rglob("*.html"))
    assert len(written) > 2 * len(list((ROOT / "lessons").glob("*.py")))
    home = notebooks.Course.read(ROOT).site
    assert tmp_path / "site/notebooks/solutions/12_what_breaks_first.html" in written, "an old address"
    for file in written:
        text = file.read_text(encoding="utf-8")
        head = BeautifulSoup(text.partition("</head>")[0], "html.parser")
        metas = [about.get("name", about.get("property")) for about in head("meta")]
        assert "_static" in file.parts or metas.count("viewport") == 1, file.name
        if moved := head.find("meta", attrs={"http-equiv": "refresh"}):
            now = moved["content"].removeprefix("0; url=")
            assert (file.parent / now).is_file() and f'<a href="{now}">' in text, f"{file.name} leads to {now}"
        elif "_static" not in file.parts and file.name not in ("404.html", "search.html"):
            assert metas.count("description") == metas.count("og:title") == metas.count("og:description") == 1, file
            (picture,), (icon,) = head("meta", property="og:image"), head("link", rel="icon")
            assert (tmp_path / "site" / picture["content"].removeprefix(home)).is_file(), picture
            assert (file.parent / icon["href"]).is_file(), icon
        outside = [found for found in OUTSIDE.findall(text) if 'rel="canonical"' not in found]
        assert not outside, f"{file.name} loads {outside[:2]}"
    names = [tmp_path / "site/api/course_utils" / name / "index.html" for name in ("", "pruning", "measuring/costs")]
    packages, modules, costs = (name.read_text(encoding="utf-8") for name in names)
    assert "Pruning: score what could go, cut it out, and save what stays." in packages
    said = "Looking into a model while it runs: read text once, watch chosen places, run it again from some block"
    assert f"{said} upwards." in modules
    assert costs.count("How many times as fast") == 2, "in the list of names, and at its own place"


@pytest.mark.embedded
def test_link_that_leads_nowhere_is_an_error(small, capfd):
    shutil.copy(ROOT / "docs/conf.py", small / "docs")
    for name in ("static", "templates"):
        shutil.copytree(ROOT / "docs" / name, small / "docs" / name)
    (small / "course_utils").mkdir()
    (small / "course_utils/__init__.py").write_text('"""A library."""\n', encoding="utf-8")
    with (small / "docs/index.md").open("a", encoding="utf-8") as page:
        page.write("\n<!-- site: contents -->\n\n[gone](glossary.md#no-such-heading)\n")
    assert pages.build(small, small / "site") == 1
    told = capfd.readouterr().err
    assert "no-such-heading" in told

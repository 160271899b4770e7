"""Slides: nothing of the lesson is lost or given away, nothing runs over its slide, nothing asks a network."""

import re
from pathlib import Path

import looking
import nbformat
import pytest
from sample_lesson import LESSON, write_lesson

from course_tools.lessons import notebooks
from course_tools.lessons.authoring import find_lessons, read_lesson
from course_tools.lessons.cells import tags_of
from course_tools.workshop import slides
from course_utils.text import assets

ROOT = Path(__file__).resolve().parents[3]
LESSONS = find_lessons(ROOT / "lessons")
CHECKS = """
@exercise(1, task="Return the double of a number.", proved="It is twice as much.", mistakes=[(square, _SQUARED)])
def check_double(attempt):
    '''Check it. This sentence is no mistake.'''
    require(attempt(3) == 6, "Twice 3 is 6.")
    require(attempt(3) > 6, f"of {attempt(3)} it is too small, take twice the number.")
    _more(attempt)


_SQUARED = "You squared the number, and that is something else."


def _more(attempt):
    require(attempt(3) < 9, "It is too much, and it grows.")


def _other(attempt):
    require(False, "This belongs to another check.")
"""
NOTES = '# %% [markdown] tags=["notes"]\n# **The point:** numbers can be doubled.\n\n# %% tags=["install"]'


def text_of(made):
    return ["\n".join(part for part in slide.parts if isinstance(part, str)) for slide in made]


def slides_of_lesson(path):
    lesson = read_lesson(path)
    saved = nbformat.read(ROOT / "notebooks" / f"{lesson.name}.ipynb", as_version=4)
    checks = slides.checks_of(lesson, ROOT)
    return lesson, slides.slides_of(lesson, saved, checks)


@pytest.fixture
def small(tmp_path):
    """The sample lesson with notes, a prediction and an output after it."""
    predicting = (
        "# %% [markdown]\n# ## Look\n#\n# **Predict before you run.** What is 6 times 7?\n#\n# <details><summary>What "
        "we saw (saved run, embedded profile)</summary>\n#\n# It was 42.\n#\n# </details>\n\n# %%\nimport sys\n"
    )
    text = LESSON.replace('# %% tags=["install"]', NOTES).replace("# %%\nimport sys\n", predicting)
    lesson = read_lesson(write_lesson(tmp_path, text))
    saved = notebooks.build_notebook(lesson, notebooks.Course("a/b", "main"), "exercises")
    for cell in saved.cells:
        if "6 * 7" in cell.source and cell.cell_type == "code":
            cell.outputs = [nbformat.v4.new_output("stream", text="seen\n")]
        if "check_double" in cell.source and cell.cell_type == "code":
            cell.outputs = [nbformat.v4.new_output("stream", text="Exercise 1: not solved yet.\n")]
    return slides.slides_of(lesson, saved, CHECKS)


def test_slides_of_a_small_lesson(small):
    assert [(slide.kind, text.partition("\n")[0]) for slide, text in zip(small, text_of(small), strict=True)] == [
        ("slide", "# 01 · A small lesson"),
        ("slide", "## The question"),
        ("slide", "## Look"),
        ("subslide", "### Exercise 1 · ●○○ · 5 minutes"),
        ("subslide", "### Question 1"),
        ("subslide", "### Question 2"),
        ("subslide", "### Question 3"),
    ]
    assert "The run printed**\n\n```\nseen\n```" in "\n".join(small[2].notes)
    assert "Pruning LLMs" in small[0].parts[0]


def test_answers_go_to_the_speaker(small):
    shown, told = "\n".join(text_of(small)), ["\n".join(slide.notes) for slide in small]
    for secret in ("It was 42", "Use `*`", "That is once", "numbers can be doubled", "return 2", "not solved yet"):
        assert secret not in shown
    assert "numbers can be doubled" in told[0] and "10 minutes alone" in told[0]
    assert "What the saved run showed" in told[2] and "It was 42" in told[2]
    assert "- Of … it is too small, take twice the number." in told[3]
    assert "Use `*`" in told[3] and "- Twice 3 is 6." in told[3] and "squared the number" in told[3]
    assert "no mistake" not in told[3] and "another check" not in told[3]
    assert "**B is right.** Doubled." in told[4] and "- **A.** That is once." in told[4]


each_lesson = pytest.mark.parametrize("path", LESSONS, ids=[path.stem[:2] for path in LESSONS])


@each_lesson
def test_one_thought_a_slide(path):
    """Few slides, none over full or empty; what a run showed stands neither with a prediction nor with an exercise."""
    _, made = slides_of_lesson(path)
    assert len(made) <= slides.MOST
    for slide, text in zip(made, text_of(made), strict=True):
        most = slides.TASK if text.startswith("### Exercise") else slides.LINES
        assert slide.lines <= most or len(slide.parts) == 2, text
        assert slide.lines <= slides.LINES / slides.SMALLEST, f"too long to be shrunk: {text}"
        assert slide is made[0] or len(slide.parts) > 1, f"a heading alone: {text}"
        assert text.startswith("#"), "who looks up from the keyboard finds the section's name"
        results = [part for part in slide.parts if not isinstance(part, str)]
        assert len(results) <= 1
        assert not results or not re.search("### Exercise|predict before you run", text, re.IGNORECASE), text
    assert "(continued)" not in "".join(text_of(made))


@each_lesson
def test_everything_of_a_lesson_is_there(path):
    """On the slides or in the notes: each heading, each paragraph, each picture, each question."""
    lesson, made = slides_of_lesson(path)
    shown, notes = "\n".join(text_of(made)), "\n".join(note for slide in made for note in slide.notes)
    headings = [
        h for cell in lesson.cells if cell.cell_type == "markdown" for h in re.findall(r"^##+ .+", cell.source, re.M)
    ]
    missing = {heading for heading in headings if heading not in shown}
    assert missing <= {"## References", "## Go deeper", "## Quiz"}
    prose = [cell.source for cell in lesson.cells if cell.cell_type == "markdown" and "quiz" not in tags_of(cell)]
    for text in prose:
        for part in re.split(r"^(?=##+ )", re.sub(r"<details>.*?</details>", "", text, flags=re.DOTALL), flags=re.M):
            for block in slides.blocks(part) if not part.startswith(("## References", "## Go deeper")) else ():
                if block.startswith("#"):
                    continue
                assert block in shown + notes or "".join(block.split()) in "".join((shown + notes).split()), block
    saved = nbformat.read(ROOT / "notebooks" / f"{lesson.name}.ipynb", as_version=4)
    pictures = sum("image/png" in output.get("data", {}) for cell in saved.cells for output in cell.get("outputs", []))
    drawn = sum(
        "image/png" in part.get("data", {}) for slide in made for part in slide.parts if not isinstance(part, str)
    )
    assert drawn == pictures > 0
    assert shown.count("### Question") == notes.count("**Poll.**") == len(lesson.quiz)
    assert "What we saw (saved run" not in shown and "<details>" not in shown + notes
    for part in ("The point", "Usual questions", "Wrong turns"):
        assert f"**{part}:**" in made[0].notes[0], f'a text cell tagged "notes" tells the speaker: {part}'
    assert notes.count("Wrong turns that the check names") >= 4


@each_lesson
def test_whoever_solves_an_exercise_sees_all_of_its_text(path):
    lesson, made = slides_of_lesson(path)
    for cell in lesson.cells:
        for text in re.split(r"^(?=##+ )", cell.source, flags=re.M) if cell.cell_type == "markdown" else ():
            if number := re.match(r"### Exercise (\d+) ", text):
                own = [slide for slide in made if slide.heading.startswith(f"Exercise {number[1]} ")]
                shown = "\n".join(text_of(own))
                task = re.sub(r"<details>.*?</details>", "", text, flags=re.DOTALL)
                assert own and all(block in shown for block in slides.blocks(task)), number[0]


def test_what_one_predicts_from_stands_with_the_prediction(tmp_path):
    """A listing printed just before it; a remark of one line doesn't."""
    text = LESSON.replace(
        "# %%\nimport sys\n",
        "# %%\nimport sys\n\n# %% [markdown]\n# **Predict before you run.** What is their sum?\n#\n"
        "# <details><summary>What we saw (saved run, embedded profile)</summary>\n#\n# It was 42.\n#\n# </details>\n\n",
    )
    lesson = read_lesson(write_lesson(tmp_path, text))
    for printed, stands in (("one 20\ntwo 22\n", True), ("done\n", False)):
        saved = notebooks.build_notebook(lesson, notebooks.Course("a/b", "main"), "exercises")
        (cell,) = (cell for cell in saved.cells if cell.source.startswith("import sys"))
        cell.outputs = [nbformat.v4.new_output("stream", text=printed)]
        made = slides.slides_of(lesson, saved, CHECKS)
        (shown,) = (text for text in text_of(made) if "their sum" in text)
        assert (f"```\n{printed}```" in shown) == stands


def test_first_sentences_are_short_together_but_one_at_least():
    long = "This sentence goes on and on, " * 12 + "and ends."
    assert slides.first_sentences(f"{long} Another.") == long
    assert slides.first_sentences("One, e.g. this. *Two* is\nhere. Three.") == "One, e.g. this. *Two* is here. Three."
    assert slides.first_sentences(f"Short. {long}") == "Short."
    assert slides.first_sentences(f"Short. So: *{long}*") == "Short."


def test_long_table_is_cut_and_says_so():
    rows = "".join(f"<tr><td>{row}</td></tr>" for row in range(40))
    page = f"<table><thead><tr><th>n</th></tr></thead><tbody>{rows}</tbody></table>"
    output = nbformat.v4.new_output("display_data", data={"text/html": page, "text/plain": ""})
    cut = slides.shortened(output).data["text/html"]
    assert cut.count("<tr") == slides.ROWS + 1 and f"<td>{slides.ROWS - 1}</td>" in cut
    assert f"<td>{slides.ROWS}</td>" not in cut
    assert f"… and {40 - slides.ROWS} more rows in the notebook." in cut
    short = nbformat.v4.new_output("display_data", data={"text/html": page.replace(rows, rows[:100])})
    assert slides.shortened(short) is short


def test_blocks_keep_tables_and_code_whole():
    text = "## Title\ntext right below\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n```\none\n\ntwo\n```\n\n- x\n- y"
    assert [*slides.blocks(text)] == [
        "## Title", "text right below", "| a | b |\n|---|---|\n| 1 | 2 |", "```\none\n\ntwo\n```", "- x\n- y",
    ]  # fmt: skip
    items = "\n".join(f"- item {number}\n  goes on" for number in range(20))
    assert [*slides.blocks(items)] == [f"- item {number}\n  goes on" for number in range(20)]


def test_deck_asks_no_network_and_keeps_alt_text(small):
    png = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    sentence = "A dot, and < nothing & else."
    picture = nbformat.v4.new_output("display_data", data={"image/png": png}, metadata={"image/png": {"alt": sentence}})
    small[2].parts += ["The mass is $m^2$.", picture]
    page = slides.deck(small, title="01 · A small lesson")
    assert not re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?https?:""", page)
    assert 'alt="A dot, and &lt; nothing &amp; else."' in page
    assert page.count('<aside class="notes">') == sum(bool(slide.notes) for slide in small)
    assert "require(" not in page and "MathJax" not in page
    assert "<msup>" in page and "m^2" not in page, "a formula is drawn, as MathML"


def test_decks_stand_in_a_folder_of_their_own(small, tmp_path):
    reveal = tmp_path / "from"
    for part in ("dist/reveal.js", "plugin/notes/notes.js", "LICENSE"):
        (reveal / part).parent.mkdir(parents=True, exist_ok=True)
        (reveal / part).write_text(part, encoding="utf-8")
    pages = {"01_small": ("01 · <A> lesson", slides.deck(small, title="x"))}
    for _ in range(2):
        index = slides.write_decks(pages, reveal, tmp_path / "to")
    text = index.read_text(encoding="utf-8")
    assert 'href="01_small.html"' in text and "01_small.html?print-pdf" in text and "&lt;A&gt;" in text
    for name in re.findall(r'(?:src|href)="(reveal/[^"]+\.js)"', pages["01_small"][1]):
        assert (tmp_path / "to" / name).exists(), name


@pytest.mark.browser
def test_every_slide_fits_in_a_browser_and_is_printed(page, tmp_path):
    """Chromium shows each slide: nothing runs over, nothing is shrunk beyond reading, no error, no request outside."""
    pages = {}
    for path in LESSONS:
        lesson, made = slides_of_lesson(path)
        pages[lesson.name] = (lesson.title, slides.deck(made, title=lesson.title))
    index = slides.write_decks(pages, assets.fetch("reveal"), tmp_path)
    page.set_viewport_size({"width": slides.WIDTH, "height": slides.HEIGHT})
    for name in pages:
        page.goto((index.parent / f"{name}.html").as_uri())
        page.wait_for_function("window.Reveal && Reveal.isReady()")
        assert looking.faults(page) == [], name
        found = page.evaluate(_LOOK)
        assert len(found) > 20
        for slide in found:
            assert slide["right"] <= slides.WIDTH + 1 and slide["bottom"] <= slides.HEIGHT + 1, (name, slide)
            assert slide["scale"] >= slides.SMALLEST and slide["height"] > 20, (name, slide)
        page.goto((index.parent / f"{name}.html").as_uri() + "?print-pdf")
        page.wait_for_function("document.querySelectorAll('.pdf-page').length > 0")  # made all at once, behind the rest
        printed = page.pdf(prefer_css_page_size=True, print_background=True)
        assert len(re.findall(rb"/Type\s*/Page\b", printed)) == len(found), f"{name}: one page a slide"
    assert page.troubles.console == page.troubles.requests == []


_LOOK = """() => Reveal.getSlides().map(slide => {
  const at = Reveal.getIndices(slide);
  Reveal.slide(at.h, at.v);
  const fit = slide.querySelector(".fit"), box = fit.getBoundingClientRect();
  const all = [...fit.querySelectorAll("*")].filter(part => part.checkVisibility()); // a wide formula leaves its box
  const far = (edge) => Math.max(...all.map(part => part.getBoundingClientRect()[edge]));
  const [right, bottom] = [far("right"), far("bottom")];
  return {right, bottom, height: box.height, scale: +fit.dataset.scale, text: slide.innerText};
})"""

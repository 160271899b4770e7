"""Pages of a run: they ask no network, read on a phone, and lead on."""

import html
import re
from html.parser import HTMLParser
from pathlib import Path

import looking
import nbformat
import pytest
from screens import PHONE, WIDE

from course_tools.lessons import runner, webpages
from course_tools.lessons.authoring import Lesson
from course_tools.lessons.notebooks import BADGE

TABLE = '<table class="dataframe"><thead><tr><th></th><th>loss</th></tr></thead><tr><th>0</th><td>1</td></tr></table>'
CODE = '@cache\ndef sure(x):\n    return x is not None and x in (12, 0.25, 0x1F)  # not the "sum"\n\n\n%pip list\n'
CODE += "total = " + " + ".join(f"number_{index}" for index in range(40))


def lesson(name, title):
    return Lesson(path=Path(f"{name}.py"), title=title, prerequisites="", assets=[], concepts=(), cells=(), time="")


FIRST, SECOND = lesson("01_x", "Weights & <signs>"), lesson("02_y", "What comes next")
RAN = runner.Result("01_x", "smoke", 1.4, 10**9, None)


def notebook(*cells):
    title = nbformat.v4.new_markdown_cell("# 01 · Weights")
    return nbformat.v4.new_notebook(cells=[title, *cells])


def shown(*outputs):
    cell = nbformat.v4.new_code_cell(CODE)
    cell.outputs = [nbformat.v4.new_output("display_data", data, metadata=about) for data, about in outputs]
    return cell


def rich():
    """A notebook with all that has ever asked a network: a badge, a formula, a drawing, a widget."""
    texts = [f"[![Open in Colab]({BADGE})](https://colab.research.google.com/x)", "It is $x_i^2$.\n\n$$\\frac{1}{k}$$"]
    texts += ["A sentence with [a link](https://arxiv.org/abs/1) in it.", "```mermaid\ngraph TD\n```", "`$HOME$`"]
    book = notebook(*map(nbformat.v4.new_markdown_cell, texts), shown(({"text/html": TABLE}, {})))
    book.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": {}, "version_major": 2}}
    return book


def written(folder, book, lessons=()):
    webpages.write_page(book, FIRST, folder, lessons)
    return (folder / "01_x.html").read_text(encoding="utf-8")


class Loaded(HTMLParser):
    """What a browser would fetch or run while it reads a page."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        about = dict(attrs)
        self.found += [tag] * (tag in ("script", "iframe", "object", "embed"))
        sources = [about.get("src"), about.get("srcset"), about.get("href") if tag == "link" else None]
        self.found += [source for source in sources if source and not source.startswith("data:")]


def test_page_and_index_load_nothing(tmp_path):
    page = written(tmp_path, rich(), lessons=[FIRST, SECOND])
    index = webpages.write_index([RAN], tmp_path, [FIRST, SECOND]).read_text(encoding="utf-8")
    for text in (page, index):
        assert Loaded(text).found == []
        assert not re.search(r"@import|url\((?!['\"]?(?:data:|#))", text)
    assert '<a href="https://colab.research.google.com/x">Open in Colab</a>' in page
    assert Loaded("<script src='https://x.org/a.js'></script><img src=b.png>").found == [
        "script", "https://x.org/a.js", "b.png",
    ]  # fmt: skip


def test_formulas_are_mathml_and_code_is_code(tmp_path):
    page = written(tmp_path, rich())
    assert page.count("<math") == 2 and "<mfrac>" in page and "<code>$HOME$</code>" in page
    unknown = notebook(nbformat.v4.new_markdown_cell(r"So $\walrus{x < 1}$."))
    assert r"$\walrus{x &lt; 1}$" in written(tmp_path, unknown), "it stays as it is written"


def test_page_is_named_and_leads_on(tmp_path):
    book = rich()
    page = written(tmp_path, book, lessons=[FIRST, SECOND])
    assert "<title>01 · Weights &amp; &lt;signs&gt;</title>" in page and 'name="viewport"' in page
    assert 'href="index.html"' in page and "python3 course.py lab" in page
    assert '<a href="index.html#02_y">02 · What comes next</a>' in page, "its page isn't there yet"
    webpages.write_page(book, SECOND, tmp_path, [FIRST, SECOND])
    first, second = ((tmp_path / f"{name}.html").read_text(encoding="utf-8") for name in ("01_x", "02_y"))
    assert '<a href="02_y.html">02 · What comes next</a>' in first and "index.html#02_y" not in first
    assert 'href="index.html"' in second and "Next" not in second
    webpages.write_page(book, FIRST, tmp_path, [FIRST, SECOND])
    assert (tmp_path / "01_x.html").read_text(encoding="utf-8") == first


def test_page_says_how_to_run_a_deeper_notebook(tmp_path):
    page = written(tmp_path, notebook(nbformat.v4.new_markdown_cell("[Why *so*](deeper/01a_why.ipynb): sum up.")))
    assert "Why <em>so</em> (<code>course.py run 01a</code>): sum up." in page and "deeper" not in page


def test_index_tells_what_ran_what_failed_what_is_left_and_what_is_next(tmp_path):
    third = lesson("03_z", "Not yet")
    lessons = [FIRST, SECOND, third]
    failure = runner.Failure(2, "x < 1", "ValueError: <b>")
    webpages.write_page(notebook(), FIRST, tmp_path, lessons)
    webpages.write_index([runner.Result("01_x", "smoke", 1.4, 10**9, failure)], tmp_path, lessons)
    path = webpages.write_index([runner.Result("02_y", "smoke", 2.0, 10**9, None)], tmp_path, lessons)
    index = path.read_text(encoding="utf-8")
    rows = dict(re.findall(r'<li id="(\w+)">(.*?)</li>', index, re.DOTALL))
    assert list(rows) == ["01_x", "02_y", "03_z"]
    assert '<a href="01_x.html">01 · Weights &amp; &lt;signs&gt;</a>' in rows["01_x"], "an earlier call's"
    assert "failed at code cell 2 (x &lt; 1): ValueError: &lt;b&gt;" in rows["01_x"]
    assert '<a href="02_y.html">' in rows["02_y"] and "2 s" in rows["02_y"] and "1.0 GB" in rows["02_y"]
    assert "<a" not in rows["03_z"] and "python3 course.py run 03" in rows["03_z"]
    assert "python3 course.py lab" in index and "python3 course.py progress" in index and 'name="viewport"' in index
    assert nbformat.read(tmp_path / "01_x.ipynb", as_version=4).cells[0].source == "# 01 · Weights"


def test_page_keeps_what_a_picture_shows(tmp_path):
    sentence = 'Perplexity "rises" & <falls>.'
    picture = {"image/png": "aGk=", "text/plain": sentence}, {"image/png": {"alt": sentence}}
    page = written(tmp_path, notebook(shown(picture)))
    assert html.unescape(re.search(r"<img[^>]*?alt=(['\"])(.*?)\1[^>]*aGk=", page)[2]) == sentence


def test_tables_have_no_header_without_a_word(tmp_path):
    page = written(tmp_path, rich())
    assert "<th></th>" not in page and "<th>loss</th>" in page
    assert "<th></th>" in (tmp_path / "01_x.ipynb").read_text(encoding="utf-8"), "the notebook stays as it ran"


@pytest.mark.browser
def test_pages_read_at_once_where_the_network_hangs_and_on_a_phone(tmp_path, browser, page):
    """A café's wifi: requests are sent and never answered."""
    written(tmp_path, rich(), lessons=[FIRST, SECOND])
    webpages.write_index([RAN], tmp_path, [FIRST, SECOND])
    page.route(re.compile("^https?:"), lambda route: None)
    for name in ("01_x", "index"):
        page.goto((tmp_path / f"{name}.html").as_uri())
        assert page.locator("h1").first.is_visible() and page.evaluate("document.readyState") == "complete"
        for size in (WIDE, PHONE):
            page.set_viewport_size(size)
            assert looking.faults(page) == [] and looking.sideways(page) == []
    assert page.troubles.console == page.troubles.requests == []

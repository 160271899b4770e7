"""What a run showed, as web pages that ask no network for anything: one a lesson, and the index that lists them."""

from __future__ import annotations

import copy
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path, PurePosixPath
from string import Template

from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode

from course_tools.lessons.authoring import DEEPER, Lesson
from course_tools.lessons.cells import shown_outputs
from course_tools.lessons.notebooks import to_text, without_empty_headers
from course_tools.lessons.runner import Result, gigabytes
from course_utils.support.files import write_text


def write_page(notebook: NotebookNode, lesson: Lesson, folder: Path, lessons: Sequence[Lesson] = ()) -> None:
    """Write the executed notebook, and beside it a web page that needs neither Jupyter nor a network.

    The page leaves out what cells wrote to standard error: spent progress bars and libraries' warnings.

    Args:
        notebook: the lesson as it ran.
        lesson: names both files, and the page.
        folder: where they go.
        lessons: all of the course, in order, where an index lies beside the pages; they then lead to it and on.
    """
    write_text(folder / f"{lesson.name}.ipynb", to_text(notebook))
    shown = without_empty_headers(copy.deepcopy(notebook))
    shown.metadata.pop("widgets", None)  # only a script could draw them
    for cell in shown.cells:
        if cell.cell_type == "code":
            cell.outputs = shown_outputs(cell)
    exporter = HTMLExporter(
        template_name="lab",
        raw_template=_beside("page.html.j2") + PICTURES,
        filters={"markdown2html": MARKDOWN},
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    resources = {"metadata": {"name": lesson.heading}, "way": _way(lesson, lessons, folder)}
    page, _ = exporter.from_notebook_node(shown, resources)
    write_text(folder / f"{lesson.name}.html", page)
    for before, after in pairwise(lessons):
        path = folder / f"{before.name}.html"
        if after.name == lesson.name and path.exists():  # written while this page was still to come
            text = path.read_text(encoding="utf-8")
            write_text(path, text.replace(f'"index.html#{lesson.name}"', f'"{lesson.name}.html"'))


def write_index(results: Iterable[Result], folder: Path, lessons: Sequence[Lesson]) -> Path:
    """Write `index.html` beside the pages of `write_page`, with all lessons of the course; return its path.

    Results of earlier calls stay listed: they are kept in `results.json`.
    """
    record = folder / "results.json"
    known = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    for result in results:
        known[result.name] = asdict(result) | {"failure": result.failure and str(result.failure)}
    write_text(record, json.dumps(known, indent=1, sort_keys=True) + "\n")
    rows = [f'<li id="{lesson.name}">{_row(lesson, known.get(lesson.name))}</li>' for lesson in lessons]
    path = folder / "index.html"
    write_text(path, Template(_beside("index.html")).substitute(rows="\n".join(rows), by_hand=_BY_HAND))
    return path


def _beside(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


class _Plain(IPythonRenderer):
    """Markdown of a page that fetches nothing: formulas as MathML, a picture from elsewhere as its words."""

    def image(self, text: str, url: str, title: str | None = None) -> str:
        return text if url.startswith(("http:", "https:")) else super().image(text, url, title)

    def link(self, text: str, url: str, title: str | None = None) -> str:
        if f"{DEEPER}/" in url and not url.startswith("http"):  # it has no page beside this one before it is run
            number = PurePosixPath(url).name.partition("_")[0]
            return f"{text} (<code>course.py run {number}</code>)"
        return super().link(text, url, title)

    def inline_math(self, body: str) -> str:
        return _formula(body) or super().inline_math(body)

    def block_math(self, body: str) -> str:
        return _formula(body, as_block=True) or super().block_math(body)


MARKDOWN = MarkdownWithMath(renderer=_Plain(escape=False, exclude_anchor_links=True)).render  # a page's, to HTML


def _formula(text: str, **options: bool) -> str:
    """LaTeX as MathML; "" where it can't be read."""
    try:
        return tex2mathml(text, **options)
    except MathError:
        return ""


def _way(lesson: Lesson, lessons: Sequence[Lesson], folder: Path) -> str:
    """Where a page leads: to the index, and to the next lesson, or to its line there while it has no page."""
    if not lessons:
        return ""
    after = next((after for before, after in pairwise(lessons) if before.name == lesson.name), None)
    links = ['<a href="index.html">All lessons</a>']
    if after:
        written = (folder / f"{after.name}.html").exists()
        goal = f"{after.name}.html" if written else f"index.html#{after.name}"
        links.append(f'Next: <a href="{goal}">{html.escape(after.heading)}</a>')
    return f'<nav class="jp-RenderedHTMLCommon" aria-label="Lessons"><p>{" · ".join(links)}</p>{_BY_HAND}</nav>'


def _row(lesson: Lesson, result: Mapping | None) -> str:
    """A lesson in the index: what came of it, or how to run it."""
    heading = html.escape(lesson.heading)
    if result is None:
        return f"{heading}<p>Not run yet: <code>python3 course.py run {lesson.number}</code></p>"
    outcome = f"failed at {result['failure']}" if result["failure"] else "ok"
    facts = [outcome, f"{result['seconds']:.0f} s", f"{gigabytes(result['peak_bytes'])} of memory at its peak"]
    facts.append(f"profile {result['profile']}")
    return f'<a href="{lesson.name}.html">{heading}</a><p>{html.escape(" · ".join(facts))}</p>'


# A block for nbconvert's templates: pictures keep the sentence of `plotting.show`.
PICTURES = """{% block data_png scoped %}
<div class="jp-RenderedImage jp-OutputArea-output">
<img src="data:image/png;base64,{{ output.data['image/png'] | escape_html }}"
  alt="{{ (output | get_metadata('alt', 'image/png') or '') | escape_html }}">
</div>
{% endblock %}"""
_BY_HAND = """<p>To work in the lessons by hand: <code>python3 course.py lab</code>.
How far you are, and what is next: <code>python3 course.py progress</code>.</p>"""

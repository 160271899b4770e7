"""The site in a real browser, from files: no errors, no requests, readable by everyone, on a phone and in the dark.

`python -m pytest -m browser`. The site is built first; COURSE_SITE names a folder that holds it already.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import unquote, urlparse

import looking
import nbformat
import pytest
from screens import PHONE, WIDE

from course_tools import processes
from course_tools.lessons import notebooks
from course_utils.compress import program
from course_utils.text import assets

ROOT = Path(__file__).resolve().parents[3]
MINUTE = 60_000  # milliseconds
PICTURES = "[...document.querySelectorAll('article img')].map(image => [image.alt, image.naturalWidth])"
FADED = """() => Promise.all(document.getAnimations()
    .filter(one => one.effect.getComputedTiming().endTime !== Infinity)
    .map(one => one.finished.catch(() => undefined)))"""
RAN = r"""count => /\[\d+\]/.test(
    document.querySelectorAll('.jp-CodeCell')[count - 1].querySelector('.jp-InputPrompt').innerText
)"""

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    if "COURSE_SITE" in os.environ:
        return Path(os.environ["COURSE_SITE"]).resolve()
    from course_tools.site import pages, playground

    folder = tmp_path_factory.mktemp("built") / "site"
    assert pages.build(ROOT, folder) == 0
    playground.build(ROOT, folder / playground.NAME)
    return folder


def address(path):
    return path.resolve().as_uri()


def go_dark(page, mode="dark"):
    page.evaluate(
        "mode => { document.documentElement.dataset.theme = document.documentElement.dataset.mode = mode; }", mode
    )
    page.evaluate(FADED)


def html_pages(site):
    """All but those of other packages, and those that only lead to a page's new name."""
    pages = [path for path in sorted(site.rglob("*.html")) if "_static" not in path.parts]
    return [path for path in pages if 'http-equiv="refresh"' not in path.read_text(encoding="utf-8")]


def first_lesson(site):
    return min((site / "notebooks").glob("*.html"))


# The theme lets the keyboard scroll what is wide, code and tables, 0.3 s after a change of width.
REACHED = """() => [...document.querySelectorAll("pre[tabindex], .pst-scrollable-table-container")].every(
    wide => wide.scrollWidth <= wide.clientWidth || wide.tabIndex === 0)"""


def resize(page, size):
    page.set_viewport_size(size)
    page.wait_for_function(REACHED)


def test_every_page_opens_and_is_readable_wide_and_light_and_narrow_and_dark(site, page):
    """Width and colour do not depend on each other, so two corners show each of the four once."""
    wrong = []
    for path in html_pages(site):
        name = path.relative_to(site).as_posix()
        page.set_viewport_size(WIDE)
        page.goto(address(path))
        go_dark(page, "light")
        for size, mode in ((WIDE, "light"), (PHONE, "dark")):
            resize(page, size)
            go_dark(page, mode)
            wrong += [f"{name}, {size['width']} px, {mode}: {fault}" for fault in looking.faults(page)]
            wrong += [f"{name} scrolls sideways at {size['width']} px: {what}" for what in looking.sideways(page)]
        for alt, width in page.evaluate(PICTURES):
            if len(alt.split()) < 3 or not width:
                wrong.append(f"{name}: a picture of {width} pixels says {alt!r}")
        troubles = page.troubles.console + page.troubles.requests
        wrong += [f"{name}: {trouble}" for trouble in troubles]
        page.troubles.console.clear()
        page.troubles.requests.clear()
    assert not wrong, "\n".join(wrong)
    assert len(html_pages(site)) > 2 * len(list((ROOT / "lessons").glob("*.py")))


def test_page_that_is_not_there_leads_back(site, page):
    """GitHub Pages shows it at any depth: only whole addresses, each of a page that the site has."""
    home = notebooks.Course.read(ROOT).site
    page.goto(address(site / "404.html"))
    links = page.evaluate("[...document.querySelectorAll('[href], [src]')].map(e => e.getAttribute('href') ?? e.src)")
    own = [link.removeprefix(home) or "index.html" for link in links if link.startswith(home)]
    assert len(own) >= 3 and all((site / path).is_file() for path in own)
    assert all(link.startswith("https://") for link in links)


def test_links_resolve(site, page):
    """Every link of every page to a file of the site, and to a place in it."""
    anchors, links = {}, []
    for path in html_pages(site):
        page.goto(address(path), wait_until="domcontentloaded")
        anchors[path] = set(page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)"))
        links += [(path, link) for link in page.evaluate("[...document.querySelectorAll('a[href]')].map(a => a.href)")]
    gone = set()
    for path, link in links:
        parts = urlparse(link)
        if parts.scheme == "file":
            goal = Path(unquote(parts.path))
            fragment = unquote(parts.fragment)
            if not goal.is_file() or (fragment and goal in anchors and fragment not in anchors[goal]):
                gone.add(f"{path.relative_to(site)}: {link.rpartition('/site/')[2]}")
    assert not gone, "\n".join(sorted(gone))
    assert len(links) > 1000


def test_colab_buttons_open_the_lesson_at_the_courses_tag(site, page):
    course = notebooks.Course.read(ROOT)
    for path in html_pages(site / "notebooks"):
        page.goto(address(path), wait_until="domcontentloaded")
        found = set(page.evaluate("[...document.querySelectorAll('a[href*=\"colab.research\"]')].map(a => a.href)"))
        assert found == {course.colab(path.relative_to(site).with_suffix(".ipynb").as_posix())}


def test_search_finds(site, page):
    page.goto(address(site / "search.html") + "?q=perplexity")
    page.wait_for_selector("text=Search finished")  # what is found comes one by one
    titles = page.locator("#search-results li").all_inner_texts()
    assert any(title.startswith("01 ·") for title in titles)
    assert not any("(solutions)" in title for title in titles), "a lesson is found once"
    page.goto(address(site / "search.html") + "?q=neuron_importance")
    page.wait_for_selector("text=Search finished")
    assert page.locator("#search-results a", has_text="neuron_importance").count()
    page.goto(address(site / "search.html") + "?q=xylophone")
    page.wait_for_selector("text=did not match any documents")
    assert page.troubles.console == page.troubles.requests == []


def test_search_hit_opens_at_the_word(site, page):
    page.set_viewport_size(WIDE)
    page.goto(address(site / "search.html") + "?q=patching")  # far down in lesson 03
    page.wait_for_selector("text=Search finished")
    page.locator("#search-results a", has_text="03 ·").first.click()
    word = page.locator("article p .highlighted").first
    word.wait_for()
    page.wait_for_function(  # it scrolls there
        "word => scrollY > 0 && 0 < word.getBoundingClientRect().y && word.getBoundingClientRect().y < innerHeight",
        arg=word.element_handle(),
    )


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_what_cells_printed_is_seen_whole(size, site, page):
    page.set_viewport_size(size)
    page.goto(address(first_lesson(site)))
    hidden = "pres => pres.filter(pre => pre.scrollWidth > pre.clientWidth).map(pre => pre.innerText)"
    printed = page.locator("article .cell_output pre")
    assert printed.count() > 5 and printed.evaluate_all(hidden) == []


def test_quiz_by_keyboard(site, page):
    page.goto(address(first_lesson(site)))
    stored = "JSON.stringify([localStorage, sessionStorage, document.cookie])"
    before = page.evaluate(stored)
    form = page.locator("form.quiz").first
    verdict, button = form.locator("[role=status]"), form.get_by_role("button")
    button.click()
    assert verdict.inner_text() == "Choose an answer first."
    radios, seen = form.get_by_role("radio"), []
    radios.first.focus()
    page.keyboard.press("Space")
    for number in range(radios.count()):
        if number:
            page.keyboard.press("ArrowDown")
            assert verdict.inner_text() == "", "a new choice is not judged yet"
        assert radios.nth(number).is_checked()
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        seen.append(verdict.inner_text())
        page.keyboard.press("Shift+Tab")
    right = [text for text in seen if text.startswith("✓ Right.")]
    assert len(right) == 1 and all(text.startswith("✗ Not this one.") for text in seen if text not in right)
    assert all(len(text.split()) > 5 for text in seen), "each with its reason"
    name = form.locator("fieldset").get_attribute("aria-labelledby")
    assert page.locator(f"#{name}").inner_text().strip(), "the question names the group"
    assert page.evaluate(stored) == before and page.troubles.requests == [], "nothing is kept or sent"


def test_figure_opens_at_full_size_on_a_phone(site, page):
    page.set_viewport_size(PHONE)
    page.goto(address(first_lesson(site)))
    button = page.locator("button.enlarge").first
    small = button.locator("img").bounding_box()["width"]
    button.focus()
    page.keyboard.press("Enter")
    large = page.locator("dialog.picture img")
    assert large.bounding_box()["width"] >= 2 * small
    assert large.get_attribute("alt") == button.locator("img").get_attribute("alt")
    assert looking.faults(page) == []
    page.keyboard.press("Escape")
    assert not page.locator("dialog.picture").is_visible()


def test_without_script_all_is_there(site, browser):
    with browser.browser.new_context(java_script_enabled=False) as plain:
        tab = plain.new_page()
        tab.goto(address(first_lesson(site)))
        assert tab.locator("article img").count() > 3 and not tab.get_by_text("Check my answer").first.is_visible()
        tab.get_by_text("All answers and reasons").first.click()
        assert tab.locator("article details li", has_text="Right.").first.is_visible()


def listening(port):
    with socket.socket() as asked:
        return asked.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def jupyter(tmp_path):
    """A JupyterLab of its own on lesson 01, its address; nothing of the reader's settings is read or written."""
    name = "01.ipynb"
    shutil.copy(min((ROOT / "notebooks").glob("*.ipynb")), tmp_path / name)
    settings = tmp_path / "settings/@jupyterlab/notebook-extension/tracker.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps({"windowingMode": "none"}), encoding="utf-8")  # cells out of sight are there, too
    folders = {f"JUPYTER_{what}_DIR": str(tmp_path / what) for what in ("CONFIG", "DATA", "RUNTIME")}
    folders |= {f"JUPYTERLAB_{what.upper()}_DIR": str(tmp_path / what) for what in ("settings", "workspaces")}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--no-browser", "--allow-root", f"--port={port}", f"--ServerApp.root_dir={tmp_path}", "--log-level=WARN"]
    options += ["--ServerApp.ip=127.0.0.1", "--IdentityProvider.token=", "--ServerApp.password="]
    options += ["--LabApp.news_url=", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    ours = {**os.environ, **folders, "COURSE_PROFILE": "embedded", "PYTHONPATH": str(ROOT)}
    environment = program.with_sleeping_threads(ours)
    command = [sys.executable, "-P", "-m", "jupyterlab", *options]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None and not listening(port):
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/lab/tree/{name}", tmp_path / name
    finally:
        processes.end(process.pid)


def test_lesson_runs_in_jupyterlab(jupyter, page):
    """Opened, "Run all" clicked, and the output of its last code cell seen."""
    if not (assets.is_cached("speeches") and assets.is_cached("texts")):
        pytest.skip("what lesson 01 opens is not in the cache; `python3 course.py run 01` fetches it")
    link, file = jupyter
    page.goto(link)
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status='idle']", timeout=3 * MINUTE)
    code = [cell for cell in nbformat.read(file, as_version=4).cells if cell.cell_type == "code"]
    page.wait_for_function("count => document.querySelectorAll('.jp-CodeCell').length === count", arg=len(code))
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.wait_for_function(RAN, arg=len(code), timeout=20 * MINUTE)
    prompts = [text.strip() for text in page.locator(".jp-CodeCell .jp-InputArea-prompt").all_inner_texts()]
    assert prompts == [f"[{number}]:" for number in range(2, len(code) + 1)], "all ran, in order; the first is folded"
    assert page.locator(".jp-Placeholder").all_inner_texts() == [f"# @title {notebooks.INSTALL_TITLE}"]
    last = page.locator(".jp-CodeCell").nth(len(code) - 1)
    assert re.match(r"Exercise \d+: not solved yet\.", last.locator(".jp-OutputArea-output").last.inner_text())
    assert page.locator(".jp-OutputArea-output[data-mime-type*='error']").count() == 0

"""The site in a real browser: Chromium without a window, steered by Playwright, and what axe-core says of a page."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page

# Nothing but the pages themselves: no updates, no synchronisation, no first-run pages.
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
# The rule was an experiment before axe-core 4.14.
_LOOK = {"resultTypes": ["violations"], "preload": False, "rules": {"label-content-name-mismatch": {"enabled": True}}}


@dataclass
class Troubles:
    """What a page complained about while it was open."""

    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


def find_chromium() -> str | None:
    """Path of a Chromium: `COURSE_CHROMIUM`, or one on the PATH; None where there is none."""
    return os.environ.get("COURSE_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


@contextlib.contextmanager
def browser(executable: str, *, headless: bool = True) -> Iterator[BrowserContext]:
    """A Chromium with an empty profile of its own, gone afterwards."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=executable, headless=headless, args=list(FLAGS)
        )
        try:
            yield context
        finally:
            context.close()


def drawn(page: Page) -> None:
    """Wait for the page's next picture: what it had asked to draw until now is drawn then, because it asked before."""
    page.evaluate("() => new Promise(requestAnimationFrame)")


def resize(page: Page, size: dict[str, int]) -> None:
    """Make the window another size, and wait until the page has seen and drawn that."""
    page.set_viewport_size(size)
    page.wait_for_function("width => innerWidth === width", arg=size["width"])
    drawn(page)


def watch(page: Page) -> Troubles:
    """Note what the page writes to its console as an error, and each request that fails or leaves this machine."""
    troubles = Troubles()
    page.on("console", lambda said: said.type == "error" and troubles.console.append(said.text))
    page.on("pageerror", lambda error: troubles.console.append(str(error)))
    page.on("requestfailed", lambda request: troubles.requests.append(f"{request.url}: {request.failure}"))
    page.on("request", lambda request: _local(request.url) or troubles.requests.append(f"{request.url}: not local"))
    return troubles


def _local(address: str) -> bool:
    return address.startswith(("file:", "data:", "blob:", "http://127.0.0.1", "http://localhost"))


def faults(page: Page) -> list[str]:
    """What axe-core finds wrong with the page as it stands, a line each: the rule, and the first element."""
    if not page.evaluate("typeof axe === 'object'"):
        page.evaluate((resources.files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("options => axe.run(document, options)", _LOOK)["violations"]
    return [
        f"{one['id']} ({len(one['nodes'])}×): {one['help']}; {json.dumps(one['nodes'][0]['html'][:200])}"
        for one in found
    ]


def sideways(page: Page) -> list[str]:
    """What sticks out of the window to the right, so that the page scrolls sideways; nothing where it doesn't."""
    return page.evaluate(
        """() => {
            const width = document.documentElement.clientWidth;
            if (document.documentElement.scrollWidth <= width) return [];
            const inside = (element) => element && element !== document.documentElement
                && (getComputedStyle(element).overflowX !== "visible" || inside(element.parentElement));
            return [...document.querySelectorAll("body *")]
                .filter((element) => element.getBoundingClientRect().right > width + 1)
                .filter((element) => !inside(element.parentElement))
                .slice(0, 3)
                .map((element) => element.outerHTML.slice(0, 120));
        }"""
    )

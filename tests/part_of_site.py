"""A part of a page of the site, opened alone in a browser: as it is written, with the site's own style and script."""

import re
from pathlib import Path

STATIC = Path(__file__).resolve().parents[1] / "docs" / "static"
SHELL = """<!doctype html><html lang="en"><meta charset="utf-8"><title>A part</title>
<style>{css}</style><script>{script}</script><main><h1>A part</h1>{body}</main></html>"""


def open_alone(page, folder, markdown, script):
    """Write Markdown's raw HTML as a page into `folder`, and open it."""
    body = re.sub(r"^````.*\n?", "", markdown, flags=re.MULTILINE)
    css, code = ((STATIC / name).read_text(encoding="utf-8") for name in ("course.css", script))
    (folder / "part.html").write_text(SHELL.format(css=css, script=code, body=body), encoding="utf-8")
    page.goto((folder / "part.html").as_uri())

"""The house: its doors open, old names lead to the new places, the base install suffices, and pages name what is there.

That packages import one way is import-linter's business (``pyproject.toml``).
"""

import ast
import importlib
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packages import imported_as
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from course_tools import requirements
from course_utils.moved import MOVED

ROOT = Path(__file__).resolve().parents[1]
DOORS = sorted(path.parent.name for path in (ROOT / "course_utils").glob("*/__init__.pyi"))


def modules():
    """{dotted name: path} of the library's modules; packages are among them."""
    paths = sorted((ROOT / "course_utils").rglob("*.py"))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def brought(names):
    """The distributions that installing these brings along, themselves included."""
    found, todo = set(), list(names)
    while todo:
        name = canonicalize_name(todo.pop())
        if name not in found:
            found.add(name)
            needs = map(Requirement, metadata.requires(name) or [])
            todo += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    return found


IMPORT_WITHOUT = """
import importlib, sys

class Without:  # libraries probe for others: those must look absent, not broken
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in blocked else self.finder.find_spec(name, path, target)

blocked, names = (argument.split() for argument in sys.argv[1:])
sys.meta_path[:] = map(Without, sys.meta_path)
for name in names:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if "pip install 'pruning-llms[" not in str(error):
            raise
        print(name)
"""


def test_every_module_imports_with_the_base_dependencies_alone():
    """Those that serve what an extra brings say so, and which."""
    base = brought(Requirement(text).name for text in requirements.needed())
    extras = {Requirement(text).name for text in requirements.needed("dev", "browser", "benchmarks")}
    blocked = [imported_as(name) for name in extras if canonicalize_name(name) not in base]
    assert {"jupytext", "pytest", "matplotlib", "lm_eval", "sklearn"} <= {*blocked}
    command = [sys.executable, "-c", IMPORT_WITHOUT, " ".join(blocked), " ".join(modules())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {".".join(name.split(".")[1:3]) for name in done.stdout.split()} == {
        "measuring.benchmark_tasks", "lessons.diagrams", "release.engine", "release.export", "support.plotting",
    }  # fmt: skip


PAGES = [ROOT / "CONTRIBUTING.md", ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES.remove(ROOT / "docs" / "index.md")  # names pages that the site writes; the site's own build checks its links
FOLDERS = "benchmarks|course_tools|course_utils|docs|experiments|lessons|notebooks|tests"


def missing(text):
    """The files and tests that a page names in backticks, or links to, and that aren't there."""
    named = re.findall(rf"`((?:{FOLDERS})/[^`\s*]+)`", text) + re.findall(r"\]\(((?!https?:|#)[^)]+)\)", text)
    for name in named:
        place, _, test = name.replace("NN_slug", "01_*").replace("NN", "01").partition("::")
        file, _, heading = place.partition("#")
        found = [path for folder in (ROOT, ROOT / "docs") for path in folder.glob(file)]
        text = found[0].read_text(encoding="utf-8") if found and found[0].suffix in (".md", ".py") else ""
        headings = [*map(slug, re.findall(r"^#+ (.+)", text, re.MULTILINE)), ""]
        if not found or (test and f"def {test}(" not in text) or heading not in headings:
            yield name


def slug(heading):
    """The address of a heading within its page, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_pages_name_what_is_there(page):
    assert not [*missing(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("package", DOORS)
def test_a_door_names_what_is_behind_it(package):
    door = importlib.import_module(f"course_utils.{package}")
    assert all(getattr(door, name) is not None for name in door.__all__)


@pytest.mark.parametrize("old", MOVED)
def test_an_old_name_leads_to_the_one_module_and_warns(old):
    sys.modules.pop(f"course_utils.{old}", None)
    with pytest.warns(FutureWarning, match=f"course_utils.{old} is course_utils.{MOVED[old]} since"):
        module = importlib.import_module(f"course_utils.{old}")
    assert module is importlib.import_module(f"course_utils.{MOVED[old]}") and module.__spec__.name.endswith(MOVED[old])
    sys.modules.pop(f"course_utils.{old}", None)


def test_lessons_import_from_doors():
    """What a door names is taken there."""
    at_door = {package: set(importlib.import_module(f"course_utils.{package}").__all__) for package in DOORS}
    for path in (ROOT / "lessons").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("course_utils."):
                _, package, *room = node.module.split(".")
                names = {alias.name for alias in node.names}
                assert not room or not names & at_door.get(package, set()), (path, node.module)

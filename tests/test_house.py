"""The house: its doors open, old names lead to the new places, and pages name what is there.

That packages import one way is import-linter's business (``pyproject.toml``).
"""

import ast
import importlib
import re
import subprocess
import sys
import warnings
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


def modules(root, package):
    """{dotted name: path} of a package's modules; the package itself is among them."""
    paths = sorted((root / package).rglob("*.py"))
    return {".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def imports(name, path, known):
    """Each (module, name in it or None) that a module imports, wherever the line stands; relative ones made whole."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = (
                name.split(".")[: len(name.split(".")) - node.level + (path.stem == "__init__")] if node.level else []
            )
            source = ".".join([*base, *filter(None, [node.module])])
            for alias in node.names:
                whole = f"{source}.{alias.name}"
                yield (whole, None) if whole in known else (source, alias.name)


def test_what_modules_take_from_each_other_is_assigned_by_itself():
    """The site's index of the library, whose build takes a minute, doesn't find a name that is assigned in a tuple."""
    together = {
        (name, target.id)
        for name, path in modules(ROOT, "course_utils").items()
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple)
        for target in node.targets[0].elts
    }
    taken = {
        (source, part)
        for name, path in modules(ROOT, "course_utils").items()
        for source, part in imports(name, path, modules(ROOT, "course_utils"))
    }
    assert len(together) > 20 and not together & taken


def test_library_knows_nothing_of_what_is_around_it():
    around = {"course_tools", "experiments", "benchmarks", "tests", "lessons", "course"}
    taken = {
        f"{name} imports {source}"
        for name, path in modules(ROOT, "course_utils").items()
        for source, _ in imports(name, path, {})
        if source.partition(".")[0] in around
    }
    assert not taken


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


def imported_without(blocked, names):
    command = [sys.executable, "-c", IMPORT_WITHOUT, " ".join(blocked), " ".join(names)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_every_module_imports_with_the_base_dependencies_alone():
    """Those that serve what an extra brings say so, and which."""
    base = brought(Requirement(text).name for text in requirements.needed())
    extras = {Requirement(text).name for text in requirements.needed("dev", "browser", "benchmarks")}
    names = [imported_as(name) for name in extras if canonicalize_name(name) not in base]
    assert {"jupytext", "pytest", "matplotlib", "lm_eval", "sklearn"} <= {*names}
    done = imported_without(names, modules(ROOT, "course_utils"))
    assert done.returncode == 0, done.stderr
    assert {".".join(name.split(".")[1:3]) for name in done.stdout.split()} == {
        "measuring.benchmark_tasks", "lessons.diagrams", "release.engine", "release.export", "support.plotting",
    }  # fmt: skip


def test_blocked_packages_are_missed():
    done = imported_without(["torch"], ["course_utils.pruning.influence"])
    assert done.returncode == 1 and "No module named 'torch'" in done.stderr


PAGES = [
    ROOT / "CONTRIBUTING.md",
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / ".github").glob("*.md")),
]
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


def test_what_is_not_there_is_noticed():
    there = "`tests/tiny.py`, `tests/test_house.py::missing`, [how](authoring.md#the-source), `lessons/NN_slug.py`"
    assert not [*missing(there)]
    gone = "`tests/test_houses.py`, `tests/test_house.py::test_gone`, [how](docs/author.md), [why](authoring.md#why)"
    assert [*missing(gone)] == [
        "tests/test_houses.py", "tests/test_house.py::test_gone", "docs/author.md", "authoring.md#why",
    ]  # fmt: skip


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


def test_names_that_a_package_took_over_still_give_what_they_gave():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from course_utils.bias import report
        from course_utils.compress import Budget, candidates, importance, rank, shrink
        from course_utils.healing import refit
        from course_utils.models import identity, load_model, tiny_llama, variant
    assert all(map(callable, (report, Budget, candidates, importance, rank, shrink, refit, identity, load_model)))
    assert all(map(callable, (tiny_llama, variant)))


def test_lessons_import_from_doors():
    """What a door names is taken there."""
    at_door = {package: set(importlib.import_module(f"course_utils.{package}").__all__) for package in DOORS}
    for path in [*(ROOT / "lessons").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("course_utils."):
                _, package, *room = node.module.split(".")
                assert not room or not {alias.name for alias in node.names} & at_door.get(package, set()), (
                    path,
                    node.module,
                )

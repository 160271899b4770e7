"""Every upstream name and keyword that the package, its tools and the lessons use exists in the installed versions.

Run on the oldest, the newest and Colab's versions (CONTRIBUTING.md says how), it shows drift as a line here before a
lesson shows it.
"""

import ast
import importlib
import inspect
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = {"course_utils", "course_tools", "experiments", "google", "course"}  # google: only on Colab
FILES = [
    *(path for folder in ("course_utils", "course_tools", "lessons") for path in sorted((ROOT / folder).rglob("*.py"))),
    ROOT / "tests" / "looking.py",
]
# What a file needs of an extra that `dev` leaves out: a browser's.
EXTRAS = {"tests/looking.py": ("playwright", "axe_playwright_python")}


def aliases(tree):
    """{name in the file: dotted path of what it is} for everything imported from other packages."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.asname or alias.name.partition(".")[0]
                found[name] = alias.name if alias.asname else name
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return {name: path for name, path in found.items() if path.partition(".")[0] not in OURS | sys.stdlib_module_names}


def dotted(node):
    """ "a.b.c" of such an expression, else "" ."""
    if isinstance(node, ast.Name):
        return node.id
    before = dotted(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{before}.{node.attr}" if before else ""


def uses(source):
    """(line, dotted path, keywords) of every imported name, of what is reached through it, and of calls to either."""
    tree = ast.parse(source)
    known = aliases(tree)
    yield from ((0, path, ()) for path in known.values())
    for node in ast.walk(tree):
        call = isinstance(node, ast.Call)
        first, dot, rest = dotted(node.func if call else node).partition(".")
        if first in known and (dot or call):
            keywords = tuple(keyword.arg for keyword in node.keywords if keyword.arg) if call else ()
            yield node.lineno, known[first] + dot + rest, keywords


def resolve(path):
    """The object of a dotted path; AttributeError or ImportError where there is none."""
    parts = path.split(".")
    thing, done = importlib.import_module(parts[0]), parts[0]
    for part in parts[1:]:
        done += f".{part}"
        if not hasattr(thing, part) and inspect.ismodule(thing):
            importlib.import_module(done)
        thing = getattr(thing, part)
    return thing


def problems(source):
    """What this source asks of other packages and they don't have."""
    for line, path, keywords in uses(source):
        try:
            thing = resolve(path)
        except (AttributeError, ImportError) as error:
            yield f"line {line}: {path}: {error}"
            continue
        for keyword in keywords:
            if not takes(thing, keyword):
                yield f"line {line}: {path} takes no keyword {keyword}"


def takes(thing, keyword):
    """Whether a callable takes a keyword; True where nobody can tell, as for functions written in C."""
    try:
        parameters = inspect.signature(thing).parameters.values()
    except (TypeError, ValueError):
        return True
    return any(one.kind is one.VAR_KEYWORD or one.name == keyword for one in parameters)


@pytest.mark.parametrize("path", FILES, ids=[path.relative_to(ROOT).as_posix() for path in FILES])
def test_everything_asked_of_other_packages_exists(path):
    for package in EXTRAS.get(path.relative_to(ROOT).as_posix(), ()):
        pytest.importorskip(package)
    assert list(problems(path.read_text(encoding="utf-8"))) == []

"""What a reviewer would otherwise say each time: ruff, the types, the examples in docstrings, and how these are set."""

import ast
import doctest
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_house import modules

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = modules(ROOT, "course_utils")
CODE_SPAN = re.compile(r"(?<!`)`(?!`)[^`\n]+(?<!`)`(?!`)")
TWO_ARGUMENTS = re.compile(r"^ +\*{0,2}\w+, \*{0,2}\w+.*:( |$)")


@pytest.mark.parametrize(
    "command",
    [
        ["-m", "ruff", "check", "--quiet"],
        ["-m", "ruff", "format", "--check", "--quiet"],
        ["-m", "mypy"],
        ["-c", "from importlinter.cli import lint_imports_command as lint; lint(['--no-cache'])"],
    ],
    ids=["ruff check", "ruff format", "mypy", "imports"],
)
def test_tool_is_content(command):
    pytest.importorskip("ruff", reason="part of the extra dev")
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", [name for name, path in LIBRARY.items() if ">>>" in path.read_text(encoding="utf-8")])
def test_examples_in_docstrings_are_true(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted and not result.failed


def docstrings(tree):
    """Each (name, docstring) in a module, its own first."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "name", "the module"), text


def ill_set(text):
    """What is not set as in the other docstrings, a line each."""
    found = [f"{span} needs double backticks" for span in CODE_SPAN.findall(text)]
    _, _, arguments = text.partition("\nArgs:\n")
    lines = arguments.partition("\n\n")[0].splitlines()
    return found + [f"an argument a line: {line.strip()}" for line in lines if TWO_ARGUMENTS.match(line)]


@pytest.mark.parametrize("name", LIBRARY)
def test_docstrings_are_set_alike(name):
    tree = ast.parse(LIBRARY[name].read_text(encoding="utf-8"))
    wrong = [f"{where}: {what}" for where, text in docstrings(tree) for what in ill_set(text)]
    assert not wrong, "\n".join(wrong)


def test_ill_set_docstrings_are_noticed():
    assert ill_set(
        "Return ``x`` as it is.\n\nArgs:\n    x: any, or `None`.\n    a, b: both.\n\nReturns:\n    y, z: no."
    ) == [
        "`None` needs double backticks",
        "an argument a line: a, b: both.",
    ]
    assert not ill_set("``a``, ``b`` and ````.\n\nArgs:\n    shape: [rows, length], more: less.")


def test_files_have_plain_names():
    """Nothing that a test left behind, under a name that it made up, became a part of the course."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
    names = listed.stdout.split("\0")
    assert len(names) > 300
    assert not [name for name in names if not re.fullmatch(r"[\w./-]*", name, re.ASCII)]

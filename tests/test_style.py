"""What a reviewer would otherwise say each time: ruff, the types, who imports whom, and the examples in docstrings."""

import doctest
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from test_house import modules

ROOT = Path(__file__).resolve().parents[1]


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


@pytest.mark.parametrize("name", [name for name, path in modules().items() if ">>>" in path.read_text("utf-8")])
def test_examples_in_docstrings_are_true(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted and not result.failed

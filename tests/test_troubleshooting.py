"""docs/troubleshooting.md shows messages as they appear: those of the course stand in its code, word for word."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
# Of pip, Python, PyTorch, Jupyter, VS Code and Colab: not ours to hold them to.
FOREIGN = (
    "command not found: python", "python: command not found", "Python was not found", "No module named venv",
    "ensurepip is not available", "No matching distribution found for torch", "torch-",
    "ERROR: Could not install", "OSError: [", "HINT: This error", "[WinError", "WARNING: Retrying",
    "ConnectTimeoutError", "SSLError(", "Kernel Restarting", "torch.OutOfMemoryError: CUDA", "Notebook is not trusted",
    "Running cells with", "ModuleNotFoundError: No module named", "Your session crashed", "Cannot connect to GPU",
    "WARNING: The following packages were previously imported", "AmbiguousGlobalPerLayerAttributeError",
)  # fmt: skip
ERROR = re.compile(r"^[A-Z]\w+(?:Error|Architecture): ")


def messages(page):
    """What stands in backticks in the first column of the tables and is more than a name."""
    cells = re.findall(r"^\| (.*?) \|", page, re.MULTILINE)
    quoted = (text for cell in cells for text in re.findall(r"`([^`]+)`", cell))
    return [text for text in quoted if " " in text or text.startswith(FOREIGN)]


def said():
    """Every text in the course's code, one below the other; "…" where a value goes in."""
    texts = []
    for path in [ROOT / "course.py", *(ROOT / "course_tools").rglob("*.py"), *(ROOT / "course_utils").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(p.value if isinstance(p, ast.Constant) else "…" for p in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    texts.append((ROOT / "tests/test_lessons.py").read_text(encoding="utf-8"))  # what authors see
    return "\n".join(texts)


def missing(page):
    """Parts of the page's own messages that no code says."""
    everything = said()
    for message in messages(page):
        if not message.startswith(FOREIGN):
            parts = (part.strip() for part in ERROR.sub("", message).split("…"))
            yield from (part for part in parts if len(part) > 4 and part not in everything)


def test_messages_are_as_they_appear():
    assert len(messages(PAGE)) > 40
    assert not [*missing(PAGE)]


def test_changed_messages_are_noticed():
    page = "| `Not enough disk space for … walruses` | x |\n| `the kernel died; most often it ran out of …` | x |\n"
    assert [*missing(page)] == ["walruses"]


@pytest.mark.parametrize("start", FOREIGN)
def test_foreign_messages_stand_there(start):
    assert any(message.startswith(start) for message in messages(PAGE))

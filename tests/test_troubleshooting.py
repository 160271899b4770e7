"""docs/troubleshooting.md shows messages as they appear: those of the course stand in its code, word for word."""

import ast
import re
from pathlib import Path

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


def messages():
    """What stands in backticks in the first column of the tables and is more than a name."""
    cells = re.findall(r"^\| (.*?) \|", PAGE, re.MULTILINE)
    quoted = (text for cell in cells for text in re.findall(r"`([^`]+)`", cell))
    return [text for text in quoted if " " in text and not text.startswith(FOREIGN)]


def said():
    """Every text in the course's code, one below the other; "…" where a value goes in."""
    texts = [(ROOT / "tests/test_lessons.py").read_text(encoding="utf-8")]  # what authors see
    for path in [ROOT / "course.py", *(ROOT / "course_tools").rglob("*.py"), *(ROOT / "course_utils").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(p.value if isinstance(p, ast.Constant) else "…" for p in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


def test_messages_are_as_they_appear():
    everything = said()
    parts = [part.strip() for message in messages() for part in ERROR.sub("", message).split("…")]
    assert len(parts) > 40
    assert [part for part in parts if len(part) > 4 and part not in everything] == []

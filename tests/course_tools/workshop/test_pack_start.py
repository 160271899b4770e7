"""The starter of a pack: the standard library alone; tests/course_tools/workshop/test_pack.py starts it."""

import ast
import sys
from pathlib import Path

from course_tools.workshop import pack_start


def test_needs_nothing_installed():
    tree = ast.parse(Path(pack_start.__file__).read_text(encoding="utf-8"))
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert imported <= sys.stdlib_module_names


def test_damaged_names_only_what_this_system_needs(tmp_path):
    (tmp_path / "a").write_text("a", encoding="utf-8")
    digest = "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"
    manifest = {
        "files": {name: {"sha256": digest} for name in ("a", "wheels/mine.whl", "wheels/yours.whl")},
        "wheels": {"linux": ["wheels/mine.whl"], "macos": ["wheels/yours.whl"]},
    }
    assert pack_start.damaged(tmp_path, manifest, "linux") == ["wheels/mine.whl"]

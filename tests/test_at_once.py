"""Two runs of the course at once, in one clone, whose path has spaces and letters that are not ASCII."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from sample_lesson import write_lesson

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_runs_at_once_leave_whole_files(tmp_path):
    """The same lesson twice."""
    clone = tmp_path / "a clone of Zoë ラ"
    shutil.copytree(ROOT / "course_tools", clone / "course_tools")
    shutil.copy(ROOT / "pyproject.toml", clone)
    write_lesson(clone / "lessons")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(clone), str(ROOT)]), "COURSE_PROFILE": "smoke"}
    command = [sys.executable, "-P", "-m", "course_tools", "run"]
    running = [
        subprocess.Popen([*command, "01"], cwd=clone, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for _ in range(2)
    ]
    told = [process.communicate(timeout=300)[0].decode("utf-8", errors="replace") for process in running]
    assert [process.returncode for process in running] == [0, 0], told
    saved = nbformat.read(clone / "build" / "01_small.ipynb", as_version=4)
    assert "seen" in str(saved) and (clone / "build" / "01_small.html").read_text("utf-8").endswith("</html>\n")
    assert json.loads((clone / "build" / "results.json").read_text("utf-8"))["01_small"]["failure"] is None
    assert not [
        path.name for path in (clone / "build").iterdir() if path.suffix not in (".html", ".ipynb", ".json", "")
    ]

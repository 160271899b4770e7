"""Ctrl-C while a program of another's works for us: a status, a line, and nobody left behind."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from programs import press_ctrl_c, wait_for
from sample_lesson import LESSON, write_lesson

ROOT = Path(__file__).resolve().parents[1]

# In place of pytest: it says that it is there, and then hangs.
HANGING = """
import os, pathlib, time
pathlib.Path(os.environ["STARTED"]).touch()
time.sleep(600)
"""


@pytest.fixture
def clone(tmp_path, listening):
    """A clone with a lesson that wants the speeches, and programs that hang."""
    shutil.copytree(ROOT / "course_tools", tmp_path / "course_tools")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "notebooks").mkdir()
    write_lesson(tmp_path / "lessons", LESSON.replace("assets: []", "assets: [speeches]"))
    (tmp_path / "programs").mkdir()
    (tmp_path / "programs" / "pytest.py").write_text(HANGING, encoding="utf-8")
    return tmp_path


@pytest.fixture
def silent():
    """A server on this machine that takes a call and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(120)
        yield server


@pytest.mark.skipif(os.name == "nt", reason="there is no Ctrl-C to send to a process on Windows")
@pytest.mark.parametrize(
    ("command", "whole_group"),
    [("test --fast", True), ("run --profile embedded", True), ("run --profile embedded", False)],
    ids=["test", "run", "run, only the parent is told"],
)
def test_ctrl_c_ends_what_works_for_us(command, whole_group, clone, silent):
    started = clone / "started"
    path = os.pathsep.join(map(str, (clone / "programs", clone, ROOT)))
    fetching = {"PIP_INDEX_URL": f"http://127.0.0.1:{silent.getsockname()[1]}/simple", "PIP_CONFIG_FILE": os.devnull}
    ours = {"PYTHONPATH": path, "STARTED": str(started), "COURSE_CACHE": str(clone / "cache"), **fetching}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "course_tools", *command.split()],
        env={name: value for name, value in os.environ.items() if not name.startswith("PIP_")} | ours,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    if command.startswith("run"):
        _caller, _ = silent.accept()  # pip has asked, and waits as long as this stays open
    else:
        wait_for(started, process)
    family = psutil.Process(process.pid).children(recursive=True)
    _, err = press_ctrl_c(process, whole_group=whole_group)
    assert process.returncode == 130
    assert [line for line in err.splitlines() if line and not line.startswith("Fetching")] == ["Stopped."]
    assert family and not [member for member in family if member.is_running()]

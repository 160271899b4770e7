"""uv is this Python's own, comes when it is first needed, and a failure to bring it says what to do."""

import subprocess
import sys

import pytest

from course_tools import resolver

START = [sys.executable, "-m", "uv", "pip", "compile"]


@pytest.fixture
def pip(monkeypatch):
    """Calls of pip, with the status that each is to have."""
    calls, statuses = [], [0]

    def run(command, **options):
        calls.append(command)
        return subprocess.CompletedProcess(command, statuses[0], "", "Looking\nerror: externally-managed-environment\n")

    monkeypatch.setattr(resolver.subprocess, "run", run)
    return calls, statuses


def test_uv_that_is_there_is_taken(pip, monkeypatch):
    monkeypatch.setattr(resolver, "find_spec", lambda name: object())
    command = resolver.compile_command(python="3.12", platform="windows")
    assert command[:5] == START and command[-4:] == ["--python-version", "3.12", "--python-platform", "windows"]
    assert pip[0] == []


def test_uv_that_is_missing_is_installed_into_this_python(pip, monkeypatch, capsys):
    monkeypatch.setattr(resolver, "find_spec", lambda name: None)
    assert resolver.compile_command(python="3.12", platform="linux")[:5] == START
    ((python, *arguments),) = pip[0]
    assert python == sys.executable and arguments[:3] == ["-m", "pip", "install"] and arguments[-1] == "uv"
    assert capsys.readouterr().out == "Installing uv, which resolves packages for other systems, once …\n"


def test_uv_that_cannot_be_installed_is_told(pip, monkeypatch):
    monkeypatch.setattr(resolver, "find_spec", lambda name: None)
    pip[1][0] = 1
    with pytest.raises(resolver.ResolverError, match=r"uv could not be installed \(error: externally-managed.*\.venv"):
        resolver.compile_command(python="3.12", platform="linux")

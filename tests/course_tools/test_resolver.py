"""uv is this Python's own, comes when it is first needed, and a failure to bring it says what to do."""

import subprocess
import sys

import pytest

from course_tools import resolver

CONFIGURED = """\
:env:.constraint='/a /b'
:env:.find-links='/opt/wheels'
global.constraint='/c'
global.extra-index-url='\\nhttps://one.example/simple\\nhttps://two.example/simple'
install.index-url='https://not.for/downloads'
"""
START = [sys.executable, "-m", "uv", "pip", "compile"]


@pytest.fixture
def pip(monkeypatch):
    """Calls of pip, with the status that each is to have."""
    calls, statuses = [], [0]

    def run(command, **options):
        if "config" in command:
            return subprocess.CompletedProcess(command, 0, CONFIGURED, "")
        calls.append(command)
        return subprocess.CompletedProcess(command, statuses[0], "", "Looking\nerror: externally-managed-environment\n")

    monkeypatch.setattr(resolver.subprocess, "run", run)
    return calls, statuses


def test_uv_that_is_there_is_taken(pip, monkeypatch):
    monkeypatch.setattr(resolver, "find_spec", lambda name: object())
    command = resolver.compile_command(python="3.12", platform="windows")
    assert command[:5] == START
    assert " --python-version 3.12 --python-platform windows" in " ".join(command)
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


def test_what_pip_is_told_on_this_machine_uv_is_told_too(pip, monkeypatch):
    """Otherwise it finds versions that pip then refuses to download."""
    monkeypatch.setattr(resolver, "find_spec", lambda name: object())
    command = resolver.compile_command(python="3.12", platform="linux")
    assert command[-4:] == ["--index", "https://one.example/simple", "--index", "https://two.example/simple"]
    assert "--default-index" not in command
    assert resolver.pip_setting("constraint") == ["/a", "/b"], "a variable counts more than a file"
    assert resolver.pip_setting("index-url") == []

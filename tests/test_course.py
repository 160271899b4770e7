"""course.py end to end on a clone of its own: a real .venv, a real pip, and a package that needs no network."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from programs import press_ctrl_c, wait_for

ROOT = Path(__file__).resolve().parents[1]

PYPROJECT = """\
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "pruning-llms"
version = "0.1.0"
"""

# The smallest build backend: an editable wheel with one .pth file and a module.
BACKEND = """\
import os, pathlib, time, zipfile

def build_editable(folder, config_settings=None, metadata_directory=None):
    pathlib.Path("builder.new").write_text(str(os.getpid()))
    os.replace("builder.new", "builder")
    time.sleep(float(pathlib.Path("delay").read_text()))
    name = "pruning_llms-0.1.0"
    with zipfile.ZipFile(f"{folder}/{name}-py3-none-any.whl", "w") as wheel:
        wheel.writestr("pruning_llms.pth", str(pathlib.Path.cwd()))
        wheel.writestr("installed.py", "")
        metadata = "Metadata-Version: 2.1\\nName: pruning-llms\\nVersion: 0.1.0\\nProvides-Extra: dev\\n"
        wheel.writestr(f"{name}.dist-info/METADATA", metadata)
        tags = "Wheel-Version: 1.0\\nGenerator: test\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
        wheel.writestr(f"{name}.dist-info/WHEEL", tags)
        wheel.writestr(f"{name}.dist-info/RECORD", "")
    return f"{name}-py3-none-any.whl"
"""

CLI = "import sys; print('arguments:', sys.argv[1:], 'utf8:', sys.flags.utf8_mode); sys.exit(7)"


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A clone with course.py and a tiny package; the tests below run in order and share its .venv."""
    folder = tmp_path_factory.mktemp("clone with spaces")
    shutil.copy(ROOT / "course.py", folder)
    files = {"pyproject.toml": PYPROJECT, "backend.py": BACKEND, "delay": "0", "course_tools/__main__.py": CLI}
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def course(clone, *arguments):
    done = subprocess.run(
        [sys.executable, str(clone / "course.py"), *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def runs(pid):
    """Whether a process is at work; one that has ended may stay listed until its new parent looks."""
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_usage_needs_no_set_up(clone):
    status, out, _ = course(clone)
    assert status == 0 and "python3 course.py run" in out
    assert course(clone, "--version") == (0, "Pruning LLMs 0.1.0\n", "")
    assert not (clone / ".venv").exists()


@pytest.mark.parametrize(("typed", "advice"), [("Rnu", "did you mean run?"), ("x", "there is: run, ")])
def test_unknown_command_is_told_in_a_line(typed, advice, clone):
    status, out, err = course(clone, typed)
    assert (status, out) == (2, "") and err.startswith(f"There is no command {typed}; {advice}")
    assert err.count("\n") == 1 and not (clone / ".venv").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows tells a writer otherwise that nobody reads")
def test_a_reader_who_leaves_is_no_error(clone):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, str(clone / "course.py")], stdout=writing, stderr=subprocess.PIPE, check=False
    )
    os.close(writing)
    assert done.stderr == b""


def test_first_call_installs_and_hands_over_status_and_arguments(clone):
    status, out, err = course(clone, "run", "03", "--profile", "smoke")
    assert status == 7, err
    assert "Making .venv: done" in out and "Installing the course" in out
    assert "arguments: ['run', '03', '--profile', 'smoke'] utf8: 1" in out


def test_second_call_repeats_nothing(clone):
    status, out, _ = course(clone, "check")
    assert status == 7 and out == "arguments: ['check'] utf8: 1\n"


def test_failed_install_shows_the_end_of_the_log_and_the_next_call_repairs(clone):
    (clone / "pyproject.toml").write_text(PYPROJECT + 'description = "broken"\n', encoding="utf-8")
    (clone / "delay").write_text("no number")
    status, out, err = course(clone, "check")
    assert status == 1 and "failed" in out
    assert "install.log" in err and "ValueError" in err and "run the same command again" in err
    assert "docs/troubleshooting.md" in err and "without a network" in err
    (clone / "delay").write_text("0")
    status, out, _ = course(clone, "check")
    assert status == 7 and "Installing the course" in out and "Making .venv" not in out


@pytest.mark.skipif(os.name == "nt", reason="there is no Ctrl-C to send to a process on Windows")
def test_ctrl_c_while_installing_leaves_no_pip_and_the_next_call_starts_afresh(clone, listening):
    (clone / "delay").write_text("600")
    (clone / "pyproject.toml").write_text(PYPROJECT + 'description = "new"\n', encoding="utf-8")
    (clone / "builder").unlink(missing_ok=True)
    process = subprocess.Popen(
        [sys.executable, str(clone / "course.py"), "check"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for(clone / "builder", process)
    _, err = press_ctrl_c(process, whole_group=True)
    assert process.returncode == 130
    assert err.strip() == "Stopped. Run the same command again to go on."
    assert (clone / ".venv" / "course-stamp").read_text() == "installing"
    assert not runs(int((clone / "builder").read_text())), "what pip had started goes on"
    (clone / "delay").write_text("0")
    status, out, err = course(clone, "check")
    assert status == 7, err
    assert "incomplete" in out and "Making .venv: done" in out


@pytest.fixture
def script(monkeypatch, tmp_path):
    """course.py as a module, in a folder that has no .venv yet."""
    monkeypatch.syspath_prepend(str(ROOT))
    import course as module

    for name, path in {"ROOT": ".", "VENV": ".venv", "STAMP": ".venv/course-stamp", "LOG": "build/install.log"}.items():
        monkeypatch.setattr(module, name, tmp_path / path)
    monkeypatch.setattr(module, "PYTHON", tmp_path / ".venv" / "python")
    return module


def with_free(monkeypatch, script, gigabytes):
    monkeypatch.setattr(script.shutil, "disk_usage", lambda path: SimpleNamespace(free=gigabytes * 1e9))


def test_too_small_a_disk_is_refused_before_the_first_byte(script, monkeypatch, tmp_path, capsys):
    with_free(monkeypatch, script, 2.9)
    assert script.main(["run"]) == 1
    assert capsys.readouterr().err == (
        "2.9 GB of disk are free here, and the set-up takes 3. Free some space, or move the course to another disk, "
        "and run the same command again.\n"
    )
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize(
    ("system", "machine", "free", "warned"),
    [("Linux", "x86_64", 3.1, True), ("Linux", "x86_64", 10.1, False), ("Darwin", "arm64", 3.1, False)],
)
def test_too_small_a_disk_for_cuda_is_a_warning(system, machine, free, warned, script, monkeypatch, capsys):
    with_free(monkeypatch, script, free)
    monkeypatch.setattr(script.platform, "system", lambda: system)
    monkeypatch.setattr(script.platform, "machine", lambda: machine)
    assert script.too_little_space() is None
    said = "3.1 GB of disk are free here. With CUDA, as pip brings it by default, PyTorch needs 10.\n"
    assert capsys.readouterr().out == said * warned


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (
            errno.EACCES,
            "{place} can't be written (Permission denied). Copy the course to a folder of yours, and run it",
        ),
        (errno.ENOSPC, "The disk is full. Free some space, or move the course to another disk, and run the same"),
    ],
    ids=["not ours", "full"],
)
@pytest.mark.parametrize("place", ["build", ".venv"])
def test_a_checkout_that_cannot_be_written_is_told_in_a_sentence(
    place, number, told, script, monkeypatch, tmp_path, capsys
):
    mkdir = Path.mkdir

    def refused(path, *args, **options):
        if path.name == place:
            raise OSError(number, os.strerror(number), str(path))
        mkdir(path, *args, **options)

    monkeypatch.setattr(Path, "mkdir", refused)
    assert script.main(["run"]) == 1
    err = capsys.readouterr().err
    assert err.startswith(told.format(place=tmp_path / place)) and err.count("\n") == 1


@pytest.mark.parametrize(
    "last",
    [
        "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
        "OSError: [WinError 112] There is not enough space on the disk",
    ],
)
def test_a_disk_that_fills_up_on_the_way_is_told_from_a_network_that_fails(last, script):
    script.LOG.parent.mkdir()
    script.LOG.write_text(f"Collecting torch\n{last}\n\n[notice] more", encoding="utf-8")
    told = script.failure("If the network failed, run again.")
    assert told.startswith("The disk is full: the set-up takes 3 GB, on Linux with CUDA 10.") and "network" not in told
    script.LOG.write_text("ERROR: No matching distribution found\n", encoding="utf-8")
    assert script.failure("If the network failed, run again.").endswith("If the network failed, run again.")


def test_old_python_is_told_what_it_needs(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "version_info", (3, 10))
    assert script.main(["run"]) == 1
    assert "needs Python 3.11 or newer" in capsys.readouterr().out

#!/usr/bin/env python3
"""Pruning LLMs: everything the course does, in one place.

    python3 course.py run [NN ...]    run the lessons (all, or for instance 01 03); results in build/index.html
    python3 course.py lab             open the lessons in JupyterLab, in a folder of your own
    python3 course.py progress        how far you are, and what is next (--name: a certificate to print)
    python3 course.py quiz NN         the questions of a lesson
    python3 course.py verify [NN]     does your run show what the lesson says? which cells stopped?
    python3 course.py slides [NN]     the lessons as slides with speaker notes, in build/slides
    python3 course.py pack FOLDER     clone, wheels and models in one folder, for laptops without a network
    python3 course.py check           is this machine ready? what to do if not
    python3 course.py test            the test suite (--fast: without the real models)
    python3 course.py build           write the notebooks from lessons/ (for authors)
    python3 course.py compress MODEL  make a smaller version of it under a --budget (--dry-run: sizes, memory and time)
    python3 course.py site            write the web site to build/site (for authors)
    python3 course.py rehearse [NN]   would they fit Colab's T4, at Llama-3.2-1B's size? (for authors)

`python3 course.py COMMAND -h` tells more. The first call makes .venv beside this file and installs the course into
it; nothing else on this machine is touched. Needs Python 3.11 or newer and, the first time, a network and 3 GB of disk.
"""

# Only the standard library, and only syntax that old Pythons read: they must get as far as the message in main.
import difflib
import errno
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = VENV / "course-stamp"  # what was installed; "installing" while pip works
LOG = ROOT / "build" / "install.log"
COMMANDS = (
    "run", "lab", "progress", "quiz", "verify", "slides", "pack", "check", "test", "build", "site",
    "compress", "rehearse",
)  # fmt: skip
INSTALLING = "installing"
# Gigabytes that it takes: .venv 2.2, models and data 0.7. On Linux with an Intel or AMD processor pip brings PyTorch
# with CUDA, unless its index is one of CPU builds. Only pip knows, so that the larger need is no reason to refuse.
NEEDED, WITH_CUDA = 3, 10
ROOM = "Free some space, or move the course to another disk, and run the same command again."
SIGNS_OF_FULL = ("No space left on device", "not enough space on the disk", "Disk quota exceeded")


def main(arguments):
    """Set up if need be, and run the command; return the exit status."""
    if sys.version_info < (3, 11):
        print(f"The course needs Python 3.11 or newer, this is {sys.version.split()[0]}. Install a newer one")
        print("and call it by name, for instance: python3.13 course.py run")
        return 1
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(__doc__.strip())
        return 0
    if arguments[0] == "--version":
        print("Pruning LLMs " + project()["version"])
        return 0
    if arguments[0] not in COMMANDS:
        near = difflib.get_close_matches(arguments[0].lower(), COMMANDS, n=1)
        advice = f"did you mean {near[0]}?" if near else f"there is: {', '.join(COMMANDS)}"
        print(f"There is no command {arguments[0]}; {advice}", file=sys.stderr)
        return 2
    try:
        problem = set_up()
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC):
            raise
        problem = not_written(error)
    if problem:
        print(problem, file=sys.stderr)
        return 1
    return hand_over([str(PYTHON), "-P", "-m", "course_tools", *arguments])  # -P: this clone's, wherever we are


def set_up():
    """Make .venv and install the course unless that is done; return what went wrong, or None."""
    if PYTHON.exists() and read(STAMP) == fingerprint():
        return None
    LOG.parent.mkdir(exist_ok=True)
    LOG.unlink(missing_ok=True)
    # pip killed half-way leaves packages that look installed and are not: start afresh.
    if read(STAMP) == INSTALLING or not works([str(PYTHON), "-m", "pip", "--version"]):
        if VENV.exists():
            print(".venv is incomplete or broken; making it afresh.")
            shutil.rmtree(VENV)
        problem = too_little_space()
        if problem:
            return problem
        VENV.mkdir()  # here, so that we hear of a folder that may not be written
        if run([sys.executable, "-m", "venv", str(VENV)], "Making .venv"):
            shutil.rmtree(VENV, ignore_errors=True)
            return failure("On Debian and Ubuntu, `sudo apt install python3-venv` brings what is missing.")
    STAMP.write_text(INSTALLING)
    pip = [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--progress-bar", "off"]
    # Python compiles a module when it is first imported; pip would take a minute to compile all, most of them in vain.
    if run([*pip, "--no-compile", "--editable", ".[dev]"], "Installing the course (a few minutes, once)"):
        STAMP.unlink()  # pip itself gave up, and cleaned up behind it
        return failure(
            "If the network failed, run the same command again: it goes on where it can. docs/troubleshooting.md has\n"
            "the usual causes, and docs/teaching.md (the pack) how to do without a network."
        )
    STAMP.write_text(fingerprint())
    return None


def too_little_space():
    """Say what is wrong with the free disk, or None; print a line where the larger build of PyTorch may not fit."""
    free = shutil.disk_usage(ROOT).free / 1e9
    if free < NEEDED:
        return f"{free:.1f} GB of disk are free here, and the set-up takes {NEEDED}. {ROOM}"
    if free < WITH_CUDA and platform.system() == "Linux" and platform.machine() == "x86_64":
        print(
            f"{free:.1f} GB of disk are free here. With CUDA, as pip brings it by default, PyTorch needs {WITH_CUDA}."
        )
    return None


def fingerprint():
    """Changes when what has to be installed, the environment's Python or the place of this clone changes."""
    parts = [json.dumps(project(), sort_keys=True), read(VENV / "pyvenv.cfg"), str(ROOT)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def project():
    """What pyproject.toml says of the course."""
    import tomllib  # not in the Pythons that only get to see the message above

    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def read(path):
    """The text of a file; of one that isn't there, nothing."""
    return path.read_text(encoding="utf-8") if path.exists() else ""


def works(command):
    """Whether a command can be run and succeeds."""
    try:
        return subprocess.call(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0
    except OSError:
        return False


def run(command, title):
    """Run a command into the log with one line of progress: seconds, and what it is doing. Returns its status."""
    start, shown = time.monotonic(), 0
    width = min(78, shutil.get_terminal_size().columns - 1)
    with LOG.open("ab") as log:
        # A session of its own, so that Ctrl-C reaches us alone and pip's own children end with it.
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            while process.poll() is None:
                seconds = time.monotonic() - start
                if sys.stdout.isatty():
                    line = f"{title} … {seconds:.0f} s  {last_lines(1)}"
                    print("\r" + line[:width].ljust(width), end="", flush=True)
                elif seconds >= shown:
                    print(f"{title} … {seconds:.0f} s", flush=True)
                    shown += 30
                time.sleep(0.2)
        finally:  # also on Ctrl-C: leave no pip behind
            if process.poll() is None:
                if os.name == "nt":
                    process.terminate()
                else:
                    os.killpg(process.pid, signal.SIGTERM)
                process.wait()
    done = f"{title}: {'failed' if process.returncode else 'done'} after {time.monotonic() - start:.0f} s"
    print(("\r" if sys.stdout.isatty() else "") + done.ljust(width), flush=True)
    return process.returncode


def last_lines(count):
    """The end of the log."""
    lines = LOG.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return "\n".join(lines[-count:])


def not_written(error):
    """What to print when the system refused to write."""
    if error.errno == errno.ENOSPC:
        return f"The disk is full. {ROOM}"
    place = error.filename or ROOT
    return f"{place} can't be written ({error.strerror}). Copy the course to a folder of yours, and run it there."


def failure(advice):
    """What to print when a step failed."""
    if any(sign in last_lines(15) for sign in SIGNS_OF_FULL):
        needed = f"the set-up takes {NEEDED} GB, on Linux with CUDA {WITH_CUDA}"
        return f"The disk is full: {needed}. {ROOM} TMPDIR (Windows: TEMP) names another folder for temporary files."
    return f"{last_lines(15)}\n\nThe set-up failed; above are the last lines of {LOG}.\n{advice}"


def hand_over(command):
    """Become the command; its exit status is ours."""
    environment = dict(os.environ, PYTHONUTF8="1")
    sys.stdout.flush()
    if os.name != "nt":
        os.execve(command[0], command, environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the command's to handle
    return subprocess.call(command, env=environment)


if __name__ == "__main__":
    try:
        status = main(sys.argv[1:])
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("\nStopped. Run the same command again to go on.", file=sys.stderr)
        status = 130
    except BrokenPipeError:  # whoever read our lines has gone, as in `course.py | head -3`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it ends
        status = 1
    sys.exit(status)

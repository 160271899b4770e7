"""A command ends in a sentence and with a status; tests/course_tools/test_cli.py stops whole programs."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from course_utils.compress import program
from course_utils.support.extras import ExtraMissing
from course_utils.text.assets import AssetError

HOW = {"place": Path("here"), "remedy": "Name another."}


def failing(error):
    def command():
        raise error

    return command


def test_what_a_command_returns_is_its_status():
    assert program.answer(lambda: 3, **HOW) == 3


@pytest.mark.parametrize("error", [ValueError("so"), AssetError("so"), ExtraMissing("so"), FloatingPointError("so")])
def test_what_was_written_for_the_reader_is_all_they_see(error, capsys):
    assert program.answer(failing(error), **HOW) == 1
    assert capsys.readouterr().err == "so\n"


@pytest.mark.parametrize("error", [KeyError("a"), ModuleNotFoundError("b"), OSError(errno.EIO, "c")])
def test_mistakes_of_ours_keep_their_traceback(error):
    with pytest.raises(type(error)):
        program.answer(failing(error), **HOW)


def test_a_place_that_cannot_be_written(capsys):
    refused = OSError(errno.EACCES, os.strerror(errno.EACCES))
    assert program.answer(failing(refused), **HOW) == 1
    assert capsys.readouterr().err == "here can't be written (Permission denied). Name another.\n"


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.ENOSPC, "The disk of there is full. Free some space, and run the same command"),
        (
            errno.EDQUOT,
            "Your share of the disk of there is used up. Free some space, and run the same command again.\n",
        ),
        (errno.EFBIG, f"there can't be written ({os.strerror(errno.EFBIG)}). Name another."),
    ],
)
def test_no_room_is_told_with_the_place(number, told, capsys):
    assert program.answer(failing(OSError(number, os.strerror(number), "there")), **HOW) == 1
    assert capsys.readouterr().err.startswith(told)


def test_ctrl_c_is_no_error(capsys):
    assert program.answer(failing(KeyboardInterrupt()), **HOW) == 130
    assert program.run(failing(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "\nStopped.\n" * 2


def test_the_package_is_a_program():
    run = [sys.executable, "-m", "course_utils", "compress", "llama", "--budget", "much"]
    done = subprocess.run(run, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3])
    assert done.returncode == 2 and "argument --budget: must be a share of the parameters" in done.stderr

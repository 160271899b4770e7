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


def failing(error):
    def command():
        raise error

    return command


def answer(error):
    return program.answer(failing(error), place=Path("here"), remedy="Name another.")


def of_the_system(number, *place):
    return OSError(number, os.strerror(number), *place)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        *((kind("so"), "so\n") for kind in (ValueError, AssetError, ExtraMissing, FloatingPointError)),
        (of_the_system(errno.EACCES), "here can't be written (Permission denied). Name another.\n"),
        (of_the_system(errno.ENOSPC, "there"), "The disk of there is full. Free some space, and run the same command"),
        (of_the_system(errno.EDQUOT, "there"), "Your share of the disk of there is used up. Free some space, and run"),
        (of_the_system(errno.EFBIG, "there"), f"there can't be written ({os.strerror(errno.EFBIG)}). Name another."),
    ],
)
def test_what_was_written_for_the_reader_is_all_they_see(error, told, capsys):
    assert answer(error) == 1
    assert capsys.readouterr().err.startswith(told)


@pytest.mark.parametrize("error", [KeyError("a"), ModuleNotFoundError("b"), OSError(errno.EIO, "c")])
def test_mistakes_of_ours_keep_their_traceback(error):
    with pytest.raises(type(error)):
        answer(error)


def test_ctrl_c_is_no_error(capsys):
    assert answer(KeyboardInterrupt()) == program.run(failing(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "\nStopped.\n" * 2


def test_the_package_is_a_program():
    run = [sys.executable, "-m", "course_utils", "compress", "llama", "--budget", "much"]
    done = subprocess.run(run, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3])
    assert done.returncode == 2 and "argument --budget: must be a share of the parameters" in done.stderr


def test_threads_sleep_from_the_start():
    code = "import os, runpy, sys; sys.argv = ['course_utils', '-h']\n"
    code += "try: runpy.run_module('course_utils', run_name='__main__')\n"
    code += "finally: print([os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules])"
    for chosen, found in (({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)):
        given = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP", "OMP_WAIT"))}
        run = [sys.executable, "-c", code]
        done = subprocess.run(run, capture_output=True, text=True, check=False, env=given | chosen)
        assert done.stdout.splitlines()[-1] == str([found, False])  # torch reads it when it comes

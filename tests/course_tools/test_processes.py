"""Programs that the course starts: Ctrl-C reaches us alone, and they end with all that they started."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from programs import press_ctrl_c, wait_for

from course_tools import processes

ROOT = Path(__file__).resolve().parents[2]

# A program with a helper that lives in a session of its own and won't listen, like a kernel that is busy.
PROGRAM = """
import os, pathlib, subprocess, sys, time
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
helper = subprocess.Popen([sys.executable, "-c", deaf], start_new_session=True, stdout=subprocess.PIPE)
helper.stdout.readline()
pathlib.Path("new").write_text(f"{os.getpid()} {helper.pid}")
os.rename("new", "pids")
time.sleep(600)
"""

CALLER = """
import os, sys
from pathlib import Path
from course_tools import processes
try:
    processes.call(["-c", sys.argv[1]], folder=Path.cwd(), environment=os.environ)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.skipif(os.name == "nt", reason="there is no Ctrl-C to send to a process on Windows")
@pytest.mark.parametrize("whole_group", [True, False], ids=["to all, as a terminal does", "to the parent alone"])
def test_ctrl_c_ends_a_program_and_all_that_it_started(whole_group, tmp_path, listening):
    caller = subprocess.Popen(
        [sys.executable, "-c", CALLER, PROGRAM],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for(tmp_path / "pids", caller)
    _, err = press_ctrl_c(caller, whole_group=whole_group)
    assert (caller.returncode, err) == (130, "")
    left = [pid for pid in map(int, (tmp_path / "pids").read_text().split()) if psutil.pid_exists(pid)]
    assert not left


def test_call_returns_the_status_and_hands_variables_and_folder_over(tmp_path, capfd):
    code = "import os, sys; print(os.environ['MESSAGE'], os.path.basename(os.getcwd())); sys.exit(7)"
    variables = os.environ | {"MESSAGE": "hello"}
    assert processes.call(["-c", code], folder=tmp_path, environment=variables) == 7
    assert capfd.readouterr().out.split() == ["hello", tmp_path.name]


def test_to_end_what_has_ended_is_no_error():
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    processes.end(done.pid)

"""uv, which finds the packages that another system than this one would install; it comes when it is first needed."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib.util import find_spec


class ResolverError(ValueError):
    """uv could not be installed; the message says why and what to do."""


def compile_command(*, python: str, platform: str) -> list[str]:
    """The start of a command that prints NAME==VERSION lines; what is to be resolved follows.

    uv is this Python's own. Where it isn't there yet, pip installs it: 20 MB that few readers need.

    Args:
        python: version of the other system's Python, "3.12".
        platform: the other system, as uv calls it.

    Raises:
        ResolverError: pip can't install uv.
    """
    if find_spec("uv") is None:
        print("Installing uv, which resolves packages for other systems, once …", flush=True)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", "uv"]
        done = subprocess.run(pip, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
            raise ResolverError(
                f"uv could not be installed ({last}). It needs a network, and a Python that pip may change: "
                "`python3 course.py` makes one, .venv."
            )
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--no-config"]
    command += ["--python-version", python, "--python-platform", platform]
    for setting, option in {"index-url": "--default-index", "extra-index-url": "--index"}.items():
        for address in pip_setting(setting):
            command += [option, address]
    return command


def pip_setting(name: str) -> list[str]:
    """What one of pip's settings is on this machine, an index or a file of constraints; uv doesn't read them."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    ).stdout
    # pip lists its variables first, and what is set for downloads alone before what is set for everything.
    values = re.findall(rf"^(?::env:|download|global)\.{name}=('.*'|\".*\")$", listed, flags=re.MULTILINE)
    return ast.literal_eval(values[0]).split() if values else []

"""JupyterLab as a learner meets it: opened on a lesson, with no question and no warning in between."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import zmq
from jupyter_client import KernelManager

# Holds `labconfig/`, which switches JupyterLab's announcements off: nobody is asked whether news may be fetched.
CONFIGURATION = Path(__file__).parent


def options(folder: Path, notebook: Path | None) -> list[str]:
    """Options for `jupyter lab` in a learner's folder.

    Args:
        folder: the learner's.
        notebook: in it, to be opened at once; None for JupyterLab's own first page.
    """
    chosen = ["--log-level=ERROR", "--LabApp.log_level=ERROR", f"--ServerApp.root_dir={folder}"]
    # Otherwise the kernel warns in the terminal.
    if hasattr(KernelManager, "transport_encryption") and zmq.has("curve"):
        chosen.append("--KernelManager.transport_encryption=auto")
    if notebook is not None:
        chosen.append(f"--LabApp.default_url=/lab/tree/{quote(notebook.name)}")
    return chosen


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables for `jupyter lab`: its own configuration counts, and ours where it says nothing."""
    places = [*filter(None, [variables.get("JUPYTER_CONFIG_PATH")]), str(CONFIGURATION)]
    return {**variables, "JUPYTER_CONFIG_PATH": os.pathsep.join(places)}

"""JupyterLab as a learner meets it: opened on a lesson, with no question and no warning in between."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import zmq
from jupyter_client import KernelManager


def options(folder: Path, notebook: Path | None) -> list[str]:
    """Options for `jupyter lab` in a learner's folder.

    Args:
        folder: the learner's.
        notebook: in it, to be opened at once; None for JupyterLab's own first page.
    """
    # Nobody is asked for leave to fetch news, and nothing is fetched.
    chosen = ["--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    if hasattr(KernelManager, "transport_encryption") and zmq.has(
        "curve"
    ):  # otherwise the kernel warns in the terminal
        chosen.append("--KernelManager.transport_encryption=auto")
    if notebook is not None:
        chosen.append(f"--LabApp.default_url=/lab/tree/{quote(notebook.name)}")
    return ["--log-level=WARN", f"--ServerApp.root_dir={folder}", *chosen]

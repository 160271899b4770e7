"""JupyterLab's options: understood by the JupyterLab that is installed, and on the notebook that is meant."""

import logging
from pathlib import Path

import pytest

from course_tools.learner import lab


def test_notebook_is_opened_whatever_its_name(tmp_path):
    assert "--LabApp.default_url=/lab/tree/Copy%20of%2003_a.ipynb" in lab.options(tmp_path, Path("Copy of 03_a.ipynb"))
    assert not any("default_url" in option for option in lab.options(tmp_path, None))


def test_jupyterlab_understands_them(tmp_path):
    from jupyterlab.labapp import LabApp  # three seconds, which not every process that collects tests needs

    app = LabApp()
    app.parse_command_line(lab.options(tmp_path, tmp_path / "01_a.ipynb"))
    app.update_config(app.cli_config)
    assert app.default_url == "/lab/tree/01_a.ipynb" and app.log_level == logging.ERROR


@pytest.mark.parametrize("own", [None, "/somewhere/else"])
def test_nobody_is_asked_for_leave_to_fetch_news(own, monkeypatch):
    from jupyterlab_server import config

    variables = lab.environment({"JUPYTER_CONFIG_PATH": own} if own else {})
    assert variables["JUPYTER_CONFIG_PATH"].startswith(own or str(lab.CONFIGURATION)), "the reader's own comes first"
    monkeypatch.setenv("JUPYTER_CONFIG_PATH", variables["JUPYTER_CONFIG_PATH"])
    assert "@jupyterlab/apputils-extension:announcements" in config.get_page_config([])["disabledExtensions"]


@pytest.mark.parametrize("able", [True, False])
def test_a_connection_is_encrypted_only_where_that_works(able, monkeypatch, tmp_path):
    """Asked for without libsodium, kernels would not start."""
    monkeypatch.setattr(lab.zmq, "has", lambda feature: able)
    monkeypatch.setattr(lab.KernelManager, "transport_encryption", "disabled", raising=False)
    assert any("transport_encryption" in option for option in lab.options(tmp_path, None)) == able

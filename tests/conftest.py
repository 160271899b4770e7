"""Order: fast tests, then those on the embedded models, then whole lessons, so that a run fails early.

Nothing reaches beyond this machine, and the reader's own settings don't matter.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before anything imports transformers or datasets: a test that needs the hub must fail here, not in a train.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"
for setting in ("COURSE_PROFILE", "COURSE_LLAMA", "COURSE_GPT2", "PYTHONPATH"):
    os.environ.pop(setting, None)


def pytest_collection_modifyitems(config, items):
    if "browser" not in config.getoption("markexpr"):  # they need a browser, and minutes
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("browser")])
        items[:] = [item for item in items if not item.get_closest_marker("browser")]
    items.sort(key=lambda item: (item.get_closest_marker("embedded") is not None, item.path.name == "test_lessons.py"))


@pytest.fixture
def listening() -> Iterator[None]:
    """Programs started meanwhile listen to Ctrl-C, also where these tests run in the background of a script."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own, still to be created."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("COURSE_CACHE", str(folder))
    return folder

"""Order: fast tests, then those on the embedded models, then whole lessons, so that a run fails early.

The files beside this one take longest, so they come first: then no process is left alone with one of them. Where two
processes share the lessons, the longest come first, and the other tests fill up.
Nothing reaches beyond this machine, and the reader's own settings don't matter.
"""

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import matplotlib
import pytest

# Before anything imports transformers or datasets: a test that needs the hub must fail here, not in a train.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"
for setting in ("COURSE_PROFILE", "COURSE_LLAMA", "COURSE_GPT2", "PYTHONPATH"):
    os.environ.pop(setting, None)

# A busy machine is no fault of what is tested.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


def pytest_collection_modifyitems(config, items):
    # Minutes; or a browser, a package index, vLLM.
    for marker in ("slow", "smoke", "retyped", "browser", "installed", "vllm"):
        if marker not in config.getoption("markexpr"):
            config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker(marker)])
            items[:] = [item for item in items if not item.get_closest_marker(marker)]
    for item in items:
        for mark in {"embedded", "timed"} & {marker.name for marker in item.iter_markers()}:
            # `course.py test` looks for such tests in these files alone.
            named = f"mark.{mark}" in item.path.read_text(encoding="utf-8")
            assert named, f"{item.nodeid} has a mark that its file doesn't name"
    shared = hasattr(config, "workerinput")  # by pytest-xdist

    def place(item):
        embedded, lesson = item.get_closest_marker("embedded") is not None, bool(lesson_of(item.nodeid))
        if shared and lesson:  # the longer the source, the longer the lesson, by and large
            return embedded, -item.callspec.params["lesson"].path.stat().st_size
        return embedded, lesson, item.path.parent != Path(__file__).parent

    items.sort(key=place)


def lesson_of(nodeid):
    """Which lesson a test runs; "" for a test that runs none."""
    return (re.search(r"test_lesson_runs\w*\[(\w+)]$", nodeid) or ["", ""])[1]


@pytest.hookimpl(trylast=True)
def pytest_configure(config):
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None:
        config.pluginmanager.register(LessonLines(terminal))


class LessonLines:
    """A line when a lesson begins and one when it ends, whichever process runs it: they take minutes."""

    def __init__(self, terminal):
        self.terminal = terminal

    def say(self, line):
        self.terminal.write(f"\n{line} ", flush=True)  # pytest adds the dot

    def pytest_runtest_logstart(self, nodeid, location):
        if lesson_of(nodeid):
            self.say(f"{lesson_of(nodeid)} …")

    def pytest_runtest_logreport(self, report):
        took = dict(report.user_properties).get("took")
        if took and report.when == "call":
            self.say(f"{lesson_of(report.nodeid)} {report.outcome}, {took}")


@pytest.fixture
def listening() -> Iterator[None]:
    """Programs started meanwhile listen to Ctrl-C, also where these tests run in the background of a script."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def own_style() -> Iterator[None]:
    """No test leaves its style of figures to the next one."""
    with matplotlib.rc_context():
        yield


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own, still to be created."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("COURSE_CACHE", str(folder))
    return folder

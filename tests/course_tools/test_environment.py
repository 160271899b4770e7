"""The environment check: what it finds, and that each problem comes with a remedy."""

import json
import shutil
from types import SimpleNamespace

import psutil
import pytest

from course_tools import environment, requirements
from course_tools.environment import FAIL, OK, WARN
from course_utils.text import assets


def test_this_environment_has_what_pyproject_asks_for():
    assert environment._python().level == OK
    finding = environment._packages()
    assert finding.level == OK, finding


def test_an_old_python_and_missing_and_old_packages_are_named(monkeypatch):
    extras = {"course": ["ours[more]", "psutil"], "more": ["pytest>=999"]}
    project = {"name": "ours", "dependencies": ["no-such-package>=1"], "optional-dependencies": extras}
    monkeypatch.setattr(requirements, "project", lambda: project)
    finding = environment._packages()
    assert finding.level == FAIL and finding.remedy
    assert "no-such-package>=1 is missing" in finding.text and "pytest>=999 wanted, " in finding.text
    assert "psutil" not in finding.text
    monkeypatch.setattr(requirements, "project", lambda: {"requires-python": ">=4"})
    assert environment._python().level == FAIL


@pytest.mark.parametrize(("gigabytes", "level"), [(0.5, FAIL), (2.5, WARN), (50, OK)])
def test_disk_and_memory(gigabytes, level, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=gigabytes * 1e9))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=gigabytes * 1e9))
    for finding in (environment._disk(), environment._memory()):
        assert finding.level == level
        assert bool(finding.remedy) == (level != OK)


def test_cache_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "not" / "yet"))
    finding = environment._cache()
    assert finding.level == WARN
    assert finding.text.endswith("without smollm2, benchmarks, texts, abilities, speeches")
    assert "(186 MB)" in finding.remedy
    for name in ("smollm2", "benchmarks", "texts", "abilities", "speeches"):
        folder = assets.cache_dir() / "assets" / f"{name}-{assets.ASSETS[name].version}"
        folder.mkdir(parents=True)
        marker = {"identity": assets.ASSETS[name].identity, "files": {}}
        (folder / assets._MARKER).write_text(json.dumps(marker))
    assert environment._cache().level == OK


def test_network_that_does_not_answer_is_a_warning(monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_NO_INDEX", "0")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    for finding in (environment._index(), environment._hub()):
        assert finding.level == WARN and finding.remedy


def test_unknown_profile_fails(monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "moon")
    assert environment._profile().level == FAIL
    monkeypatch.setenv("COURSE_PROFILE", "smoke")
    assert environment._profile().text == "smoke, set by COURSE_PROFILE"

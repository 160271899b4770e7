"""Is this machine ready for the course? One finding per topic, with what to do about it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from course_tools import requirements
from course_tools.lessons import authoring
from course_utils.support import session
from course_utils.text import assets

ROOT = Path(__file__).resolve().parents[1]
OK, WARN, FAIL = "OK", "WARN", "FAIL"
MEMORY = 4  # gigabytes that should be free; the largest lesson takes three
_GIGABYTE = 1e9
_NETWORK_SECONDS = 5


@dataclass(frozen=True)
class Finding:
    """What was found about one topic; `remedy` is empty if there is nothing to do."""

    level: str
    topic: str
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        line = f"{self.level:<5} {self.topic:<9} {self.text}"
        return f"{line} -> {self.remedy}" if self.remedy else line


def findings() -> Iterator[Finding]:
    """Look at one topic after the other; the network ones take up to a few seconds each."""
    for examine in (_python, _packages, _disk, _memory, _cores, _gpu, _engine, _cache, _index, _hub, _profile):
        yield examine()


def _python() -> Finding:
    supported = SpecifierSet(requirements.project()["requires-python"])
    version = platform.python_version()
    if not supported.contains(version, prereleases=True):
        return Finding(FAIL, "Python", version, f"install Python {supported}")
    return Finding(OK, "Python", f"{version} on {platform.system()}")


def _packages() -> Finding:
    wanted = [Requirement(text) for text in requirements.needed("course")]
    wrong = [problem for requirement in wanted if (problem := _mismatch(requirement))]
    if wrong:
        return Finding(
            FAIL, "packages", "; ".join(wrong), "remove the folder .venv and start again: python3 course.py check"
        )
    return Finding(OK, "packages", f"all {len(wanted)} in the ranges of pyproject.toml")


def _mismatch(requirement: Requirement) -> str:
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"{requirement} is missing"
    return "" if requirement.specifier.contains(version, prereleases=True) else f"{requirement} wanted, {version} found"


def _disk() -> Finding:
    folder = next(path for path in (assets.cache_dir(), *assets.cache_dir().parents) if path.exists())
    free = shutil.disk_usage(folder).free / _GIGABYTE
    remedy = "free some space, or set COURSE_CACHE to a folder on another disk"
    return _enough("disk", free, "free where the cache is", fail=1, warn=3, remedy=remedy)


def _memory() -> Finding:
    free = psutil.virtual_memory().available / _GIGABYTE
    remedy = "close other programs; the lessons need 1 to 3 GB"
    return _enough("memory", free, "available", fail=2, warn=MEMORY, remedy=remedy)


def _enough(topic: str, gigabytes: float, what: str, *, fail: float, warn: float, remedy: str) -> Finding:
    level = FAIL if gigabytes < fail else WARN if gigabytes < warn else OK
    return Finding(level, topic, f"{gigabytes:.1f} GB {what}", "" if level == OK else remedy)


def _cores() -> Finding:
    cores = session.cores()
    if cores < 2:
        return Finding(WARN, "cores", "1", "the lessons work, but take about twice as long")
    return Finding(OK, "cores", str(cores))


def _gpu() -> Finding:
    import torch

    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory / _GIGABYTE
        return Finding(OK, "GPU", f"{torch.cuda.get_device_name(0)}, {total:.0f} GB")
    return Finding(OK, "GPU", "none; the lessons run on the processor")


def _engine() -> Finding:
    from course_utils.release import engine

    # Optional, so its absence is no warning: the lessons say which section they skip.
    return Finding(OK, "engine", engine.problem() or f"llama.cpp, from {engine.PACKAGE} {engine.VERSION}")


def _cache() -> Finding:
    folder = assets.cache_dir()
    needed = authoring.assets_of(map(authoring.read_lesson, authoring.find_lessons(ROOT / "lessons")))
    missing = [name for name in needed if not assets.is_cached(name)]
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / _GIGABYTE
    text = f"{folder}, {size:.1f} GB"
    if missing:
        megabytes = sum(assets.ASSETS[name].download_bytes for name in missing) / 1e6
        remedy = f"`python3 course.py run` fetches them ({megabytes:.0f} MB), or set COURSE_CACHE to a filled copy"
        return Finding(WARN, "cache", f"{text}, without {', '.join(missing)}", remedy)
    return Finding(OK, "cache", f"{text}, filled: {', '.join(needed)}")


def _index() -> Finding:
    command = [sys.executable, "-m", "pip", "--timeout", str(_NETWORK_SECONDS), "--retries", "0"]
    command += ["index", "versions", "filelock"]
    try:
        subprocess.run(command, capture_output=True, timeout=4 * _NETWORK_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        remedy = "only setting up and filling the cache need it; docs/teaching.md tells how to do without"
        return Finding(WARN, "index", "pip's package index does not answer", remedy)
    return Finding(OK, "index", "pip's package index answers")


def _hub() -> Finding:
    from huggingface_hub import constants

    try:
        urllib.request.urlopen(constants.ENDPOINT, timeout=_NETWORK_SECONDS).close()
    except OSError:
        return Finding(WARN, "hub", "the Hugging Face hub does not answer", "only the hub profile needs it")
    return Finding(OK, "hub", "the Hugging Face hub answers")


def _profile() -> Finding:
    chosen = "set by COURSE_PROFILE" if os.environ.get("COURSE_PROFILE") else "chosen for this machine"
    try:
        others = "".join(f"; {role}: {name}" for role in session.ROLES if (name := session.chosen_model(role)))
        return Finding(OK, "profile", f"{session.current_profile()}, {chosen}{others}")
    except ValueError as error:
        return Finding(FAIL, "profile", str(error), "set the variable anew, or unset it")

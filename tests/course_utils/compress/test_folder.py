"""Nothing is lost: a run writes over nothing that it reads or that others made, and what it leaves belongs together."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from own_command import SMALL, lines, saved
from transformers import AutoTokenizer

from course_utils.compress import command_line, folder, plan, run
from course_utils.models.loading import identity, load_model
from course_utils.pruning.checkpoints import save_pruned
from course_utils.text import own_text

CUT = ["--budget", "95%", "--steps", "0", "--light", "0"]


def contents(place):
    return {path: path.read_bytes() for path in sorted(Path(place).rglob("*")) if path.is_file()}


@pytest.fixture
def made(command, tmp_path):
    """What a first run leaves."""
    assert command(*CUT, "--export", "gguf") == 0
    return tmp_path / "out"


def compress(model, out, *more):
    return command_line.main(["compress", str(model), *SMALL, *CUT, "--out", str(out), *more])


@pytest.mark.parametrize("linked", [False, True], ids=["", "by a link"])
def test_the_result_is_not_cut_into_itself(linked, made, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plan, "load_without_weights", None)
    before, model, out = contents(made), made / "model", made
    if linked:
        model, out = tmp_path / "source", tmp_path / "other"
        model.symlink_to(made / "model")
        out.mkdir()
        (out / "model").symlink_to(made / "model")
    monkeypatch.setenv("COURSE_LLAMA", str(model))
    # The last would write into the model's own folder.
    for asked, place, more in ((model, out, []), (model, out, ["--dry-run"]), ("llama", out, []), (model, model, [])):
        assert compress(asked, place, *more) == 1
        error = capsys.readouterr().err
        assert "(the model)" in error and "Name a" in error and "with --out" in error
    assert contents(made) == before


def test_the_result_is_cut_once_more_into_another_folder(made, tmp_path):
    before = contents(made)
    assert compress(made / "model", tmp_path / "again") == 0
    assert contents(made) == before
    assert saved(tmp_path / "again").num_parameters() < saved(made).num_parameters()


def test_text_is_not_written_into_nor_read_back(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "smoke")
    (tmp_path / "docs").mkdir()
    (tmp_path / "records").mkdir()
    inside = lines(tmp_path / "records" / "a.jsonl", [{"text": f"t{number}"} for number in range(9)])
    for number in range(5):
        (tmp_path / "docs" / f"{number}.md").write_text(f"Document {number}.", encoding="utf-8")
    before = contents(tmp_path)
    for text, out in [("docs", "docs/smaller"), ("docs", "docs"), (".", "smaller"), (inside, ".")]:
        assert compress("llama", tmp_path / out, "--text", f"{tmp_path / text}:2") == 1
        assert "Name a" in capsys.readouterr().err
    assert contents(tmp_path) == before
    assert compress("llama", tmp_path, "--text", str(tmp_path / "docs")) == 0, "beside the text is a good place"
    assert before.items() <= contents(tmp_path).items()


def test_what_others_made_is_not_replaced(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "smoke")
    save_pruned(*load_model("gpt2"), tmp_path / "model")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "model.gguf").touch()
    before = contents(tmp_path)
    for out, name in {tmp_path: "model", tmp_path / "b": "model.gguf"}.items():
        assert compress("llama", out) == 1
        error = capsys.readouterr().err
        assert f"{out / name} is there already, and compress didn't write it" in error and "--out" in error
    assert contents(tmp_path) == before


def test_what_lies_there_belongs_to_the_last_run(command, made):
    """Another budget without a file takes the old one's file away; the same order makes the same file again."""
    file, first = (made / "model.gguf").read_bytes(), identity(saved(made))
    assert command(*CUT, "--budget", "90%") == 0
    assert not (made / "model.gguf").exists() and identity(saved(made)) != first
    assert command(*CUT, "--export", "gguf") == 0
    assert (made / "model.gguf").read_bytes() == file and identity(saved(made)) == first
    assert {path.name for path in made.iterdir()} == {"model", "model.gguf", "records"}


@pytest.mark.parametrize("when", ["save_pruned", "write_json", "export_gguf", "replace"])
def test_no_crash_leaves_a_file_beside_another_model(when, command, made, monkeypatch):
    """Whenever it comes, the model there is whole, and a file beside it is made of it."""
    file, first = (made / "model.gguf").read_bytes(), identity(saved(made))

    def crash(*_args, **_options):
        raise SystemExit(137)

    with monkeypatch.context() as patch:
        if when == "export_gguf":
            patch.setattr("course_utils.release.export.export_gguf", crash)
        elif when == "replace":
            moving = os.replace
            patch.setattr(os, "replace", lambda old, new: crash() if Path(new).name == "model" else moving(old, new))
        else:
            patch.setattr(run, when, crash)
        with pytest.raises(SystemExit):
            command(*CUT, "--budget", "90%", "--export", "gguf")
    if (made / "model.gguf").exists():
        assert (made / "model.gguf").read_bytes() == file and identity(saved(made)) == first
    assert command(*CUT, "--budget", "90%", "--export", "gguf") == 0
    assert (made / "model.gguf").read_bytes() != file and not list(made.glob(".model*"))


def test_two_runs_at_once_do_not_share_a_folder(command, tmp_path, capsys):
    with folder.held(tmp_path / "out"):
        assert command(*CUT) == 1
        assert "Another run of compress writes to" in capsys.readouterr().err
        assert command(*CUT, "--dry-run") == 0, "it writes nothing"
    assert command(*CUT) == 0


def test_a_run_goes_on_the_next_day_with_the_date_on_which_it_began(own, tmp_path, monkeypatch):
    """A template that writes today's date gives the text of the first day, so nothing is made again."""
    tokenizer = AutoTokenizer.from_pretrained(own[0])
    tokenizer.chat_template = "{{ strftime_now('%d %B') }}: " + tokenizer.chat_template
    tokenizer.save_pretrained(own[0])

    class Later(own_text.datetime.date):
        shift = 0

        @classmethod
        def today(cls):
            return cls(2026, 12, 1 + cls.shift)

    monkeypatch.setattr(own_text.datetime, "date", Later)
    assert command_line.main(["compress", *own]) == 0
    rows, first = contents(tmp_path / "out" / "records"), dict(saved(tmp_path / "out").named_parameters())
    Later.shift = 1
    monkeypatch.setattr(run, "importance", None)
    assert command_line.main(["compress", *own]) == 0
    assert contents(tmp_path / "out" / "records") == rows
    assert all(torch.equal(weight, first[name]) for name, weight in saved(tmp_path / "out").named_parameters())
    monkeypatch.undo()

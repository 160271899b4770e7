"""Rows of five kinds: what is written is read, nothing that calibrates judges, and a gap is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from course_utils.models.loading import load_model
from course_utils.text import kinds
from course_utils.text.kinds import KINDS, LENGTH, ROWS, kind_rows, write_kind_rows


def both(profile, monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", profile)
    return {split: kind_rows(split) for split in ROWS}


def test_what_is_written_is_read(monkeypatch, tmp_path):
    drawn = both("smoke", monkeypatch)
    monkeypatch.setattr(kinds, "FILE", tmp_path / "rows.safetensors")
    write_kind_rows(kinds.FILE, drawn)
    assert kinds.FILE.stat().st_size < 500_000
    for split, found in both("embedded", monkeypatch).items():
        assert [*found] == [*KINDS]
        for kind, rows in found.items():
            assert torch.equal(rows.input_ids, drawn[split][kind].input_ids) and rows.input_ids.dtype == torch.int64
            assert torch.equal(rows.num_bytes, drawn[split][kind].num_bytes)
            assert (rows.domain, rows.split) == (kind, "calibration" if split == "calibration" else "evaluation")


def test_the_smoke_profiles_rows_are_the_same_every_time_and_fit_its_model(monkeypatch):
    first, second = both("smoke", monkeypatch), both("smoke", monkeypatch)
    model, _ = load_model("moe", device="cpu")
    seen = set()
    for split, count in ROWS.items():
        for kind, rows in first[split].items():
            assert torch.equal(rows.input_ids, second[split][kind].input_ids)
            assert rows.input_ids.shape == (count, LENGTH) and rows.input_ids.max() < model.config.vocab_size
            seen |= {*map(tuple, rows.input_ids.tolist())}
    assert len(seen) == len(KINDS) * sum(ROWS.values()), "no row calibrates and judges"


def test_the_package_brings_model_and_rows_as_soon_as_a_lesson_runs_on_them(monkeypatch):
    if not any((Path(__file__).parents[3] / "lessons").glob("13_*.py")):
        pytest.skip("lesson 13 is a draft, so that nothing needs them")
    rows = both("embedded", monkeypatch)
    model, _ = load_model("moe", device="cpu")
    for split, count in ROWS.items():
        for own in rows[split].values():
            assert own.input_ids.shape == (count, LENGTH) and own.input_ids.max() < model.config.vocab_size


def test_missing_rows_and_unknown_splits_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(kinds, "FILE", tmp_path / "rows.safetensors")
    with pytest.raises(FileNotFoundError, match="rows.safetensors is missing from the package"):
        both("embedded", monkeypatch)
    with pytest.raises(ValueError, match="'split' must be one of calibration, evaluation, further; got 'distillation'"):
        kind_rows("distillation")

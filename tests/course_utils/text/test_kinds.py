"""Rows of five kinds: what is written is read, and nothing that calibrates judges."""

from __future__ import annotations

import pytest
import torch

from course_utils.models.loading import load_without_weights
from course_utils.text import kinds
from course_utils.text.kinds import KINDS, LENGTH, ROWS, kind_blocks, kind_rows, write_kind_rows


def test_what_is_written_is_read(monkeypatch, tmp_path):
    drawn = {
        split: {
            kind: kind_blocks(torch.randint(4096, (count, LENGTH)), torch.randint(600, (count,)), kind, split)
            for kind in KINDS
        }
        for split, count in ROWS.items()
    }
    monkeypatch.setattr(kinds, "FILE", tmp_path / "rows.safetensors")
    write_kind_rows(kinds.FILE, drawn)
    assert kinds.FILE.stat().st_size < 500_000
    for split in ROWS:
        found = kind_rows(split)
        assert [*found] == [*KINDS]
        for kind, rows in found.items():
            assert torch.equal(rows.input_ids, drawn[split][kind].input_ids) and rows.input_ids.dtype == torch.int64
            assert torch.equal(rows.num_bytes, drawn[split][kind].num_bytes)
            assert (rows.domain, rows.split) == (kind, "calibration" if split == "calibration" else "evaluation")


@pytest.mark.parametrize("profile", ["embedded", "smoke"])
def test_the_packages_rows_fit_the_profiles_model_and_none_calibrates_and_judges(profile, monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", profile)
    configuration, _ = load_without_weights("moe")
    seen = set()
    for split, count in ROWS.items():
        for rows in kind_rows(split).values():
            assert rows.input_ids.shape == (count, LENGTH) and rows.input_ids.max() < configuration.vocab_size
            seen |= {*map(tuple, rows.input_ids.tolist())}
    assert len(seen) == len(KINDS) * sum(ROWS.values())

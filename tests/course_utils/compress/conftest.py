"""What the tests of the command share: it runs on random models, and times nothing unless a test asks."""

from __future__ import annotations

import pytest
from own_command import SMALL, few_rows, untimed, write_own

from course_utils.compress import command_line, run
from course_utils.measuring import abilities


@pytest.fixture(autouse=True)
def _untimed(monkeypatch):
    """To time versions takes longer than all else here; one test does."""
    monkeypatch.setattr(run, "timed", untimed)


@pytest.fixture(autouse=True)
def _few_questions(monkeypatch):
    """Rows of each ability, for the card."""
    monkeypatch.setattr(abilities, "ability_rows", few_rows)


@pytest.fixture
def command(monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_PROFILE", "smoke")
    return lambda *more: command_line.main(["compress", "llama", *SMALL, "--out", str(tmp_path / "out"), *more])


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "smoke")
    return [*write_own(tmp_path), "--out", str(tmp_path / "out")]

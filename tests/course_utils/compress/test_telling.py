"""What is told before the run, and on the card after it."""

from __future__ import annotations

import json
import re

import pytest

from course_utils.compress import plan, run, telling
from course_utils.models.loading import load_model


def test_dry_run_says_sizes_memory_and_time_and_writes_nothing(command, tmp_path, capsys):
    assert command("--budget", "95%", "--dry-run") == 0
    out = capsys.readouterr().out
    assert all(told in out for told in ("versions cost at most", "b8-h", "GB of memory", "on this machine, by"))
    assert re.search(r"by [2-5] forward passes of ", out) and "can double the time" in out
    assert "Steps: 2 x 2 of light distillation, 3 of recovery, each of 1 batch of 2 x 16 tokens.\n" in out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "told", "untold"),
    [
        (["--steps", "0", "--light", "0"], ["Nothing is learned: the best version as cut is saved"], ["Step"]),
        (["--steps", "0", "--finalists", "1"], ["Nothing is learned"], ["Steps", "a rate"]),
        (["--light", "0"], ["Steps: 3 of recovery, each of", "a rate of 0.0002"], ["light", "0 of"]),
        (["--steps", "0"], ["Steps: 2 x 2 of light distillation, each of 1 batch of 2 x 16 tokens."], ["0 of"]),
        (["--correction", "4", "--finalists", "1"], ["Steps: 4 of teacher correction, 3 of recovery"], ["light"]),
    ],
)
def test_only_steps_that_there_are_are_told(options, told, untold, command, capsys):
    assert command("--budget", "95%", "--dry-run", *options) == 0
    out = capsys.readouterr().out
    assert all(words in out for words in told) and not any(words in out for words in untold)


def test_one_version_is_one(command, capsys, monkeypatch):
    found = plan.candidates
    monkeypatch.setattr(plan, "candidates", lambda *args, **options: found(*args, **options)[:1])
    assert command("--budget", "95%", "--dry-run") == 0
    assert "1 version costs at most" in capsys.readouterr().out


def test_what_could_not_be_measured_is_told_with_its_reason(command, capsys, monkeypatch):
    reason = "This needs gguf: pip install it."
    monkeypatch.setattr(run, "in_fewer_bits", lambda *_, **__: ({}, reason))
    assert command("--budget", "95%", "--steps", "0", "--light", "0", "--json") == 0
    told = capsys.readouterr()
    assert f"Not measured, the whole model in 8 and 4 bits: {reason}" in told.err
    report = json.loads(told.out)
    assert report["not_measured"] == {"the whole model in 8 and 4 bits": reason}
    assert [*report["held_out"]] == ["whole", "random cut", "cut"]


@pytest.mark.parametrize(
    ("name", "told", "untold"),
    [("", "A local model, cut to", "base_model"), ("someone/large", "base_model: someone/large\n", "A local model")],
)
def test_card_names_a_hub_id_and_no_place_on_this_machine(name, told, untold, command, tmp_path, monkeypatch):
    def loaded(*args, **options):
        model, tokenizer = load_model(*args, **options)
        model.config._name_or_path = model.name_or_path = name or str(tmp_path)
        return model, tokenizer

    monkeypatch.setattr(run, "load_model", loaded)
    assert command("--budget", "95%", "--steps", "0", "--light", "0") == 0
    card = (tmp_path / "out" / "model" / "README.md").read_text(encoding="utf-8")
    assert told in card and untold not in card and str(tmp_path) not in card
    assert ("# large-b8" in card) == bool(name)


@pytest.mark.parametrize(("interval", "limits"), [((1.1, 1.05, 1.2), 2), ((1.0, 0.99, 1.01), 1), ((0.9, 0.8, 0.95), 1)])
def test_card_says_bad_only_of_what_is(interval, limits):
    told = telling._limits("speeches", *interval)
    assert len(told) == limits and "Nothing else" in told[-1]

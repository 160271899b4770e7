"""Text that won't do is refused by name, before a weight is read."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from own_command import SMALL, lines

from course_utils.compress import command_line, run
from course_utils.compress.order import Order
from course_utils.compress.text import CHOSEN, JUDGED, SCORED, Text
from course_utils.models import loading as models
from course_utils.models.loading import load_model
from course_utils.pruning.checkpoints import save_pruned


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["run", "dry run"])
def test_too_little_text_is_told_before_a_weight_is_read(dry, command, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "load_model", None)
    assert command("--budget", "95%", "--steps", "10000000", *dry) == 1
    error = capsys.readouterr().err
    assert "The distillation split of speeches has" in error and "--steps, --correction or --light" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["run", "dry run"])
def test_text_that_will_not_do_is_told_before_a_weight_is_read(dry, own, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "load_model", None)
    monkeypatch.setattr(run, "load_without_weights", None)
    one = lines(tmp_path / "one.jsonl", [{"text": "alone"}])
    known = lines(tmp_path / "known.jsonl", [{"text": "a b c d e f g h i j k l m n"}, {"text": "x"}, {"text": "y"}])
    for options, message in {
        ("--judge", one): "'--judge' goes with '--text'",
        ("--text", one): "1 document(s), and 4 are needed",
        ("--text", known, "--judge", known): "3 of 3 documents of --judge are also in --text",
        ("--text", lines(tmp_path / "bad.jsonl", [{"txt": 1}])): "bad.jsonl, line 1: it has neither",
    }.items():
        assert command_line.main(["compress", own[0], *SMALL, "--budget", "95%", *options, *dry]) == 1
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["run", "dry run"])
def test_chats_for_a_model_that_cannot_chat_are_told_before_a_weight_is_read(dry, own, tmp_path, capsys, monkeypatch):
    mute = save_pruned(*load_model("llama"), tmp_path / "mute")
    monkeypatch.setattr(models, "AutoModelForCausalLM", None)
    assert command_line.main(["compress", str(mute), *own[1:], *dry]) == 1
    assert "This tokenizer has no chat template, and chats.jsonl, line" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("domain", ["speeches", "stories"])
def test_no_row_of_the_courses_text_has_two_roles(domain, monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "smoke")
    _, tokenizer = load_model("llama")
    order, key = Order(model="llama", budget=(95, "%"), domain=domain, length=48, steps=20, light=5), {}
    for seed in (0, 1):
        text = Text.built_in(tokenizer, replace(order, seed=seed))
        batches = [text.scored, text.choosing.batches(4), text.learned(20), text.held_out.batches(4)]
        roles = [{tuple(row) for batch in role for row in batch["input_ids"].tolist()} for role in batches]
        assert [*map(len, roles)] == [SCORED, CHOSEN, 80, JUDGED]
        assert all(not a & b for a, b in itertools.combinations(roles, 2))
        key[seed] = roles
    assert [a == b for a, b in zip(key[0], key[1], strict=True)] == [False, False, False, True], "the judges stay"

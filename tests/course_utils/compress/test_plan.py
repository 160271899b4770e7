"""What can't be done is refused by name, before a weight is read and before anything is written; text has its roles."""

from __future__ import annotations

import itertools
import json
import sys
from dataclasses import replace
from types import ModuleType

import pytest
from own_command import SMALL, lines
from tiny import word_tokenizer

from course_utils.compress import command_line, run
from course_utils.compress.order import Order
from course_utils.compress.plan import CHOSEN, JUDGED, SCORED, Text
from course_utils.models import loading as models
from course_utils.models.loading import load_model
from course_utils.pruning.checkpoints import save_pruned


@pytest.fixture
def refused(tmp_path, capsys, monkeypatch):
    """Asks for what is refused in a sentence, although no weight can be read and nothing is written."""
    monkeypatch.setenv("COURSE_PROFILE", "smoke")

    def ask(model, *options, message):
        with monkeypatch.context() as patch:
            patch.setattr(run, "load_model", None)
            out = str(tmp_path / "out")
            assert command_line.main(["compress", str(model), *SMALL, "--budget", "95%", "--out", out, *options]) == 1
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error and "tolerance" not in error and "e+" not in error
        assert not (tmp_path / "out").exists()

    return ask


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budget", "1%"], "No version costs"),
        (["--budget", "150%", "--dry-run"], "No version costs"),
        (["--domain", "foo"], "'--domain' must be one of speeches, wiki, stories, passages, scenes; got 'foo'"),
        (["--length", "9999"], "'--length' must be a whole number from 2 to 4096, the model's longest row; got 9999"),
        (["--tensor-parallel", "9"], "must be a whole number from 1 to 2, the model's KV groups; got 9"),
        (["--multiple-of", "999"], "must be a whole number from 1 to 512, the MLPs' width; got 999"),
        (["--steps", "10000000"], "--steps, --correction or --light"),
        (["--vocabulary", "5k"], "'--vocabulary' must leave from 257 tokens (the bytes, special tokens and what"),
        (["--vocabulary", "256"], "to all 4,096 that this tokenizer has, or a share of them such as 66%; got 256."),
        (["--vocabulary", "1%"], "such as 66%; got 0."),
    ],
)
def test_what_is_out_of_reach_is_refused(options, message, refused):
    refused("llama", *options, message=message)


def test_no_weights_of_a_hub_model_are_fetched_for_a_budget_out_of_reach(command, tmp_path, monkeypatch):
    folder, asked = save_pruned(*load_model("llama"), tmp_path / "hub"), []

    def snapshot(name, *, weights=True):
        asked.append((name, weights))
        return folder

    monkeypatch.setattr(models.hub, "snapshot", snapshot)
    assert command_line.main(["compress", "someone/large", *SMALL, "--budget", "1%", "--dry-run"]) == 1
    assert asked == [("someone/large", False)]


def test_models_and_ways_to_learn_that_will_not_do_are_refused(refused, tmp_path, monkeypatch):
    folder = save_pruned(*load_model("llama"), tmp_path / "packed")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "awq"}}))
    refused(folder, message="is quantized, and packed weights can't be scored or cut")
    other = save_pruned(*load_model("gpt2"), tmp_path / "gpt2")
    model = load_model("llama")[0]
    words = save_pruned(model, word_tokenizer(), tmp_path / "words")
    refused(words, "--vocabulary", "50%", message="The tokenizer must be BPE with bytes")
    refused(other, "--export", "gguf", message="'--export gguf' can't be done; without it this runs. GGUF export knows")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "peft", None)
        refused("llama", "--recover", "lora", message="This needs peft: pip install 'pruning-llms[lora]'")
        patch.delitem(sys.modules, "course_utils.release.export", raising=False)
        patch.setitem(sys.modules, "gguf", None)
        refused("llama", "--export", "gguf", message="This needs gguf: pip install 'pruning-llms[gguf]'")
    monkeypatch.setitem(sys.modules, "peft", ModuleType("peft"))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    refused("llama", "--recover", "lora", message="'--recover lora' is for launches without --use_fsdp")


def test_text_that_will_not_do_is_refused(own, refused, tmp_path, monkeypatch):
    one = lines(tmp_path / "one.jsonl", [{"text": "alone"}])
    known = lines(tmp_path / "known.jsonl", [{"text": "a b c d e f g h i j k l m n"}, {"text": "x"}, {"text": "y"}])
    for options, message in {
        ("--judge", one): "'--judge' goes with '--text'",
        ("--text", one): "1 document(s), and 4 are needed",
        ("--text", known, "--judge", known): "3 of 3 documents of --judge are also in --text",
        ("--text", lines(tmp_path / "bad.jsonl", [{"txt": 1}])): "bad.jsonl, line 1: it has neither",
    }.items():
        refused(own[0], *options, message=message)
    mute = save_pruned(*load_model("llama"), tmp_path / "mute")
    monkeypatch.setattr(models, "AutoModelForCausalLM", None)
    refused(mute, *own[1:-2], message="This tokenizer has no chat template, and chats.jsonl, line")


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

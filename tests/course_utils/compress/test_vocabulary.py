"""`compress --vocabulary`: fewer tokens count in the budget, are judged per byte, and reload in plain transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from own_command import VERSIONS, saved
from transformers import AutoTokenizer

from course_utils.compress import command_line, run
from course_utils.models.loading import load_model
from course_utils.release import rivals
from course_utils.release.export import export_gguf

HALF = ["--vocabulary", "50%"]
WAYS = ["2,048 tokens", "the first 2,048 tokens", "2,048 drawn tokens"]


def test_fewer_tokens_and_all_else_of_the_recipe(command, tmp_path, capsys, monkeypatch):
    smaller = ["--budget", "75%", *HALF]
    assert command(*smaller, "--json") == 0
    told = capsys.readouterr()
    report, model, whole = json.loads(told.out), saved(tmp_path / "out"), load_model("llama")[0]
    assert 0.7 * whole.num_parameters() < model.num_parameters() <= 0.75 * whole.num_parameters()
    assert model.config.vocab_size == model.lm_head.weight.shape[0] == report["made"]["vocabulary"] == 2048
    tokenizer, text = AutoTokenizer.from_pretrained(tmp_path / "out" / "model"), "Fellow citizens, ünïcödé 𝄞!"
    assert len(tokenizer) == 2048 and tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert model(torch.tensor([tokenizer(text)["input_ids"]])).logits.isfinite().all()

    found = report["held_out"]
    assert [*found] == [*VERSIONS[:3], *WAYS, *VERSIONS[3:]]
    of_tokens = {name: version["tokens_per_byte"] for name, version in found.items()}
    assert of_tokens["whole"] == of_tokens["whole, Q4_0"] <= of_tokens["2,048 tokens"] == of_tokens["recovered"]
    assert of_tokens["2,048 tokens"] < of_tokens["the first 2,048 tokens"] < of_tokens["2,048 drawn tokens"]
    size = {name: version["bytes"] for name, version in found.items()}
    assert len({size[name] for name in WAYS}) == 1 and size["cut"] < size["2,048 tokens"] < size["whole"]
    lines = told.err.partition("what else could be shipped:\n")[2].splitlines()
    assert all(words in lines[0] for words in ("bits per byte on held-out speeches", "tokens per byte"))
    assert "perplexity" not in told.err
    kinds = report["kinds_of_text"]
    assert [*kinds] == ["held-out speeches", "code", "French", "German", "Spanish"]
    assert kinds["held-out speeches"]["bits"] == pytest.approx(found["recovered"]["bits_per_byte"])
    assert kinds["held-out speeches"]["bits_whole"] == pytest.approx(found["whole"]["bits_per_byte"])
    card = (tmp_path / "out" / "model" / "README.md").read_text(encoding="utf-8")
    assert "2,048 of 4,096 tokens, the most frequent in " in card and "-v2048\n" in card
    assert "beside the whole model with 2,048 tokens" in card and "| code | " in card and "tokens, whole" in card

    for module, name in ((run, "importance"), (rivals, "perplexity")):
        monkeypatch.setattr(module, name, None)
    assert command(*smaller, "--json") == 0, "all of it is done already"
    again = json.loads(capsys.readouterr().out)
    assert again["held_out"] == found and again["kinds_of_text"] == kinds
    assert all(map(torch.equal, saved(tmp_path / "out").parameters(), model.parameters()))
    with pytest.raises(TypeError):
        command(*smaller[:2], "--vocabulary", "2112")


def test_a_stopped_run_ends_as_an_unbroken_one(command, tmp_path, monkeypatch):
    smaller = ["--budget", "75%", *HALF, "--correction", "2"]

    def ctrl_c(*_args, **_options):
        raise KeyboardInterrupt

    for name in ("importance", "damage_profile"):
        with monkeypatch.context() as patch:
            patch.setattr(run, name, ctrl_c)
            assert command(*smaller) == 130
    assert command(*smaller) == 0
    stopped = saved(tmp_path / "out")
    assert command(*smaller, "--out", str(tmp_path / "unbroken")) == 0
    assert all(map(torch.equal, saved(tmp_path / "unbroken").parameters(), stopped.parameters()))


def test_where_fewer_tokens_meet_the_budget_nothing_else_goes(command, tmp_path, capsys):
    assert command("--budget", "90%", *HALF, "--export", "gguf", "--json") == 0
    told = capsys.readouterr()
    report, made = json.loads(told.out), saved(tmp_path / "out")
    assert [*report["held_out"]] == [*VERSIONS[:3], *WAYS, "cut"] and "Nothing is learned" in told.err
    whole, _ = load_model("llama")
    assert made.num_parameters() == whole.num_parameters() - 2 * 2048 * 64
    assert all(map(torch.equal, made.model.layers.parameters(), whole.model.layers.parameters()))
    rows = torch.unique(made.model.embed_tokens.weight, dim=0)
    assert len(torch.unique(torch.cat([rows, whole.model.embed_tokens.weight]), dim=0)) == 4096
    made.config._name_or_path = ""  # which the file would tell
    tokenizer = AutoTokenizer.from_pretrained(report["saved"])
    assert Path(report["exported"]).read_bytes() == export_gguf(made, tokenizer, tmp_path / "same.gguf").read_bytes()


def test_a_dry_run_says_how_many_tokens_stay_and_how_few_could(command, tmp_path, capsys):
    assert command("--budget", "75%", "--vocabulary", "600", "--dry-run", "--json") == 0
    told = capsys.readouterr()
    number = json.loads(told.out)["vocabulary"]
    assert (number["tokens"], number["of"], number["at_least"]) == (600, 4096, 257)
    assert f"Vocabulary: 600 of 4,096 tokens, the most frequent in {number['counted']:,} of speeches; " in told.err
    assert f"With {number['used']:,} tokens that text would be written as before, and any text needs 257." in told.err
    assert not (tmp_path / "out").exists()


def test_text_of_ones_own_is_counted_and_judges_by_documents(own, tmp_path, capsys):
    few = [*own, "--budget", "90%", "--vocabulary", "512", "--steps", "0", "--light", "0"]
    assert command_line.main(["compress", *few]) == 0
    told = capsys.readouterr().out
    assert "Vocabulary: 512 of 4,096 tokens, the most frequent in " in told and "the maker's own text" in told
    assert "4 documents of --judge will judge" in told and "bits per byte on held-out text of the maker's own" in told
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "model")
    assert len(tokenizer) == 512 and tokenizer.chat_template


def test_all_tokens_stay_where_nothing_is_said(command, tmp_path, capsys):
    assert command("--budget", "95%", "--steps", "0", "--light", "0", "--json") == 0
    told = capsys.readouterr()
    report = json.loads(told.out)
    assert not {"vocabulary", "kinds_of_text"} & report.keys() and "vocabulary" not in report["made"]
    assert "perplexity on held-out speeches (95 %)" in told.err and "okens per byte" not in told.err

"""`course.py compress` on a random model and made-up text: says what it takes, resumes, and saves a plain model."""

from __future__ import annotations

from argparse import Namespace

import pytest
import torch
from tiny import FAMILIES, tiny_model
from transformers import AutoModelForCausalLM

from course_tools import cli, compress_command
from course_utils.checkpoints import save_pruned
from course_utils.compress import Candidate, outline_of
from course_utils.models import load_model

SMALL = ["--steps", "3", "--light", "2", "--finalists", "2", "--rows", "2", "--length", "16", "--multiple-of", "8"]


@pytest.fixture
def command(monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_PROFILE", "smoke")
    return lambda *more: cli.main(["compress", "llama", *SMALL, "--out", str(tmp_path / "out"), *more])


def test_dry_run_says_sizes_memory_and_time_and_writes_nothing(command, tmp_path, capsys):
    assert command("--budget", "95%", "--dry-run") == 0
    out = capsys.readouterr().out
    assert (
        "versions cost at most" in out and "b8-h" in out and "GB of memory" in out and "minutes on this machine" in out
    )
    assert not (tmp_path / "out").exists()


def test_the_whole_recipe_and_again(command, tmp_path, capsys, monkeypatch):
    assert command("--budget", "95%") == 0
    out = capsys.readouterr().out
    assert all(f"  {name:<11}perplexity" in out for name in ("whole", "cut", "recovered"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
    whole, _ = load_model("llama")
    assert 0.9 * whole.num_parameters() < model.num_parameters() <= 0.95 * whole.num_parameters()
    assert f"{model.num_parameters():,} parameters" in out

    def not_again(*_args, **_options):
        raise AssertionError("scored again")

    monkeypatch.setattr(compress_command, "importance", not_again)
    assert command("--budget", "95%") == 0  # searched and learned already
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_a_folder_and_a_budget_in_bytes(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "smoke")
    save_pruned(*load_model("gpt2"), tmp_path / "mine")
    size = sum(w.nbytes for w in load_model("gpt2")[0].parameters())
    assert (
        cli.main(["compress", str(tmp_path / "mine"), *SMALL, "--budget", f"{0.97 * size / 1e6:.3f}MB", "--dry-run"])
        == 0
    )
    assert "bytes:" in capsys.readouterr().out


@pytest.mark.parametrize("family", FAMILIES)
def test_memory_and_time_of_every_family(family):
    model = tiny_model(family)
    whole, args = Candidate.of(model), Namespace(rows=2, length=12, steps=3, finalists=2, light=2)
    smaller = Candidate(2, whole.hidden, whole.groups, 32)
    parameters = outline_of(model, smaller).num_parameters()
    size, seconds = compress_command.estimate(model, [smaller], args)
    assert size > 4 * whole.parameters + 16 * parameters  # a teacher; a student, its gradients and AdamW's averages
    assert seconds > 0


@pytest.mark.parametrize(
    ("budget", "message"),
    [("5", "must be a share"), ("0%", "must be a share"), ("2grams", "must be a share"), ("1%", "No version costs")],
)
def test_bad_budgets_are_explained_without_a_traceback(command, capsys, budget, message):
    assert command("--budget", budget) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_budgets_as_they_are_typed():
    assert compress_command.read_budget("1.2B") == (1.2e9, "parameters")
    assert compress_command.read_budget("300 MB") == (3e8, "bytes")

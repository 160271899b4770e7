"""`compress` on a random model and made-up text: it says what it takes, refuses early, resumes, saves a plain model."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from programs import in_two_processes, shard_by_hand
from tiny import FAMILIES, tiny_model
from transformers import AutoModelForCausalLM

from course_utils import command_line, compress_command, models
from course_utils.checkpoints import save_pruned
from course_utils.compress import Candidate, outline_of
from course_utils.distillation import training
from course_utils.models import load_model

SMALL = ["--steps", "3", "--light", "2", "--finalists", "2", "--rows", "2", "--length", "16", "--multiple-of", "8"]


@pytest.fixture
def command(monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_PROFILE", "smoke")
    monkeypatch.setenv("COURSE_SAMPLES", "2")  # rows of each ability
    return lambda *more: command_line.main(["compress", "llama", *SMALL, "--out", str(tmp_path / "out"), *more])


def test_dry_run_says_sizes_memory_and_time_and_writes_nothing(command, tmp_path, capsys):
    assert command("--budget", "95%", "--dry-run") == 0
    out = capsys.readouterr().out
    assert all(told in out for told in ("versions cost at most", "b8-h", "GB of memory", "minutes on this machine"))
    assert re.search(r"by [2-5] forward passes of ", out) and "can double the time" in out
    assert "Steps: 0 of teacher correction, 2 x 2 of light distillation, 3 of recovery" in out
    assert "shared by 1 process(es)" in out
    assert not (tmp_path / "out").exists()


def test_the_whole_recipe_and_again(command, tmp_path, capsys, monkeypatch):
    assert command("--budget", "95%") == 0
    out = capsys.readouterr().out
    assert all(f"  {name:<11}perplexity" in out for name in ("whole", "cut", "recovered"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
    whole, _ = load_model("llama")
    assert 0.9 * whole.num_parameters() < model.num_parameters() <= 0.95 * whole.num_parameters()
    assert f"{model.num_parameters():,} parameters" in out
    card = (tmp_path / "out" / "model" / "README.md").read_text(encoding="utf-8")
    assert "license: unknown" in card, "a random model has none"
    assert "no bias" in card and "tokens of speeches, recovery" in card
    assert "| text | " in card and "What it lost of copying can't be told" in card, "a random model can't do it"
    for measured in ("whole", "cut", "recovered"):
        assert measured in card

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
    budget = f"{0.97 * size / 1e6:.3f}mb"
    assert command_line.main(["compress", str(tmp_path / "mine"), *SMALL, "--budget", budget, "--dry-run"]) == 0
    assert "bytes:" in capsys.readouterr().out


def test_card_names_a_local_model_and_not_its_place(command, tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "smoke")
    save_pruned(*load_model("llama"), tmp_path / "mine")
    arguments = [str(tmp_path / "mine"), *SMALL, "--budget", "95%", "--out", str(tmp_path / "out")]
    assert command_line.main(["compress", *arguments]) == 0
    card = (tmp_path / "out" / "model" / "README.md").read_text(encoding="utf-8")
    assert "A local model, cut to" in card and "base_model" not in card
    assert str(tmp_path) not in card and "mine" not in card


def test_card_names_a_hub_id(command, tmp_path, monkeypatch):
    def downloaded(*args, **options):
        model, tokenizer = load_model(*args, **options)
        model.config._name_or_path = model.name_or_path = "someone/large"
        return model, tokenizer

    monkeypatch.setattr(compress_command, "load_model", downloaded)
    assert command("--budget", "95%", "--steps", "0", "--light", "0") == 0
    card = (tmp_path / "out" / "model" / "README.md").read_text(encoding="utf-8")
    assert "base_model: someone/large\n" in card and "# large-b8" in card


@pytest.mark.parametrize(("interval", "limits"), [((1.1, 1.05, 1.2), 2), ((1.0, 0.99, 1.01), 1), ((0.9, 0.8, 0.95), 1)])
def test_card_says_bad_only_of_what_is(interval, limits):
    told = compress_command._limits(*interval)
    assert len(told) == limits and "Nothing else" in told[-1]


def test_one_version_is_one(command, capsys, monkeypatch):
    found = compress_command.candidates
    monkeypatch.setattr(compress_command, "candidates", lambda *args, **options: found(*args, **options)[:1])
    assert command("--budget", "95%", "--dry-run") == 0
    assert "1 version costs at most" in capsys.readouterr().out


def saved(folder):
    """The model that the command left, and what it is made of."""
    return AutoModelForCausalLM.from_pretrained(Path(folder) / "model")


def test_a_corrected_teacher_is_another_teacher_and_goes_on(command, tmp_path, capsys, monkeypatch):
    """Corrected weights are scored, searched and learned from; what was done before isn't done again."""
    corrected = ["--budget", "95%", "--correction", "3"]
    assert command("--budget", "95%") == 0
    plain = saved(tmp_path / "out")
    assert command(*corrected, "--dry-run") == 0
    assert "Steps: 3 of teacher correction" in capsys.readouterr().out

    def ctrl_c(*_args, **_options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # between the correction and the scores
        patch.setattr(compress_command, "importance", ctrl_c)
        assert command(*corrected) == 130
    batches_of, taken = training._batches_of, []
    monkeypatch.setattr(training, "_batches_of", lambda *args: taken.append(args) or batches_of(*args))
    assert command(*corrected) == 0
    assert len(taken) == 2 * 2 + 3  # two finalists and the recovery; not the correction
    learned = saved(tmp_path / "out")
    assert not all(torch.equal(a, b) for a, b in zip(plain.parameters(), learned.parameters(), strict=False))
    (of_whole,) = (tmp_path / "out").glob("*/correction-3-*")
    teachers = [path.parent for path in (tmp_path / "out").glob("*/scores-16-0.safetensors")]
    assert len(teachers) == 2 and of_whole.parent in teachers


BOTH = ["compress", "llama", *SMALL, "--budget", "95%", "--accumulate", "2", "--correction", "2"]


def in_several(folder):
    """The command in several processes, each with the whole model, then with a share; they note who of them scores."""
    scoring, rank = compress_command.importance, PartialState(cpu=True).process_index
    for way in ("whole", "sharded"):
        if way == "sharded":
            shard_by_hand()
        here = Path(folder, way)
        here.mkdir(exist_ok=True)

        def noted(*args, here=here):
            with (here / f"scored by {rank}").open("a") as file:
                file.write("once")
            return scoring(*args)

        compress_command.importance = noted
        assert command_line.main([*BOTH, "--out", str(here / "refused"), "--accumulate", "3"]) == 1
        assert command_line.main([*BOTH, "--out", str(here / "several")]) == 0


@pytest.fixture(scope="module")
def by_several_and_one(tmp_path_factory):
    """One launch for both ways, because to import everything takes longer than the work."""
    folder = tmp_path_factory.mktemp("several")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_PROFILE", "smoke")
        in_two_processes(in_several, folder)
        assert command_line.main([*BOTH, "--out", str(folder / "one")]) == 0
    return folder


@pytest.mark.parametrize("way", ["whole", "sharded"])
def test_two_processes_make_the_model_of_one(way, by_several_and_one, monkeypatch, capsys):
    monkeypatch.setenv("COURSE_PROFILE", "smoke")
    here = by_several_and_one / way
    one, several = saved(by_several_and_one / "one"), saved(here / "several")
    assert Candidate.of(several) == Candidate.of(one)  # the same version won
    for a, b in zip(several.parameters(), one.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert [(path.name, path.read_text()) for path in here.glob("scored by *")] == [("scored by 0", "once")]
    assert not (here / "refused").exists()

    # What several have done, one needn't do again.
    monkeypatch.setattr(compress_command, "importance", None)
    assert command_line.main([*BOTH, "--out", str(here / "several")]) == 0
    assert all(map(torch.equal, saved(here / "several").parameters(), several.parameters()))


def test_the_launch_that_the_help_shows(capsys):
    """Up to the number of GPUs, of which there are none here."""
    with pytest.raises(SystemExit):
        command_line.main(["compress", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    launch = "accelerate launch --multi_gpu --num_processes 8 -m course_utils compress MODEL"
    assert f"{launch} --budget 80% --accumulate 8 --steps 200" in shown
    options = ["--budget", "95%", "--accumulate", "8", "--steps", "200", "--multiple-of", "8", "--dry-run"]
    run = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--cpu", "--num_processes", "1", "-m",
         "course_utils", "compress", "llama", *options],
        cwd=Path(__file__).resolve().parents[2], env={**os.environ, "COURSE_PROFILE": "smoke", "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    assert "take 8 such batches a step" in run.stdout


@pytest.mark.parametrize("family", FAMILIES)
def test_memory_and_time_of_every_family(family):
    model = tiny_model(family)
    whole, args = Candidate.of(model), _args()
    smaller = Candidate(2, whole.hidden, whole.groups, 32)
    parameters = outline_of(model, smaller).num_parameters()
    needed = compress_command._estimate(model, [smaller], args)
    assert needed.bytes > 4 * whole.parameters + 16 * parameters  # teacher; student, its gradients, AdamW's averages
    assert 0 < needed.seconds[0] <= needed.seconds[1]
    larger = compress_command._estimate(model, [smaller], _args(correction=1))
    assert larger.bytes > 20 * whole.parameters  # in its correction the teacher is the student
    cut = compress_command._estimate(model, [smaller], _args(steps=0, light=0))
    assert cut.bytes == 4 * (whole.parameters + parameters)


def _args(**changes):
    usual = {"rows": 2, "length": 12, "steps": 3, "finalists": 2, "light": 2, "correction": 0, "accumulate": 1}
    return Namespace(**usual | changes)


def test_an_estimate_says_how_far_its_passes_lie_apart():
    needed = compress_command._Needed(bytes=2.5e9, seconds=(600.0, 900.0), passes=(0.2, 0.3))
    assert str(needed).startswith(
        "About 2.5 GB of memory and 10 to 15 minutes on this machine, by 2 forward passes of 0.2 to 0.3 s."
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budget", "1%"], "No version costs"),
        (["--budget", "150%"], "No version costs"),
        (["--domain", "foo"], "'--domain' must be one of speeches, wiki, stories, passages, scenes; got 'foo'"),
        (["--length", "9999"], "'--length' must be a whole number from 2 to 4096, the model's longest row; got 9999"),
        (["--multiple-of", "999"], "'--multiple-of' must be a whole number from 1 to 512, the MLPs' width; got 999"),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["run", "dry run"])
def test_what_is_wrong_is_told_before_a_weight_is_read(dry, options, message, command, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(compress_command, "load_model", None)
    assert command("--budget", "95%", *options, *dry) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error and "tolerance" not in error and "e+" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["run", "dry run"])
def test_too_little_text_is_told_before_anything_is_scored(dry, command, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(compress_command, "importance", None)
    assert command("--budget", "95%", "--steps", "10000000", *dry) == 1
    error = capsys.readouterr().err
    assert "The distillation split of speeches has" in error and "--steps, --correction or --light" in error
    assert not (tmp_path / "out").exists()


def test_only_the_configuration_of_a_hub_model_is_fetched_for_a_budget_out_of_reach(command, tmp_path, monkeypatch):
    folder, asked = save_pruned(*load_model("llama"), tmp_path / "hub"), []

    def snapshot(name, *, only_configuration=False):
        asked.append((name, only_configuration))
        return folder

    monkeypatch.setattr(models.hub, "snapshot", snapshot)
    assert command_line.main(["compress", "someone/large", *SMALL, "--budget", "1%", "--dry-run"]) == 1
    assert asked == [("someone/large", True)]


def test_a_cut_without_training(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(compress_command, "distill", None)
    assert command("--budget", "95", "--steps", "0", "--light", "0", "--json") == 0
    told = capsys.readouterr()
    report = json.loads(told.out)
    assert "versions cost at most" in told.err
    assert report["held_out"].keys() == {"whole", "cut"} and report["model"] == "a local model"
    assert report["made"]["parameters"] == saved(tmp_path / "out").num_parameters()
    card = Path(report["saved"], "README.md").read_text(encoding="utf-8")
    assert "nothing was learned after the cut" in card and "tokens of" not in card


def test_another_wish_goes_its_own_way(command, tmp_path):
    """What an earlier run left isn't taken for it, nor in its way when all else is done."""
    found = {}
    for name, more in {"first": [], "seed": ["--seed", "1"], "rate": ["--lr", "1e-3"], "first again": []}.items():
        assert command("--budget", "95%", *more) == 0
        found[name] = {key: weight.clone() for key, weight in saved(tmp_path / "out").named_parameters()}

    def alike(a, b):
        return found[a].keys() == found[b].keys() and all(map(torch.equal, found[a].values(), found[b].values()))

    assert alike("first", "first again") and not alike("first", "seed") and not alike("first", "rate")
    assert len([*(tmp_path / "out").glob("*/scores-16-?.safetensors")]) == 2

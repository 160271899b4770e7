"""`compress` on a random model and made-up text, alone or in two: it scores, chooses, learns, resumes, saves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from own_command import SMALL, VERSIONS, few_rows, saved, untimed, write_own
from programs import in_two_processes, shard_by_hand
from transformers import AutoTokenizer

from course_utils.compress import Candidate, command_line, plan, ranking, run, telling
from course_utils.healing.distillation import training
from course_utils.measuring import abilities
from course_utils.models.loading import load_model
from course_utils.pruning.checkpoints import save_pruned
from course_utils.release import engine, rivals
from course_utils.release.export import export_gguf
from course_utils.text.assets import AssetError
from course_utils.text.own_text import OwnText


def test_the_whole_recipe_and_again(command, tmp_path, capsys, monkeypatch):
    """The random cut has the winner's sizes and other weights, and what has learned the speed of what was cut."""
    cuts, made, cutting = [], [], run.shrink

    def noted(*args):
        assert not any(model() for model in made), "of versions as cut one at a time is in memory"
        cuts.append((args[1], cutting(*args)))
        model = cutting(*args)
        made.append(weakref.ref(model))
        return model

    monkeypatch.setattr(run, "timed", rivals.timed)
    with monkeypatch.context() as patch:
        patch.setattr(run, "shrink", noted)
        assert command("--budget", "95%", "--json") == 0
    told = capsys.readouterr()
    report, model, (whole, _) = json.loads(told.out), saved(tmp_path / "out"), load_model("llama")
    assert 0.9 * whole.num_parameters() < model.num_parameters() <= 0.95 * whole.num_parameters()
    assert f"{model.num_parameters():,} parameters" in told.err
    table = told.err.partition("what else could be shipped:\n")[2].splitlines()
    assert "perplexity on held-out speeches (95 %)" in table[0]
    assert telling.UNREAD in told.err
    assert all(line.startswith(name) for name, line in zip(VERSIONS, table[1:], strict=False))
    card = (tmp_path / "out" / "model" / "README.md").read_text(encoding="utf-8")
    assert "license: unknown" in card and "What it lost of copying can't be told" in card, "of a random model"
    assert all(
        words in card
        for words in ("no bias", "tokens of speeches, recovery", "tokens a second, PyTorch", telling.UNREAD)
    )
    assert all(f"| {row} | " in card for row in ("text", *VERSIONS))

    found = report["held_out"]
    assert [*found] == [*VERSIONS] and report["not_measured"].keys() <= {"tokens a second in llama.cpp"}
    assert len({version["perplexity"] for version in found.values()}) == len(VERSIONS)
    size = {name: version["bytes"] for name, version in found.items()}
    assert size["whole, Q4_0"] < size["whole, Q8_0"] < size["whole"]
    assert size["recovered"] == size["cut"] == size["random cut"] < size["whole"]
    (winner, drawn), (same, chosen) = cuts
    assert winner == same and not all(map(torch.equal, chosen.parameters(), drawn.parameters()))
    speed = {name: version["tokens_per_second"] for name, version in found.items()}
    assert speed["recovered"] == speed["cut"] == speed["random cut"] != speed["whole"]
    engines = {"PyTorch", *(["llama.cpp"] if engine.available() else [])}
    assert speed["whole"].keys() == speed["cut"].keys() == engines
    assert speed["whole, Q4_0"].keys() == speed["whole, Q8_0"].keys() == engines - {"PyTorch"}
    assert not [*(tmp_path / "out").rglob("*.gguf")]

    for module, name in (
        (run, "importance"),
        (rivals, "perplexity"),
        (rivals, "measure_speed"),
        (engine, "measure_speed"),
    ):
        monkeypatch.setattr(module, name, None)
    assert command("--budget", "95%", "--json") == 0, "all of it is done already"
    assert json.loads(capsys.readouterr().out)["held_out"] == found
    assert all(map(torch.equal, saved(tmp_path / "out").parameters(), model.parameters()))


def test_a_folder_and_a_budget_in_bytes(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "smoke")
    model, tokenizer = load_model("gpt2")
    save_pruned(model, tokenizer, tmp_path / "mine")
    budget = f"{0.97 * sum(weight.nbytes for weight in model.parameters()) / 1e6:.3f}mb"
    assert command_line.main(["compress", str(tmp_path / "mine"), *SMALL, "--budget", budget, "--dry-run"]) == 0
    assert "bytes:" in capsys.readouterr().out


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
        patch.setattr(run, "importance", ctrl_c)
        assert command(*corrected) == 130
    assert "The same command goes on from what is done, in " in capsys.readouterr().err
    batches_of, taken = training._batches_of, []
    monkeypatch.setattr(training, "_batches_of", lambda *args: taken.append(args) or batches_of(*args))
    learn, recipes = run.distill, []
    monkeypatch.setattr(run, "distill", lambda *args, **more: recipes.append(args[3]) or learn(*args, **more))
    assert command(*corrected) == 0
    assert [(recipe.alpha, recipe.lr) for recipe in recipes] == [(1.0, 5e-5), (0.0, 2e-4)], "from text, and carefully"
    assert len(taken) == 2 * 2 + 3  # two finalists and the recovery; not the correction
    learned = saved(tmp_path / "out")
    assert not all(torch.equal(a, b) for a, b in zip(plain.parameters(), learned.parameters(), strict=False))
    (of_whole,) = (tmp_path / "out" / "records").glob("*/correction-3-*")
    teachers = [path.parent for path in (tmp_path / "out" / "records").glob("*/scores-and-means-16-0-*.safetensors")]
    assert len(teachers) == 2 and of_whole.parent in teachers


BOTH = ["compress", "llama", *SMALL, "--budget", "95%", "--accumulate", "2", "--correction", "2"]
OWN = ["--correction", "2"]


def in_several(folder):
    """The command in several processes, each with the whole model, then with a share; they note who of them scores."""
    scoring, learning, rank = run.importance, ranking.distill, PartialState(cpu=True).process_index
    run.timed, abilities.ability_rows = untimed, few_rows
    making = OwnText._mixed
    here = Path(folder, "text")
    here.mkdir(exist_ok=True)

    def made(*args):
        (here / f"rows by {rank}").touch()
        return making(*args)

    OwnText._mixed = made
    own = json.loads(Path(folder, "own.json").read_text())
    assert command_line.main([*own, *OWN, "--out", str(here / "several")]) == 0
    for way in ("whole", "sharded"):
        if way == "sharded":
            shard_by_hand()
        here = Path(folder, way)
        here.mkdir(exist_ok=True)

        def noted(*args, here=here):
            with (here / f"scored by {rank}").open("a") as file:
                file.write("once")
            return scoring(*args)

        def learned(*args, here=here):
            with (here / f"finalists of {rank}").open("a") as file:
                file.write("one ")
            return learning(*args)

        run.importance, ranking.distill = noted, learned
        assert command_line.main([*BOTH, "--out", str(here / "refused"), "--accumulate", "3"]) == 1
        assert command_line.main([*BOTH, "--out", str(here / "several")]) == 0


@pytest.fixture(scope="module")
def by_several_and_one(tmp_path_factory):
    """One launch for both ways, because to import everything takes longer than the work."""
    folder = tmp_path_factory.mktemp("several")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_PROFILE", "smoke")
        patch.setattr(abilities, "ability_rows", few_rows)
        patch.setattr(run, "timed", untimed)
        own = ["compress", *write_own(folder), "--accumulate", "2"]
        (folder / "own.json").write_text(json.dumps(own))
        in_two_processes(in_several, folder)
        assert command_line.main([*BOTH, "--out", str(folder / "one")]) == 0
        assert command_line.main([*own, *OWN, "--out", str(folder / "text" / "one")]) == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("way", ["whole", "sharded"])
def test_two_processes_make_the_model_of_one(way, by_several_and_one, monkeypatch, capsys):
    monkeypatch.setenv("COURSE_PROFILE", "smoke")
    here = by_several_and_one / way
    one, several = saved(by_several_and_one / "one"), saved(here / "several")
    assert Candidate.of(several) == Candidate.of(one)  # the same version won
    for a, b in zip(several.parameters(), one.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert [(path.name, path.read_text()) for path in here.glob("scored by *")] == [("scored by 0", "once")]
    assert {path.name: path.read_text() for path in here.glob("finalists of *")} == {
        "finalists of 0": "one one ",
        "finalists of 1": "one one ",
    }
    assert not (here / "refused").exists()

    # What several have done, one needn't do again.
    monkeypatch.setattr(run, "importance", None)
    assert command_line.main([*BOTH, "--out", str(here / "several")]) == 0
    assert all(map(torch.equal, saved(here / "several").parameters(), several.parameters()))


@pytest.mark.slow
def test_two_processes_learn_text_of_ones_own_as_one_does(by_several_and_one):
    """And the first of them alone makes the rows."""
    here = by_several_and_one / "text"
    one, several = saved(here / "one"), saved(here / "several")
    assert Candidate.of(several) == Candidate.of(one)
    for a, b in zip(several.parameters(), one.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert {path.name for path in here.glob("* by *")} == {"rows by 0"}
    files = {path.name: path.read_bytes() for path in (here / "one" / "records" / "text").glob("*")}
    assert files and files == {path.name: path.read_bytes() for path in (here / "several/records/text").glob("*")}


@pytest.mark.slow
def test_the_launch_that_the_help_shows(capsys):
    """Up to the number of GPUs, of which there are none here."""
    with pytest.raises(SystemExit):
        command_line.main(["compress", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    launch = "accelerate launch --multi_gpu --num_processes 8 -m course_utils compress MODEL"
    assert f"{launch} --budget 80% --accumulate 8 --steps 200" in shown
    options = ["--budget", "95%", "--accumulate", "8", "--steps", "200", "--multiple-of", "8", "--dry-run"]
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--cpu", "--num_processes", "1", "-m",
         "course_utils", "compress", "llama", *options],
        cwd=Path(__file__).resolve().parents[2], env={**os.environ, "COURSE_PROFILE": "smoke", "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "each of 8 batches of" in done.stdout


def test_a_cut_without_training_and_without_a_network(command, tmp_path, capsys, monkeypatch):
    real = abilities.ability_rows

    def offline(name, tokenizer):
        if name in ("code", "German"):
            raise AssetError("no network")
        return real(name, tokenizer)

    monkeypatch.setattr(abilities, "ability_rows", offline)
    monkeypatch.setattr(run, "distill", None)
    assert command("--budget", "95", "--steps", "0", "--light", "0", "--export", "gguf", "--json") == 0
    told = capsys.readouterr()
    report = json.loads(told.out)
    made, tokenizer = saved(tmp_path / "out"), AutoTokenizer.from_pretrained(report["saved"])
    made.config._name_or_path = ""  # which the file would tell
    same = export_gguf(made, tokenizer, tmp_path / "same.gguf")
    assert Path(report["exported"]).read_bytes() == same.read_bytes()
    assert "versions cost at most" in told.err
    assert [*report["held_out"]] == [*VERSIONS[:-1]] and report["model"] == "a local model"
    assert report["made"]["parameters"] == made.num_parameters()
    card = Path(report["saved"], "README.md").read_text(encoding="utf-8")
    assert "nothing was learned after the cut" in card and "tokens of" not in card
    assert card.count("can't be told: its text isn't here") == 2 and "lost of German can't be told" in card


def test_a_shape_learns_with_means_or_without_whichever_is_better_as_cut(command, tmp_path):
    """Each with fewer blocks is judged in both ways; means in a bias are what a version begins to learn from."""
    assert command("--budget", "90%", "--finalists", "9") == 0
    (search,) = (tmp_path / "out" / "records").glob("*/search")
    cut = {path.stem.rpartition("-")[0]: json.loads(path.read_text()) for path in search.glob("*.json")}
    learned = {name.removesuffix("-distilled") for name in cut if name.endswith("-distilled")}
    ways: dict[str, dict[str, float]] = {}
    for name, record in cut.items():
        if not name.endswith("-distilled"):
            ways.setdefault(name.rpartition("-n")[0], {})[name] = record["judged"]["nll"]
    assert len(ways) > 2 and {shape: len(found) for shape, found in ways.items()} == {
        shape: 1 if shape.startswith("b8") else 2 for shape in ways
    }
    assert learned == {min(found, key=found.__getitem__) for found in ways.values()}


@pytest.mark.parametrize("recover", ["all", "lora"])
def test_a_version_that_keeps_means_learns_and_says_so(recover, command, tmp_path, capsys, monkeypatch):
    found = plan.candidates
    monkeypatch.setattr(
        plan, "candidates", lambda *args, **options: [c for c in found(*args, **options) if c.means][-1:]
    )
    assert command("--budget", "90%", "--recover", recover, "--json") == 0
    report, model = json.loads(capsys.readouterr().out), saved(tmp_path / "out")
    sizes = {name: version["bytes"] for name, version in report["held_out"].items()}
    assert report["made"]["means"] is True and report["made"]["parameters"] == model.num_parameters()
    assert report["versions"][0]["parameters"] == model.num_parameters()
    assert sizes["recovered"] == sizes["cut"] == sizes["random cut"]
    assert model.config.mlp_bias and any(block.mlp.down_proj.bias.abs().max() > 0.01 for block in model.model.layers)
    card = (tmp_path / "out" / "model" / "README.md").read_text(encoding="utf-8")
    assert "means of removed blocks" in card and "-means" in card
    assert json.loads((tmp_path / "out" / "model" / "compress.json").read_text())["sizes"]["means"] is True


def test_half_the_bytes_and_some_of_the_weights(command, tmp_path, capsys):
    fitting = ["--budget", "95%", "--dtype", "bfloat16", "--recover", "mlps", "--recompute"]
    assert command(*fitting, "--steps", "0") == 0
    cut = {name: weight.clone() for name, weight in saved(tmp_path / "out").named_parameters()}
    assert telling.UNREAD not in capsys.readouterr().out  # nothing has read the text
    assert command(*fitting, "--json") == 0
    told = capsys.readouterr()
    assert "Learning: the MLPs' weights, with the model in bfloat16, activations computed twice" in told.err
    assert json.loads(told.out)["learning"] == {
        "recover": "mlps", "dtype": "bfloat16", "recompute": True, "lr": 2e-4
    }  # fmt: skip
    learned = dict(saved(tmp_path / "out").named_parameters())
    assert {weight.dtype for weight in (*cut.values(), *learned.values())} == {torch.bfloat16}
    changed = {name for name, weight in learned.items() if not torch.equal(weight, cut[name])}
    assert changed and all(".mlp." in name for name in changed) and learned.keys() == cut.keys()
    card = (tmp_path / "out" / "model" / "README.md").read_text(encoding="utf-8")
    assert "the MLPs' weights" in card and "bfloat16" in card

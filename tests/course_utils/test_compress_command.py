"""`compress` on a random model and made-up text: it says what it takes, refuses early, resumes, saves a plain model."""

from __future__ import annotations

import gc
import json
import os
import re
import shutil
import subprocess
import sys
import weakref
from argparse import Namespace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from accelerate import PartialState
from programs import in_two_processes, shard_by_hand
from tiny import FAMILIES, tiny_model
from transformers import AutoModelForCausalLM

from course_utils import command_line, compress_command, engine, models, rivals, self_data
from course_utils.checkpoints import save_pruned
from course_utils.compress import Candidate, outline_of
from course_utils.distillation import training
from course_utils.models import load_model
from course_utils.own_text import OwnText

SMALL = ["--steps", "3", "--light", "2", "--finalists", "2", "--rows", "2", "--length", "16", "--multiple-of", "8"]
VERSIONS = ("whole", "whole, Q8_0", "whole, Q4_0", "random cut", "cut", "recovered")


@pytest.fixture(autouse=True)
def _untimed(monkeypatch):
    """To time versions takes longer than all else here; one test does."""
    monkeypatch.setattr(compress_command, "timed", lambda versions, *_args, **_sizes: (versions, ""))


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
    assert (
        "Steps: 2 x 2 of light distillation, 3 of recovery, of 2 x 16 tokens; 1 such batches a step of recovery, shared"
        in out
    )
    assert "shared by 1 process(es)" in out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "told", "untold"),
    [
        (
            ["--steps", "0", "--light", "0"],
            ["Nothing is learned: the best version as cut is saved"],
            ["Step", "a rate"],
        ),
        (["--steps", "0", "--finalists", "1"], ["Nothing is learned"], ["Steps", "a rate"]),
        (["--light", "0"], ["Steps: 3 of recovery, of", "a rate of 0.0002"], ["light", "0 of"]),
        (["--steps", "0"], ["Steps: 2 x 2 of light distillation, of 2 x 16 tokens.", "a rate"], ["0 of", "a step"]),
        (["--correction", "4", "--finalists", "1"], ["Steps: 4 of teacher correction, 3 of recovery"], ["light"]),
    ],
)
def test_only_steps_that_there_are_are_told(options, told, untold, command, capsys):
    assert command("--budget", "95%", "--dry-run", *options) == 0
    out = capsys.readouterr().out
    assert all(words in out for words in told) and not any(words in out for words in untold)


def test_the_whole_recipe_and_again(command, tmp_path, capsys, monkeypatch):
    assert command("--budget", "95%") == 0
    out = capsys.readouterr().out
    table = out.partition("what else could be shipped:\n")[2].splitlines()
    assert "perplexity on held-out speeches (95 %)" in table[0]
    assert all(line.startswith(name) for name, line in zip(VERSIONS, table[1:], strict=False))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
    whole, _ = load_model("llama")
    assert 0.9 * whole.num_parameters() < model.num_parameters() <= 0.95 * whole.num_parameters()
    assert f"{model.num_parameters():,} parameters" in out
    card = (tmp_path / "out" / "model" / "README.md").read_text(encoding="utf-8")
    assert "license: unknown" in card, "a random model has none"
    assert "no bias" in card and "tokens of speeches, recovery" in card
    assert "| text | " in card and "What it lost of copying can't be told" in card, "a random model can't do it"
    assert all(f"| {version} | " in card for version in VERSIONS)

    def not_again(*_args, **_options):
        raise AssertionError("scored again")

    monkeypatch.setattr(compress_command, "importance", not_again)
    assert command("--budget", "95%") == 0  # searched and learned already
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_rivals_stand_beside_what_was_made(command, tmp_path, capsys, monkeypatch):
    """The random cut has the winner's sizes and other weights, and what has learned the speed of what was cut."""
    cuts, cutting = [], compress_command.shrink

    def noted(*args):
        cuts.append((args[1], cutting(*args)))
        return cutting(*args)

    monkeypatch.setattr(compress_command, "timed", rivals.timed)
    monkeypatch.setattr(compress_command, "shrink", noted)
    assert command("--budget", "95%", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    found = report["held_out"]
    assert [*found] == [*VERSIONS] and report["not_measured"].keys() <= {"tokens a second in llama.cpp"}
    assert len({version["perplexity"] for version in found.values()}) == len(VERSIONS)
    size = {name: version["bytes"] for name, version in found.items()}
    assert size["whole, Q4_0"] < size["whole, Q8_0"] < size["whole"]
    assert size["recovered"] == size["cut"] == size["random cut"] < size["whole"]
    (winner, chosen), (same, drawn) = cuts
    assert winner == same and not all(map(torch.equal, chosen.parameters(), drawn.parameters()))
    speed = {name: version["tokens_per_second"] for name, version in found.items()}
    assert speed["recovered"] == speed["cut"] == speed["random cut"] != speed["whole"]
    engines = {"PyTorch", *(["llama.cpp"] if engine.available() else [])}
    assert speed["whole"].keys() == speed["cut"].keys() == engines
    assert speed["whole, Q4_0"].keys() == speed["whole, Q8_0"].keys() == engines - {"PyTorch"}
    assert not [*(tmp_path / "out").rglob("*.gguf")]
    card = (tmp_path / "out" / "model" / "README.md").read_text(encoding="utf-8")
    assert "tokens a second, PyTorch" in card

    monkeypatch.setattr(rivals, "perplexity", None)
    monkeypatch.setattr(rivals, "measure_speed", None)
    monkeypatch.setattr(engine, "measure_speed", None)
    assert command("--budget", "95%", "--json") == 0, "all of it is measured already"
    assert json.loads(capsys.readouterr().out)["held_out"] == found


def test_what_could_not_be_measured_is_told_with_its_reason(command, capsys, monkeypatch):
    reason = "This needs gguf: pip install it."
    monkeypatch.setattr(compress_command, "in_fewer_bits", lambda *_, **__: ({}, reason))
    assert command("--budget", "95%", "--steps", "0", "--light", "0", "--json") == 0
    told = capsys.readouterr()
    assert f"Not measured, the whole model in 8 and 4 bits: {reason}" in told.err
    report = json.loads(told.out)
    assert report["not_measured"] == {"the whole model in 8 and 4 bits": reason}
    assert [*report["held_out"]] == ["whole", "random cut", "cut"]


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
    told = compress_command._limits("speeches", *interval)
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


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_own(folder):
    """A model that can chat, and text for it: the arguments that name them, but for --out."""
    model, tokenizer = load_model("llama")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    save_pruned(model, tokenizer, folder / "mine")
    (folder / "docs").mkdir()
    for number in range(5):
        (folder / "docs" / f"{number}.md").write_text(f"Document {number} of five.", encoding="utf-8")
    chats = [[{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"Yes, {n}."}] for n in range(9)]
    chats.insert(0, [{"role": "user", "content": "long " * 50}, *chats[0]])
    text = lines(folder / "chats.jsonl", [{"messages": chat} for chat in chats] + [{"txt": "no"}])
    judge = lines(folder / "held_out.jsonl", [{"text": f"It is about {n}."} for n in range(4)])
    return [str(folder / "mine"), *SMALL, "--budget", "95%", "--text", str(folder / "docs"), "--text", f"{text}:3",
            "--judge", judge]  # fmt: skip


def end_soon(generate):
    """What answers as ``self_data`` does, and comes to its end: a random model hardly ever would."""

    def ended(model, prompts, **more):
        end = model.generation_config.eos_token_id[0]
        answers = generate(model, prompts, **more)
        return [[*answer[: 3 + len(prompt.ids) % 5], end] for prompt, answer in zip(prompts, answers, strict=True)]

    return ended


BOTH = ["compress", "llama", *SMALL, "--budget", "95%", "--accumulate", "2", "--correction", "2"]
OWN_WAYS = {"text": ["--correction", "2"], "answers": ["--self-data", "5", "--length", "32"]}


def in_several(folder):
    """The command in several processes, each with the whole model, then with a share; they note who of them scores."""
    scoring, rank = compress_command.importance, PartialState(cpu=True).process_index
    making, answering = OwnText._mixed, self_data._generate
    own = json.loads(Path(folder, "own.json").read_text())
    for way, options in OWN_WAYS.items():
        here = Path(folder, way)
        here.mkdir(exist_ok=True)

        def made(*args, here=here):
            with (here / f"rows by {rank}").open("a") as file:
                file.write("once ")
            return making(*args)

        def answered(*args, here=here, **more):
            (here / f"answered by {rank}").touch()
            return end_soon(answering)(*args, **more)

        OwnText._mixed, self_data._generate = made, answered
        assert command_line.main([*own, *options, "--out", str(here / "several")]) == 0
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
        patch.setattr(self_data, "_generate", end_soon(self_data._generate))
        own = ["compress", *write_own(folder), "--accumulate", "2"]
        (folder / "own.json").write_text(json.dumps(own))
        in_two_processes(in_several, folder)
        assert command_line.main([*BOTH, "--out", str(folder / "one")]) == 0
        for way, options in OWN_WAYS.items():
            assert command_line.main([*own, *options, "--out", str(folder / way / "one")]) == 0
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


@pytest.mark.parametrize("way", OWN_WAYS)
def test_two_processes_learn_text_of_ones_own_as_one_does(way, by_several_and_one):
    """And the first of them alone makes rows and answers."""
    here = by_several_and_one / way
    one, several = saved(here / "one"), saved(here / "several")
    assert Candidate.of(several) == Candidate.of(one)
    for a, b in zip(several.parameters(), one.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert {path.name for path in here.glob("* by *")} == {
        "rows by 0",
        *(["answered by 0"] if way == "answers" else []),
    }
    for kind in ("text", "answers"):
        files = {path.name: path.read_bytes() for path in (here / "one" / kind).glob("*")}
        assert files == {path.name: path.read_bytes() for path in (here / "several" / kind).glob("*")}
        assert files or kind != way


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
    assert "8 such batches a step" in run.stdout


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
    more = compress_command._estimate(model, [smaller], _args(self_data=100_000)).seconds
    assert more[1] > 1000 * more[0], "answers take the most of it, or none where they are short"
    cut = compress_command._estimate(model, [smaller], _args(steps=0, light=0))
    assert cut.bytes == 4 * (whole.parameters + parameters)


def test_what_makes_it_fit_is_counted():
    wide = {"hidden_size": 128, "intermediate_size": 512}  # or a rank of 16 isn't low
    model, halved = tiny_model(**wide), tiny_model(dtype=torch.bfloat16, **wide)
    version = [Candidate.of(model)]
    all_weights, mlps, lora = (
        compress_command._estimate(model, version, _args(recover=recover)).bytes for recover in ("all", "mlps", "lora")
    )
    assert all_weights > mlps > lora > 8 * version[0].parameters
    teacher = 4 * version[0].parameters
    sixteen = compress_command._estimate(halved, version, _args(dtype="bfloat16")).bytes
    assert all_weights - sixteen == teacher / 2
    two_batches = _args(dtype="bfloat16", accumulate=2)  # gradients of the first beside what the second puts aside
    assert compress_command._estimate(halved, version, two_batches).bytes > sixteen
    assert compress_command._estimate(halved, version, two_batches, processes=2).bytes == sixteen
    searching = compress_command._estimate(model, version, _args(teacher="disk")).bytes
    cut_at_once = compress_command._estimate(model, version, _args(teacher="disk", light=0)).bytes
    assert searching == all_weights and all_weights - cut_at_once == teacher
    assert compress_command._estimate(model, version, _args(recompute=True)).bytes < all_weights


def _args(**changes):
    usual = {"rows": 2, "length": 12, "steps": 3, "finalists": 2, "light": 2, "correction": 0, "accumulate": 1}
    usual |= {
        "self_data": 0,
        "recover": "all",
        "recompute": False,
        "teacher": "memory",
        "dtype": "float32",
        "lr": 1e-4,
        "seed": 0,
    }
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
        (
            ["--tensor-parallel", "9"],
            "'--tensor-parallel' must be a whole number from 1 to 2, the model's KV groups; got 9",
        ),
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
def test_too_little_text_is_told_before_a_weight_is_read(dry, command, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(compress_command, "load_model", None)
    assert command("--budget", "95%", "--steps", "10000000", *dry) == 1
    error = capsys.readouterr().err
    assert "The distillation split of speeches has" in error and "--steps, --correction or --light" in error
    assert not (tmp_path / "out").exists()


def test_no_weights_of_a_hub_model_are_fetched_for_a_budget_out_of_reach(command, tmp_path, monkeypatch):
    folder, asked = save_pruned(*load_model("llama"), tmp_path / "hub"), []

    def snapshot(name, *, weights=True):
        asked.append((name, weights))
        return folder

    monkeypatch.setattr(models.hub, "snapshot", snapshot)
    assert command_line.main(["compress", "someone/large", *SMALL, "--budget", "1%", "--dry-run"]) == 1
    assert asked == [("someone/large", False)]


def test_a_cut_without_training(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(compress_command, "distill", None)
    assert command("--budget", "95", "--steps", "0", "--light", "0", "--json") == 0
    told = capsys.readouterr()
    report = json.loads(told.out)
    assert "versions cost at most" in told.err
    assert [*report["held_out"]] == [*VERSIONS[:-1]] and report["model"] == "a local model"
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


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "smoke")
    return [*write_own(tmp_path), "--out", str(tmp_path / "out")]


def without_docs(own):
    """The same arguments with chats alone."""
    place = own.index("--text")
    return [*own[:place], *own[place + 2 :]]


def test_the_whole_model_answers_and_its_answers_alone_are_learned(own, tmp_path, capsys, monkeypatch):
    wish = ["compress", *without_docs(own), "--self-data", "5", "--length", "32", "--steps", "8"]
    assert command_line.main([*wish, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "Learned are answers to its prompts: the whole model writes 5 of at most 16 tokens (the likeliest" in out
    assert "What it writes is short: for 8 steps it is read 3 times at least." in out
    assert not (tmp_path / "out").exists()

    ended, learned, distilling = end_soon(self_data._generate), [], compress_command.distill
    calls = []

    def noted(*args, **more):
        learned.append(args[2])
        return distilling(*args, **more)

    monkeypatch.setattr(self_data, "_generate", lambda *args, **more: calls.append(args) or ended(*args, **more))
    monkeypatch.setattr(compress_command, "distill", noted)
    assert command_line.main([*wish, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["text"]["answers"] == {"asked": 5, "temperature": 0.0, "learned": 5}
    (file,) = (tmp_path / "out" / "answers").iterdir()
    answers = [json.loads(line)["messages"][-1]["content"] for line in file.read_text(encoding="utf-8").splitlines()]
    _, tokenizer = load_model(tmp_path / "mine")
    (rows,) = learned
    told = {
        tokenizer.decode(ids[kept])
        for batch in rows
        for ids, kept in zip(batch["input_ids"], batch["labels"] >= 0, strict=True)
    }
    assert len(answers) == 5 and told == {f"{answer}\n" for answer in answers}
    card = (tmp_path / "out" / "model" / "README.md").read_text(encoding="utf-8")
    assert "tokens of 5 answers that the whole model wrote (the likeliest tokens), recovery" in card
    assert len(calls) == 3, "two at a time"

    assert command_line.main([*wish, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert len(calls) == 3 and again["held_out"] == report["held_out"], "answered, and all else done"
    assert command_line.main([*wish, "--temperature", "0.8"]) == 0
    assert len(calls) == 6 and len([*(tmp_path / "out" / "answers").iterdir()]) == 2
    card = (tmp_path / "out" / "model" / "README.md").read_text(encoding="utf-8")
    assert "answers that the whole model wrote (at a temperature of 0.8)" in card


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["run", "dry run"])
def test_self_data_that_will_not_do_is_told_before_a_weight_is_read(dry, own, tmp_path, capsys, monkeypatch):
    mute = save_pruned(*load_model("llama"), tmp_path / "mute")
    monkeypatch.setattr(models, "AutoModelForCausalLM", None)
    texts, chats = own[own.index("--text") + 1], without_docs(own)
    for arguments, message in {
        (own[0], *SMALL, "--budget", "95%", "--self-data", "3"): "'--self-data' goes with '--text'",
        (*own, "--temperature", "1"): "'--temperature' goes with '--self-data'",
        (*own, "--self-data", "3", "--correction", "1"): "'--self-data' goes without '--correction'",
        (*own, "--self-data", "3", "--steps", "0", "--light", "0"): "'--self-data' is for what learns",
        (*own, "--self-data", "3", "--steps", "0", "--finalists", "1"): "'--self-data' is for what learns",
        (*chats, "--self-data", "99"): "is asked for 99 prompts of at most 8 tokens, and ",
        (own[0], *SMALL, "--budget", "95%", "--text", texts, "--self-data", "1"): "There is no chat to learn",
        (str(mute), *chats[1:], "--self-data", "1"): "This tokenizer has no chat template, and chats.jsonl, line",
    }.items():
        assert command_line.main(["compress", *arguments, *dry]) == 1
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["run", "dry run"])
def test_text_that_will_not_do_is_told_before_a_weight_is_read(dry, own, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(compress_command, "load_model", None)
    monkeypatch.setattr(compress_command, "load_without_weights", None)
    one = lines(tmp_path / "one.jsonl", [{"text": "alone"}])
    known = lines(tmp_path / "known.jsonl", [{"text": "a b c d e f g h i j k l m n"}, {"text": "x"}])
    for options, message in {
        ("--judge", one): "'--judge' goes with '--text'",
        ("--text", one): "1 document(s), and 3 are needed",
        ("--text", known, "--judge", known): "documents that are to judge share thirteen",
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


def test_half_the_bytes_some_of_the_weights_and_a_teacher_on_disk(command, tmp_path, capsys):
    fitting = ["--budget", "95%", "--dtype", "bfloat16", "--recover", "mlps", "--teacher", "disk", "--recompute"]
    assert command(*fitting, "--steps", "0") == 0
    cut = {name: weight.clone() for name, weight in saved(tmp_path / "out").named_parameters()}
    assert not [*(tmp_path / "out").glob("*/teacher-*")]
    capsys.readouterr()
    assert command(*fitting, "--json") == 0
    told = capsys.readouterr()
    assert "Learning: the MLPs' weights, with the model in bfloat16, the teacher on disk in the recovery" in told.err
    assert json.loads(told.out)["learning"] == {
        "recover": "mlps", "dtype": "bfloat16", "teacher": "disk", "recompute": True, "lr": 2e-4
    }  # fmt: skip
    learned = dict(saved(tmp_path / "out").named_parameters())
    assert {weight.dtype for weight in (*cut.values(), *learned.values())} == {torch.bfloat16}
    changed = {name for name, weight in learned.items() if not torch.equal(weight, cut[name])}
    assert changed and all(".mlp." in name for name in changed) and learned.keys() == cut.keys()
    assert [*(tmp_path / "out").glob("*/teacher-3-*/cache.json")]
    card = (tmp_path / "out" / "model" / "README.md").read_text(encoding="utf-8")
    assert "the MLPs' weights" in card and "bfloat16" in card


@pytest.mark.parametrize(("teacher", "stays"), [("disk", False), ("memory", True)])
def test_the_whole_model_leaves_when_its_answers_are_on_disk(teacher, stays, command, monkeypatch):
    whole, there = [], []

    def loaded(*args, **options):
        model, tokenizer = load_model(*args, **options)
        whole.append(weakref.ref(model))
        return model, tokenizer

    def learning(*_args, **_options):
        gc.collect()
        there.append(whole[-1]() is not None)

    monkeypatch.setattr(compress_command, "load_model", loaded)
    monkeypatch.setattr(compress_command, "distill", learning)
    assert command("--budget", "95%", "--light", "0", "--teacher", teacher) == 0
    assert there == [stays]


def test_a_correction_of_low_rank_learns_at_a_rate_of_its_own(command, monkeypatch):
    recipes = []
    monkeypatch.setattr(compress_command, "distill", lambda *args, **_: recipes.append(args[3]))
    assert command("--budget", "95%", "--light", "0", "--recover", "lora") == 0
    assert command("--budget", "95%", "--light", "0", "--recover", "lora", "--lr", "1e-3") == 0
    assert [(recipe.lora_rank, recipe.lr, recipe.mlps_only) for recipe in recipes] == [
        (16, 2e-3, False),
        (16, 1e-3, False),
    ]


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["run", "dry run"])
def test_what_cannot_learn_so_is_told_before_a_weight_is_read(dry, command, tmp_path, capsys, monkeypatch):
    folder = save_pruned(*load_model("llama"), tmp_path / "packed")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "awq"}}))
    monkeypatch.setattr(compress_command, "load_model", None)

    def refused(*options, message):
        assert command(*options, "--budget", "95%", *dry) == 1
        assert message in capsys.readouterr().err

    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "peft", None)
        refused("--recover", "lora", message="This needs peft: pip install 'pruning-llms[lora]'")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "peft", ModuleType("peft"))
        patch.setenv("ACCELERATE_USE_FSDP", "true")
        refused("--recover", "lora", message="'--recover lora' is for launches without --use_fsdp")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
        refused("--teacher", "disk", message="The cache needs")
    arguments = ["compress", str(folder), *SMALL, "--budget", "95%", "--out", str(tmp_path / "out"), *dry]
    assert command_line.main(arguments) == 1
    assert "is quantized, and packed weights can't be scored or cut" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

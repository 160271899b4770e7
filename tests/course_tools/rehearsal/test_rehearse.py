"""Rehearsals: models written once and whole, lessons held to a card's memory, and a table that says so."""

import errno
import json
import shutil
from types import SimpleNamespace

import nbformat
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from course_tools import cli
from course_tools.rehearsal import rehearse
from course_tools.rehearsal.rehearse import Cell, RehearsalError, Rehearsed, Shape, make_checkpoint

GPT2_FOLDER = rehearse.GPT2_FOLDER
LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 4,
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 50_304,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}
GPT2 = {"model_type": "gpt2", "n_layer": 2, "n_embd": 64, "n_head": 4, "n_positions": 512, "vocab_size": 50_304}
SMALL = Shape(LLAMA, GPT2, stand_in=True)
FOUR_BYTES = 4 * rehearse.parameters(LLAMA)
START = "from course_utils.session import start\nsession = start('01')"
LOAD = "from course_utils.models import load_model, variant\nbase, tokenizer = load_model('llama')"
READ = (
    "from course_utils.language_modelling import perplexity\n"
    "from course_utils.texts import token_blocks\n"
    "import torch\n"
    "print(perplexity(base, torch.arange(96).view(3, 32)))"
)
MODEST = [START, LOAD, READ, "others = [variant(base) for _ in range(5)]", "assert session.device.type == 'cuda'"]
GREEDY = [START, LOAD, READ, "import copy\n# copies\ncopies = [copy.deepcopy(base) for _ in range(5)]"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The folder where the small models lie: made by the first rehearsal, used by the others."""
    return tmp_path_factory.mktemp("rehearsal")


def rehearse(cells, folder, *, twin=None, shape=SMALL):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    tokenizers = {"llama": GPT2_FOLDER, "gpt2": GPT2_FOLDER}
    return rehearse.rehearse(
        notebook, name="01_small", shape=shape, twin=twin, folder=folder, tokenizers=tokenizers
    )  # fmt: skip


@pytest.fixture
def small_budgets(monkeypatch):
    """Three models in float32 on the card, whatever share of Llama-3.2-1B the small model is."""
    monkeypatch.setattr(rehearse, "GPU_BUDGET", 3 * FOUR_BYTES / SMALL.share)


def test_five_copies_are_refused_and_named(models, small_budgets):
    found = rehearse(GREEDY, models)
    assert not found.failure
    assert found.gpu.number == 4 and found.gpu.gpu_peak == pytest.approx(6 * FOUR_BYTES, rel=0.02)
    (refusal,) = [sentence for sentence in found.refusals() if "on the GPU" in sentence]
    assert refusal.startswith("01_small holds ")
    assert "code cell 4 (import copy)" in refusal
    assert "model base: " in refusal and "line 3 of the cell" in refusal, refusal


def test_a_modest_lesson_passes_and_its_work_is_estimated(models, small_budgets):
    found = rehearse(MODEST, models, twin=SMALL)
    assert not found.failure and list(found.refusals()) == []
    assert found.cells[3].gpu_peak == pytest.approx(FOUR_BYTES, rel=0.02), "variants share every weight"
    assert 0 < found.minutes < 3 and found.flops > 1.8 * 96 * rehearse.parameters(LLAMA)
    assert 2e8 < found.host.host_peak < 4e9


def test_a_lesson_that_fails_is_refused_by_its_cell(models):
    found = rehearse([START, "print(1 / 0)"], models)
    assert (
        next(found.refusals()) == "01_small failed at code cell 2 (print(1 / 0)): ZeroDivisionError: division by zero"
    )


def test_another_shape_is_another_model(models):
    """Under the same hub id, in the same folder: no cache may give out the first one."""
    for blocks in (4, 3):
        other = Shape(LLAMA | {"num_hidden_layers": blocks}, GPT2, stand_in=True)
        found = rehearse([START, LOAD, f"assert base.config.num_hidden_layers == {blocks}"], models, shape=other)
        assert not found.failure


def lesson(**changes):
    cell = Cell(number=3, first_line="copies = []", gpu_peak=5 * 2**30, gpu_holders=(("model base", 4 * 2**30),))
    return Rehearsed("03_small", 1.0, (cell,), 60.0, **changes)


def test_budgets():
    assert list(lesson(minutes=24.0).refusals()) == []
    assert list(lesson(minutes=30.0).refusals()) == ["03_small would take 30 minutes on a T4, 25 are allowed."]
    host = Rehearsed("03_small", 1.0, (Cell(1, "x", host_peak=10 * 2**30, host_holders=(("model a", 2**30),)),), 1.0)
    (sentence,) = host.refusals()
    assert sentence == (
        "03_small holds 10.00 GiB in host memory in code cell 1 (x), 8.38 GiB are allowed. "
        "What held it: model a: 1.00 GiB."
    )


def test_full_size():
    assert rehearse.parameters(rehearse.SHAPES["llama"].llama) == 1_235_814_400  # as Llama-3.2-1B's card says
    assert rehearse.parameters(rehearse.SHAPES["llama"].gpt2) == 81_912_576  # distilgpt2
    assert rehearse.SHAPES["qwen"].share == rehearse.SHAPES["llama"].share == 1
    assert rehearse.SHAPES["quarter"].share == pytest.approx(0.25, rel=0.01)
    assert rehearse.SHAPES["qwen"].llama["num_hidden_layers"] == 28
    for name, shape in rehearse.SHAPES.items():
        twin = rehearse.TWINS[name]
        for count in ("num_hidden_layers", "num_attention_heads", "num_key_value_heads"):
            assert twin.llama[count] == shape.llama[count], "a twin has as many parts"


def test_a_model_is_an_ordinary_one_and_the_same_every_time(tmp_path):
    folders = [make_checkpoint(LLAMA, tmp_path / name, GPT2_FOLDER) for name in "ab"]
    one, other = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in folders)
    assert sum(weight.numel() for weight in one.parameters()) == rehearse.parameters(LLAMA)
    assert one.lm_head.weight is one.model.embed_tokens.weight
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert 0.019 < one.model.layers[0].mlp.gate_proj.weight.std() < 0.021
    assert one.model.norm.weight.eq(1).all()
    assert len(AutoTokenizer.from_pretrained(folders[0])) <= LLAMA["vocab_size"]
    written = (folders[0] / "model.safetensors").stat().st_mtime_ns
    make_checkpoint(LLAMA, tmp_path / "a", GPT2_FOLDER)
    assert (folders[0] / "model.safetensors").stat().st_mtime_ns == written


def test_a_killed_writer_is_gone_on_with(tmp_path, monkeypatch):
    monkeypatch.setattr(rehearse, "_CHUNK", 2**18)
    whole = (make_checkpoint(LLAMA, tmp_path / "whole", GPT2_FOLDER) / "model.safetensors").read_bytes()
    made, random = [], rehearse._random

    def dying(*args):
        if len(made) == 9:
            raise KeyboardInterrupt
        made.append(args)
        return random(*args)

    monkeypatch.setattr(rehearse, "_random", dying)
    with pytest.raises(KeyboardInterrupt):
        make_checkpoint(LLAMA, tmp_path / "killed", GPT2_FOLDER)
    folder = next(path for path in (tmp_path / "killed").iterdir() if path.is_dir())
    assert not (folder / "model.safetensors").exists(), "nobody takes it for complete"
    again = []
    monkeypatch.setattr(rehearse, "_random", lambda *args: again.append(args) or random(*args))
    make_checkpoint(LLAMA, tmp_path / "killed", GPT2_FOLDER)
    assert (folder / "model.safetensors").read_bytes() == whole
    assert not set(map(str, again)) & set(map(str, made[:8])), "what was complete is not made again"


def test_no_disk_space_before_and_during(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1_000_000))
    with pytest.raises(RehearsalError, match=r"needs .* of disk space .* 1\.0 MiB are free"):
        make_checkpoint(LLAMA, tmp_path, GPT2_FOLDER)
    monkeypatch.undo()

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(rehearse, "_random", full)
    with pytest.raises(RehearsalError, match="The disk filled up"):
        make_checkpoint(LLAMA, tmp_path, GPT2_FOLDER)
    assert not [path for path in tmp_path.rglob("*safetensors*") if path.is_file()]


def test_the_command_prints_a_table_and_what_was_refused(tmp_path, monkeypatch, capsys):
    from sample_lesson import write_lesson

    for name, folder in {"LESSONS": "lessons", "BUILD": "build"}.items():
        monkeypatch.setattr(cli, name, tmp_path / folder)
    monkeypatch.setattr(cli, "fetch_assets", lambda lessons, more: None)
    monkeypatch.setattr(rehearse, "tokenizers", lambda: {"llama": GPT2_FOLDER, "gpt2": GPT2_FOLDER})
    write_lesson(tmp_path / "lessons")
    answers = [lesson(minutes=24.0, flops=2e15, moved=3e12), lesson(minutes=30.0)]
    monkeypatch.setattr(rehearse, "rehearse", lambda notebook, **settings: answers.pop(0))
    assert cli.main(["rehearse", "1"]) == 0
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if line.startswith("│ 03"))
    assert [part.strip() for part in row.split("│")[1:-1]] == (["03", "5.00", "0.00", "2.00", "3.00", "24", "1", "ok"])
    assert "65 TFLOP/s in float16" in out and "300 GB/s" in out and "rows of text: 8" in out
    assert json.loads((tmp_path / "build" / "rehearsal" / "01_small.json").read_text())["refused"] == []
    assert cli.main(["rehearse", "1", "--shape", "qwen"]) == 1
    assert "would take 30 minutes" in capsys.readouterr().out

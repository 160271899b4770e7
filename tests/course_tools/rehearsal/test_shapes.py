"""Models of full size: of the right shape, written once and whole, the same every time."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from pretend import LLAMA
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from course_tools.rehearsal.shapes import GPT2_FOLDER, SHAPES, RehearsalError, make_checkpoint, parameters


def test_full_size():
    assert parameters(SHAPES["llama"].llama) == 1_235_814_400  # as Llama-3.2-1B's card says
    assert parameters(SHAPES["llama"].gpt2) == 81_912_576  # distilgpt2
    assert SHAPES["qwen"].share == SHAPES["llama"].share == 1
    assert SHAPES["quarter"].share == pytest.approx(0.25, rel=0.01)
    assert SHAPES["qwen"].llama["num_hidden_layers"] == 28


def test_a_model_is_an_ordinary_one_and_the_same_every_time(tmp_path):
    folders = [make_checkpoint(LLAMA, tmp_path / name, GPT2_FOLDER) for name in "ab"]
    assert {weight.dtype for weight in load_file(folders[0] / "model.safetensors").values()} == {torch.bfloat16}
    one, other = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in folders)
    assert sum(weight.numel() for weight in one.parameters()) == parameters(LLAMA)
    assert one.lm_head.weight is one.model.embed_tokens.weight
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert 0.019 < one.model.layers[0].mlp.gate_proj.weight.std() < 0.021
    assert one.model.norm.weight.eq(1).all()
    assert len(AutoTokenizer.from_pretrained(folders[0])) <= LLAMA["vocab_size"]
    written = (folders[0] / "model.safetensors").stat().st_mtime_ns
    make_checkpoint(LLAMA, tmp_path / "a", GPT2_FOLDER)
    assert (folders[0] / "model.safetensors").stat().st_mtime_ns == written


def test_a_writer_that_is_stopped_leaves_nothing(tmp_path, monkeypatch):
    save = LlamaForCausalLM.save_pretrained

    def stopped(model, folder):
        save(model, folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", stopped)
    with pytest.raises(KeyboardInterrupt):
        make_checkpoint(LLAMA, tmp_path, GPT2_FOLDER)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()], "nobody takes it for complete"
    monkeypatch.undo()
    left = tmp_path / f".{make_checkpoint(LLAMA, tmp_path, GPT2_FOLDER).name}.part"
    (tmp_path / left.name[1:-5]).rename(left)  # as a killed one leaves it
    (left / "model.safetensors").write_bytes(b"half")
    assert AutoModelForCausalLM.from_pretrained(make_checkpoint(LLAMA, tmp_path, GPT2_FOLDER))
    assert not left.exists()


def test_no_disk_space(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1_000_000))
    with pytest.raises(RehearsalError, match=r"needs .* of disk space .* 1\.0 MiB are free"):
        make_checkpoint(LLAMA, tmp_path, GPT2_FOLDER)
    assert not [path for path in tmp_path.rglob("*safetensors*") if path.is_file()]

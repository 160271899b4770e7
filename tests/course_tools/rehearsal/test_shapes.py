"""Models of full size: of the right shape, written once and whole, the same every time."""

import pytest
import torch
from pretend import LLAMA
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from course_tools.rehearsal.shapes import GPT2_FOLDER, SHAPES, make_checkpoint, parameters


def test_full_size():
    assert parameters(SHAPES["llama"].llama) == 1_235_814_400  # as Llama-3.2-1B's card says
    assert parameters(SHAPES["llama"].gpt2) == 81_912_576  # distilgpt2
    assert SHAPES["qwen"].share == SHAPES["llama"].share == 1
    assert SHAPES["quarter"].share == pytest.approx(0.25, rel=0.01)
    assert SHAPES["qwen"].llama["num_hidden_layers"] == 28


def test_a_model_is_an_ordinary_one_and_the_same_every_time(tmp_path, monkeypatch):
    folders = [make_checkpoint(LLAMA, tmp_path / name, GPT2_FOLDER) for name in "ab" if torch.rand(1)]  # draws go on
    assert {weight.dtype for weight in load_file(folders[0] / "model.safetensors").values()} == {torch.bfloat16}
    one, other = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in folders)
    assert sum(weight.numel() for weight in one.parameters()) == parameters(LLAMA)
    assert one.lm_head.weight is one.model.embed_tokens.weight
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert 0.019 < one.model.layers[0].mlp.gate_proj.weight.std() < 0.021
    assert len(AutoTokenizer.from_pretrained(folders[0])) <= LLAMA["vocab_size"]
    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", lambda *_: 1 / 0)
    assert make_checkpoint(LLAMA, tmp_path / "a", GPT2_FOLDER) == folders[0], "it isn't written again"
    with pytest.raises(ZeroDivisionError):
        make_checkpoint(LLAMA, tmp_path / "c", GPT2_FOLDER)
    assert not [*(tmp_path / "c").iterdir()], "nobody takes half of one for complete"

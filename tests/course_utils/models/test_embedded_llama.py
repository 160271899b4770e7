"""The real embedded Llama: what it is, and how it writes."""

from __future__ import annotations

import pytest
import torch

from course_utils.models.loading import load_model


@pytest.mark.embedded
def test_the_embedded_llama_is_smollm2_without_marks_of_quantisation(monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "embedded")
    model, tokenizer = load_model("llama", device="cpu")
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not hasattr(model.config, "quantization_config") and getattr(model, "hf_quantizer", None) is None
    assert tokenizer("Hello world")["input_ids"] == [19556, 905], "a token was put in front"
    assert tokenizer.pad_token == tokenizer.eos_token == "<|im_end|>" and tokenizer.bos_token == "<|im_start|>"
    digits = tokenizer.convert_ids_to_tokens(tokenizer("in 1863 ½")["input_ids"])
    assert digits == ["in", "Ġ", "1", "8", "6", "3", "Ġ", "Â½"], "digits stand alone in SmolLM2's vocabulary"
    with torch.no_grad():
        answer = model.generate(**tokenizer("The capital of France is", return_tensors="pt"), max_new_tokens=2)
    assert "Paris" in tokenizer.decode(answer[0])

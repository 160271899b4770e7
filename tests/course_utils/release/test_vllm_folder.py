"""Folders for vLLM: what they hold, read as vLLM's ``nemotron_nas`` reads it, and with vLLM that it answers the same.

The last tests run vLLM, in an environment of its own; docs/engines.md says how to make it:

    python -m pytest -m vllm tests/course_utils/release/test_vllm_folder.py
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import FAMILIES, LLAMA3, adaptive, tiny_model, word_tokenizer
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP

from course_utils.models.architectures import describe
from course_utils.models.loading import load_model, variant
from course_utils.models.modeling.no_attention import NoAttention
from course_utils.pruning import checkpoints
from course_utils.pruning.attention import bypass_attention
from course_utils.pruning.channels import prune_channels
from course_utils.pruning.checkpoints import CheckpointError, load_pruned, save_pruned
from course_utils.pruning.depth import block_means, remove_blocks
from course_utils.pruning.heads import prune_kv_groups
from course_utils.pruning.width import neuron_importance, prune_neurons
from course_utils.release.vllm_folder import CannotServe, export_vllm

ROOT = Path(__file__).resolve().parents[3]
PYTHON = ROOT / "build" / "vllm" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
ASK = ROOT / "tests" / "ask_vllm.py"
TOKENIZER = word_tokenizer()
IDS = torch.randint(3, 97, (2, 12), generator=torch.Generator().manual_seed(0))
ANSWER = 40  # tokens


def wide(family="llama", **settings):
    """A tiny model whose heads have a size that vLLM has a kernel for."""
    return tiny_model(family, layers=4, **{"hidden_size": 128, "intermediate_size": 96} | settings)


def uneven(model, attentions=(2,), *, remove=False):
    """Two blocks with narrower MLPs, and these attentions left out."""
    prune_neurons(model, neuron_importance(model, "random"), ratio=0.34, layers=[1, 2])
    bypass_attention(model, list(attentions), remove=remove)
    return model


def qwen2(**settings):
    return wide("qwen2", **{"use_sliding_window": False} | settings)


def without_an_attention():
    model = wide()
    bypass_attention(model, [2], remove=True)
    return model


def windowed():
    model = uneven(qwen2(max_position_embeddings=128, use_sliding_window=True, sliding_window=64))
    assert "sliding_attention" in model.config.layer_types
    return model


UNEVEN = {
    "widths": lambda: uneven(wide(), attentions=()),
    "attention bypassed": lambda: uneven(wide()),
    "nothing but an attention removed": without_an_attention,
    "attention removed": lambda: uneven(wide(), remove=True),
    "first attention bypassed": lambda: uneven(wide(attention_bias=True), attentions=[0, 1]),
    "first attention removed": lambda: uneven(wide(), attentions=[0, 3], remove=True),
    "tied": lambda: uneven(wide(tie_word_embeddings=True)),
    "biases": lambda: uneven(wide(attention_bias=True, mlp_bias=True)),
    "heads of their own size": lambda: uneven(wide(hidden_size=96, head_dim=32)),
    "positions of Llama 3": lambda: uneven(wide(rope_parameters=LLAMA3)),
    "linear positions": lambda: uneven(
        wide(rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0})
    ),
    "mistral": lambda: uneven(wide("mistral", max_position_embeddings=128, sliding_window=64)),
    "qwen2": windowed,
    "even qwen2 with heads of another width": lambda: even(qwen2()),
}


def even(model):
    """Fewer neurons, blocks, KV groups and hidden channels, all blocks alike."""
    prune_neurons(model, neuron_importance(model, "random"), ratio=0.34)
    remove_blocks(model, [1])
    prune_kv_groups(model, [torch.tensor([1.0, 2.0])] * 3, groups=1)
    prune_channels(model, torch.arange(128.0), size=96)
    return model


def without_blocks():
    model = wide()
    remove_blocks(model, [1, 2], means=block_means(model, [{"input_ids": IDS}]))
    return model


EVEN = {
    "narrower": lambda: even(wide()),
    "means of removed blocks kept": without_blocks,
    "narrower mistral": lambda: even(wide("mistral")),
    "narrower qwen3": lambda: even(wide("qwen3", head_dim=32)),
    "qwen2 of another width": lambda: qwen2(intermediate_size=64),
}


def as_vllm_reads(folder):
    """The model that vLLM 0.32's ``nemotron_nas.py`` builds of a folder, of transformers' parts, every weight its own.

    Of ``config`` only that is read here which is read there.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert config.architectures == ["DeciLMForCausalLM"] and config.model_type == "nemotron-nas"
    fields = ("hidden_size", "num_attention_heads", "vocab_size", "num_hidden_layers", "rms_norm_eps", "head_dim",
              "rope_parameters", "tie_word_embeddings", "max_position_embeddings", "hidden_act")  # fmt: skip
    shared = {name: getattr(config, name) for name in fields} | {"mlp_bias": getattr(config, "mlp_bias", False)}
    model = LlamaForCausalLM(LlamaConfig(**shared))
    for number, (block, says) in enumerate(zip(model.model.layers, config.block_configs, strict=True)):
        assert not says.ffn.no_op and not hasattr(says.ffn, "ffn_mult") and not hasattr(says.ffn, "hidden_act")
        groups = config.num_attention_heads // says.attention.n_heads_in_group
        own = LlamaConfig(**shared, intermediate_size=says.ffn.intermediate_size, num_key_value_heads=groups)
        own._attn_implementation = model.config._attn_implementation
        block.mlp = LlamaMLP(own)
        if says.attention.no_op:
            assert number > 0, "its second norm would get no residual"
            block.self_attn, block.input_layernorm = NoAttention(number), torch.nn.Identity()
            continue
        block.self_attn = LlamaAttention(own, number)
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            biased = config.attention_bias if name == "o_proj" else config.qkv_bias
            old = getattr(block.self_attn, name)
            setattr(block.self_attn, name, torch.nn.Linear(old.in_features, old.out_features, bias=biased))
    weights = load_file(folder / "model.safetensors")
    if config.tie_word_embeddings:
        assert "lm_head.weight" not in weights
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights)  # strict: none is missing, none is left over
    return model.eval()


@pytest.mark.parametrize("case", UNEVEN)
@torch.no_grad()
def test_folder_read_as_vllm_reads_it_is_the_model(case, tmp_path):
    model = UNEVEN[case]()
    model.config._name_or_path = "/home/someone/models/tiny"
    expected = model(IDS).logits
    folder = export_vllm(model, TOKENIZER, tmp_path / "served")
    assert not [path.name for path in folder.iterdir() if b"someone" in path.read_bytes()]
    assert torch.allclose(as_vllm_reads(folder)(IDS).logits, expected, atol=1e-5)
    assert torch.equal(model(IDS).logits, expected)  # the model is as it was
    stored = load_file(folder / "model.safetensors")
    for name, weight in checkpoints.live_weights(describe(model)).items():
        assert name == "lm_head.weight" or torch.equal(stored[name], weight), name


def test_context_ends_where_a_window_would_begin(tmp_path):
    for family in ("mistral", "qwen2"):  # whose window SETTINGS turns on
        settings = {"max_position_embeddings": 128, "sliding_window": 64}
        folder = export_vllm(uneven(wide(family, **settings)), TOKENIZER, tmp_path / family)
        stated = json.loads((folder / "config.json").read_text())
        assert stated["max_position_embeddings"] == 64
        assert not {"layer_types", "sliding_window", "per_layer_config"} & stated.keys()


PLAIN = EVEN | {family: lambda family=family: tiny_model(family) for family in ("gemma2", "gpt2", "mixtral")}


@pytest.mark.parametrize("case", PLAIN)
def test_even_blocks_are_a_plain_checkpoint(case, tmp_path):
    model = PLAIN[case]()
    served, saved = (make(model, TOKENIZER, tmp_path / make.__name__) for make in (export_vllm, save_pruned))
    contents = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in (served, saved)]
    assert contents[0] == contents[1]


def test_only_who_trusts_the_folders_code_can_read_it(tmp_path):
    folder = export_vllm(uneven(wide()), TOKENIZER, tmp_path / "served")
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with pytest.raises(CheckpointError, match="can't be read"):
        load_pruned(folder)


# Refusals, and what is left behind


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"llama", "mistral", "qwen2"}))
def test_other_families_whose_blocks_differ_are_refused_by_name(family, tmp_path):
    model = tiny_model(family)
    prune_neurons(model, neuron_importance(model, "random"), ratio=0.3, layers=[1])
    with pytest.raises(CannotServe, match=rf"a '{family}' model whose blocks differ .*or take llama, mistral, qwen2"):
        export_vllm(model, TOKENIZER, tmp_path / "served")
    assert not any(tmp_path.iterdir())


def offloaded(model):
    model.model.layers[1].mlp.down_proj.to("meta")
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: uneven(wide(hidden_act="gelu")), "'silu'; got 'gelu'"),
        (
            lambda: uneven(wide(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})),
            "default, linear, llama3 over whole heads; got .*'dynamic'",
        ),
        (lambda: uneven(wide(), attentions=[0, 1, 2, 3]), "all of this model's are left out. Keep one"),
        (lambda: uneven(wide(), attentions=[0, 1, 2, 3], remove=True), "all of this model's are left out. Keep one"),
        (lambda: adaptive(wide()), r"make_adaptive\(model, None\)"),
        (lambda: offloaded(uneven(wide())), "1 of .* weights are on the 'meta' device"),
    ],
)
def test_what_no_folder_can_express_is_refused(model, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_vllm(model(), TOKENIZER, tmp_path / "served")
    assert not any(tmp_path.iterdir())


def test_what_lies_there_is_replaced_at_once_or_stays(tmp_path, monkeypatch):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("dear")
    with pytest.raises(CheckpointError, match="not a model checkpoint"):
        export_vllm(uneven(wide()), TOKENIZER, tmp_path / "notes")
    folder = export_vllm(uneven(wide()), TOKENIZER, tmp_path / "served")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr("course_utils.release.vllm_folder.write_json", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_vllm(uneven(wide(seed=1)), TOKENIZER, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes", "served"]


# With vLLM


def asked_of_vllm(folders, prompts, tmp_path):
    """vLLM's likeliest tokens after these prompts (token ids) for each folder, in float32."""
    assert PYTHON.exists(), f"There is no vLLM at {PYTHON}: docs/engines.md says how to get it."
    question, answers = tmp_path / "question.json", tmp_path / "answers.json"
    question.write_text(json.dumps({"folders": list(map(str, folders)), "prompts": prompts, "tokens": ANSWER}))
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "VLLM_LOGGING_LEVEL": "ERROR"}
    environment |= {"VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    subprocess.run([PYTHON, ASK, question, answers], env=environment, check=True, timeout=3600)
    return json.loads(answers.read_text())


@torch.no_grad()
def likeliest(model, prompts):
    """The same of transformers, prompt by prompt, whatever token ends a text."""
    made = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        settings = {"max_new_tokens": ANSWER, "do_sample": False, "eos_token_id": -1, "pad_token_id": 0}
        made.append(model.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, len(prompt) :].tolist())
    return made


@pytest.mark.vllm
def test_vllm_answers_as_transformers_does(tmp_path):
    models = {case.replace(" ", "-"): make() for case, make in (UNEVEN | EVEN).items()}
    folders = [export_vllm(model, TOKENIZER, tmp_path / name) for name, model in models.items()]
    prompts = IDS.tolist()
    answers = asked_of_vllm(folders, prompts, tmp_path)
    expected = {name: likeliest(model, prompts) for name, model in models.items()}
    assert dict(zip(models, answers, strict=True)) == expected


@pytest.mark.vllm
def test_vllm_answers_as_the_embedded_llama_does(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "embedded")
    base, tokenizer = load_model("llama", dtype=torch.float32)
    model = uneven(variant(base), attentions=[0, 5, 20])
    prompts = [tokenizer(text).input_ids for text in ("The capital of France is", "Friends, Romans, countrymen,")]
    folder = export_vllm(model, tokenizer, tmp_path / "served")
    (answers,) = asked_of_vllm([folder], prompts, tmp_path)
    assert answers == likeliest(model, prompts)

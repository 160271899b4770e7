"""What a GGUF file holds, read back with the gguf package; that llama.cpp computes the same is for test_engine.py."""

from __future__ import annotations

import tracemalloc

import gguf
import numpy as np
import pytest
import torch
from gguf import GGUFReader
from masked import unchanged
from tiny import FAMILIES, LLAMA3, adaptive, tiny_model, word_tokenizer
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

from course_utils.models.loading import identity
from course_utils.pruning.attention import bypass_attention
from course_utils.pruning.width import neuron_importance, prune_neurons
from course_utils.release import export
from course_utils.release.export import CannotExport, as_stored, export_gguf, plan_gguf

BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False)


def byte_level(*steps, normalizer=None, special=("<end>",), **settings):
    """A byte-level BPE with one merge, that splits text in these steps."""
    names = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "th"]
    backend = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, [("t", "h")], **settings))
    backend.pre_tokenizer = pre_tokenizers.Sequence(list(steps))
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.add_special_tokens(list(special))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")


TOKENIZER = byte_level(WORDS)
HEAD = 8  # numbers a head of the tiny models
EXPORTED = ("llama", "mistral", "qwen2", "qwen3")


def exportable(family="llama", **settings):
    """A tiny model with that vocabulary."""
    return tiny_model(family, **{"vocab_size": len(TOKENIZER), "layers": 4} | settings)


def pruned(model, ratio=0.34, layers=None):
    prune_neurons(model, neuron_importance(model, "random"), ratio=ratio, layers=layers)
    return model


def bypassed(model, layers, **settings):
    bypass_attention(model, layers, **settings)
    return model


def contents(path):
    """{key: value} of a file's settings, and {name: float32 array} of its tensors."""
    reader = GGUFReader(path)
    settings = {key: field.contents() for key, field in reader.fields.items()}
    return settings, {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}


def pairs_of_neighbours(weight):
    """Rows of each head as llama.cpp's Llama wants them: row j and row j + half a head become neighbours."""
    order = [h + j + half for h in range(0, len(weight), HEAD) for j in range(HEAD // 2) for half in (0, HEAD // 2)]
    return weight[order]


def expected(model, name):
    """The weight of a Hugging Face model that belongs into a file under this name; None for what has no weights."""
    arrange = pairs_of_neighbours if model.config.model_type in ("llama", "mistral") else torch.Tensor.clone
    of_block = {
        "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
        "attn_k_norm": "self_attn.k_norm", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    }  # fmt: skip
    whole = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    name, kind = name.rsplit(".", 1)
    if name.startswith("blk."):
        _, block, part = name.split(".")
        weight = model.get_parameter(f"model.layers.{block}.{of_block[part]}.{kind}")
        return arrange(weight.detach()) if part in ("attn_q", "attn_k") else weight.detach()
    return model.get_parameter(f"{whole[name]}.{kind}").detach()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", EXPORTED)
def test_f32_holds_every_weight_once_and_bit_for_bit(family, tied, tmp_path):
    model = exportable(family, tie_word_embeddings=tied)
    settings, tensors = contents(export_gguf(model, TOKENIZER, tmp_path / "m.gguf", quantization="F32"))
    assert len(tensors) == len(list(model.parameters()))
    for name, values in tensors.items():
        assert torch.equal(torch.tensor(values), expected(model, name)), name
    name = {"qwen2": "qwen2", "qwen3": "qwen3"}.get(family, "llama")
    assert settings["general.architecture"] == name and settings["general.file_type"] == 0
    assert settings[f"{name}.block_count"] == 4
    assert settings[f"{name}.embedding_length"] == 32
    assert settings[f"{name}.feed_forward_length"] == 48
    assert settings[f"{name}.attention.head_count"] == 4
    assert settings[f"{name}.attention.head_count_kv"] == 2
    assert settings[f"{name}.attention.key_length"] == settings[f"{name}.rope.dimension_count"] == HEAD
    assert settings[f"{name}.rope.freq_base"] == model.config.rope_parameters["rope_theta"]
    window = {"qwen2": 8}.get(family, 64)  # up to which full attention is what the model computes
    assert settings[f"{name}.context_length"] == window


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_f16_holds_every_matrix_rounded_once(dtype, tmp_path):
    model = exportable(dtype=dtype)
    _, tensors = contents(export_gguf(model, TOKENIZER, tmp_path / "m.gguf"))
    for name, values in tensors.items():
        wanted = expected(model, name).float()
        wanted = wanted if wanted.dim() == 1 else wanted.half().float()
        assert torch.equal(torch.tensor(values.astype(np.float32)), wanted), name


@pytest.mark.parametrize(("quantization", "levels"), [("Q8_0", 127), ("Q4_0", 8)])
def test_blocks_of_32_are_off_by_less_than_a_step(quantization, levels, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_CHUNK", 5 * 32)  # five rows at a time, and a rest
    model = exportable(intermediate_size=96)
    path = export_gguf(model, TOKENIZER, tmp_path / "m.gguf", quantization=quantization)
    types = {t.name: t.tensor_type.name for t in GGUFReader(path).tensors}
    assert types["blk.0.ffn_down.weight"] == quantization and types["token_embd.weight"] == "Q8_0"
    _, tensors = contents(path)
    for name, values in tensors.items():
        wanted = expected(model, name)
        if wanted.dim() == 1:
            assert torch.equal(torch.tensor(values), wanted)
            continue
        steps = wanted.view(len(wanted), -1, 32).abs().amax(-1, keepdim=True) / (
            127 if types[name] == "Q8_0" else levels
        )
        off = (torch.tensor(values) - wanted).view(len(wanted), -1, 32).abs() / steps
        assert 0.01 < off.max() <= (0.57 if types[name] == "Q8_0" else 1.01), name  # scales are rounded, too; no +8


@pytest.mark.parametrize("quantization", export._QUANTIZATIONS)
@pytest.mark.parametrize("family", EXPORTED)
def test_as_stored_has_the_files_numbers(family, quantization, tmp_path):
    model = exportable(family, intermediate_size=96, tie_word_embeddings=True)
    before = identity(model)
    _, tensors = contents(export_gguf(model, TOKENIZER, tmp_path / "m.gguf", quantization=quantization))
    stored = as_stored(model, TOKENIZER, quantization=quantization)
    for name, values in tensors.items():
        assert torch.equal(torch.tensor(values).float(), expected(stored, name)), name
    assert identity(model) == before and (quantization == "F32") == (identity(stored) == before)
    assert stored.get_output_embeddings().weight is stored.get_input_embeddings().weight
    half = as_stored(exportable(family, dtype=torch.bfloat16), TOKENIZER, quantization=quantization)
    assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16}


SHAPES = {
    "tied": lambda: exportable(tie_word_embeddings=True),
    "uneven": lambda: pruned(exportable("qwen2"), layers=[1]),
    "attentions removed": lambda: bypassed(exportable(), [0, 2], remove=True),
    "all attentions bypassed": lambda: bypassed(exportable(), [0, 1, 2, 3]),
    "biases": lambda: exportable(attention_bias=True, mlp_bias=True),
    "Llama 3's positions": lambda: exportable(hidden_size=28, head_dim=HEAD, rope_parameters=LLAMA3),
}


@pytest.mark.parametrize("quantization", export._QUANTIZATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_plan_is_the_file_to_the_byte(shape, quantization, tmp_path):
    model = SHAPES[shape]()
    plan = plan_gguf(model, TOKENIZER, quantization=quantization)
    path = export_gguf(model, TOKENIZER, tmp_path / "m.gguf", quantization=quantization)
    assert plan["bytes"].sum() == path.stat().st_size
    reader = GGUFReader(path)
    assert plan.tensors.sum() == len(reader.tensors)
    assert plan.weights.sum() == sum(int(t.n_elements) for t in reader.tensors)
    by_type = {}
    for t in reader.tensors:
        by_type[t.tensor_type.name] = by_type.get(t.tensor_type.name, 0) + int(t.n_bytes)
    assert plan[plan.tensors > 0].groupby("type")["bytes"].sum().to_dict() == by_type


def test_plan_needs_shapes_only(tmp_path):
    """A file needs all weights; a model that is offloaded in part hasn't got some."""
    model = exportable()
    expected = plan_gguf(model, TOKENIZER)
    model.model.layers[1].mlp.down_proj.to("meta")
    for shapes in (model, model.to("meta")):
        assert plan_gguf(shapes, TOKENIZER).equals(expected)
        with pytest.raises(ValueError, match="on the 'meta' device"):
            export_gguf(shapes, TOKENIZER, tmp_path / "m.gguf")
        with pytest.raises(ValueError, match="on the 'meta' device"):
            as_stored(shapes, TOKENIZER, quantization="F16")
    assert not any(tmp_path.iterdir())


def test_rows_that_no_block_fits_fall_back_and_legal_widths_are_named():
    plan = plan_gguf(exportable(intermediate_size=70), TOKENIZER, quantization="Q8_0")
    (row,) = plan[plan.note != ""].itertuples()
    assert (row.part, row.type, row.tensors, row.weights) == ("MLP", "F16", 4, 4 * 70 * 32)
    assert row.note == "rows of 70 aren't a multiple of 32, so F16; legal: 64 or 96"
    sizes = {
        width: plan_gguf(exportable(intermediate_size=width), TOKENIZER, quantization="Q8_0")["bytes"].sum()
        for width in (90, 96)
    }
    assert sizes[90] > sizes[96]  # the trap: a narrower model in a larger file
    assert (plan_gguf(exportable(intermediate_size=70), TOKENIZER).note == "").all()  # F16 takes any width
    small = plan_gguf(exportable(hidden_size=16, head_dim=HEAD), TOKENIZER, quantization="Q4_0")
    assert "legal: 32" in small.note[0]


def test_uneven_blocks_are_told_block_by_block(tmp_path):
    """``test_engine`` has their logits."""
    model = bypassed(pruned(exportable(), layers=[1]), [0, 2])
    settings, tensors = contents(export_gguf(model, TOKENIZER, tmp_path / "m.gguf", quantization="F32"))
    assert settings["general.architecture"] == "deci"
    assert settings["deci.feed_forward_length"] == [48, 32, 48, 48]
    assert settings["deci.attention.head_count"] == [1, 4, 0, 4]
    assert settings["deci.attention.head_count_kv"] == [1, 2, 0, 2]
    assert not any(values.any() for name, values in tensors.items() if name.startswith("blk.0.attn"))
    assert not any(name.startswith("blk.2.attn") for name in tensors)


# The tokenizer


def test_tokenizer_is_in_the_file(tmp_path):
    tokenizer = byte_level(WORDS)
    tokenizer.add_tokens(["<plain>"])
    tokenizer.chat_template = "{{ messages }}"
    path = export_gguf(tiny_model(vocab_size=261), tokenizer, tmp_path / "m.gguf")
    settings, _ = contents(path)
    names = settings["tokenizer.ggml.tokens"]
    assert {name: i for i, name in enumerate(names) if not name.startswith("[PAD")} == tokenizer.get_vocab()
    assert names[-2:] == ["[PAD259]", "[PAD260]"]  # the embedding has two rows more
    assert settings["tokenizer.ggml.token_type"] == [1] * 257 + [3, 4, 5, 5]
    assert settings["tokenizer.ggml.merges"] == ["t h"]
    assert settings["tokenizer.ggml.eos_token_id"] == 257 and "tokenizer.ggml.bos_token_id" not in settings
    assert settings["tokenizer.ggml.add_bos_token"] is settings["tokenizer.ggml.add_eos_token"] is False
    assert settings["tokenizer.chat_template"] == "{{ messages }}"


@pytest.mark.parametrize(
    "tokenizer",
    [
        word_tokenizer(),
        byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True)),
        byte_level(BYTES),
        byte_level(pre_tokenizers.Split(Regex(r"\d"), "isolated"), BYTES),
        byte_level(pre_tokenizers.Digits(individual_digits=False), WORDS),
        byte_level(pre_tokenizers.Whitespace(), WORDS),
        byte_level(WORDS, normalizer=normalizers.Lowercase()),
        byte_level(WORDS, ignore_merges=True),
    ],
)
def test_tokenizer_that_is_split_in_unknown_ways_is_refused(tokenizer):
    with pytest.raises(CannotExport, match=r"gpt-2, smollm, llama-bpe, qwen2; got .*convert_hf_to_gguf"):
        plan_gguf(exportable(), tokenizer)


def test_qwens_own_tokenizer_is_known(tmp_path):
    names = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "th"]
    qwen = Qwen2Tokenizer(vocab={name: i for i, name in enumerate(names)}, merges=[("t", "h")])
    settings, _ = contents(export_gguf(exportable("qwen2", vocab_size=len(qwen)), qwen, tmp_path / "m.gguf"))
    assert settings["tokenizer.ggml.pre"] == "qwen2"


# Refusals, and what is left behind


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(EXPORTED)))
def test_other_families_are_refused_by_name(family):
    with pytest.raises(CannotExport, match=rf"llama, mistral, qwen2, qwen3; got a '{family}' model\. Convert"):
        plan_gguf(exportable(family), TOKENIZER)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (tiny_model, "The tokenizer knows token 257, but the model's embedding has 97 rows"),
        (lambda: adaptive(exportable()), r"make_adaptive\(model, None\)"),
        (lambda: pruned(exportable("qwen3"), layers=[1]), "no architecture for a 'qwen3' model whose blocks differ"),
        (lambda: bypassed(exportable("qwen3"), [0]), "no architecture for a 'qwen3' model whose blocks differ"),
        (lambda: exportable("qwen3", attention_bias=True), "no biases in the attention of a 'qwen3' model"),
        (lambda: exportable(hidden_act="gelu"), "'silu'; got 'gelu'"),
        (lambda: exportable(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}), "'dynamic'"),
        (lambda: exportable("qwen3", rope_parameters=LLAMA3), "exported for default over whole heads"),
    ],
)
def test_what_no_file_can_express_is_refused(model, message):
    with pytest.raises(CannotExport, match=message):
        plan_gguf(model(), TOKENIZER)


def test_folder_is_no_file_and_stays(tmp_path):
    with pytest.raises(ValueError, match="is a folder"):
        export_gguf(exportable(), TOKENIZER, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("value", "quantization"), [(float("nan"), "F32"), (float("inf"), "F32"), (7e4, "Q8_0")])
def test_file_is_written_whole_or_not_at_all(value, quantization, tmp_path):
    path, model = tmp_path / "m.gguf", exportable()
    export_gguf(model, TOKENIZER, path, quantization=quantization)
    before = path.read_bytes()
    with torch.no_grad():
        model.lm_head.weight[-1, -1] = value  # in the last tensor
    with pytest.raises(CannotExport, match="output.weight holds a weight of size"):
        export_gguf(model, TOKENIZER, path, quantization=quantization)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("source", ["/home/someone/models/tiny", r"C:\Users\someone\tiny", "someone/tiny", "tiny"])
def test_model_stays_as_it_is_and_no_path_gets_into_the_file(source, tmp_path):
    model = bypassed(exportable(), [1])
    model.config._name_or_path = source
    with unchanged(model):
        path = export_gguf(model, TOKENIZER, tmp_path / "new" / "m.gguf", quantization="Q4_0")
    assert b"someone" not in path.read_bytes() and contents(path)[0]["general.name"] == "tiny"


def test_memory_is_that_of_one_tensor(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_CHUNK", 2**14)
    model = exportable(hidden_size=256, intermediate_size=2048, layers=6)
    file = export._File.of(model, TOKENIZER, "F16")
    largest = max(tensor.bytes for tensor in file.tensors)
    assert sum(tensor.bytes for tensor in file.tensors) > 10 * largest
    with file.writer(tmp_path / "m.gguf") as writer:
        tracemalloc.start()
        for tensor in file.tensors:
            writer.write_tensor_data(tensor.encoded())
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 1.5 * largest

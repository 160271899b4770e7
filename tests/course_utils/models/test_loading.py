"""Roles by profile and folders, variants that share weights, identities; ``test_hub`` has the way over the hub."""

from __future__ import annotations

import copy
import gc
import json
import weakref
from pathlib import Path

import pytest
import torch
from tiny import FAMILIES, adaptive, tiny_model, word_tokenizer
from torch import nn
from transformers import AutoModelForCausalLM, GPT2LMHeadModel, LlamaForCausalLM, Qwen3MoeForCausalLM

from course_utils.models import loading as models
from course_utils.models.architectures import cast_weights, describe
from course_utils.models.loading import (
    ModelNotAvailable,
    identity,
    load_model,
    load_without_weights,
    tiny_llama,
    variant,
)
from course_utils.pruning.adaptive import make_adaptive
from course_utils.pruning.attention import bypass_attention
from course_utils.pruning.depth import remove_blocks
from course_utils.pruning.width import neuron_importance, prune_neurons
from course_utils.support.session import ROLES
from experiments.small_training import ship


@pytest.fixture
def smoke(monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "smoke")


@pytest.fixture
def folder(smoke, tmp_path) -> Path:
    """A random Llama saved as transformers does."""
    model, tokenizer = load_model("llama")
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_configuration_and_tokenizer_need_no_weights(folder, monkeypatch):
    _, full = load_model(folder)
    (folder / "model.safetensors").unlink()
    config, tokenizer = load_without_weights(folder)
    assert config.num_hidden_layers == load_without_weights("llama")[0].num_hidden_layers == 8
    assert tokenizer.get_vocab() == full.get_vocab() and tokenizer.pad_token == full.pad_token
    monkeypatch.delenv("COURSE_GPT2", raising=False)
    monkeypatch.setenv("COURSE_PROFILE", "embedded")
    model, tokenizer = load_model("gpt2")
    monkeypatch.setattr(models, "AutoModelForCausalLM", None)
    config, same = load_without_weights("gpt2")
    assert config.n_embd == model.config.n_embd and same.get_vocab() == tokenizer.get_vocab()
    assert same.pad_token_id is not None


def logits(model, tokenizer) -> torch.Tensor:
    with torch.no_grad():
        return model(**tokenizer("To the Congress", return_tensors="pt").to(model.device)).logits.float()


@pytest.mark.parametrize(
    ("role", "kind"), [("gpt2", GPT2LMHeadModel), ("llama", LlamaForCausalLM), ("moe", Qwen3MoeForCausalLM)]
)
def test_smoke_roles_are_small_random_models_that_repeat_themselves(role, kind, smoke):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, second = load_model(role), load_model(role)
    assert torch.equal(torch.get_rng_state(), state), "loading a model changed the random numbers of a lesson"
    model, tokenizer = first
    assert isinstance(model, kind) and not model.training
    assert model.config.num_hidden_layers == (4 if role == "moe" else 8)
    assert all(parameter.requires_grad for parameter in model.parameters()) and model.config.use_cache
    assert tokenizer.pad_token_id is not None and tokenizer.padding_side == "right"
    assert torch.equal(logits(*first), logits(*second))
    model.generate(**tokenizer("To", return_tensors="pt"), max_new_tokens=3, do_sample=False)


def test_the_tiny_llama_repeats_itself_and_never_stops_early():
    torch.manual_seed(1)
    state, first = torch.get_rng_state(), tiny_llama(blocks=3, vocab_size=11)
    second = tiny_llama(blocks=3, vocab_size=11)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, first.parameters(), second.parameters()))
    assert not first.training and first.config.num_hidden_layers == 3 and first.config.vocab_size == 11
    ids = torch.arange(4)[None]
    generated = first.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=30, do_sample=False)
    assert generated.shape == (1, 34)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_folder_loads_in_the_dtype_and_on_the_device_asked_for(dtype, folder):
    model, tokenizer = load_model(str(folder), dtype=dtype, device="cpu")
    assert model.dtype is dtype and model.device.type == "cpu" and not model.training
    assert torch.allclose(logits(model, tokenizer), logits(*load_model("llama", device="cpu")), atol=1e-2)


def test_a_tokenizer_without_padding_token_pads_with_its_end_token(folder):
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("pad_token", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    model, tokenizer = load_model(folder)
    assert tokenizer.pad_token == tokenizer.eos_token and tokenizer.pad_token_id is not None
    assert model.generation_config.pad_token_id is not None


def only_pickles(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (only_pickles, "no safetensors weights"),
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: (f / "config.json").rename(f / "adapter_config.json"), "an adapter of peft .*merge_and_unload"),
        (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer"),
        (lambda f: (f / "config.json").write_text('{"per_layer_config": {}}'), "pruning.load_pruned"),
    ],
)
def test_an_unfit_folder_is_refused_with_what_to_do(spoil, message, folder):
    spoil(folder)
    for load in (load_model, *([load_without_weights] if spoil is not only_pickles else [])):
        with pytest.raises(ModelNotAvailable, match=message):
            load(folder)


def test_a_name_that_is_neither_folder_nor_id_is_refused_with_what_is_allowed():
    with pytest.raises(
        ValueError, match=r"'\./no such/folder/here' is neither .* roles gpt2, llama, moe, a folder .* hub id"
    ):
        load_model("./no such/folder/here")


# Variants: one storage, two models.

IDS = torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def answer(model) -> torch.Tensor:
    return model(IDS, use_cache=False).logits


def generate(model, *, use_cache: bool = True) -> torch.Tensor:
    settings = {"attention_mask": torch.ones_like(IDS), "max_new_tokens": 4, "do_sample": False, "pad_token_id": 2}
    return model.generate(IDS, **settings, use_cache=use_cache)


def prune(model, **options) -> None:
    prune_neurons(model, neuron_importance(model, "l1"), ratio=0.3, **options)


SURGERIES = {
    "neurons": prune,
    "neurons of one block": lambda model: prune(model, layers=[1]),
    "blocks": lambda model: remove_blocks(model, [1]),
    "bypass": lambda model: bypass_attention(model, [0, 2]),
    "removed attentions": lambda model: bypass_attention(model, [0, 2], remove=True),
    "adaptive": lambda model: adaptive(model, order=(1, 2), left_out=(1, 0)),  # every prompt leaves attention 1 out
    "dtype": lambda model: model.to(torch.float64),
}
CUTS_NEURONS = {"neurons": (0, 1, 2), "neurons of one block": (1,)}  # of these blocks


class Snapshot:
    """All that a model is: to be compared with what it is later."""

    def __init__(self, model):
        self.model, self.config, self.logits = model, model.config.to_dict(), answer(model)
        self.weights = {name: self.state(weight) for name, weight in model.state_dict(keep_vars=True).items()}
        self.modules = list(model.modules())

    @staticmethod
    def state(weight: torch.Tensor) -> tuple:
        return weight, weight.data_ptr(), weight._version, weight.dtype, weight.detach().clone()

    def check(self) -> None:
        now = self.model.state_dict(keep_vars=True)
        assert list(now) == list(self.weights)
        for name, (weight, *where, values) in self.weights.items():
            assert now[name] is weight and [weight.data_ptr(), weight._version, weight.dtype] == where, name
            assert torch.equal(weight, values), name
        assert all(a is b for a, b in zip(self.model.modules(), self.modules, strict=True))
        assert self.model.config.to_dict() == self.config
        assert torch.equal(answer(self.model), self.logits)


def pointers(model) -> dict[str, int]:
    return {name: weight.data_ptr() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("family", FAMILIES)
def test_surgery_on_a_variant_leaves_the_first_alone_and_shares_the_rest(family):
    first = tiny_model(family)
    before, generated, own = Snapshot(first), generate(first), set(pointers(first).values())
    for name, operate in SURGERIES.items():
        second = variant(first)
        assert not {id(weight) for weight in second.parameters()} & {id(weight) for weight in first.parameters()}
        assert pointers(second) == pointers(first) and torch.equal(answer(second), before.logits)
        operate(second)
        before.check()
        assert not torch.equal(answer(second).float(), before.logits) or name == "dtype", name
        cut = [describe(second).mlps[block] for block in CUTS_NEURONS.get(name, ())]
        changed = {id(p.module.weight) for mlp in cut for p in (*mlp.inputs, mlp.output)}
        changed |= {id(p.module.bias) for mlp in cut for p in mlp.inputs if p.bias is not None}
        new = {id(weight) for weight in second.parameters() if weight.data_ptr() not in own}
        assert new == ({id(weight) for weight in second.parameters()} if name == "dtype" else changed), name
        assert torch.equal(generate(second), generate(second, use_cache=False)), name
        assert torch.equal(generate(first), generated), name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["bypass", "removed attentions", "adaptive", "neurons of one block", "blocks"])
def test_a_variant_of_a_cut_model_works_by_itself(name, family):
    first = tiny_model(family)
    SURGERIES[name](first)
    second = variant(variant(first))
    before, theirs = Snapshot(first), set(second.modules())
    methods = [(m, m.__dict__[n]) for m in theirs for n in ("forward", "generate") if n in m.__dict__]
    assert all(method.__self__ is module for module, method in methods)
    assert bool(methods) == (name in ("bypass", "adaptive"))
    assert torch.equal(answer(second), before.logits)
    assert torch.equal(generate(second), generate(first))
    if name == "adaptive":
        make_adaptive(second, None)
    elif name == "bypass":
        bypass_attention(second, [])
    else:
        prune(second)
    before.check()
    if methods:
        assert torch.equal(answer(second), answer(tiny_model(family))), "restoring the variant didn't"
    assert describe(first).adaptive == (name == "adaptive")


@pytest.mark.parametrize("tied", [True, False])
def test_ties_stay_as_they_are_and_gradients_stay_where_they_are(tied):
    first = tiny_model("llama", tie_word_embeddings=tied)
    first(IDS).logits.sum().backward()
    first.model.norm.weight.requires_grad_(False)
    second = variant(first)
    assert (second.lm_head.weight is second.model.embed_tokens.weight) == tied
    assert second.num_parameters() == first.num_parameters()
    assert all(weight.grad is None for weight in second.parameters())
    assert [w.requires_grad for w in second.parameters()] == [w.requires_grad for w in first.parameters()]
    second.to(torch.bfloat16)
    assert (second.lm_head.weight is second.model.embed_tokens.weight) == tied


def test_a_variants_parts_are_its_own_and_its_memory_is_the_firsts():
    first = tiny_llama(blocks=3)
    second = variant(first)
    assert not set(first.modules()) & set(second.modules())
    assert second.config is not first.config and second.generation_config is not first.generation_config
    assert all(w.untyped_storage().data_ptr() in pointers(first).values() for w in second.parameters())
    assert [buffer.data_ptr() for buffer in second.buffers()] == [buffer.data_ptr() for buffer in first.buffers()]
    second.train()
    assert not first.training
    logits, gone = answer(first), weakref.ref(first)
    del first
    gc.collect()
    assert gone() is None
    assert torch.equal(answer(second.eval()), logits)


def test_hooks_come_along_and_are_removed_one_by_one():
    first, calls = tiny_llama(blocks=2), []
    hidden = first(IDS, output_hidden_states=True).hidden_states  # from now on the model reads them through hooks
    handle = first.model.layers[0].register_forward_hook(lambda module, *_: calls.append(module))
    second = variant(first)
    seen = second(IDS, output_hidden_states=True).hidden_states
    assert calls == [second.model.layers[0]] and all(map(torch.equal, seen, hidden))
    handle.remove()
    answer(first)
    answer(second)
    assert calls == 2 * [second.model.layers[0]]


# Identities.


def test_the_same_weights_and_configuration_have_the_same_identity(tmp_path):
    model = tiny_llama(blocks=3)
    model.save_pretrained(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    digest = identity(model)
    assert len(digest) == 16 and int(digest, 16) >= 0
    assert identity(variant(model)) == identity(copy.deepcopy(model)) == identity(reloaded) == digest


def test_buffers_do_not_count_because_no_file_holds_them(tmp_path):
    """What ``.to`` rounds and a cast of the weights doesn't; loading makes it anew."""
    rounded, cast = tiny_llama(blocks=2).to(torch.bfloat16), tiny_llama(blocks=2)
    cast_weights(cast, torch.bfloat16)
    assert identity(rounded) == identity(cast)
    rounded.save_pretrained(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert identity(rounded) == identity(reloaded)
    frequencies = [model.model.rotary_emb.inv_freq.dtype for model in (rounded, cast, reloaded)]
    assert frequencies == [torch.bfloat16, torch.float32, torch.float32]


@pytest.mark.parametrize("family", ["deepseek_v3", "glm4_moe"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_buffer_that_is_in_the_file_belongs_to_the_identity(family, dtype, tmp_path):
    """The routers' corrections, which decide who is asked."""
    tiny_model(family).save_pretrained(tmp_path / "whole")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype=dtype)
    model.save_pretrained(tmp_path / "again")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "again", dtype="auto")
    digest = identity(model)
    assert identity(reloaded) == identity(variant(model)) == digest
    corrections = [buffer for name, buffer in reloaded.named_buffers() if name.endswith("correction_bias")]
    corrections[-1][3] += 1
    assert identity(reloaded) != digest


def add_to_one_weight(model) -> None:
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 2] += 1e-6


def swap_two_blocks(model) -> None:
    layers = model.model.layers
    layers[0].mlp, layers[1].mlp = layers[1].mlp, layers[0].mlp


def give_a_weight_another_shape(model) -> None:
    """The same bytes in the same order."""
    projection = model.model.layers[1].mlp.up_proj
    projection.weight = nn.Parameter(projection.weight.detach().reshape(projection.weight.shape[::-1]))


@pytest.mark.parametrize(
    "change",
    [
        add_to_one_weight,
        swap_two_blocks,
        give_a_weight_another_shape,
        lambda model: model.to(torch.bfloat16),
        lambda model: setattr(model.config, "rms_norm_eps", 1e-3),
        lambda model: bypass_attention(model, [1]),
        lambda model: remove_blocks(model, [2]),
        SURGERIES["adaptive"],
        prune,
    ],
)
def test_another_model_has_another_identity(change):
    model = tiny_llama(blocks=3)
    digest = identity(model)
    change(model)
    assert identity(model) != digest
    assert identity(tiny_llama(blocks=3)) == digest


def test_what_changes_nothing_and_a_cut_that_is_undone_leave_the_identity():
    model = tiny_llama(blocks=2)
    digest = identity(model)
    generate(model)
    model.config.use_cache = False  # changes nothing that the model computes
    assert identity(model) == digest
    bypass_attention(model, [0])
    bypass_attention(model, [])
    assert identity(model) == digest


@pytest.mark.parametrize("profile", ["smoke", "embedded", "hub"])
def test_a_folder_takes_the_role_in_every_profile_if_its_family_fits_the_lessons(profile, monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_PROFILE", profile)
    monkeypatch.setenv("COURSE_LLAMA", str(tmp_path))
    for part in (tiny_model("qwen2"), word_tokenizer()):
        part.save_pretrained(tmp_path)
    model, _ = load_model("llama", device="cpu")
    assert model.config.model_type == "qwen2" and model.num_parameters() == tiny_model("qwen2").num_parameters()
    tiny_model("opt").save_pretrained(tmp_path)
    with pytest.raises(ModelNotAvailable, match="family 'opt'. Lessons about 'llama' run on llama, mistral"):
        load_model("llama", device="cpu")


def test_weights_of_any_size_and_place_have_an_identity():
    """An odd number of bytes, and a slice of a larger tensor that begins anywhere."""
    model = tiny_model(dtype=torch.bfloat16)
    model.register_parameter("odd", nn.Parameter(torch.randn(11)[1:4].bfloat16()))
    model.register_parameter("slice", nn.Parameter(torch.arange(9.0).bfloat16()[1:5]))
    before = identity(model)
    with torch.no_grad():
        model.odd[2] += 1
    assert identity(model) != before


# The models that the package brings.


@pytest.fixture
def brought(monkeypatch, tmp_path):
    """A package whose data hold a small mixture, with its card."""
    monkeypatch.setenv("COURSE_PROFILE", "smoke")
    model, tokenizer = load_model("moe", dtype=torch.float16, device="cpu")
    ship(model, tokenizer, {"steps": 1}, tmp_path / "moe")
    monkeypatch.setattr(models, "_DATA", tmp_path)
    return tmp_path / "moe"


@pytest.mark.parametrize("profile", ["embedded", "hub"])
def test_the_mixture_is_the_packages_own_in_every_profile(profile, brought, monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", profile)
    monkeypatch.setenv("COURSE_LLAMA", "some/other")
    model, tokenizer = load_model("moe", device="cpu")
    assert describe(model).is_mixture and model.dtype is torch.float32 and model.name_or_path == "course-moe"
    assert tokenizer.pad_token_id is not None and load_without_weights("moe")[0].num_experts == 16


def test_a_mixture_that_is_missing_or_damaged_is_refused(brought, monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "embedded")
    weights = brought / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ModelNotAvailable, match="course-moe is damaged: the sha256 of course_utils/data/moe/model"):
        load_model("moe", device="cpu")
    weights.unlink()
    with pytest.raises(ModelNotAvailable, match="course-moe is missing from the package: .* Install the package again"):
        load_model("moe", device="cpu")


def test_the_shipped_gpt2_is_the_one_that_its_card_tells(monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "embedded")
    card = json.loads((models._DATA / "gpt2" / "training.json").read_text())
    assert load_model("gpt2", device="cpu")[0].num_parameters() == card["parameters"]


# The real embedded models.


@pytest.mark.embedded
@pytest.mark.parametrize("role", ROLES)
def test_embedded_models_speak_english_and_can_be_saved(role, monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_PROFILE", "embedded")
    model, tokenizer = load_model(role, device="cpu")
    assert model.dtype is torch.float32
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert torch.equal(logits(again, tokenizer), logits(model, tokenizer))
    good, bad = (
        model(**(ids := tokenizer(text, return_tensors="pt")), labels=ids["input_ids"]).loss.item()
        for text in ("We hope for peace with all the nations.", "nations the all for with peace We hope.")
    )
    assert good < bad - 0.5

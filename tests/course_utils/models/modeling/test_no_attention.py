"""An attention that isn't there adds zeros and counts tokens, also beneath accelerate's hooks, whichever come first."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from accelerate import dispatch_model
from accelerate.hooks import remove_hook_from_submodules
from tiny import FAMILIES, tiny_adaptive, tiny_batches, tiny_model, word_tokenizer
from transformers import DynamicCache

from course_utils.measuring.costs import kv_bytes_per_token
from course_utils.models.architectures import describe
from course_utils.models.loading import variant
from course_utils.models.modeling.no_attention import NoAttention, TokenCount
from course_utils.pruning.adaptive import make_adaptive
from course_utils.pruning.attention import bypass_attention
from course_utils.pruning.checkpoints import load_pruned, save_pruned

STATES, IDS = torch.randn(2, 3, 8), tiny_batches()[0]["input_ids"]


@pytest.mark.parametrize("named", [True, False])
def test_it_adds_exactly_zero_counts_tokens_and_stores_no_bytes(named):
    cache, attention = DynamicCache(), NoAttention(0)
    for tokens in (3, 1):
        states = STATES[:, :tokens]
        given = ((), {"hidden_states": states, "past_key_values": cache}) if named else ((states, cache), {})
        output, weights = attention(*given[0], **given[1])
        assert torch.equal(output, torch.zeros_like(states)) and weights is None
    layer = cache.layers[0]
    assert cache.get_seq_length() == 4 and isinstance(layer, TokenCount)
    assert layer.keys.numel() == layer.values.numel() == 0


@torch.no_grad()
def test_a_cache_that_was_in_use_goes_on_in_its_shape():
    model, cache = tiny_model("llama", layers=1), DynamicCache()
    model(torch.tensor([[5, 6]]), past_key_values=cache)
    shape = cache.layers[0].keys.shape  # [rows, heads, tokens, width]
    NoAttention(0)(STATES[:1, :1], cache)
    assert cache.layers[0].keys.shape == (*shape[:2], 3, shape[3]) and not isinstance(cache.layers[0], TokenCount)


def dispatched(model, folder=None):
    """With accelerate's hooks on every module, and one block offloaded to disk where a folder is given."""
    blocks = describe(model).family.blocks
    leaves = [name for name, module in model.named_modules() if not list(module.children())]
    places = {name: "cpu" for name in leaves if not name.startswith(blocks)}
    places |= {f"{blocks}.{number}": "cpu" for number in range(3)}
    if folder is not None:
        places[f"{blocks}.1"] = "disk"
    return dispatch_model(model, places, main_device="cpu", offload_dir=folder, force_hooks=True)


def hooked(model):
    """Modules that run through accelerate's hook, which is a partial."""
    return [name for name, module in model.named_modules() if isinstance(vars(module).get("forward"), partial)]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_bypass_is_seen_under_hooks_that_come_later(family, tmp_path):
    model = tiny_model(family)
    before, cache = model(IDS).logits, kv_bytes_per_token(model)
    bypass_attention(model, [0, 1])
    expected = model(IDS).logits
    dispatched(model)
    assert [attention.skipped for attention in describe(model).attentions] == [True, True, False]
    assert kv_bytes_per_token(model) == cache // 3
    assert torch.equal(model(IDS).logits, expected)
    reloaded, _ = load_pruned(save_pruned(model, word_tokenizer(), tmp_path / "model"))
    assert torch.equal(reloaded(IDS).logits, expected)
    bypass_attention(model, [])
    assert torch.equal(model(IDS).logits, before)
    assert not any(attention.skipped for attention in describe(model).attentions)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_hooks_stay_when_an_attention_goes_and_comes_back(family, tmp_path):
    model = tiny_model(family)
    before = model(IDS).logits
    bypass_attention(model, [1])
    expected = model(IDS).logits
    bypass_attention(model, [])
    dispatched(model, tmp_path)  # block 1's weights are on disk: without its hooks it can't run
    names = hooked(model)
    bypass_attention(model, [1])
    assert torch.equal(model(IDS).logits, expected) and hooked(model) == names
    assert torch.equal(variant(model)(IDS).logits, expected)
    bypass_attention(model, [])
    assert torch.equal(model(IDS).logits, before) and hooked(model) == names


@torch.no_grad()
def test_a_bypass_outlives_the_hooks():
    model = dispatched(tiny_model())
    before = model(IDS).logits
    bypass_attention(model, [1])
    expected = model(IDS).logits
    remove_hook_from_submodules(model)
    assert torch.equal(model(IDS).logits, expected)
    bypass_attention(model, [])
    assert torch.equal(model(IDS).logits, before)
    own = [(vars(module)["forward"], type(module).forward) for module in model.modules() if "forward" in vars(module)]
    assert all(forward.__func__ is of_class for forward, of_class in own)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("first", ["hooks", "settings"])
@torch.no_grad()
def test_prompts_decide_under_hooks(family, first):
    model, options = tiny_model(family), {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 2}
    before = model(IDS).logits
    settings = tiny_adaptive(model, order=(1, 0), left_out=(2, 1))
    make_adaptive(model, settings)
    expected, answer = model(IDS).logits, model.generate(IDS, **options)
    assert not torch.equal(expected, before)
    if first == "hooks":
        make_adaptive(model, None)
    dispatched(model)
    names = hooked(model)
    if first == "hooks":
        make_adaptive(model, settings)
    assert torch.equal(model(IDS).logits, expected)
    assert torch.equal(model.generate(IDS, **options), answer)
    make_adaptive(model, None)
    assert torch.equal(model(IDS).logits, before) and hooked(model) == names

"""Counts are checked against torch's own counters and real caches, estimates against configurations alone."""

from __future__ import annotations

import pytest
import torch
from tiny import FAMILIES, tiny_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, PreTrainedModel

from course_utils.measuring.costs import bytes_held, flops_per_token, kv_bytes_per_token, speedup_estimate, work
from course_utils.models.architectures import describe
from course_utils.models.reports import model_size
from course_utils.pruning.attention import bypass_attention
from course_utils.pruning.depth import remove_blocks

NARROW_EMBEDDING = {"word_embed_proj_dim": 16, "do_layer_norm_before": False}  # OPT-350M's layout
MODELS = [*((family, {}) for family in FAMILIES), ("opt", NARROW_EMBEDDING)]


@pytest.mark.parametrize("head", ["every", "last"])
@pytest.mark.parametrize(("family", "settings"), MODELS)
def test_flops_agree_with_torchs_counter(family, settings, head):
    model, tokens = tiny_model(family, **settings), 6
    model.set_attn_implementation("eager")  # the counter doesn't see into the CPU's fused attention
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        ids = torch.arange(3, 3 + tokens)[None]
        model(input_ids=ids, use_cache=False, logits_to_keep=0 if head == "every" else 1)
    # Eager attention computes the full square of queries and keys; a causal pass needs half of it.
    other_half = 2 * tokens * sum(a.query_width for a in describe(model).attentions)
    # Older transformers make the angles of the rotary embedding, once for all layers, by a tiny matrix product.
    by_module = counter.get_flop_counts().items()
    angles = sum(sum(flops.values()) for module, flops in by_module if module.endswith("rotary_emb"))
    expected = tokens * (flops_per_token(model, tokens, head=head) + other_half)
    assert counter.get_total_flops() - angles == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_kv_bytes_agree_with_a_real_cache(family, dtype):
    model, tokens = tiny_model(family, dtype=dtype), 6
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(torch.arange(3, 3 + tokens)[None], use_cache=True, **{describe(model).cache_keyword: cache})
    held = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
    assert held == tokens * kv_bytes_per_token(model)


@torch.no_grad()
def cache_of(model: PreTrainedModel, tokens: int) -> int:
    """Bytes of the cache that transformers really holds after so many tokens, read one by one."""
    cached = {describe(model).cache_keyword: DynamicCache(config=model.config), "use_cache": True}
    for token in range(3, 3 + tokens):
        model(torch.tensor([[token]]), **cached)
    layers = next(iter(cached.values())).layers
    return sum(part.nbytes for layer in layers if layer.is_initialized for part in (layer.keys, layer.values))


@pytest.mark.parametrize("tokens", [5, 7, 8, 20])
@pytest.mark.parametrize("bypassed", [[], [1]])
@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("qwen2", {}),  # the first block sees all
        ("gemma2", {}),  # every other block does
        ("gemma3_text", {"layer_types": ["full_attention", "sliding_attention", "sliding_attention"]}),
        ("mistral", {"sliding_window": 8}),
        ("llama", {}),
    ],
)
def test_a_cache_with_windows_is_counted_as_it_is(family, settings, bypassed, tokens):
    model = tiny_model(family, **settings)
    bypass_attention(model, bypassed)
    held = cache_of(model, tokens)
    assert bytes_held(model, tokens=tokens, batch_size=3) - bytes_held(model, tokens=0) == 3 * held
    done = work(model, "decode", prompt_tokens=tokens, new_tokens=1, batch_size=2)
    assert done.cache_bytes == 2 * held


def weights_read(model: PreTrainedModel) -> int:
    return work(model, "decode", prompt_tokens=1).weight_bytes


def test_decoding_reads_a_tied_head_once_and_a_looked_up_table_not_at_all():
    tied, untied = (tiny_model("llama", tie_word_embeddings=tie) for tie in (True, False))
    assert weights_read(tied) == weights_read(untied) == 4 * tied.num_parameters()
    gpt2 = tiny_model("gpt2")
    assert weights_read(gpt2) == 4 * (gpt2.num_parameters() - gpt2.transformer.wpe.weight.numel())


def test_a_bypassed_attention_is_read_no_more_than_a_removed_one():
    bypassed, removed = tiny_model("llama"), tiny_model("llama")
    bypass_attention(bypassed, [1])
    bypass_attention(removed, [1], remove=True)
    assert weights_read(bypassed) == weights_read(removed) < 4 * bypassed.num_parameters()


def test_works_of_both_phases_by_hand():
    model = tiny_model(layers=3)  # 4 query heads of 8, 2 heads of keys; 32 bits
    bypass_attention(model, [1])
    prefill = work(model, "prefill", prompt_tokens=10, new_tokens=7, batch_size=2)
    assert prefill.cache_bytes == 0
    assert prefill.weight_bytes == weights_read(model) < 4 * model.num_parameters()  # one attention is at rest
    assert prefill.operations == 2 * 10 * flops_per_token(model, 10, head="last")
    decode = work(model, "decode", prompt_tokens=10, new_tokens=4, batch_size=2)
    assert decode.weight_bytes == 4 * weights_read(model)
    assert decode.cache_bytes == 4 * 2 * 12 * (2 * 2 * 16 * 4)  # steps x rows x length x (2 attentions, K and V of 16)
    assert decode.operations == 4 * 2 * (model_size(model).flops + 12 * 2 * (4 * 32))


@pytest.mark.parametrize(("family", "settings"), MODELS)
def test_what_a_step_of_decoding_multiplies_agrees_with_torchs_counter(family, settings):
    model, context = tiny_model(family, **settings), 6
    model.set_attn_implementation("eager")
    cache = {describe(model).cache_keyword: DynamicCache(config=model.config), "use_cache": True}
    with torch.no_grad():
        model(torch.arange(3, 3 + context - 1)[None], **cache)
        with FlopCounterMode(display=False) as counter:
            model(torch.tensor([[3]]), **cache)
    by_module = counter.get_flop_counts().items()
    angles = sum(sum(flops.values()) for module, flops in by_module if module.endswith("rotary_emb"))
    expected = work(model, "decode", prompt_tokens=context).operations
    assert counter.get_total_flops() - angles == pytest.approx(expected)


def test_the_estimate_is_the_larger_of_the_ratios_of_bytes_and_operations():
    base, shorter = tiny_model(layers=4), tiny_model(layers=4)
    remove_blocks(shorter, [1, 2])
    for phase, sizes in {"prefill": {"prompt_tokens": 8}, "decode": {"prompt_tokens": 8, "batch_size": 9}}.items():
        before, after = (work(model, phase, **sizes) for model in (base, shorter))
        ratios = (
            before.operations / after.operations,
            (before.weight_bytes + before.cache_bytes) / (after.weight_bytes + after.cache_bytes),
        )
        assert speedup_estimate(before, after) == max(ratios) > 1


def test_a_tied_head_is_held_once_and_a_cache_for_every_text():
    model = tiny_model(tie_word_embeddings=True)
    assert bytes_held(model, tokens=0) == 4 * model.num_parameters()
    assert bytes_held(model, tokens=10, batch_size=3) - bytes_held(model, tokens=0) == 30 * kv_bytes_per_token(model)

"""A bypassed attention adds exactly zero, costs nothing, and every way to generate stays right."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from masked import logits_with, seeing
from tiny import FAMILIES, tiny_batches, tiny_model, word_tokenizer
from transformers import DynamicCache

from course_utils.models.architectures import describe
from course_utils.pruning import attention as attention_module
from course_utils.pruning.activations import run_keeping
from course_utils.pruning.attention import attention_importance, bypass_attention, select_attention_layers
from course_utils.pruning.checkpoints import load_pruned, save_pruned
from course_utils.pruning.depth import remove_blocks

IDS = tiny_batches()[0]["input_ids"]
MASK = torch.ones_like(IDS)
SETS = [[0], [1, 3], [0, 1, 2, 3]]


def four_blocks(family, **settings):
    return tiny_model(family, layers=4, **settings)


def zeroed(model, layers):
    """Logits of the whole model with what these attentions add set to zero."""
    contributions = [describe(model).attentions[i].contribution for i in layers]
    return logits_with(
        model,
        [
            module.register_forward_hook(lambda _m, _a, o: (o[0] * 0, *o[1:]) if isinstance(o, tuple) else o * 0)
            for module in contributions
        ],
    )


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("layers", SETS)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_bypass_adds_exactly_zero_and_is_reversible(family, layers, attention):
    if family == "gemma2" and attention == "sdpa":
        pytest.skip("transformers has no sdpa for Gemma 2")
    model = four_blocks(family, attn_implementation=attention)
    before, expected = model(IDS).logits, zeroed(model, layers)
    assert not torch.allclose(expected, before, atol=1e-3)
    bypass_attention(model, layers)
    assert torch.equal(model(IDS).logits, expected)
    assert [a.skipped for a in describe(model).attentions] == [i in layers for i in range(4)]
    assert model.config.per_layer_config[layers[0]].skip == ["attention"]
    report = bypass_attention(model, [])
    assert torch.equal(model(IDS).logits, before)
    assert not model.config.is_heterogeneous
    assert report.after.flops > report.before.flops


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_removal_equals_bypass_and_frees_weights(family):
    bypassed, removed = four_blocks(family), four_blocks(family)
    flops = bypass_attention(bypassed, [0, 2])
    report = bypass_attention(removed, [0, 2], remove=True)
    assert torch.equal(removed(IDS).logits, bypassed(IDS).logits)
    assert flops.after.parameters == flops.before.parameters
    assert report.after.parameters < report.before.parameters == flops.before.parameters
    assert report.after.flops == flops.after.flops < flops.before.flops
    bypass_attention(removed, [0, 1, 2])  # more can go, what is gone can't come back
    with pytest.raises(ValueError, match=r"\[0, 2\].*can't be restored"):
        bypass_attention(removed, [1])
    assert [a.skipped for a in describe(removed).attentions] == [True, True, True, False]


@pytest.mark.parametrize("remove", [False, True])
@pytest.mark.parametrize("layers", SETS[1:])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_every_cached_path_equals_its_uncached_one(family, layers, remove):
    model = four_blocks(family)
    bypass_attention(model, layers, remove=remove)

    cache, steps = DynamicCache(config=model.config), []  # direct forward, chunk by chunk
    for chunk in IDS.split([5, 1, 1, 5], dim=1):
        output = model(chunk, past_key_values=cache, use_cache=True)
        steps.append(output.logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), model(IDS).logits, atol=1e-5, rtol=1e-5)
    assert cache.get_seq_length() == IDS.shape[1]
    assert sum(cache.layers[i].keys.numel() for i in layers) == 0  # no bytes of keys and values

    padded = tiny_batches(padding="left", size=6)[0]
    for settings in (
        {"do_sample": False},
        {"do_sample": True, "temperature": 0.7},
        {"num_beams": 3, "do_sample": False},
    ):
        answers = []
        for use_cache in (True, False):
            torch.manual_seed(5)
            answers.append(model.generate(**padded, max_new_tokens=10, use_cache=use_cache, pad_token_id=2, **settings))
        assert torch.equal(*answers), settings


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_second_turn_on_a_kept_cache(family):
    model = four_blocks(family)
    bypass_attention(model, [0, 2])
    options = {"do_sample": False, "max_new_tokens": 4, "pad_token_id": 2, "eos_token_id": None}
    first = model.generate(IDS, attention_mask=MASK, return_dict_in_generate=True, use_cache=True, **options)
    turn = torch.cat([first.sequences, IDS[:, :3]], dim=1)
    kept, fresh = (
        model.generate(turn, attention_mask=torch.ones_like(turn), past_key_values=cache, **options)
        for cache in (first.past_key_values, None)
    )
    assert torch.equal(kept, fresh)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_weights_of_skipped_attentions_are_not_saved_and_skips_move_with_their_blocks(family, tmp_path):
    model = four_blocks(family)
    bypass_attention(model, [0, 3])
    expected = model(IDS).logits
    reloaded, _ = load_pruned(save_pruned(model, word_tokenizer(), tmp_path / "model"))
    assert reloaded.num_parameters() < model.num_parameters()
    assert torch.equal(reloaded(IDS).logits, expected) and torch.equal(model(IDS).logits, expected)
    remove_blocks(reloaded, [0])
    assert [a.skipped for a in describe(reloaded).attentions] == [False, False, True]


def streams(model):
    """What enters each block, and what its attention adds."""
    architecture = describe(model)
    contributions = [attention.contribution for attention in architecture.attentions]
    with seeing(architecture.blocks) as entered, seeing(contributions, entering=False) as added:
        model(IDS)
    return [(x, a) for (x,), (a,) in zip(entered, added, strict=True)]


def turned(x, y):
    return (1 - F.cosine_similarity(x.float(), y.float(), dim=-1)).mean()


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_importance_by_hand(family):
    model = four_blocks(family)
    expected = torch.stack([turned(x, x + a) for x, a in streams(model)])
    torch.testing.assert_close(attention_importance(model, [{"input_ids": IDS}]), expected)


@torch.no_grad()
def test_a_contribution_that_16_bits_would_round_away_still_counts():
    model = four_blocks("llama", dtype=torch.bfloat16)
    for part in describe(model).attentions:
        part.outputs[0].weight.mul_(0.003)
    x, a = streams(model)[1]
    expected, rounded = turned(x, x.float() + a.float()), turned(x, x + a)
    torch.testing.assert_close(attention_importance(model, [{"input_ids": IDS}])[1], expected, rtol=1e-3, atol=0)
    assert abs(rounded - expected) > 0.05 * expected


def naive(model, batches, count):
    chosen = []
    while len(chosen) < count:
        bypass_attention(model, chosen)
        scores = attention_importance(model, batches)
        chosen.append(min((i for i in range(len(scores)) if i not in chosen), key=lambda i: float(scores[i])))
    bypass_attention(model, [])
    return chosen


def weakest_in_the_middle(family):
    """Attentions whose importance neither rises nor falls with their number, and all that add hooks to see."""
    model = tiny_model(family, layers=6)
    for attention, factor in zip(describe(model).attentions, (1.0, 0.1, 0.5, 0.02, 0.2, 1.0), strict=True):

        def scale(_module, _args, output, factor=factor):
            return (output[0] * factor, *output[1:]) if isinstance(output, tuple) else output * factor

        attention.contribution.register_forward_hook(scale)
    return model


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_iterative_selection_equals_the_naive_one(family, monkeypatch):
    model = weakest_in_the_middle(family)
    batches, before = tiny_batches(padding="left"), model(IDS).logits
    expected = naive(model, batches, 4)
    assert expected[:2] == [3, 1]
    bytes_a_block = 6 * 12 * 32 * 4
    for budget in (2**30, 2 * bytes_a_block, 1):
        monkeypatch.setattr(attention_module, "_KEPT_BYTES", budget)
        assert select_attention_layers(model, batches, count=4) == expected
    assert torch.equal(model(IDS).logits, before)


@pytest.mark.parametrize(("blocks_kept", "places"), [(6, range(6)), (3, (0, 2, 4)), (2, (0, 3)), (1, (0,))])
@torch.no_grad()
def test_what_is_kept_stays_below_a_limit_and_saves_runs(blocks_kept, places, monkeypatch):
    model, ran, most = weakest_in_the_middle("llama"), [], 0

    def count(*_):
        ran.append(1)

    def keeping(architecture, batch, blocks):
        nonlocal most
        most = max(most, len(blocks) + 1)
        return run_keeping(architecture, batch, blocks)

    monkeypatch.setattr(attention_module, "_KEPT_BYTES", blocks_kept * 6 * 12 * 32 * 4)
    monkeypatch.setattr(attention_module, "run_keeping", keeping)
    for mlp in describe(model).mlps:
        mlp.contribution.register_forward_hook(count)
    chosen = select_attention_layers(model, tiny_batches(size=6), count=3)
    starts = [max(place for place in places if place <= layer) for layer in chosen[:-1]]
    assert most == len(places) <= blocks_kept
    assert len(ran) == 6 + sum(6 - start for start in starts)


@pytest.mark.parametrize("iterative", [False, True])
@torch.no_grad()
def test_ties_go_to_the_lower_block(iterative):
    model = tiny_model("llama", layers=6)
    parts = describe(model)
    for projection in (parts.attentions[2].outputs[0], parts.mlps[2].output, parts.attentions[3].outputs[0]):
        projection.weight.zero_()  # block 2 adds nothing at all, so both attentions see the same and add nothing to it
    assert select_attention_layers(model, tiny_batches(), count=2, iterative=iterative) == [2, 3]


def test_one_shot_selection_ranks_once():
    model = tiny_model("llama", layers=6)
    scores = attention_importance(model, tiny_batches())
    chosen = select_attention_layers(model, tiny_batches(), count=3, iterative=False)
    assert chosen == scores.sort(stable=True).indices[:3].tolist()

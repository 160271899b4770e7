"""Blocks come out whole, in any order, and the model that remains is an ordinary one."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from masked import HOLDING, IDS, seeing, with_neurons, without_blocks
from tiny import FAMILIES, tiny_adaptive, tiny_batches, tiny_model, word_tokenizer
from transformers import AutoModelForCausalLM

from course_utils.models.architectures import describe
from course_utils.models.families import FAMILIES as KNOWN
from course_utils.models.loading import variant
from course_utils.pruning.adaptive import make_adaptive
from course_utils.pruning.checkpoints import load_pruned, save_pruned
from course_utils.pruning.depth import block_importance, block_means, leave_one_out, remove_blocks
from course_utils.pruning.width import neuron_importance, neuron_means, prune_neurons, strongest


@pytest.mark.parametrize("gone", [[0], [2], [1, 3], [3, 0, 2]])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_removed_equals_skipped(family, gone, tmp_path):
    model = tiny_model(family, layers=4)
    expected = without_blocks(model, gone)
    assert not torch.allclose(expected, model(IDS).logits, atol=1e-3)
    report = remove_blocks(model, gone)
    assert torch.equal(model(IDS).logits, expected)
    assert len(report.after.widths) == model.config.num_hidden_layers == describe(model).num_blocks == 4 - len(gone)
    assert [a.module.layer_idx for a in describe(model).attentions] == list(range(4 - len(gone)))
    model.save_pretrained(tmp_path)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(IDS).logits, expected)


@pytest.mark.parametrize("gone", [[0], [1, 3], [4]])
def test_readers_that_know_no_layer_types_find_the_windows(gone):
    """transformers before ``layer_types`` and vLLM's Qwen2 read ``max_window_layers`` alone."""
    model = tiny_model("qwen2", layers=5, max_window_layers=3)
    remove_blocks(model, gone)
    fields = model.config.to_dict()
    told = fields.pop("layer_types")
    assert set(told) == {"full_attention", "sliding_attention"}
    assert type(model.config)(**fields).layer_types == told


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_importance_by_hand(family):
    model = tiny_model(family)
    blocks = describe(model).blocks
    with seeing(blocks) as entered, seeing(blocks, entering=False) as left:
        model(IDS)
    pairs = zip(entered, left, strict=True)
    expected = torch.stack([(1 - F.cosine_similarity(x, y, dim=-1)).mean() for (x,), (y,) in pairs])
    torch.testing.assert_close(block_importance(model, [{"input_ids": IDS}]), expected)


@torch.no_grad()
def test_leave_one_out_scores_each_gap():
    model = tiny_model("llama")
    before = model(IDS).logits
    scores = leave_one_out(model, lambda: float(model(IDS).logits.sum()))
    for block, score in enumerate(scores):
        torch.testing.assert_close(float(score), float(without_blocks(model, [block]).sum()), rtol=1e-4, atol=1e-3)
    assert torch.equal(model(IDS).logits, before)


def test_gpt2_that_scales_by_block_number_is_refused():
    with pytest.raises(ValueError, match="scale_attn_by_inverse_layer_idx"):
        remove_blocks(tiny_model("gpt2", scale_attn_by_inverse_layer_idx=True), [1])


# --- means that stay --------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", [None, "left", "right"])
@pytest.mark.parametrize("family", [*FAMILIES, "mixtral"])
@torch.no_grad()
def test_means_by_hand(family, padding):
    """Of each row alone and without its padding, from its second token on."""
    model, batches = tiny_model(family), tiny_batches(padding=padding)
    rows = [ids[mask.bool()] for batch in batches for ids, mask in zip(*batch.values(), strict=True)]
    blocks = describe(model).blocks
    with seeing(blocks) as entered, seeing(blocks, entering=False) as left:
        for row in rows:
            model(row[None])
    changes = [[y[1:] - x[1:] for x, y in zip(*pair, strict=True)] for pair in zip(entered, left, strict=True)]
    expected = torch.stack([torch.cat(change).mean(dim=0) for change in changes])
    torch.testing.assert_close(block_means(model, batches), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("gone", [[3], [2, 1], [1, 4], [4, 2, 3], [1, 2, 4, 5]])
@pytest.mark.parametrize("family", HOLDING)
@torch.no_grad()
def test_a_kept_mean_is_what_the_removed_blocks_add_on_average(family, gone, tmp_path):
    model = tiny_model(family, layers=6)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    means, config = block_means(model, tiny_batches()), model.config.to_dict()
    given, expected = means.clone(), without_blocks(model, gone, means)
    cut = variant(model)
    remove_blocks(cut, gone, means=means)
    torch.testing.assert_close(cut(IDS).logits, expected, atol=1e-5, rtol=1e-4)
    assert (cut(IDS).logits - without_blocks(model, gone)).abs().max() > 1e-3  # without the means it is another model
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())  # shared, not written
    assert model.config.to_dict() == config and torch.equal(means, given)
    cut.save_pretrained(tmp_path)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(IDS).logits, cut(IDS).logits)


@torch.no_grad()
def test_a_model_with_kept_means_loses_more_blocks():
    model = tiny_model("llama", layers=6)
    remove_blocks(model, [2], means=block_means(model, tiny_batches()))
    means = block_means(model, tiny_batches())
    expected = without_blocks(model, [2, 4], means)
    remove_blocks(model, [2, 4], means=means)
    torch.testing.assert_close(model(IDS).logits, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", HOLDING)
@torch.no_grad()
def test_what_is_cut_next_finds_the_bias(family, tmp_path):
    """Neurons leave their means in it as well, unevenly here; an adaptive model keeps it, saved and loaded."""
    model = tiny_model(family, layers=5)
    remove_blocks(model, [2, 3], means=block_means(model, tiny_batches()))
    scores, means = neuron_importance(model, "random"), neuron_means(model, tiny_batches())
    kept = [strongest(score, 0.4 if number == 1 else 0.0) for number, score in enumerate(scores)]
    expected = with_neurons(model, kept, means)
    prune_neurons(model, scores, ratio=0.4, layers=[1], means=means)
    torch.testing.assert_close(model(IDS).logits, expected, atol=1e-5, rtol=1e-4)
    make_adaptive(model, tiny_adaptive(model, order=(1, 2), left_out=(1, 0)))
    folder = save_pruned(model, word_tokenizer(), tmp_path / "model")
    for loaded in (
        load_pruned(folder)[0],
        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True),
    ):
        assert torch.equal(loaded(IDS).logits, model(IDS).logits)
        assert not torch.allclose(loaded(IDS).logits, expected, atol=1e-3)  # it leaves an attention out


@torch.no_grad()
def test_a_block_that_writes_a_constant_goes_without_a_trace():
    model = tiny_model("gpt2", layers=4)
    attention, mlp = describe(model).attentions[2], describe(model).mlps[2]
    for projection in (*attention.outputs, mlp.output):
        projection.weight.zero_()
    whole = model(IDS).logits
    remove_blocks(model, [2], means=block_means(model, tiny_batches()))
    torch.testing.assert_close(model(IDS).logits, whole, atol=1e-5, rtol=1e-4)


def test_the_switch_is_known_where_a_family_has_one():
    switched = [name for name in FAMILIES if hasattr(tiny_model(name).config, "mlp_bias")]
    assert switched == [name for name in FAMILIES if KNOWN[name].mlp_bias_field]


@pytest.mark.parametrize(
    ("family", "settings", "gone", "change", "message"),
    [
        ("llama", {}, [0, 1], None, "nothing stands before it"),
        ("llama", {}, [1], lambda means: means[1:], r"here \[3, 32\]; got \[2, 32\]"),
        ("llama", {}, [1], lambda means: means / 0, r"'means' hold NaN or infinite values in blocks \[0, 1, 2\]"),
        ("mixtral", {}, [1], None, "mixture of experts"),
        ("opt", {"do_layer_norm_before": False}, [1], None, "normalises what its MLPs write"),
        ("opt", {"enable_bias": False}, [1], None, "have no bias"),
        *((family, {}, [1], None, "normalises what its MLPs write") for family in ("gemma2", "gemma3_text")),
        *((family, {}, [1], None, "have no bias") for family in ("mistral", "qwen2", "qwen3", "phi3")),
    ],
)
def test_means_that_cannot_be_kept_are_refused_and_nothing_changes(family, settings, gone, change, message):
    model = tiny_model(family, **settings)
    means = block_means(model, tiny_batches())
    state, config = copy.deepcopy(model.state_dict()), model.config.to_dict()
    with pytest.raises(ValueError, match=message):
        remove_blocks(model, gone, means=means if change is None else change(means))
    assert model.config.to_dict() == config and state.keys() == model.state_dict().keys()
    assert all(torch.equal(weight, state[name]) for name, weight in model.state_dict().items())


def test_text_without_a_token_to_count_and_states_that_are_not_finite_are_refused():
    model = tiny_model("llama")
    with pytest.raises(ValueError, match="no row has a second one"):
        block_means(model, [{"input_ids": IDS[:, :1]}])
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = float("inf")
    with pytest.raises(ValueError, match=r"blocks \[1, 2\]"):
        block_means(model, [{"input_ids": IDS}])

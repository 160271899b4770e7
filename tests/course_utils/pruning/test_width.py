"""The surgery is exact, the scores are exact, and bad input changes nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from masked import IDS, seeing, unchanged, with_neurons
from tiny import FAMILIES, tiny_batches, tiny_model

from course_utils.models.architectures import describe
from course_utils.models.loading import variant
from course_utils.pruning.width import (
    CRITERIA,
    WEIGHT_CRITERIA,
    best,
    by_halves,
    kept_width,
    neuron_importance,
    neuron_means,
    prune_neurons,
    strongest,
)

# --- which stay -----------------------------------------------------------------------------------


@example(width=100, percent=29, multiple=1)  # 0.29 * 100 is 28.999999999999996
@given(width=st.integers(1, 20000), percent=st.integers(0, 99), multiple=st.sampled_from([1, 8, 64, 128]))
def test_kept_width(width, percent, multiple):
    kept = kept_width(width, percent / 100, multiple)
    exact = width - width * percent // 100  # integers don't round
    assert 1 <= exact <= kept <= width
    assert kept < exact + multiple
    assert kept % multiple == 0 or kept == width


def test_the_strongest_stay_in_their_old_order_and_of_equals_the_first():
    scores = torch.tensor([3.0, 1.0, 5.0, 1.0, 4.0, 1.0])
    kept = strongest(scores, 0.4)  # floor(2.4) go
    assert kept.tolist() == [0, 1, 2, 4] and kept.dtype == torch.int64
    assert strongest(scores, 0.4, multiple_of=5).tolist() == [0, 1, 2, 3, 4]
    assert strongest(scores, 0.0).tolist() == list(range(6))


def test_of_many_equal_scores_the_lower_numbers_stay():
    # Many, because a careless sort keeps the order of a few.
    scores = torch.randint(0, 3, (5000,), generator=torch.Generator().manual_seed(0)).float()
    order = sorted(range(5000), key=lambda number: (-scores[number], number))
    assert best(scores, 1000).tolist() == sorted(order[:1000])


@pytest.mark.parametrize("guilty", [0, 17, 49, 50, 98])
def test_the_needed_one_is_found_in_two_calls_per_step(guilty):
    calls = []

    def harm(back):
        calls.append(back)
        return 1.5 - 0.5 * (guilty in back)

    assert by_halves(range(99), harm) == guilty
    assert len(calls) <= 14


def test_of_two_needed_ones_the_one_that_heals_more_is_followed():
    heals = {3: 0.4, 60: 0.5}
    assert by_halves(range(64), lambda back: 1 - sum(heals.get(one, 0) for one in back)) == 60


# --- surgery --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_uneven_cut_equals_masked(family):
    model = tiny_model(family)
    scores = neuron_importance(model, "random")
    kept = [strongest(own, 0.5) for own in scores]
    kept[0] = torch.arange(len(scores[0]))
    expected = with_neurons(model, kept)
    prune_neurons(model, scores, ratio=0.5, layers=[2, 1])
    torch.testing.assert_close(model(IDS).logits, expected, atol=1e-5, rtol=1e-5)
    architecture = describe(model)
    field = architecture.family.width_field
    told = [getattr(config, field) for config in model.config.per_layer_config]
    assert tuple(told) == architecture.intermediate_sizes
    prune_neurons(
        model, [s[:w] for s, w in zip(scores, architecture.intermediate_sizes, strict=True)], ratio=0.5, layers=[0]
    )
    assert getattr(model.config, field) == architecture.intermediate_sizes[0]  # equal again: the plain field


def test_weights_stay_tied():
    model = tiny_model("llama", tie_word_embeddings=True)
    prune_neurons(model, neuron_importance(model, "l2"), ratio=0.3)
    assert model.lm_head.weight is model.model.embed_tokens.weight


# --- scores ---------------------------------------------------------------------------------------


def test_weight_criteria_by_hand():
    gate, up = torch.tensor([[1.0, -3.0], [0.0, 0.5]]), torch.tensor([[2.0, 2.0], [4.0, -1.0]])
    expected = {
        "l1": [8.0, 5.5],
        "l2": [10**0.5 + 8**0.5, 0.5 + 17**0.5],
        "peak_to_peak": [(1 + 3) + (2 + 2), (0.5 + 0) + (4 + 1)],
        "variance": [8.0 + 0.0, 0.125 + 12.5],
        "product": [4 * 4, 0.5 * 5],
    }
    assert set(expected) == set(WEIGHT_CRITERIA)
    for name, want in expected.items():
        torch.testing.assert_close(WEIGHT_CRITERIA[name]([gate, up]), torch.tensor(want))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_activation_scores_and_means_by_hand(family, dtype):
    """In 16 bits they are those of the same numbers in float32."""
    model, batches = tiny_model(family, dtype=dtype), tiny_batches()
    mlps = describe(model).mlps
    with seeing([mlp.down for mlp in mlps]) as seen:
        for batch in batches:
            model(batch["input_ids"])
    scores, means = neuron_importance(model, "activation", batches=batches), neuron_means(model, batches)
    for score, mean, own, mlp in zip(scores, means, seen, mlps, strict=True):
        states = torch.cat(own).float()
        torch.testing.assert_close(score, states.square().mean(dim=0).sqrt() * mlp.columns.float().norm(dim=0))
        torch.testing.assert_close(mean, states.mean(dim=0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_low_precision_scores_do_not_overflow(criterion, dtype):
    model = tiny_model("llama")
    with torch.no_grad():
        for mlp in describe(model).mlps:
            mlp.rows[0].mul_(300)  # squares beyond float16's 65,504
    batches = tiny_batches() if criterion == "activation" else None
    exact = neuron_importance(model, criterion, batches=batches)
    model = model.to(dtype)
    scores = neuron_importance(model, criterion, batches=batches)
    for low, full in zip(scores, exact, strict=True):
        assert low.dtype == torch.float32
        torch.testing.assert_close(low, full, rtol=0.1, atol=0.1 * float(full.mean()))


def test_random_depends_on_the_seed_only():
    a, b = (neuron_importance(tiny_model("llama"), "random", seed=3) for _ in range(2))
    other = neuron_importance(tiny_model("llama"), "random", seed=4)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not any(torch.equal(x, y) for x, y in zip(a, other, strict=True))


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("criterion", "batches", "message"), [("activation", None, "got none"), ("l1", [], "'l1'")])
def test_text_goes_with_the_criterion_that_reads_it(criterion, batches, message):
    with pytest.raises(ValueError, match=message):
        neuron_importance(tiny_model("llama"), criterion, batches=batches)


def test_non_finite_weights_are_named():
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("inf")
    with pytest.raises(ValueError, match=r"blocks \[1\]"):
        neuron_importance(model, "l2")


# --- means that stay in a bias ----------------------------------------------------------------------

BIASED = ("gpt2", "opt", "gpt_neox")  # families whose MLPs have a bias that leads out; Llama's may have one


@pytest.mark.parametrize("family", [*BIASED, "llama"])
@pytest.mark.parametrize("layers", [None, [1]])
def test_a_kept_mean_is_what_the_removed_neurons_say_on_average(family, layers):
    model = tiny_model(family, **({"mlp_bias": True} if family == "llama" else {}))
    scores, means = neuron_importance(model, "random"), neuron_means(model, tiny_batches())
    given = [mean.clone() for mean in means]
    kept = [strongest(score, 0.3 if layers is None or number in layers else 0) for number, score in enumerate(scores)]
    expected = with_neurons(model, kept, means)
    pruned = variant(model)
    with unchanged(model):  # shared, not written
        prune_neurons(pruned, scores, ratio=0.3, layers=layers, means=means)
    with torch.no_grad():
        logits = pruned(IDS).logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)
    assert (logits - with_neurons(model, kept)).abs().max() > 1e-3  # without the means it is another model
    assert all(map(torch.equal, means, given))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_kept_mean_has_the_models_dtype(dtype):
    model = tiny_model("gpt2", dtype=dtype)
    means = neuron_means(model, tiny_batches())
    assert all(mean.dtype == torch.float32 for mean in means)
    prune_neurons(model, neuron_importance(model, "l1"), ratio=0.3, means=means)
    assert {weight.dtype for weight in model.parameters()} == {dtype}


def test_constant_neurons_are_cut_without_a_trace():
    model = tiny_model("gpt2")
    scores = neuron_importance(model, "random")
    with torch.no_grad():
        for mlp, score in zip(describe(model).mlps, scores, strict=True):
            constant = torch.ones(mlp.width).index_fill(0, strongest(score, 0.3), 0).bool()
            mlp.rows[0][constant] = 0  # what leads in; the bias stays, so they say the same for every token
        whole = model(IDS).logits
    prune_neurons(model, scores, ratio=0.3, means=neuron_means(model, tiny_batches()))
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, whole, atol=1e-5, rtol=1e-4)


def test_means_that_cannot_be_kept_are_refused_and_nothing_changes():
    for family, change, message in (
        ("llama", lambda means: means, r"LlamaForCausalLM has none \(block 0\)"),
        ("gpt2", lambda means: means[1:], "'means' must hold one tensor"),
        ("gpt2", lambda means: [mean[1:] for mean in means], "neuron_means"),
        ("gpt2", lambda means: [mean / 0 for mean in means], "'means'"),
    ):
        model = tiny_model(family)
        means = change(neuron_means(model, tiny_batches()))
        with unchanged(model), pytest.raises(ValueError, match=message):
            prune_neurons(model, neuron_importance(model, "l1"), ratio=0.3, means=means)

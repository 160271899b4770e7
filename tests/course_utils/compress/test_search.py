"""What is cut is what the single axes cut; what fits a budget is legal, real and complete."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from masked import HOLDING, without_blocks
from tiny import FAMILIES, tiny_batches, tiny_model, word_tokenizer
from transformers import AutoModelForCausalLM

from course_utils.compress.scores import importance
from course_utils.compress.search import Budget, Candidate, candidates, shrink
from course_utils.models import families
from course_utils.models.architectures import describe
from course_utils.models.loading import variant
from course_utils.models.reports import model_size
from course_utils.pruning.channels import channel_energies, prune_channels
from course_utils.pruning.checkpoints import save_pruned
from course_utils.pruning.depth import remove_blocks
from course_utils.pruning.heads import prune_kv_groups
from course_utils.pruning.width import prune_neurons

ABLE = [name for name in FAMILIES if families.FAMILIES[name].own_head_size]
IDS = tiny_batches()[0]["input_ids"]
FOUR = {"hidden_size": 48, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8}


def sizes(candidate):
    return tuple(candidate.sizes.values())


@pytest.mark.parametrize("family", ABLE)
@torch.no_grad()
def test_shrink_equals_the_single_cuts_and_reloads(family, tmp_path):
    model = tiny_model(family, **FOUR)
    scores, before = importance(model, tiny_batches()), model(IDS).logits
    # A middle block goes, so that block 1 of the small model is block 2 of the whole one.
    scores, stay = replace(scores, blocks=torch.tensor([3.0, 1.0, 2.0])), [0, 2]
    small = shrink(model, Candidate(2, 40, 2, 32), scores)
    assert torch.equal(model(IDS).logits, before)

    single, energies = variant(model), channel_energies(model, tiny_batches())
    remove_blocks(single, [1])
    prune_neurons(single, [scores.neurons[block] for block in stay], ratio=1 / 3)
    prune_kv_groups(single, [scores.groups[block] for block in stay], groups=2)
    each = (len(energies) - 1) // 3
    rows = [block * each + norm for block in stay for norm in range(each)]
    prune_channels(single, scores.channels, size=40, energies=energies[[*rows, -1]])
    assert torch.equal(small(IDS).logits, single(IDS).logits)

    folder = save_pruned(small, word_tokenizer(), tmp_path / "model")
    assert not list(folder.glob("*.py"))
    assert torch.equal(AutoModelForCausalLM.from_pretrained(folder)(IDS).logits, small(IDS).logits)


@pytest.mark.parametrize("order", [[5.0, 1.0, 3.0, 2.0, 4.0], [1.0, 2.0, 5.0, 4.0, 3.0], [2.0, 1.0, 3.0, 4.0, 5.0]])
@pytest.mark.parametrize("family", HOLDING)
@torch.no_grad()
def test_shrink_keeps_the_means_that_have_a_place(family, order):
    """Not of blocks below all that stay; the biases are there all the same, so that a version costs what it says."""
    model = tiny_model(family, layers=5)
    scores = replace(importance(model, tiny_batches()), blocks=torch.tensor(order))
    full, before = Candidate.of(model), model(IDS).logits
    version = replace(full, blocks=3, means=True)
    small, gone = shrink(model, version, scores), sorted(torch.tensor(order).argsort()[:2].tolist())
    means = scores.means.clone()
    means[[block for place, block in enumerate(gone) if block == place]] = 0
    torch.testing.assert_close(small(IDS).logits, without_blocks(model, gone, means), atol=1e-5, rtol=1e-4)
    assert torch.equal(model(IDS).logits, before)
    assert all(mlp.output.bias is not None for mlp in describe(small).mlps)
    with pytest.raises(ValueError, match=r"must have the shapes .*'means': \(5, 32\)"):
        shrink(model, version, replace(scores, means=None))


def test_shrink_refuses_to_keep_means_where_there_is_no_place():
    model = tiny_model("mistral")
    with pytest.raises(ValueError, match=r"MistralForCausalLM \(mistral\) have no bias"):
        shrink(model, replace(Candidate.of(model), blocks=2, means=True), importance(model, tiny_batches()))


@pytest.mark.parametrize("family", ["gpt2", "opt", "gpt_neox"])
@torch.no_grad()
def test_shrink_where_only_blocks_and_neurons_can_go(family):
    model = tiny_model(family)
    scores = importance(model, tiny_batches())
    small = shrink(model, Candidate(2, 32, 4, 16), scores)
    assert sizes(Candidate.of(small)) == (2, 32, 4, 16)
    with pytest.raises(ValueError, match=f"of a {family} model"):
        shrink(model, Candidate(2, 32, 2, 16), scores)
    found = candidates(model, Budget(model_size(model).parameters * 0.9), multiple_of=4, tolerance=0.4)
    assert {(c.hidden, c.groups) for c in found} == {(32, 4)} and len(found) > 1
    with pytest.raises(ValueError, match=f"cut channels of a {family} model"):
        candidates(model, Budget(1e4), hidden=[16], multiple_of=4)


def test_a_cut_that_is_illegal_halfway_is_made():
    """40 channels fit six query heads as little as 8, 48 don't fit five, but 30 fit five."""
    model = tiny_model(hidden_size=32, num_attention_heads=8, num_key_value_heads=8, head_dim=4)
    scores = importance(model, tiny_batches())
    small = shrink(model, Candidate(3, 30, 5, 48), scores)
    assert (small.config.hidden_size, small.config.num_attention_heads) == (30, 5)
    for hidden, groups in ((32, 5), (30, 8)):
        with pytest.raises(ValueError, match=f"hidden size {hidden} and {groups} KV groups"):
            shrink(model, Candidate(3, hidden, groups, 48), scores)


@pytest.mark.parametrize("unit", ["parameters", "bytes"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen2", "gpt2"])
def test_candidates_cost_what_they_say_and_no_wider_one_fits(family, unit):
    model = tiny_model(family, **({} if family == "gpt2" else FOUR))
    size, scores = model_size(model), importance(model, tiny_batches())
    budget = Budget(0.8 * getattr(size, unit), unit)
    plain = candidates(model, budget, multiple_of=4, tolerance=0.2)
    found = candidates(model, budget, multiple_of=4, tolerance=0.2, keep_means=True)
    assert plain == [c for c in found if not c.means]
    assert any(c.means for c in found) == (family in HOLDING) and all(c.blocks < 3 for c in found if c.means)
    assert len(plain) == len({sizes(c) for c in plain}) and found == sorted(found, reverse=True)
    for candidate in found:
        small = model_size(shrink(model, candidate, scores))
        assert (small.parameters, getattr(small, unit)) == (candidate.parameters, candidate.cost)
        assert 0.8 * budget.amount <= candidate.cost <= budget.amount
        whole = Candidate.of(model).neurons
        assert candidate.neurons % 4 == 0 and whole / 2 <= candidate.neurons <= whole
        if candidate.neurons < whole:
            wider = replace(candidate, neurons=candidate.neurons + 4)
            assert getattr(model_size(shrink(model, wider, scores)), unit) > budget.amount
    exact = candidates(model, Budget(found[0].cost, unit), multiple_of=4, tolerance=0.2)
    assert sizes(found[0]) in map(sizes, exact), "what costs the budget to the last fits"
    if family == "llama":
        assert {c.groups for c in found} > {4} and {c.hidden for c in found} > {48} and {c.blocks for c in found} > {3}


def test_every_version_can_be_served_by_so_many_cards():
    model = tiny_model(**FOUR | {"intermediate_size": 50})
    budget, sizes_tried = Budget(0.8 * model_size(model).parameters), {"multiple_of": 4, "tolerance": 0.3}
    plain, divided = (candidates(model, budget, tensor_parallel=cards, **sizes_tried) for cards in (1, 4))
    assert {c.groups for c in plain} > {4} and 50 in {c.neurons for c in plain}
    assert {c.groups for c in divided} == {4} and all(c.neurons % 4 == 0 for c in divided) and len(divided) > 3
    assert {c for c in plain if c.groups == 4 and c.neurons != 50} <= set(divided), "nothing else is lost"
    both = candidates(model, budget, multiple_of=6, tensor_parallel=4, tolerance=0.3)
    assert all(c.neurons % 12 == 0 for c in both)
    scores = importance(model, tiny_batches())
    for candidate in divided:
        assert model_size(shrink(model, candidate, scores)).parameters == candidate.parameters


def test_the_search_is_deterministic_and_reads_no_numbers():
    model = tiny_model(**FOUR)
    state = copy.deepcopy(model.state_dict())
    budget = Budget(0.8 * model_size(model).parameters)
    first = candidates(model, budget, multiple_of=4)
    assert candidates(model, budget, multiple_of=4) == first
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in state.items())
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(float("nan"))
    assert candidates(model, budget, multiple_of=4) == first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"budget": Budget(10)}, "No version costs 9.8 to 10 parameters; .*nearest cost"),
        ({"hidden": [47]}, "none that transformers takes"),
        ({"tensor_parallel": 3, "groups": [4]}, r"'tensor_parallel' \(3\) must divide KV groups"),
    ],
)
def test_searches_that_find_nothing(arguments, message):
    with pytest.raises(ValueError, match=message):
        candidates(tiny_model(**FOUR), **{"budget": Budget(1e4), "multiple_of": 4} | arguments)


def test_bad_cuts_change_nothing():
    model = tiny_model(**FOUR)
    scores, before = importance(model, tiny_batches()), model_size(model)
    for candidate, message in ((Candidate(4, 48, 4, 48), "'blocks'"), (Candidate(3, 48, 4, 0), "'neurons'")):
        with pytest.raises(ValueError, match=message):
            shrink(model, candidate, scores)
    with pytest.raises(ValueError, match="Score this very model"):
        shrink(tiny_model(), Candidate(3, 32, 2, 24), scores)
    scores.groups[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"\['groups'\]"):
        shrink(model, Candidate(3, 48, 2, 48), scores)
    assert model_size(model) == before

"""One reading gives what the single axes give, and random controls leave the rest alone."""

from __future__ import annotations

import pytest
import torch
from tiny import FAMILIES, tiny_batches, tiny_model

from course_utils.compress.scores import AXES, Importance, importance
from course_utils.models import families
from course_utils.pruning.attention import bypass_attention
from course_utils.pruning.channels import channel_energies, channel_importance
from course_utils.pruning.depth import block_importance, block_means
from course_utils.pruning.heads import head_importance
from course_utils.pruning.width import neuron_importance, prune_neurons


@pytest.mark.parametrize("family", FAMILIES)
def test_one_reading_equals_the_single_axes(family):
    model, batches = tiny_model(family), tiny_batches(padding="right")
    found = importance(model, iter(batches))  # read once: an iterator is enough
    assert torch.equal(found.neurons, torch.stack(neuron_importance(model, "activation", batches=batches)))
    assert torch.equal(found.blocks, block_importance(model, batches))
    assert torch.equal(found.means, block_means(model, batches))
    if families.FAMILIES[family].own_head_size:
        assert torch.equal(found.groups, torch.stack(head_importance(model, batches)))
        assert torch.equal(found.channels, channel_importance(model, batches))
        assert torch.equal(found.energies, channel_energies(model, batches))
    else:
        assert found.groups is found.channels is found.energies is None


@pytest.mark.parametrize("axis", AXES)
def test_random_is_a_control_of_its_axis_alone(axis):
    model = tiny_model()
    found = importance(model, tiny_batches())
    one, again, other = found.random(axis, 3), found.random([axis], 3), found.random(axis, 4)
    assert one.digest == again.digest and len({one.digest, other.digest, found.digest}) == 3
    for name, scores in vars(found).items():
        assert torch.equal(getattr(one, name), scores) == (name != axis)
    everything = found.random(AXES, 0)
    assert torch.equal(everything.energies, found.energies)
    assert torch.equal(everything.neurons, torch.stack(neuron_importance(model, "random", seed=0)))


def test_axes_that_are_not_there_have_no_control():
    with pytest.raises(ValueError, match="neurons, blocks; got 'groups'"):
        importance(tiny_model("gpt2"), tiny_batches()).random("groups", 0)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_scores_are_kept(family, tmp_path):
    found = importance(tiny_model(family), tiny_batches())
    found.save(tmp_path / "deep" / "scores.safetensors")
    loaded = Importance.load(tmp_path / "deep" / "scores.safetensors")
    assert loaded.digest == found.digest and vars(loaded).keys() == vars(found).keys()
    with pytest.raises(ValueError, match=r"Importance\.save writes them"):
        Importance.load(tmp_path / "nothing")


def test_models_whose_blocks_differ_are_refused():
    uneven, bypassed = tiny_model(), tiny_model()
    prune_neurons(uneven, neuron_importance(uneven, "l2"), ratio=0.5, layers=[0])
    bypass_attention(bypassed, [1])
    for model, message in ((uneven, r"\[24, 48\] neurons"), (bypassed, r"no attention in blocks \[1\]")):
        with pytest.raises(ValueError, match=message):
            importance(model, tiny_batches())


def test_bad_weights_are_refused():
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        importance(model, tiny_batches())

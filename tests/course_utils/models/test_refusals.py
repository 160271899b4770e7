"""Weights that are elsewhere are neither scored nor cut; the tests of each method have its other refusals."""

from __future__ import annotations

import pytest
import torch
from accelerate import disk_offload, dispatch_model
from tiny import tiny_model
from transformers import AutoModelForCausalLM

from course_utils.pruning.channels import prune_channels
from course_utils.pruning.heads import prune_kv_groups
from course_utils.pruning.width import neuron_importance, prune_neurons


def without_numbers():
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(tiny_model("llama").config)


def offloaded(folder, *, everything=False):
    model = tiny_model("llama")
    if everything:
        return disk_offload(model, folder)
    places = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.layers.2": "cpu"}
    places |= {"model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    return dispatch_model(model, places, main_device="cpu", offload_dir=folder)


SCORES = [torch.arange(48.0)] * 3
CUTS = {
    "cut neurons": lambda model: prune_neurons(model, SCORES, ratio=0.5),
    "cut KV groups": lambda model: prune_kv_groups(model, [torch.arange(2.0)] * 3, groups=1),
    "cut channels": lambda model: prune_channels(model, torch.arange(32.0), size=16),
}


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("action", CUTS)
def test_offloaded_weights_are_not_cut(action, everything, tmp_path):
    model = offloaded(tmp_path, everything=everything)
    shapes, config = {name: w.shape for name, w in model.named_parameters()}, model.config.to_dict()
    with pytest.raises(ValueError, match=f"Can't {action}: .* 'meta' device.*without a device_map"):
        CUTS[action](model)
    assert {name: w.shape for name, w in model.named_parameters()} == shapes and model.config.to_dict() == config


@pytest.mark.parametrize("action", CUTS)
def test_sizes_can_be_tried_without_numbers(action):
    report = CUTS[action](without_numbers())
    assert report.after.parameters < report.before.parameters


@pytest.mark.parametrize("criterion", ["l1", "random"])
def test_missing_weights_are_not_scored(criterion, tmp_path):
    for model in (without_numbers(), offloaded(tmp_path)):
        with pytest.raises(ValueError, match=r"Can't score neurons: \d+ of \d+ weights are on the 'meta' device"):
            neuron_importance(model, criterion)

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tiny import FAMILIES, tiny_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from course_utils.models.reports import model_size, shown, shown_p, with_interval
from course_utils.pruning.channels import prune_channels
from course_utils.pruning.heads import prune_kv_groups
from course_utils.pruning.width import neuron_importance, prune_neurons

NARROW_EMBEDDING = {"word_embed_proj_dim": 16, "do_layer_norm_before": False}  # OPT-350M's layout


@pytest.mark.parametrize(("family", "settings"), [*((family, {}) for family in FAMILIES), ("opt", NARROW_EMBEDDING)])
def test_measure_counts_what_torch_counts(family, settings):
    model = tiny_model(family, **settings)
    size = model_size(model)
    assert size.parameters == model.num_parameters()
    assert size.bytes == 4 * model.num_parameters()
    tokens = 7
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.ones(1, tokens, dtype=torch.long))
    counted = counter.get_flop_counts()["Global"]
    linear = sum(n for op, n in counted.items() if "mm" in str(op) and "bmm" not in str(op))
    assert size.flops * tokens == linear


def test_distilgpt2_at_twenty_percent():
    """81,912,576 -> 76,250,268, from the configuration alone: no weights, no download."""
    config = AutoConfig.for_model("gpt2", n_layer=6)  # distilGPT2 is GPT-2 with 6 of its 12 blocks
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    report = prune_neurons(model, [torch.arange(3072.0)] * 6, ratio=0.2)
    assert (report.before.parameters, report.after.parameters) == (81_912_576, 76_250_268)


def test_report_prints():
    model = tiny_model("llama")
    report = prune_neurons(model, neuron_importance(model, "l1"), ratio=0.25, layers=[1])
    text, html = str(report), report._repr_html_()
    for table in (text, html):
        assert f"{report.before.parameters:,}" in table
        assert f"{report.after.parameters:,}" in table
        assert "36–48" in table
    assert "parameters" in text.splitlines()[2]
    assert "KV groups" not in text and "hidden size" not in text


def test_report_names_the_axis_that_was_cut():
    model = tiny_model("llama")
    groups = prune_kv_groups(model, [torch.ones(2)] * 3, groups=1)
    channels = prune_channels(model, torch.arange(32.0), size=24)
    assert groups.rows()[-1] == ("KV groups a block", "2", "1", "-50.00 %")
    assert channels.rows()[-1] == ("hidden size", "32", "24", "-25.00 %")
    assert len(groups.rows()) == len(channels.rows()) == 6


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0.00"), (0.00002, "2.0·10^-5"), (0.0044, "0.004"), (0.034, "0.03"), (1.08, "1.08"), (15.26, "15.3"),
        (999.97, "1,000.0"), (1234.5, "1,234"), (999_999, "999,999"), (1e6, "1.0·10^6"), (9.97e6, "1.0·10^7"),
        (2.34e10, "2.3·10^10"), (1e300, "1.0·10^300"), (math.inf, "inf"), (math.nan, "nan"), (-2.5, "-2.50"),
        (np.float64(1.08), "1.08"),
    ],
)  # fmt: skip
def test_numbers_of_every_size_can_be_read(value, text):
    assert shown(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "1.000"), (0.0469, "0.047"), (0.001, "0.001"), (0.0004, "0.0004"), (1 / 10_001, "< 0.0001"),
        (0.0001, "0.0001"), (3.8e-6, "< 0.0001"), (0.0, "< 0.0001"), (math.nan, "nan"), (np.float64(0.5), "0.500"),
    ],
)  # fmt: skip
def test_a_p_value_is_never_zero(value, text):
    assert shown_p(value) == text


def test_a_number_with_its_interval():
    assert with_interval(1.131, 1.105, 1.15) == "1.13 (1.10 to 1.15)"
    assert with_interval(3e6, 950, math.inf) == "3.0·10^6 (950.0 to inf)"

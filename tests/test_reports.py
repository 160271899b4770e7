from __future__ import annotations

import pytest
import torch
from tiny import FAMILIES, tiny_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from course_utils.reports import measure
from course_utils.width import neuron_importance, prune_neurons


@pytest.mark.parametrize("family", FAMILIES)
def test_measure_counts_what_torch_counts(family):
    model = tiny_model(family)
    size = measure(model)
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
    for shown in (text, html):
        assert f"{report.before.parameters:,}" in shown
        assert f"{report.after.parameters:,}" in shown
        assert "36–48" in shown
    assert "parameters" in text.splitlines()[2]

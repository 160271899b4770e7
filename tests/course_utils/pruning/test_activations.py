"""Activations are taken where they should be, once, and nothing stays behind."""

from __future__ import annotations

import pytest
import torch
from tiny import FAMILIES, tiny_batches, tiny_model

from course_utils.models.architectures import describe
from course_utils.pruning.activations import SITES, sites_of, watching
from course_utils.pruning.attention import bypass_attention
from course_utils.pruning.width import neuron_importance, prune_neurons
from course_utils.text.batches import read_batch

DENSE = ("gpt2", "opt", "gpt_neox")
WIDE = ("gate", "up", "down_input")


def run(model, batch, sites=None, blocks=None) -> dict[tuple[str, int], torch.Tensor]:
    """Every state of one forward pass."""
    architecture, seen = describe(model), {}

    def receive(site, block, states):
        assert (site, block) not in seen
        seen[site, block] = states.detach()

    with torch.no_grad(), watching(architecture, sites_of(architecture) if sites is None else sites, blocks, receive):
        architecture.hidden_states(read_batch(batch, vocab_size=97, device="cpu"))
    return seen


def hooks_of(model) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


# --- sites ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_every_site_is_what_it_says(family):
    model, batch = tiny_model(family), tiny_batches(padding="right")[1]
    architecture, seen = describe(model), run(model, batch)
    assert set(seen) == {(site, block) for site in SITES for block in range(3) if site != "gate" or family not in DENSE}
    for (site, _), states in seen.items():
        width = architecture.intermediate_sizes[0] if site in WIDE else 32
        assert states.shape == (2, 12, width)
    inputs = read_batch(batch, vocab_size=97, device="cpu").inputs()
    stream = model(**inputs, output_hidden_states=True).hidden_states
    for block, mlp in enumerate(architecture.mlps):
        before = stream[block]
        after = seen["residual", block]
        if block < 2:  # the last of hidden_states comes after the final norm
            torch.testing.assert_close(after, stream[block + 1])
        parts = seen["attention_out", block] + seen["mlp_out", block]
        torch.testing.assert_close(after, before + parts)
        attention_input = architecture.attentions[block].norms[0](before)
        torch.testing.assert_close(seen["attention_norm", block], attention_input)
        middle = before if family == "gpt_neox" else before + seen["attention_out", block]  # parallel in GPT-NeoX
        torch.testing.assert_close(seen["mlp_norm", block], mlp.norm(middle))
        rows = [seen["mlp_norm", block] @ weight.T for weight in mlp.rows]
        biases = [p.bias for p in mlp.inputs if p.bias is not None]
        rows = [row + bias for row, bias in zip(rows, biases, strict=True)] if biases else rows
        names = ("up",) if family in DENSE else ("gate", "up")
        for name, row in zip(names, rows, strict=True):
            torch.testing.assert_close(seen[name, block], row, atol=1e-5, rtol=1e-5)
        names_of_it = ("act", "act_fn", "activation_fn")  # the activation function, whatever the family calls it
        activation = next(getattr(mlp.owner, name) for name in names_of_it if hasattr(mlp.owner, name))
        product = activation(seen[names[0], block]) * (1 if family in DENSE else seen["up", block])
        torch.testing.assert_close(seen["down_input", block], product)


def test_only_the_sites_and_blocks_asked_for():
    model, batch = tiny_model("llama"), tiny_batches()[0]
    assert list(run(model, batch, ["up", "residual"], [2, 0])) == [
        ("up", 0),
        ("residual", 0),
        ("up", 2),
        ("residual", 2),
    ]


def test_a_model_that_normalises_after_the_sum_has_no_norm_sites():
    model = tiny_model("opt", do_layer_norm_before=False)
    assert sites_of(describe(model)) == ("attention_out", "mlp_out", "up", "down_input", "residual")
    assert len(run(model, tiny_batches()[0])) == 15
    with pytest.raises(ValueError, match=r"attention_out, mlp_out.*'mlp_norm'"):
        run(model, tiny_batches()[0], ["mlp_norm"])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("remove", [False, True])
def test_a_bypassed_attention_adds_zeros_and_has_no_norm(family, remove):
    model = tiny_model(family)
    bypass_attention(model, [1], remove=remove)
    seen = run(model, tiny_batches()[0], ["attention_out", "attention_norm", "residual"])
    assert set(seen) == {
        ("attention_out", 0), ("attention_out", 1), ("attention_out", 2), ("attention_norm", 0), ("attention_norm", 2),
        ("residual", 0), ("residual", 1), ("residual", 2),
    }  # fmt: skip
    assert not seen["attention_out", 1].any() and seen["attention_out", 0].any()


def test_blocks_of_different_widths():
    model = tiny_model("phi3")
    prune_neurons(model, neuron_importance(model, "l1"), ratio=0.5, layers=[1])
    seen = run(model, tiny_batches()[0], WIDE)
    assert {key: states.shape[-1] for key, states in seen.items()} == {
        (site, block): (24 if block == 1 else 48) for site in WIDE for block in range(3)
    }


def test_hooks_go_and_modes_come_back():
    model = tiny_model("llama").train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    architecture = describe(model)
    batch = tiny_batches()[0]

    def refuse(site, block, states):
        assert not model.training
        raise RuntimeError("receiver")

    def watch_and_run():
        with watching(architecture, SITES, None, refuse):
            assert hooks_of(model) == 3 + 3 * len(SITES)
            model(**batch)

    with pytest.raises(RuntimeError, match="receiver"):
        watch_and_run()
    assert hooks_of(model) == 0
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(IndexError), watching(architecture, SITES, None, lambda *_: None):
        model(torch.tensor([[97]]))  # not in the vocabulary
    assert hooks_of(model) == 0
    run(model, batch)
    assert hooks_of(model) == 0
    assert [module.training for module in model.modules()] == modes


# --- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sites": []}, "attention_out, mlp_out"),
        ({"sites": ["mlp"]}, r"attention_out, mlp_out.*\['mlp'\]"),
        ({"sites": ["up", "up"]}, "different sites"),
        ({"blocks": [3]}, "from 0 to 2"),
        ({"blocks": [1, 1]}, "repeat"),
        ({"blocks": [True]}, "list of integers"),
        ({"blocks": []}, "None for all"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    model = tiny_model("llama")
    with pytest.raises(ValueError, match=message):
        run(model, tiny_batches()[0], **({"sites": ["up"], "blocks": None} | arguments))
    assert hooks_of(model) == 0


def test_a_dense_model_has_no_gate():
    with pytest.raises(ValueError, match=r"dense model \(gpt2\): attention_out, mlp_out, up, down_input"):
        run(tiny_model("gpt2"), tiny_batches()[0], ["gate"])

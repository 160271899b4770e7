"""Activations are taken where they should be, and counted once."""

from __future__ import annotations

import pytest
import torch
from tiny import FAMILIES, tiny_batches, tiny_model

from course_utils.activations import SITES, capture, sites_of, watching
from course_utils.architectures import describe
from course_utils.attention import bypass_attention
from course_utils.batches import read_batch
from course_utils.width import neuron_importance, prune_neurons

DENSE = ("gpt2", "opt", "gpt_neox")
WIDE = ("gate", "up", "down_input")


def run(model, batch, sites=None, blocks=None) -> dict[tuple[str, int], torch.Tensor]:
    """Every state of one forward pass."""
    architecture, seen = describe(model), {}

    def receive(site, block, states):
        assert (site, block) not in seen
        seen[site, block] = states.detach()

    with torch.no_grad(), watching(architecture, sites or sites_of(architecture), blocks, receive):
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
        capture(model, tiny_batches(), sites=["mlp_norm"])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("remove", [False, True])
def test_a_bypassed_attention_adds_zeros_and_has_no_norm(family, remove):
    model = tiny_model(family)
    bypass_attention(model, [1], remove=remove)
    activations = capture(model, tiny_batches(), sites=["attention_out", "attention_norm", "residual"])
    assert set(activations.statistics) == {
        ("attention_out", 0), ("attention_out", 1), ("attention_out", 2), ("attention_norm", 0), ("attention_norm", 2),
        ("residual", 0), ("residual", 1), ("residual", 2),
    }  # fmt: skip
    assert activations.statistics["attention_out", 1].norm_max == 0
    assert activations.statistics["attention_out", 0].norm_mean > 0


def test_blocks_of_different_widths():
    model = tiny_model("phi3")
    prune_neurons(model, neuron_importance(model, "l1"), ratio=0.5, layers=[1])
    seen = run(model, tiny_batches()[0], WIDE)
    assert {key: states.shape[-1] for key, states in seen.items()} == {
        (site, block): (24 if block == 1 else 48) for site in WIDE for block in range(3)
    }
    kept = capture(model, tiny_batches(), sites=["up"], keep=True, budget=66 * (48 + 24 + 48) * 4)  # exactly enough
    assert kept.values["up", 1].shape == (66, 24)


def test_hooks_go_and_modes_come_back():
    model = tiny_model("llama").train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    architecture = describe(model)
    batch = tiny_batches()[0]

    def refuse(site, block, states):
        assert not model.training
        raise RuntimeError("receiver")

    with pytest.raises(RuntimeError, match="receiver"), watching(architecture, SITES, None, refuse):
        assert hooks_of(model) == 3 + 3 * len(SITES)
        model(**batch)
    assert hooks_of(model) == 0
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(IndexError), watching(architecture, SITES, None, lambda *_: None):
        model(torch.tensor([[97]]))  # not in the vocabulary
    assert hooks_of(model) == 0
    capture(model, [batch], sites=SITES)
    assert hooks_of(model) == 0
    assert [module.training for module in model.modules()] == modes


# --- statistics -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_streaming_statistics_are_those_of_the_kept_values(family):
    model = tiny_model(family)
    batches = tiny_batches(padding="right")
    sites = sites_of(describe(model))
    streamed, kept = (capture(model, batches, sites=sites, keep=keep) for keep in (False, True))
    assert streamed.values is streamed.positions is None
    lengths = [12, 11, 10, 9, 8, 7]
    assert (kept.tokens, kept.first_tokens) == (streamed.tokens, streamed.first_tokens) == (sum(lengths) - 6, 6)
    assert kept.positions.tolist() == [[row, i] for row, length in enumerate(lengths) for i in range(1, length)]
    for key, values in kept.values.items():
        norms, statistics = values.double().norm(dim=1), streamed.statistics[key]
        torch.testing.assert_close(statistics.mean, values.mean(dim=0))
        torch.testing.assert_close(statistics.rms, values.square().mean(dim=0).sqrt())
        expected = [float(norms.mean()), float(norms.std(correction=0)), float(norms.max())]
        assert [statistics.norm_mean, statistics.norm_sd, statistics.norm_max] == pytest.approx(expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_neither_padding_nor_batches_matter(family):
    model = tiny_model(family)
    sites = sites_of(describe(model))
    rows = tiny_batches(padding="right", size=1)
    variants = {
        "left": tiny_batches(padding="left"),
        "one batch": tiny_batches(padding="right", size=6),
        "unpadded": [{"input_ids": row["input_ids"][row["attention_mask"].bool()][None]} for row in rows],
        "generator": iter(rows),
    }
    reference = capture(model, tiny_batches(padding="right"), sites=sites, keep=True)
    for name, batches in variants.items():
        other = capture(model, batches, sites=sites, keep=True)
        assert torch.equal(other.positions, reference.positions), name
        assert (other.tokens, other.first_tokens) == (51, 6)
        for key, values in reference.values.items():
            torch.testing.assert_close(other.values[key], values, atol=1e-5, rtol=1e-5, msg=name)
            torch.testing.assert_close(other.statistics[key].mean, reference.statistics[key].mean, atol=1e-5, rtol=1e-5)


def test_the_first_token_never_counts():
    model, batch = tiny_model("llama"), tiny_batches(rows=1)[0]
    seen = run(model, batch, ["up"])
    kept = capture(model, [batch], sites=["up"], keep=True)
    assert torch.equal(kept.values["up", 0], seen["up", 0][0, 1:])
    with pytest.raises(ValueError, match="one token only"):
        capture(model, [{"input_ids": torch.tensor([[5], [6]])}], sites=["up"])
    mixed = [{"input_ids": torch.tensor([[5]])}, batch]  # a batch without anything to count is no error
    assert capture(model, mixed, sites=["up"]).tokens == 11
    assert capture(model, mixed, sites=["up"], keep=True).positions[:, 0].unique().tolist() == [1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_statistics_do_not_overflow(dtype):
    model = tiny_model("llama")
    with torch.no_grad():
        describe(model).mlps[0].rows[1].mul_(300)  # squares beyond float16's 65,504
    exact = capture(model, tiny_batches(), sites=["up"], blocks=[0])
    low = capture(model.to(dtype), tiny_batches(), sites=["up"], blocks=[0], keep=True)
    assert low.values["up", 0].dtype == dtype
    assert low.statistics["up", 0].rms.dtype == torch.float32
    torch.testing.assert_close(low.statistics["up", 0].rms, exact.statistics["up", 0].rms, rtol=0.05, atol=5)
    assert low.statistics["up", 0].norm_mean == pytest.approx(exact.statistics["up", 0].norm_mean, rel=0.02)


def test_one_forward_pass_a_batch_and_none_beyond_the_budget():
    model, calls = tiny_model("llama"), []
    model.model.register_forward_pre_hook(lambda *_: calls.append(1))
    capture(model, tiny_batches(), sites=SITES, keep=True)
    assert len(calls) == 3
    with pytest.raises(ValueError, match=r"66 tokens x 240 numbers.*63,360 bytes.*63,359"):
        capture(model, tiny_batches(), sites=["up", "residual"], keep=True, budget=66 * 240 * 4 - 1)
    assert len(calls) == 3
    capture(model, tiny_batches(), sites=["up", "residual"], keep=False, budget=0)


def test_the_frame_is_tidy():
    frame = capture(tiny_model("llama"), tiny_batches(), sites=["up", "mlp_out"]).frame()
    assert list(frame.columns) == ["site", "block", "rms", "norm_mean", "norm_sd", "norm_max"]
    assert frame[["site", "block"]].values.tolist() == [[s, b] for s in ("up", "mlp_out") for b in range(3)]
    assert (frame["norm_max"] >= frame["norm_mean"]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sites": []}, "attention_out, mlp_out"),
        ({"sites": ["mlp"]}, r"attention_out, mlp_out.*\['mlp'\]"),
        ({"sites": ["up", "up"]}, "different sites"),
        ({"blocks": [3]}, "from 0 to 2"),
        ({"blocks": [1, 1]}, "repeat"),
        ({"blocks": []}, "None for all"),
        ({"batches": []}, "empty"),
        ({"batches": [torch.ones(2, 3)]}, "mapping"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    model = tiny_model("llama")
    with pytest.raises(ValueError, match=message):
        capture(model, **({"batches": tiny_batches(), "sites": ["up"]} | arguments))
    assert hooks_of(model) == 0


def test_a_dense_model_has_no_gate():
    with pytest.raises(ValueError, match=r"dense model \(gpt2\): attention_out, mlp_out, up, down_input"):
        capture(tiny_model("gpt2"), tiny_batches(), sites=["gate"])


def test_non_finite_activations_are_named():
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("inf")
    with pytest.raises(ValueError, match=r"\('up', 1\)"):
        capture(model, tiny_batches(), sites=["up"])

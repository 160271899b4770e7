"""States are taken where they should be, once; scores count real tokens only; and nothing stays behind."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import FAMILIES, tiny_batches, tiny_model

from course_utils.models.architectures import describe
from course_utils.pruning.activations import (
    SITES,
    CosineDistance,
    read_once,
    run_keeping,
    sites_of,
    starting_at,
    watching,
)
from course_utils.pruning.attention import bypass_attention
from course_utils.pruning.width import neuron_importance, prune_neurons
from course_utils.text.batches import read_batch

DENSE = ("gpt2", "opt", "gpt_neox")
WIDE = ("gate", "up", "down_input")


def read(batch):
    return read_batch(batch, vocab_size=97, device="cpu")


def run(model, batch, sites=None, blocks=None) -> dict[tuple[str, int], torch.Tensor]:
    """Every state of one forward pass."""
    architecture, seen = describe(model), {}

    def receive(site, block, states):
        assert (site, block) not in seen
        seen[site, block] = states.detach()

    with torch.no_grad(), watching(architecture, sites_of(architecture) if sites is None else sites, blocks, receive):
        architecture.hidden_states(read(batch))
    return seen


def hooks_of(model) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


# --- watching -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_every_site_is_what_it_says(family):
    model, batch = tiny_model(family), tiny_batches(padding="right")[1]
    architecture, seen = describe(model), run(model, batch)
    assert set(seen) == {(site, block) for site in SITES for block in range(3) if site != "gate" or family not in DENSE}
    for (site, _), states in seen.items():
        assert states.shape == (2, 12, architecture.intermediate_sizes[0] if site in WIDE else 32)
    stream = model(**read(batch).inputs(), output_hidden_states=True).hidden_states
    for block, mlp in enumerate(architecture.mlps):
        before, after = stream[block], seen["residual", block]
        if block < 2:  # the last of hidden_states comes after the final norm
            torch.testing.assert_close(after, stream[block + 1])
        torch.testing.assert_close(after, before + (seen["attention_out", block] + seen["mlp_out", block]))
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
    seen = run(tiny_model("llama"), tiny_batches()[0], ["up", "residual"], [2, 0])
    assert list(seen) == [("up", 0), ("residual", 0), ("up", 2), ("residual", 2)]


def test_a_model_that_normalises_after_the_sum_has_no_norm_sites():
    model = tiny_model("opt", do_layer_norm_before=False)
    assert sites_of(describe(model)) == ("attention_out", "mlp_out", "up", "down_input", "residual")
    assert len(run(model, tiny_batches()[0])) == 15
    with pytest.raises(ValueError, match=r"attention_out, mlp_out.*'mlp_norm'"):
        run(model, tiny_batches()[0], ["mlp_norm"])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("remove", [False, True])
def test_a_bypassed_attention_adds_zeros_and_has_no_norm(family, remove):
    model, sites = tiny_model(family), ("attention_out", "attention_norm", "residual")
    bypass_attention(model, [1], remove=remove)
    seen = run(model, tiny_batches()[0], sites)
    assert set(seen) == {(site, block) for site in sites for block in range(3)} - {("attention_norm", 1)}
    assert not seen["attention_out", 1].any() and seen["attention_out", 0].any()


def test_blocks_of_different_widths():
    model = tiny_model("phi3")
    prune_neurons(model, neuron_importance(model, "l1"), ratio=0.5, layers=[1])
    seen = run(model, tiny_batches()[0], WIDE)
    widths = {(site, block): (24 if block == 1 else 48) for site in WIDE for block in range(3)}
    assert {key: states.shape[-1] for key, states in seen.items()} == widths


def test_hooks_go_and_each_module_is_back_in_its_own_mode_after_an_error_too():
    model = tiny_model("llama").train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    architecture = describe(model)

    def refuse(site, block, states):
        assert not model.training
        raise RuntimeError("receiver")

    with pytest.raises(RuntimeError, match="receiver"), watching(architecture, SITES, None, refuse):
        assert hooks_of(model) == 3 + 3 * len(SITES)
        model(**tiny_batches()[0])
    assert hooks_of(model) == 0 and [module.training for module in model.modules()] == modes
    run(model, tiny_batches()[0])
    assert hooks_of(model) == 0 and [module.training for module in model.modules()] == modes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sites": []}, "attention_out, mlp_out"),
        ({"sites": ["mlp"]}, r"attention_out, mlp_out.*\['mlp'\]"),
        ({"sites": ["up", "up"]}, "different sites"),
        ({"blocks": [3]}, "from 0 to 2"),
        ({"blocks": []}, "'blocks' is empty"),
        ({"family": "gpt2", "sites": "gate"}, r"dense model \(gpt2\): attention_out, mlp_out, up, down_input"),
    ],
)
def test_bad_sites_and_blocks_are_refused_before_there_are_hooks(arguments, message):
    given = {"family": "llama", "sites": ["up"], "blocks": None} | arguments
    model = tiny_model(given.pop("family"))
    with pytest.raises(ValueError, match=message):
        run(model, tiny_batches()[0], **given)
    assert hooks_of(model) == 0


# --- one reading for several scores -----------------------------------------------------------------


def first_inputs(reading):
    """Watches what enters block 0: the rows of real tokens, and how many there were at each batch."""
    seen = []

    def hook(_module, args, kwargs):
        seen.append((reading.select((args or [kwargs["hidden_states"]])[0]), reading.tokens))

    return [reading.architecture.blocks[0].register_forward_pre_hook(hook, with_kwargs=True)], lambda: seen


@pytest.mark.parametrize("padding", [None, "left", "right"])
def test_watchers_see_real_tokens_in_their_order(padding):
    model, batches = tiny_model(), tiny_batches(padding=padding)
    one, other = read_once(describe(model), batches, first_inputs, first_inputs)
    real = [batch["attention_mask"].bool() for batch in batches]
    assert [tokens for _, tokens in one] == torch.tensor([int(r.sum()) for r in real]).cumsum(0).tolist()
    for (states, _), (again, _), batch, mask in zip(one, other, batches, real, strict=True):
        assert torch.equal(states, again) and not states.requires_grad
        assert torch.equal(states, model.get_input_embeddings()(batch["input_ids"][mask]))


# --- how far a module turns the stream --------------------------------------------------------------


def vectors(*angles):
    """[1, tokens, 2] unit vectors at these angles, in degrees."""
    return torch.tensor([[[math.cos(math.radians(a)), math.sin(math.radians(a))] for a in angles]])


def test_distance_is_one_minus_the_cosine_over_the_real_tokens_of_all_batches():
    meter, both = CosineDistance(), torch.tensor([[True, True]])
    meter.add(vectors(0, 0), 7 * vectors(60, 180), both)  # length doesn't matter
    assert meter.mean() == pytest.approx((0.5 + 2) / 2)
    padded = torch.cat([vectors(0), torch.full((1, 1, 2), math.nan)], 1)
    meter.add(vectors(0, 0), padded, torch.tensor([[True, False]]))
    assert meter.mean() == pytest.approx(2.5 / 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_distances_in_low_precision_are_computed_in_float32(dtype):
    before = 300 * torch.randn(1, 9, 64, generator=torch.Generator().manual_seed(0))  # squares beyond float16's 65,504
    after = (1.01 * before).roll(1, dims=-1) * 0.01 + before
    before, after, meter = before.to(dtype), after.to(dtype), CosineDistance()
    meter.add(before, after, torch.ones(1, 9, dtype=torch.bool))
    x, y = before[0].double(), after[0].double()
    exact = (1 - (x * y).sum(-1) / x.norm(dim=-1) / y.norm(dim=-1)).mean()
    assert meter.mean() == pytest.approx(float(exact), rel=1e-2)


# --- from some block upwards ------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_upper_blocks_give_the_same_and_the_lower_ones_do_not_run(family):
    architecture = describe(tiny_model(family, layers=4))
    batch, ran = read(tiny_batches(padding="left", size=6)[0]), []
    expected, kept = run_keeping(architecture, batch, [0, 2, 3])
    assert kept.keys() == {0, 2, 3}
    for number, mlp in enumerate(architecture.mlps):
        mlp.contribution.register_forward_hook(lambda *_, number=number: ran.append(number))
    for first in (0, 2, 3):
        with starting_at(architecture, first, kept):
            states, above = run_keeping(architecture, batch, range(first + 1, 4))
        assert torch.equal(states, expected)
        assert ran == list(range(first, 4))
        assert above.keys() == {0, *range(first + 1, 4)}
        ran.clear()
    assert not any("forward" in vars(block) for block in architecture.blocks)


@torch.no_grad()
def test_a_forward_that_was_put_there_comes_back_after_an_error():
    architecture = describe(tiny_model(layers=3))
    batch, block = read(tiny_batches()[0]), architecture.blocks[0]
    _, kept = run_keeping(architecture, batch, [2])
    block.forward = own = type(block).forward.__get__(block)  # as accelerate does, to move what comes in
    with pytest.raises(KeyboardInterrupt), starting_at(architecture, 2, kept):
        raise KeyboardInterrupt
    assert vars(block)["forward"] is own
    assert "forward" not in vars(architecture.blocks[1])

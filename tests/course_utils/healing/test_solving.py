"""What can be mended is mended exactly, text counts once whatever its batches are, and nothing else is touched."""

from __future__ import annotations

import pytest
import torch
from tiny import FAMILIES, tiny_batches, tiny_model

from course_utils.healing.solving import _solved, refit
from course_utils.models.architectures import describe
from course_utils.models.loading import variant
from course_utils.pruning.attention import bypass_attention
from course_utils.pruning.depth import remove_blocks
from course_utils.pruning.width import neuron_importance, prune_neurons
from course_utils.text.batches import read_batch

BATCHES = tiny_batches(rows=24, length=24, size=6, padding="right")
MENDABLE = [family for family in FAMILIES if not family.startswith("gemma")]


def states(model, batch):
    """What enters the head, at the real tokens [tokens, hidden]."""
    architecture = describe(model)
    read = read_batch(batch, vocab_size=97, device="cpu")
    with torch.no_grad():
        return architecture.hidden_states(read)[read.real]


def apart(student, teacher, batches=BATCHES):
    return sum((states(student, batch).float() - states(teacher, batch).float()).square().sum() for batch in batches)


def with_twins(model):
    """Each second neuron of a model becomes the twin of the one before it, with a column of its own."""
    with torch.no_grad():
        for mlp in describe(model).mlps:
            rows = [*mlp.rows, *(p.bias for p in mlp.inputs if p.bias is not None)]
            for row in rows:
                row[1::2] = row[0::2]
    return model


def without_twins(model):
    """A student that lost each second neuron."""
    student = variant(model)
    scores = [torch.arange(mlp.width) % 2 == 0 for mlp in describe(student).mlps]
    prune_neurons(student, [score.float() for score in scores], ratio=0.5)
    return student


@pytest.mark.parametrize("family", MENDABLE)
def test_what_the_kept_neurons_can_say_comes_back_exactly(family):
    teacher = with_twins(tiny_model(family, attn_implementation="eager"))
    student = without_twins(teacher)
    before = {name: weight.clone() for name, weight in student.named_parameters()}
    lost = [states(teacher, batch) - states(student, batch) for batch in BATCHES]
    assert max(each.abs().max() for each in lost) > 0.1
    refit(student, teacher, BATCHES, ridge=1e-9)
    for batch in BATCHES:
        torch.testing.assert_close(states(student, batch), states(teacher, batch), rtol=1e-3, atol=1e-3)
    moved = {id(weight) for mlp in describe(student).mlps for weight in mlp.output.module.parameters()}
    for name, weight in student.named_parameters():
        assert torch.equal(weight, before[name]) == (id(weight) not in moved), name


@pytest.mark.parametrize("family", ["gpt2", "opt", "gpt_neox"])
def test_what_removed_neurons_always_say_goes_into_the_bias(family):
    teacher = tiny_model(family)
    with torch.no_grad():
        for mlp in describe(teacher).mlps:
            mlp.rows[0][1::2] = 0  # they say what their bias is, whatever comes in
            mlp.inputs[0].bias[1::2] += 1
    student = without_twins(teacher)
    assert (states(teacher, BATCHES[0]) - states(student, BATCHES[0])).abs().max() > 0.1
    refit(student, teacher, BATCHES, ridge=1e-9)
    torch.testing.assert_close(states(student, BATCHES[0]), states(teacher, BATCHES[0]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", MENDABLE)
def test_a_cut_comes_nearer_on_text_that_was_not_solved_over(family):
    teacher = tiny_model(family)
    student = variant(teacher)
    prune_neurons(student, neuron_importance(student, "random"), ratio=0.3)
    unseen = tiny_batches(rows=24, length=24, size=24, seed=5)
    lost = apart(student, teacher, unseen)
    refit(student, teacher, tiny_batches(rows=96, length=24, size=24), ridge=0.01)
    assert apart(student, teacher, unseen) < 0.9 * lost


def test_a_strong_ridge_keeps_the_old_weights_and_a_weak_one_does_not():
    teacher = tiny_model()
    cut = variant(teacher)
    prune_neurons(cut, neuron_importance(cut, "random"), ratio=0.5)
    old = describe(cut).mlps[0].columns.clone()
    moved = []
    for ridge in (1e9, 1.0, 1e-6):
        student = variant(cut)
        refit(student, teacher, BATCHES, ridge=ridge)
        moved.append((describe(student).mlps[0].columns - old).norm())
    assert moved[0] < 1e-6 < moved[1] < moved[2]


@pytest.mark.parametrize("padding", ["left", "right"])
def test_padding_and_batches_do_not_count(padding):
    teacher = tiny_model()
    cut = variant(teacher)
    prune_neurons(cut, neuron_importance(cut, "random"), ratio=0.5)
    results, text = [], {"rows": 12, "length": 24, "padding": padding}
    alone = tiny_batches(size=1, **text)
    bare = [{"input_ids": batch["input_ids"][batch["attention_mask"].bool()][None]} for batch in alone]
    for batches in (tiny_batches(size=12, **text), bare):
        student = variant(cut)
        refit(student, teacher, batches)
        results.append(describe(student).mlps[-1].columns.clone())
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-4)


def test_the_first_token_counts():
    """A neuron that speaks there alone would otherwise keep its old weights, and the stream stay wrong."""
    teacher = tiny_model(layers=1)
    student = variant(teacher)
    prune_neurons(student, neuron_importance(student, "random"), ratio=0.3)
    one = [{"input_ids": torch.arange(3, 97)[:, None]}]  # rows of a single token
    lost = apart(student, teacher, one)
    refit(student, teacher, one)
    assert apart(student, teacher, one) < 0.5 * lost


def test_16_bits_mend_almost_as_well():
    left = []
    for dtype in (torch.float32, torch.bfloat16):
        teacher = with_twins(tiny_model(dtype=dtype))
        student = without_twins(teacher)
        lost = apart(student, teacher).sqrt()
        refit(student, teacher, BATCHES, ridge=1e-4)
        assert {weight.dtype for weight in student.parameters()} == {dtype}
        left.append(apart(student, teacher).sqrt() / lost)
    assert left[0] < 0.01 and left[1] < 0.2


def test_solved_is_the_least_squares_of_stacked_rows():
    generator = torch.Generator().manual_seed(0)
    x, y, old = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((50, 8), (50, 3), (3, 8)))
    x = x * torch.arange(1, 9)
    pull = (0.3 * x.square().sum(0)).sqrt().diag()
    expected = torch.linalg.lstsq(torch.cat([x, pull]), torch.cat([y, pull @ old.T])).solution.T
    torch.testing.assert_close(_solved(x.T @ x, x.T @ y, old, 0.3), expected)


def test_a_silent_neuron_keeps_its_weights():
    x = torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[:, 2] = 0
    old = torch.ones(3, 4)
    found = _solved(x.T @ x, x.T @ torch.ones(50, 3, dtype=torch.float64), old, 0.3)
    torch.testing.assert_close(found[:, 2], torch.ones(3, dtype=torch.float64))
    assert found.isfinite().all()


@pytest.mark.parametrize("after", [0, 2])
def test_after_ctrl_c_nothing_has_changed_and_no_hook_is_left(after, monkeypatch):
    teacher = tiny_model("gpt2")
    student = without_twins(teacher)
    before = [weight.clone() for weight in student.parameters()]
    calls = []

    def fail(*sums):
        calls.append(sums)
        if len(calls) > after:
            raise KeyboardInterrupt
        return _solved(*sums)

    monkeypatch.setattr("course_utils.healing.solving._solved", fail)
    with pytest.raises(KeyboardInterrupt):
        refit(student, teacher, BATCHES)
    assert all(map(torch.equal, student.parameters(), before))
    for model in (student, teacher):
        for module in model.modules():
            assert not module._forward_pre_hooks and "forward" not in vars(module)


def test_where_the_blocks_that_went_did_nothing_nothing_changes():
    """And the teacher's stream is the one in front of the next block that stayed, or at the end."""
    teacher = tiny_model(layers=5)
    with torch.no_grad():
        for number in (1, 2, 4):
            block = describe(teacher).blocks[number]
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
    student = variant(teacher)
    remove_blocks(student, [1, 2, 4])
    before = [mlp.down.weight.clone() for mlp in describe(student).mlps]
    refit(student, teacher, BATCHES, blocks=[0, 3])
    for mlp, weight in zip(describe(student).mlps, before, strict=True):
        torch.testing.assert_close(mlp.down.weight, weight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("gone", [[1], [2], [0]])
def test_the_block_in_front_makes_up_for_one_that_went(gone):
    teacher = tiny_model(layers=3)
    student = variant(teacher)
    remove_blocks(student, gone)
    stayed = [number for number in range(3) if number not in gone]
    lost = apart(student, teacher)
    refit(student, teacher, BATCHES, ridge=0.01, blocks=stayed)
    assert apart(student, teacher) < 0.9 * lost


def test_what_an_attention_wrote_is_made_up_for_as_far_as_it_goes():
    teacher = tiny_model()
    student = variant(teacher)
    bypass_attention(student, [1])
    before, lost = [weight.clone() for weight in teacher.parameters()], apart(student, teacher)
    refit(student, teacher, BATCHES)
    assert apart(student, teacher) < lost
    assert all(map(torch.equal, teacher.parameters(), before))  # the weights were shared


def without_a_block():
    student = tiny_model(layers=4)
    remove_blocks(student, [1])
    return student


def adaptive():
    student = tiny_model(layers=4)
    student.config.adaptive_attention = {"policy": "length"}
    return student


@pytest.mark.parametrize(
    ("student", "teacher", "settings", "named"),
    [
        (without_a_block, lambda: tiny_model(layers=4), {}, "Say with 'blocks' which ones"),
        (without_a_block, lambda: tiny_model(layers=4), {"blocks": [0, 2]}, "which ones stayed"),
        (without_a_block, lambda: tiny_model(layers=4), {"blocks": [1, 0, 2]}, "ascending"),
        (without_a_block, lambda: tiny_model(layers=4), {"blocks": [0, 0, 2]}, "ascending, each once"),
        (tiny_model, tiny_model, {"ridge": 0}, "'ridge'"),
        *((lambda f=f: tiny_model(f),) * 2 + ({}, "a norm stands between") for f in ("gemma2", "gemma3_text")),
        (*[lambda: tiny_model("opt", do_layer_norm_before=False)] * 2, {}, "a norm stands between"),
        (adaptive, lambda: tiny_model(layers=4), {}, "adaptive"),
        (lambda: tiny_model().to("meta"), tiny_model, {}, "'meta' device"),
    ],
)
def test_what_cannot_be_solved_is_refused(student, teacher, settings, named):
    with pytest.raises(ValueError, match=named):
        refit(student(), teacher(), BATCHES, **settings)

"""Lesson 01's checks refuse the stub, name the likely mistake, and accept the answers."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from exercise_cases import cases_of
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from course_utils.choosing import strongest
from course_utils.exercises import lesson_01
from course_utils.width import neuron_importance, prune_neurons

AXES = {
    "GPT-2 c_fc.weight": 1,
    "GPT-2 c_fc.bias": 0,
    "GPT-2 c_proj.weight": 0,
    "GPT-2 c_proj.bias": "none",
    "OPT fc1.weight": 0,
    "OPT fc2.weight": 1,
}


test_axes = cases_of(
    lesson_01.check_axes,
    stubs=[dict.fromkeys(AXES, ...)],
    mistakes=[
        (AXES | {"GPT-2 c_fc.weight": 0}, "c_fc.weight: a Conv1D stores [in, out]"),
        (AXES | {"GPT-2 c_proj.bias": 0}, "c_proj.bias: it has one number for each output"),
        (AXES | {"OPT fc1.weight": 1, "OPT fc2.weight": 0}, "2 of 6 to go"),
    ],
    answers=[AXES],
)


def l1(mlp):
    return mlp.c_fc.weight.abs().sum(0)


def keep_neurons(mlp, keep):
    mlp.c_fc.weight = nn.Parameter(mlp.c_fc.weight[:, keep])
    mlp.c_fc.bias = nn.Parameter(mlp.c_fc.bias[keep])
    mlp.c_proj.weight = nn.Parameter(mlp.c_proj.weight[keep])
    mlp.c_fc.nf = mlp.c_proj.nx = len(keep)


def prune_width(model, ratio, *, score=l1, choose=strongest, cut=keep_neurons, note=True):
    """The answer to exercise 2, with one switch for each foreseen mistake."""
    for block in model.transformer.h:
        keep = choose(score(block.mlp), ratio)
        cut(block.mlp, keep)
    if note:
        model.config.n_inner = len(keep)
    return model


def mistaken(**switches):
    return lambda model, ratio: prune_width(model, ratio, **switches)


def cut_and_then(after):
    """A cut, and something done to the MLP afterwards (mlp, its old tensors, the neurons that stay)."""

    def cut(mlp, keep):
        old = {name: weight.detach() for name, weight in mlp.named_parameters()}
        keep_neurons(mlp, keep)
        after(mlp, old, keep)

    return mistaken(cut=cut)


def put(name, new):
    """A cut after which one tensor is another: ``new(old tensor, neurons that stay)``."""

    def after(mlp, old, keep):
        layer, kind = name.split(".")
        setattr(getattr(mlp, layer), kind, nn.Parameter(new(old[name], keep)))

    return cut_and_then(after)


def silence(mlp, keep):
    gone = [neuron for neuron in range(mlp.c_fc.nf) if neuron not in keep]
    mlp.c_proj.weight[gone] = 0
    keep_neurons(mlp, keep)


def forget(layer, size):
    def after(mlp, old, keep):
        setattr(getattr(mlp, layer), size, len(old["c_fc.bias"]))

    return cut_and_then(after)


def rounded_up(scores, ratio):
    return scores.topk(int((1 - ratio) * len(scores))).indices.sort().values


def by_rank(scores, ratio):
    return scores.topk(len(scores) - int(ratio * len(scores))).indices


def first_block_only(model, ratio):
    mlp = model.transformer.h[0].mlp
    keep_neurons(mlp, strongest(l1(mlp), ratio))
    model.config.n_inner = mlp.c_fc.nf
    return model


def one_list_for_all(model, ratio):
    keep = strongest(l1(model.transformer.h[0].mlp), ratio)
    return prune_width(model, ratio, choose=lambda *_: keep)


def change_the_norm(model, ratio):
    model.transformer.ln_f.bias = nn.Parameter(model.transformer.ln_f.bias + 1)
    return prune_width(model, ratio)


def another_activation(model, ratio):
    model.config.activation_function = "relu"
    return prune_width(model, ratio)


def give_the_report(model, ratio):
    return prune_neurons(model, neuron_importance(model, "l1"), ratio=ratio)


def say(*_arguments):
    print("pruned")


def with_masks(model, ratio):
    """Another way: boolean masks, and new numbers under the old parameters."""
    for block in model.transformer.h:
        fc, proj = block.mlp.c_fc, block.mlp.c_proj
        ranks = fc.weight.detach().abs().sum(dim=0).argsort().argsort()
        stays = ranks >= int(ratio * len(ranks))
        fc.weight.data, fc.bias.data, proj.weight.data = fc.weight[:, stays], fc.bias[stays], proj.weight[stays]
        fc.nf = proj.nx = model.config.n_inner = int(stays.sum())
    return model


def with_new_layers(model, ratio):
    """Another way: smaller layers, filled."""
    for block in model.transformer.h:
        old = block.mlp
        scores = [column.norm(p=1).item() for column in old.c_fc.weight.T]
        gone = sorted(range(len(scores)), key=scores.__getitem__)[: int(ratio * len(scores))]
        keep = [neuron for neuron in range(len(scores)) if neuron not in gone]
        fc, proj = Conv1D(len(keep), old.c_fc.nx), Conv1D(old.c_proj.nf, len(keep))
        with torch.no_grad():
            fc.weight.copy_(old.c_fc.weight[:, keep])
            fc.bias.copy_(old.c_fc.bias[keep])
            proj.weight.copy_(old.c_proj.weight[keep])
            proj.bias.copy_(old.c_proj.bias)
        old.c_fc, old.c_proj = fc, proj
    model.config.n_inner = len(keep)
    return model


def with_the_library(model, ratio):
    give_the_report(model, ratio)
    return model


def three_blocks_only(model, ratio):
    """Right in all tiny models of the check, which have no more."""
    rest = model.transformer.h[3:]
    model.transformer.h = model.transformer.h[:3]
    prune_width(model, ratio)
    model.transformer.h.extend(rest)
    return model


FOUR_BLOCKS = GPT2LMHeadModel(GPT2Config(n_layer=4, n_embd=12, n_head=2, vocab_size=40))
test_prune_width = cases_of(
    partial(lesson_01.check_prune_width, real=FOUR_BLOCKS),
    stubs=[lambda model, ratio: ..., say],
    mistakes=[
        (give_the_report, "Return the model; yours returned a"),
        (three_blocks_only, "but in the real one ['transformer.h.3.mlp.c_fc.weight'] isn't as prune_neurons"),
        (lambda model, ratio: prune_width(copy.deepcopy(model), ratio), "You return another model"),
        (lambda model, ratio: model, "still has all of its 22 neurons"),
        (first_block_only, "Block 1: it still has all of its 22 neurons"),
        (put("c_proj.weight", lambda old, keep: old[:, keep]), "c_proj.weight should be [16, 22] and is [22, 16]"),
        (put("c_fc.weight", lambda old, keep: old[keep]), "c_fc.weight should be [22, 16] and is [16, 22]"),
        (put("c_fc.bias", lambda old, keep: old), "c_fc.bias should be [16] and is [22]"),
        (put("c_proj.bias", lambda old, keep: old[keep]), "c_proj.bias should be [22] and is [16]"),
        (put("c_proj.weight", lambda old, keep: old[keep.flip(0)]), "Use one list of neurons, in one order"),
        (put("c_fc.bias", lambda old, keep: old[: len(keep)]), "Use one list of neurons, in one order"),
        (put("c_fc.bias", lambda old, keep: 0 * old[keep]), "c_fc.bias holds numbers that weren't there before"),
        (mistaken(choose=by_rank), "Keep their old order"),
        (forget("c_fc", "nf"), "c_fc.nf is 22 and c_proj.nx is 16"),
        (forget("c_proj", "nx"), "c_fc.nf is 16 and c_proj.nx is 22"),
        (mistaken(note=False), "config.n_inner is 22, but the MLPs have 16"),
        (mistaken(cut=silence), "You wrote into transformer.h.0.mlp.c_proj.weight"),
        (mistaken(choose=rounded_up), "rounded down"),
        (mistaken(choose=lambda scores, ratio: scores.topk(int(ratio * len(scores))).indices), "as many as should go"),
        (mistaken(score=lambda mlp: -l1(mlp)), "you cut the strongest"),
        (mistaken(score=lambda mlp: mlp.c_fc.weight.sum(0)), "signs cancel"),
        (mistaken(score=lambda mlp: mlp.c_fc.weight.sum(0).abs()), "not after"),
        (mistaken(score=lambda mlp: mlp.c_fc.weight.abs().sum(1)), "summed over the neurons"),
        (mistaken(score=lambda mlp: mlp.c_fc.weight.norm(dim=0)), "L2 norm"),
        (mistaken(score=lambda mlp: l1(mlp) + mlp.c_fc.bias.abs()), "the bias doesn't belong"),
        (mistaken(score=lambda mlp: mlp.c_proj.weight.abs().sum(1)), "by c_proj's weights"),
        (one_list_for_all, "Block 1: these go by block 0's scores"),
        (mistaken(score=lambda mlp: torch.arange(mlp.c_fc.nf)), "other neurons should stay"),
        (another_activation, "the model gives other logits"),
        (change_the_norm, "transformer.ln_f.bias has other numbers now"),
        (mistaken(score=lambda mlp: mlp.c_fc.weight.abs().sum(0).numpy()), "Your code stopped with"),
    ],
    answers=[prune_width, with_masks, with_new_layers, with_the_library],
)


def keep_the_mean(model, scores, means, ratio, *, constant=lambda mean, rows, gone, keep: mean[gone] @ rows[gone]):
    """The answer to exercise 3; ``constant`` is what goes into the bias."""
    for block, of_block, mean in zip(model.transformer.h, scores, means, strict=True):
        keep = strongest(of_block, ratio)
        gone = [neuron for neuron in range(len(of_block)) if neuron not in keep]
        proj = block.mlp.c_proj
        proj.bias = nn.Parameter(proj.bias + constant(mean, proj.weight, gone, keep))
        keep_neurons(block.mlp, keep)
    model.config.n_inner = len(keep)
    return model


def adding(constant):
    return lambda model, scores, means, ratio: keep_the_mean(model, scores, means, ratio, constant=constant)


def nothing_kept(model, scores, means, ratio):
    prune_neurons(model, scores, ratio=ratio)
    return model


def nothing_cut(model, scores, means, ratio):
    biases = [block.mlp.c_proj for block in keep_the_mean(copy.deepcopy(model), scores, means, ratio).transformer.h]
    for block, proj in zip(model.transformer.h, biases, strict=True):
        block.mlp.c_proj.bias = proj.bias
    return model


def width_forgotten(model, scores, means, ratio):
    width = model.config.n_inner
    keep_the_mean(model, scores, means, ratio)
    model.config.n_inner = width
    return model


def old_bias_lost(model, scores, means, ratio):
    for block in model.transformer.h:
        block.mlp.c_proj.bias = nn.Parameter(torch.zeros_like(block.mlp.c_proj.bias))
    return keep_the_mean(model, scores, means, ratio)


def rows_after_the_cut(model, scores, means, ratio):
    prune_neurons(model, scores, ratio=ratio)
    for block, of_block, mean in zip(model.transformer.h, scores, means, strict=True):
        gone = of_block.argsort()[: int(ratio * len(of_block))]
        proj = block.mlp.c_proj
        proj.bias = nn.Parameter(proj.bias + mean[gone] @ proj.weight[gone])
    return model


def into_c_fc(model, scores, means, ratio):
    for block, of_block, mean in zip(model.transformer.h, scores, means, strict=True):
        keep = strongest(of_block, ratio)
        gone = [neuron for neuron in range(len(of_block)) if neuron not in keep]
        constant = mean[gone] @ block.mlp.c_proj.weight[gone]
        keep_neurons(block.mlp, keep)
        block.mlp.c_fc.bias = nn.Parameter(block.mlp.c_fc.bias + constant)
    model.config.n_inner = len(keep)
    return model


def in_place(model, scores, means, ratio):
    for block, of_block, mean in zip(model.transformer.h, scores, means, strict=True):
        gone = of_block.argsort()[: int(ratio * len(of_block))]
        block.mlp.c_proj.bias += mean[gone] @ block.mlp.c_proj.weight[gone]
    prune_neurons(model, scores, ratio=ratio)
    return model


def zero_the_means(model, scores, means, ratio):
    for of_block, mean in zip(scores, means, strict=True):
        mean[strongest(of_block, ratio)] = 0
    return keep_the_mean(model, scores, means, ratio)


def block_0s_means(model, scores, means, ratio):
    return keep_the_mean(model, scores, [means[0] for _ in means], ratio)


def with_zeros(model, scores, means, ratio):
    """Another way: the library's cut, and means that are zero where a neuron stays."""
    for block, of_block, mean in zip(model.transformer.h, scores, means, strict=True):
        left_out = mean.clone()
        left_out[strongest(of_block, ratio)] = 0
        proj = block.mlp.c_proj
        proj.bias.data = proj.bias + proj.weight.T @ left_out
    prune_neurons(model, scores, ratio=ratio)
    return model


def with_a_loop(model, scores, means, ratio):
    """Another way: neuron by neuron, after the cut, from rows that were kept aside."""
    rows = [block.mlp.c_proj.weight for block in model.transformer.h]
    prune_neurons(model, scores, ratio=ratio)
    for block, of_block, mean, row in zip(model.transformer.h, scores, means, rows, strict=True):
        bias = block.mlp.c_proj.bias.clone()
        for neuron in of_block.argsort()[: int(ratio * len(of_block))].tolist():
            bias += mean[neuron] * row[neuron]
        block.mlp.c_proj.bias = nn.Parameter(bias)
    return model


test_keep_the_mean = cases_of(
    lesson_01.check_keep_the_mean,
    stubs=[lambda model, scores, means, ratio: ..., say],
    mistakes=[
        (lambda *given: [keep_the_mean(*given)], "Return the model; yours returned a list"),
        (lambda model, *rest: keep_the_mean(copy.deepcopy(model), *rest), "You return another model"),
        (nothing_kept, "c_proj.bias is as it was"),
        (nothing_cut, "it still has all of its 16 neurons"),
        (adding(lambda mean, rows, gone, keep: -mean[gone] @ rows[gone]), "the sign is wrong"),
        (old_bias_lost, "c_proj.bias had numbers before"),
        (adding(lambda mean, rows, gone, keep: mean[keep] @ rows[keep]), "what the neurons that stay write"),
        (adding(lambda mean, rows, gone, keep: mean @ rows), "what all neurons write"),
        (adding(lambda mean, rows, gone, keep: (mean[gone, None] * rows[gone]).mean(0)), "What they write adds up"),
        (adding(lambda mean, rows, gone, keep: mean[gone].sum()), "one number for all channels"),
        (adding(lambda mean, rows, gone, keep: mean[gone].mean()), "one number for all channels"),
        (adding(lambda mean, rows, gone, keep: mean[gone].sum() * rows[gone].sum(0)), "Multiply, then sum"),
        (adding(lambda mean, rows, gone, keep: rows[gone].sum(0)), "these are the rows alone"),
        (block_0s_means, "Block 1: these are block 0's means"),
        (adding(lambda mean, rows, gone, keep: mean[gone]), "a mean is what a neuron holds"),
        (adding(lambda mean, rows, gone, keep: rows[gone] @ mean[gone]), "so it is mean @ rows"),
        (rows_after_the_cut, "you took the rows after the cut"),
        (into_c_fc, "belongs to c_proj.bias"),
        (width_forgotten, "config.n_inner is 16, but the MLPs have 8"),
        (in_place, "You wrote into transformer.h.0.mlp.c_proj.bias"),
        (zero_the_means, "You changed the given scores or means"),
        (lambda m, scores, means, r: keep_the_mean(m, [-some for some in scores], means, r), "the highest scores"),
        (lambda m, scores, means, r: keep_the_mean(m, [scores[0]] * 3, means, r), "block 0's scores"),
        (
            lambda m, scores, means, r: keep_the_mean(m, [l1(block.mlp) for block in m.transformer.h], means, r),
            "these go by L1",
        ),
        (adding(lambda mean, rows, gone, keep: 2 * mean[gone] @ rows[gone]), "the logits differ by"),
    ],
    answers=[keep_the_mean, with_zeros, with_a_loop],
)


def sum_of_squares(*weights):
    """Made-up damage: a weight a block, times its squared share."""
    return lambda shares: sum(weight * share**2 for weight, share in zip(weights, shares, strict=True))


DAMAGES = {"speeches": sum_of_squares(20, 1, 1, 1, 1, 1), "wiki": sum_of_squares(20, 1, 1, 1, 1, 6)}
WELL_SPENT = [0.05, *5 * [0.47]]


def judge(shares):
    return {text: damage(shares) for text, damage in DAMAGES.items()}


def check_shares(shares):
    return lesson_01.check_shares(shares, judge)


test_shares = cases_of(
    check_shares,
    stubs=[..., None, [...], 6 * [...]],
    mistakes=[
        ([0.4, 0.5], "one share for each of the 6 blocks; yours are 2"),
        (0.4, "Give the list of shares itself; yours is a float"),
        ("0.4", "Give the list of shares itself; yours is a str"),
        (lambda: WELL_SPENT, "Give the list of shares itself; yours is a function"),
        ([0.0, 1.0, 0.4, 0.4, 0.4, 0.4], "leaves a block without neurons"),
        ([0, 40, 50, 50, 50, 50], "yours has [40.0, 50.0, 50.0, 50.0, 50.0]"),
        ([-0.1, 0.5, 0.5, 0.5, 0.5, 0.5], "yours has [-0.1]"),
        ([float("nan"), 0.5, 0.5, 0.5, 0.5, 0.5], "yours has [nan]"),
        ([0.0, 0.4, 0.4, 0.4, 0.4, 0.4], "a mean of 0.333"),
        (6 * [0.4], "that is the baseline"),
        (6 * [0.5], "that is the baseline"),
        (np.full(6, 0.4), "that is the baseline"),
        ([0.8, 0.4, 0.3, 0.3, 0.3, 0.3], "not better than equal shares"),
        ([0.3, 0.42, 0.42, 0.42, 0.42, 0.42], "Can the cheapest blocks give more"),
        ([0.35, 0.35, 0.35, 0.35, 0.35, 0.66], "Better on speeches only"),
        ([0.0, 0.4, 0.4, 0.4, 0.4, 0.8], "on speeches, but not on wiki"),
    ],
    answers=[
        WELL_SPENT,
        tuple(WELL_SPENT),
        torch.tensor(WELL_SPENT),
        np.array(WELL_SPENT),
        dict(enumerate(WELL_SPENT)),
    ],
)


def test_shares_are_told_beside_equal_ones(capsys):
    check_shares(WELL_SPENT)
    assert (
        "  speeches: yours 1.154, equal shares 4.000\n  wiki: yours 2.259, equal shares 4.800"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(("shares", "calls"), [(WELL_SPENT, [WELL_SPENT, 6 * [0.4]]), (6 * [0.5], []), ([1, 0], [])])
def test_the_judge_sees_legal_shares_only_and_each_once(shares, calls):
    seen = []

    def watching(shares):
        seen.append(shares)
        return judge(shares)

    lesson_01.check_shares(shares, watching)
    assert seen == calls

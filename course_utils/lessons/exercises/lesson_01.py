"""Checks of lesson 01, width pruning: where the neurons are, which go, and what stays of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from course_utils.lessons.exercises import Attempt, exercise, expect, require, whole_number
from course_utils.lessons.exercises.cuts import GPT2, check_cut
from course_utils.models.loading import variant
from course_utils.pruning.width import best, neuron_importance, prune_neurons, strongest

#: name -> (the axis that counts neurons, how it is stored).
_AXES = {f"GPT-2 {name}": axis for name, axis in GPT2.tensors.items()} | {
    "OPT fc1.weight": (0, "an nn.Linear stores [out, in], and fc1 leads into the neurons"),
    "OPT fc2.weight": (1, "an nn.Linear stores [out, in], and fc2 leads out of the neurons"),
}
_REAL = 0.2  # of the real model's neurons, in exercise 2
# In exercise 4: blocks of distilGPT2 and of its stand-in; the share of neurons that goes; what is left of the naive
# plan's damage at most.
_BLOCKS, _SHARE, _BETTER = 6, 0.4, 0.75


@exercise(1, task="Give 0, 1 or 'none' for each of the six tensors.", proved="You know where the neurons are.")
def check_axes(axes: dict[str, int | str]) -> None:
    """Check the axis of each tensor on which neurons are cut."""
    require(set(axes) == set(_AXES), f"Keep the six names as they are: {', '.join(_AXES)}.")
    wrong = [name for name, (axis, _) in _AXES.items() if axes[name] != axis]
    require(not wrong, f"{len(wrong)} of 6 to go. Think again about {wrong[0]}: {_AXES[wrong[0]][1]}." if wrong else "")


def _l1(mlp: Any) -> Tensor:
    return mlp.c_fc.weight.abs().sum(0)


def _cut(mlp: Any, keep: Sequence[int] | Tensor) -> None:
    mlp.c_fc.weight = nn.Parameter(mlp.c_fc.weight[:, keep])
    mlp.c_fc.bias = nn.Parameter(mlp.c_fc.bias[keep])
    mlp.c_proj.weight = nn.Parameter(mlp.c_proj.weight[keep])
    mlp.c_fc.nf = mlp.c_proj.nx = len(keep)


def _prune_width(model, ratio, *, score=_l1, choose=strongest, scored=slice(None), cut=slice(None)):
    """The answer to exercise 2, with switches for mistakes; ``scored`` blocks are repeated for the others."""
    mlps = GPT2.mlps(model)
    keeps = [choose(score(mlp), ratio) for mlp in mlps][scored] * len(mlps)
    for mlp, keep in [*zip(mlps, keeps, strict=False)][cut]:
        _cut(mlp, keep)
    model.config.n_inner = mlps[0].c_fc.nf
    return model


@exercise(
    2,
    task="Cut the weakest neurons of every MLP in place, and return the model (without a return nothing is judged).",
    proved="The same neurons are gone from all three tensors of every block, in the real GPT-2 too, and what you save "
    "opens again.",
    answer=_prune_width,
    mistakes=[
        (partial(_prune_width, cut=slice(1)), "Only the first block is cut. Each of them should be."),
        (partial(_prune_width, score=lambda mlp: -_l1(mlp)), "You cut the strongest neurons. The weakest go."),
        (partial(_prune_width, score=lambda mlp: mlp.c_fc.weight.sum(0)),
         "Take magnitudes before you sum; signs cancel."),
        (partial(_prune_width, score=lambda mlp: mlp.c_fc.weight.sum(0).abs()),
         "Take magnitudes before you sum, not after: signs have cancelled by then."),
        (partial(_prune_width, score=lambda mlp: mlp.c_fc.weight.norm(dim=0)),
         "These go by the L2 norm; L1 is the sum of magnitudes."),
        (partial(_prune_width, score=lambda mlp: _l1(mlp) + mlp.c_fc.bias.abs()),
         "The bias doesn't belong to the norm of the weights."),
        (partial(_prune_width, score=lambda mlp: mlp.c_proj.weight.abs().sum(1)),
         "These go by c_proj's weights. Score by c_fc's."),
        (partial(_prune_width, score=lambda mlp: mlp.c_fc.weight.abs().sum(1)),
         "You summed over the neurons instead of the inputs: a Conv1D stores [in, out]."),
        (partial(_prune_width, scored=slice(1)), "These go by block 0's scores. Score each block by itself."),
        (partial(_prune_width, choose=lambda scores, ratio: best(scores, int(ratio * len(scores)))),
         "You keep as many as should go."),
        (partial(_prune_width, choose=lambda scores, ratio: best(scores, int((1 - ratio) * len(scores)))),
         "One too few is left. int(ratio * width) neurons go, rounded down."),
    ],
)  # fmt: skip
@torch.no_grad()
def check_prune_width(attempt: Attempt, real: GPT2LMHeadModel) -> None:
    """Check a function (GPT-2, ratio) -> the same model, every MLP pruned by the L1 norm of c_fc's columns.

    It is tried on tiny models, where mistakes can be named, and on a variant of ``real``.
    """
    # In the first model all matrices are square: there a wrong axis gives a wrong shape, and no crash.
    for hidden, width, ratio in (22, 22, 0.3), (8, None, 0.25), (8, 45, 0.5):
        base = GPT2.tiny_model(hidden, width)
        _check_order(check_cut(GPT2, attempt, base, ratio), attempt.answer(variant(base), ratio))
    pruned, right = attempt(variant(real), _REAL), variant(real)
    prune_neurons(right, neuron_importance(right, "l1"), ratio=_REAL)
    weights = pruned.state_dict()
    other = [name for name, weight in right.state_dict().items() if not torch.equal(weights[name], weight)]
    require(
        not other, f"The tiny models are cut rightly, but in the real one {other[:1]} isn't as prune_neurons cuts it."
    )


def _keep_the_mean(
    model, scores, means, ratio, *, bias=lambda bias, mean, rows, gone, keep: bias + mean[gone] @ rows[gone]
):
    """The answer to exercise 3; ``bias`` says what c_proj's becomes."""
    for mlp, of_block, mean in zip(GPT2.mlps(model), scores, means, strict=True):
        keep = strongest(of_block, ratio)
        weak = torch.ones_like(of_block, dtype=torch.bool)
        weak[keep] = False
        gone = weak.nonzero().flatten()
        mlp.c_proj.bias = nn.Parameter(bias(mlp.c_proj.bias, mean, mlp.c_proj.weight, gone, keep))
        _cut(mlp, keep)
    model.config.n_inner = len(keep)
    return model


def _with_bias(bias: Callable[..., Tensor]) -> Callable[..., GPT2LMHeadModel]:
    """A wrong bias; it gets the old one, the means, c_proj's rows, and the neurons that go and that stay."""
    return partial(_keep_the_mean, bias=bias)


@exercise(
    3,
    task="Cut the neurons in place, keep what they write on average in c_proj's bias, and return the model.",
    proved="Where the neurons that go are constant, nothing is lost: their push stays, without a new parameter.",
    answer=_keep_the_mean,
    mistakes=[
        (lambda model, scores, *rest: _keep_the_mean(model, [-some for some in scores], *rest),
         "You cut the neurons with the highest scores. The lowest go."),
        (lambda model, scores, *rest: _keep_the_mean(model, [*map(_l1, GPT2.mlps(model))], *rest),
         "These go by L1. Go by the scores that are given."),
        (lambda model, scores, *rest: _keep_the_mean(model, [scores[0]] * len(scores), *rest),
         "These go by block 0's scores. Each block has its own."),
        (lambda model, scores, means, ratio: _keep_the_mean(model, scores, [means[0]] * len(means), ratio),
         "These are block 0's means. Each block has its own."),
        (_with_bias(lambda bias, mean, rows, gone, keep: bias),
         "c_proj.bias is as it was. Add what the neurons that are gone wrote on average."),
        (_with_bias(lambda bias, mean, rows, gone, keep: bias - mean[gone] @ rows[gone]),
         "The sign is wrong. What the neurons wrote is missing now, so add it."),
        (_with_bias(lambda bias, mean, rows, gone, keep: mean[gone] @ rows[gone]),
         "c_proj.bias had numbers before, and they are gone. Add to them."),
        (_with_bias(lambda bias, mean, rows, gone, keep: bias + mean[keep] @ rows[keep]),
         "You added what the neurons that stay write, and they still write it."),
        (_with_bias(lambda bias, mean, rows, gone, keep: bias + mean @ rows),
         "You added what all neurons write, and those that stay still write it."),
        (_with_bias(lambda bias, mean, rows, gone, keep: bias + (mean[gone] @ rows[gone]) / len(gone)),
         "You averaged over the neurons that are gone. What they write adds up."),
        (_with_bias(lambda bias, mean, rows, gone, keep: bias + mean[gone].sum()),
         "That is one number for all channels. Each neuron's mean belongs to its own row of c_proj.weight."),
        (_with_bias(lambda bias, mean, rows, gone, keep: bias + rows[gone].sum(0)),
         "These are the rows alone. Weigh each by its neuron's mean."),
        (_with_bias(lambda bias, mean, rows, gone, keep: bias + mean[gone]),
         "A mean is what a neuron holds. What it writes is that times its row of c_proj.weight."),
        (_with_bias(lambda bias, mean, rows, gone, keep: bias + mean[gone] @ rows[keep][gone]),
         "You took the rows after the cut, when `gone` means other neurons. Take them before."),
    ],
)  # fmt: skip
@torch.no_grad()
def check_keep_the_mean(attempt: Attempt) -> None:
    """Check a function (GPT-2, scores, means, ratio) -> the same model, pruned, the mean push kept in the bias."""
    # In the first model as many go as stay, as many as there are channels, and the first half goes: there most mistakes
    # run, and can be named.
    for hidden, width, ratio in (8, 16, 0.5), (10, 31, 0.4):
        base = GPT2.tiny_model(hidden, width)
        scores, means = torch.rand(3, width), torch.randn(3, width)
        if width == 2 * hidden:
            scores[:, hidden:] += 1
        copies = scores.clone(), means.clone()
        pruned = check_cut(GPT2, attempt, base, list(scores), list(means), ratio, may_change=["mlp.c_proj.bias"])
        require(
            torch.equal(scores, copies[0]) and torch.equal(means, copies[1]),
            "You changed the given scores or means. Leave them alone: the next cut needs them, too.",
        )
        right = attempt.answer(variant(base), list(scores), list(means), ratio)
        _check_order(pruned, right)
        pairs = zip(GPT2.mlps(pruned), GPT2.mlps(right), strict=True)
        off = max(float((mlp.c_proj.bias - other.c_proj.bias).abs().max()) for mlp, other in pairs)
        require(
            off < 1e-4,
            f"The right neurons are gone, but c_proj.bias is off by {off:.2g}. Add means[block][gone] @ "
            "c_proj.weight[gone] to it and change nothing else.",
        )


def _check_order(pruned: nn.Module, right: nn.Module) -> None:
    for mlp, whole in zip(GPT2.mlps(pruned), GPT2.mlps(right), strict=True):
        told = "The right neurons, but shuffled. Keep their old order: sort their numbers."
        require(torch.equal(mlp.c_fc.weight, whole.c_fc.weight), told)


@exercise(
    4,
    task=f"Give two orders of the {_BLOCKS} blocks, the dearest first, and a list of {_BLOCKS} shares with a mean of "
    f"at least {_SHARE}.",
    proved="You know which block changes place when its constant stays, and you spent the same budget at a clearly "
    "lower price than the naive plan, on two kinds of text that chose nothing.",
)
def check_plan(
    lost: Any,
    kept: Any,
    shares: Any,
    naive: Sequence[float],
    choose: Callable[..., float],
    judge: Callable[[list[float]], Mapping[str, float]],
) -> None:
    """Check what one block costs without and with its constant, and one share to cut for each block.

    Args:
        lost: the blocks from the dearest to the cheapest, where each alone loses ``_SHARE`` and its constant.
        kept: the same, where the constants are kept.
        shares: the learner's plan.
        naive: the plan to beat.
        choose: shares, keep -> damage in nats per token on the rows to choose by.
        judge: shares -> text -> damage on the exam. Only a plan that has won on the choosing rows is judged, so that
            nobody can choose by the exam.
    """
    for order, keep, name in ((lost, False, "lost"), (kept, True, "kept")):
        _check_prices(order, [choose(_alone(block), keep=keep) for block in range(_BLOCKS)], name)
    spent = _legal_shares(shares)
    yours, rival = choose(spent, keep=True), choose([*naive], keep=True)
    print(f"On the choosing rows: yours {yours:.3f} nats per token, the naive plan {rival:.3f}.")
    require(
        yours <= _BETTER * rival,
        f"That isn't at most {_BETTER:g} of the naive plan's damage. Which blocks give many neurons nearly for free?",
    )
    damages, rivals = judge(spent), judge([*naive])
    behind = [text for text, damage in damages.items() if damage > _BETTER * rivals[text]]
    require(
        not behind,
        f"It wins on the choosing rows, but not clearly on the exam ({', '.join(behind)}): it fits these few rows too "
        "closely. Take a plan that is less extreme.",
    )
    for text, damage in damages.items():
        print(f"On the exam, {text}: yours {damage:.3f}, the naive plan {rivals[text]:.3f}.")


def _alone(block: int) -> list[float]:
    """The plan that cuts one block and leaves the others whole."""
    return [_SHARE if other == block else 0.0 for other in range(_BLOCKS)]


def _check_prices(order: Any, prices: Sequence[float], name: str) -> None:
    """Stop unless an order of the blocks, the dearest first, is that of their prices."""
    expect(order, Iterable, f"Give `{name}` as a list of block numbers")
    said = [whole_number(block, f"Give `{name}` as block numbers") for block in order]
    require(
        sorted(said) == [*range(_BLOCKS)],
        f"`{name}` names each block from 0 to {_BLOCKS - 1} once, the dearest first; yours is {said}.",
    )
    right = sorted(range(_BLOCKS), key=lambda block: -prices[block])
    require(said != right[::-1], f"`{name}` begins with the cheapest block. The dearest comes first.")
    require(
        said == right,
        f"`{name}` isn't the order of what choose gives. Cut one block by {_SHARE:g}, leave the others whole, and call "
        f"it with keep={name == 'kept'}.",
    )


def _legal_shares(shares: Any) -> list[float]:
    """A learner's shares as numbers, if the judge can take them."""
    expect(shares, Iterable, "Give the list of shares itself")
    spent = [float(share) for share in (shares.values() if isinstance(shares, dict) else shares)]
    require(len(spent) == _BLOCKS, f"Give one share for each of the {_BLOCKS} blocks; yours are {len(spent)}.")
    require(1 not in spent, "A share of 1 leaves a block without neurons. Stay below it.")
    outside = [share for share in spent if not 0 <= share < 1]
    require(not outside, f"A share is at least 0 and below 1, such as 0.25 for 25 %; yours has {outside}.")
    mean = sum(spent) / len(spent)
    require(
        mean >= _SHARE - 1e-6,
        f"Your shares have a mean of {mean:.3f}: less than {_SHARE} is cut, and that is easy. Spend the whole budget.",
    )
    return spent

"""Checks of lesson 01, width pruning: where the neurons are, which go, and what stays of them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from course_utils.choosing import strongest
from course_utils.exercises import Attempt, exercise, require, rule_out
from course_utils.models import variant
from course_utils.width import neuron_importance, prune_neurons

Mistakes = Iterable[tuple[Any, str]]  # what a mistake leads to, and a sentence for the learner

#: name -> (how it is stored, the axis that counts neurons).
_AXES = {
    "GPT-2 c_fc.weight": ("a Conv1D stores [in, out], and c_fc leads into the neurons", 1),
    "GPT-2 c_fc.bias": ("it has one number for each output of c_fc", 0),
    "GPT-2 c_proj.weight": ("a Conv1D stores [in, out], and c_proj leads out of the neurons", 0),
    "GPT-2 c_proj.bias": ("it has one number for each output of c_proj, and those aren't neurons", "none"),
    "OPT fc1.weight": ("an nn.Linear stores [out, in], and fc1 leads into the neurons", 0),
    "OPT fc2.weight": ("an nn.Linear stores [out, in], and fc2 leads out of the neurons", 1),
}
_REAL = 0.2  # of the real model's neurons, in exercise 2
_BLOCKS, _SHARE = 6, 0.4  # of distilGPT2 and of its stand-in; of all neurons, in exercise 4


@exercise(1, task="Give 0, 1 or 'none' for each of the six tensors.", proved="You know where the neurons are.")
def check_axes(axes: dict[str, int | str]) -> None:
    """Check the axis of each tensor on which neurons are cut."""
    require(set(axes) == set(_AXES), f"Keep the six names as they are: {', '.join(_AXES)}.")
    wrong = [name for name, (_, axis) in _AXES.items() if axes[name] != axis]
    require(not wrong, f"{len(wrong)} of 6 to go. Think again about {wrong[0]}: {_AXES[wrong[0]][0]}." if wrong else "")


@exercise(
    2,
    task="Cut the weakest neurons of every MLP in place, and return the model (without a return nothing is judged).",
    proved="The same neurons are gone from all three tensors of every block, in the real GPT-2 too, and what you save "
    "opens again.",
)
@torch.no_grad()
def check_prune_width(attempt: Attempt, real: GPT2LMHeadModel) -> None:
    """Check a function (GPT-2, ratio) -> the same model, every MLP pruned by the L1 norm of c_fc's columns.

    It is tried on tiny models, where mistakes can be named, and on a variant of ``real``.
    """
    # In the first model all matrices are square: there a wrong axis gives a wrong shape, and no crash.
    for hidden, width, ratio in (22, 22, 0.3), (8, None, 0.25), (8, 45, 0.5):
        base = _tiny_gpt2(hidden, width)
        before, model = _copied(base), variant(base)
        pruned = attempt(model, ratio)
        _check_given_model(pruned, model)
        _check_untouched(base, before)
        right = [strongest(mlp.c_fc.weight.abs().sum(0), ratio).tolist() for mlp in _mlps(base)]
        for block, (mlp, whole, keep) in enumerate(zip(_mlps(pruned), _mlps(base), right, strict=True)):
            _check_cut(f"Block {block}: ", mlp, whole, keep, _other_scores(whole, base), ratio)
        _check_width(pruned, len(right[0]))
        for name, weight in pruned.state_dict().items():
            is_cut = name.endswith((".mlp.c_fc.weight", ".mlp.c_fc.bias", ".mlp.c_proj.weight"))
            require(
                is_cut or torch.equal(weight, before[name]),
                f"{name} has other numbers now. Nothing but neurons should go.",
            )
        _check_reload(pruned)
    pruned, right = attempt(variant(real), _REAL), variant(real)
    prune_neurons(right, neuron_importance(right, "l1"), ratio=_REAL)
    weights = pruned.state_dict()
    other = [name for name, weight in right.state_dict().items() if not torch.equal(weights[name], weight)]
    require(
        not other, f"The tiny models are cut rightly, but in the real one {other[:1]} isn't as prune_neurons cuts it."
    )


@exercise(
    3,
    task="Cut the neurons in place, keep what they write on average in c_proj's bias, and return the model.",
    proved="Where the neurons that go are constant, nothing is lost: their push stays, without a new parameter.",
)
@torch.no_grad()
def check_keep_the_mean(attempt: Attempt) -> None:
    """Check a function (GPT-2, scores, means, ratio) -> the same model, pruned, the mean push kept in the bias."""
    # In the first model as many go as stay, as many as there are channels, and the first half goes: there most mistakes
    # run, and can be named. In the last one the neurons that go hold the same number whatever the input.
    for hidden, width, ratio, constant in (8, 16, 0.5, False), (10, 31, 0.4, False), (10, 31, 0.4, True):
        base = _tiny_gpt2(hidden, width)
        scores, means = torch.rand(3, width), torch.randn(3, width)
        if width == 2 * hidden:
            scores[:, hidden:] += 1
        right = [strongest(some, ratio).tolist() for some in scores]
        gone = [[neuron for neuron in range(width) if neuron not in keep] for keep in right]
        if constant:
            for mlp, neurons, mean in zip(_mlps(base), gone, means, strict=True):
                mlp.c_fc.weight[:, neurons] = 0
                mean[neurons] = mlp.act(mlp.c_fc.bias[neurons])
        before, model, copies = _copied(base), variant(base), (scores.clone(), means.clone())
        pruned = attempt(model, list(scores), list(means), ratio)
        _check_given_model(pruned, model)
        _check_untouched(base, before)
        require(
            torch.equal(scores, copies[0]) and torch.equal(means, copies[1]),
            "You changed the given scores or means. Leave them alone: the next cut needs them, too.",
        )
        for block, (mlp, whole, keep) in enumerate(zip(_mlps(pruned), _mlps(base), right, strict=True)):
            where = f"Block {block}: "
            require(
                -1 not in _numbers(mlp.c_fc.bias[:, None], whole.c_fc.bias[:, None]),
                f"{where}c_fc.bias has other numbers now. What the removed neurons wrote belongs to c_proj.bias.",
            )
            others = (
                (-scores[block], "you cut the neurons with the highest scores. The lowest go."),
                (whole.c_fc.weight.abs().sum(0), "these go by L1. Go by the scores that are given."),
                (scores[0], "these go by block 0's scores. Each block has its own."),
            )
            _check_cut(where, mlp, whole, keep, others, ratio)
            bias = whole.c_proj.bias + means[block][gone[block]] @ whole.c_proj.weight[gone[block]]
            mistakes = _other_biases(whole, means[block], keep, gone[block], means[0])
            rule_out(mistakes, mlp.c_proj.bias, bias, same=partial(torch.allclose, atol=1e-5), where=where)
        _check_width(pruned, len(right[0]))
        if not constant:
            _hold(base, gone, means)
        difference = (pruned(_ids()).logits - base(_ids()).logits).abs().max()
        require(
            difference < 1e-4,
            f"The right neurons are gone, but the logits differ by {difference:.2g} from those of the whole model with "
            "these neurons held at their means. Add means[block][gone] @ c_proj.weight[gone] to c_proj.bias and "
            "change nothing else.",
        )


@exercise(
    4,
    task=f"Give a list of {_BLOCKS} shares, one a block, with a mean of at least {_SHARE}.",
    proved="You spent the same budget at half the damage or less, on two kinds of text that chose nothing.",
)
def check_shares(shares: Any, judge: Callable[[list[float]], Mapping[str, float]]) -> None:
    """Check one share to cut for each block; ``judge`` tells text -> damage in nats a token."""
    spent = _legal_shares(shares)
    equal = [_SHARE] * len(spent)
    require(
        max(spent) - min(spent) > 1e-9,
        "You cut all blocks alike; that is the baseline. Take more from blocks that hardly miss it, less from others.",
    )
    yours, baseline = judge(spent), judge(equal)
    print("Damage in nats a token, on rows that nothing has used:")
    for text, damage in yours.items():
        print(f"  {text}: yours {damage:.3f}, equal shares {baseline[text]:.3f}")
    better = [text for text, damage in yours.items() if damage < baseline[text]]
    halved = [text for text, damage in yours.items() if damage <= baseline[text] / 2]
    others = ", ".join(text for text in yours if text not in halved)
    require(better, "Legal, but not better than equal shares. Which block misses its neurons most?")
    require(
        halved or len(better) == len(yours),
        f"Better on {', '.join(better)} only. `choose` sees speeches alone: scan rows of `texts` as well.",
    )
    require(halved, "Better, but not by half. Can the cheapest blocks give more?")
    require(
        not others,
        f"Half the damage or less on {', '.join(halved)}, but not on {others}. `choose` sees speeches alone: scan rows "
        "of `texts` as well.",
    )


def _legal_shares(shares: Any) -> list[float]:
    """A learner's shares as numbers, if the judge can take them."""
    require(
        isinstance(shares, Iterable) and not isinstance(shares, str),
        f"Give the list of shares itself; yours is a {type(shares).__name__}.",
    )
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


def _check_given_model(pruned: Any, model: GPT2LMHeadModel) -> None:
    require(isinstance(pruned, GPT2LMHeadModel), f"Return the model; yours returned a {type(pruned).__name__}.")
    require(pruned is model, "You return another model. Cut the one that is given, in place, and return it.")


def _check_untouched(base: GPT2LMHeadModel, before: Mapping[str, Tensor]) -> None:
    for name, weight in base.state_dict().items():
        require(
            torch.equal(weight, before[name]),
            f"You wrote into {name}, which the model shares with another one (`variant`): that one has changed, too. "
            "Give the layer a new nn.Parameter instead; no +=, no assignment to a part of the old one.",
        )


def _check_cut(where: str, mlp: nn.Module, whole: nn.Module, keep: list[int], others: Mistakes, ratio: float) -> None:
    """Stop unless an MLP has just the neurons ``keep`` of the whole one; ``others`` are scores taken by mistake."""
    hidden, width = whole.c_fc.weight.shape
    sizes = (
        ([hidden, width], f"it still has all of its {width} neurons."),
        ([hidden, width - len(keep)], "you keep as many as should go."),
        ([hidden, len(keep) - 1], "one too few is left. int(ratio * width) neurons go, rounded down."),
    )
    rule_out(sizes, list(mlp.c_fc.weight.shape), [hidden, len(keep)], where=where)
    shapes = {
        "c_fc.weight": [hidden, len(keep)],
        "c_fc.bias": [len(keep)],
        "c_proj.weight": [len(keep), hidden],
        "c_proj.bias": [hidden],
    }
    for name, shape in shapes.items():
        found = list(mlp.get_parameter(name).shape)
        require(found == shape, f"{where}{name} should be {shape} and is {found}: {_AXES[f'GPT-2 {name}'][0]}.")
    require(
        (mlp.c_fc.nf, mlp.c_proj.nx) == (len(keep), len(keep)),
        f"{where}c_fc.nf is {mlp.c_fc.nf} and c_proj.nx is {mlp.c_proj.nx}, but {len(keep)} neurons are left. A Conv1D "
        "notes its sizes beside its weight: tell it.",
    )
    numbers = {name: _numbers(rows, _by_neuron(whole)[name]) for name, rows in _by_neuron(mlp).items()}
    for name, places in numbers.items():
        require(
            -1 not in places,
            f"{where}{name} holds numbers that weren't there before. Those of the neurons that stay must not change.",
        )
    for place, neurons in enumerate(zip(*numbers.values(), strict=True)):
        require(
            len({*neurons}) == 1,
            f"{where}place {place} is neuron {neurons[0]} in c_fc.weight, {neurons[1]} in c_fc.bias and {neurons[2]} "
            "in c_proj.weight. Use one list of neurons, in one order, for all three.",
        )
    kept = numbers["c_fc.weight"]
    mistakes = [(strongest(scores, ratio).tolist(), mistake) for scores, mistake in others]
    rule_out(mistakes, sorted(kept), keep, where=where)
    wrong = sorted({*kept} - {*keep})
    require(not wrong, f"{where}other neurons should stay: {', '.join(map(str, wrong))} should be gone.")
    require(kept == keep, f"{where}the right neurons, but shuffled. Keep their old order: sort their numbers.")


def _check_width(pruned: GPT2LMHeadModel, width: int) -> None:
    noted = pruned.config.n_inner
    require(
        noted == width,
        f"config.n_inner is {noted}, but the MLPs have {width} neurons. In memory nobody notices; after saving, "
        "from_pretrained builds MLPs of the old width and refuses the weights.",
    )


def _check_reload(pruned: GPT2LMHeadModel) -> None:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        pruned.save_pretrained(folder)
        reloaded = GPT2LMHeadModel.from_pretrained(folder).eval()
    require(
        torch.equal(reloaded(_ids()).logits, pruned(_ids()).logits),
        "After save_pretrained and from_pretrained the model gives other logits.",
    )


def _other_scores(whole: nn.Module, base: GPT2LMHeadModel) -> list[tuple[Tensor, str]]:
    """What mistakes in exercise 2 score the neurons of an MLP by."""
    weight = whole.c_fc.weight  # [inputs, neurons]
    scores = [
        (-weight.abs().sum(0), "you cut the strongest neurons. The weakest go."),
        (weight.sum(0), "take magnitudes before you sum; signs cancel."),
        (weight.sum(0).abs(), "take magnitudes before you sum, not after: signs have cancelled by then."),
        (weight.norm(dim=0), "these go by the L2 norm; L1 is the sum of magnitudes."),
        (weight.abs().sum(0) + whole.c_fc.bias.abs(), "the bias doesn't belong to the norm of the weights."),
        (whole.c_proj.weight.abs().sum(1), "these go by c_proj's weights. Score by c_fc's."),
        (_mlps(base)[0].c_fc.weight.abs().sum(0), "these go by block 0's scores. Score each block by itself."),
    ]
    sums = weight.abs().sum(1)  # one a neuron only where the matrix is square
    mistake = "you summed over the neurons instead of the inputs: a Conv1D stores [in, out]."
    return [*scores, (sums, mistake)] if len(sums) == weight.shape[1] else scores


def _other_biases(whole: nn.Module, mean: Tensor, keep: list[int], gone: list[int], of_block_0: Tensor) -> Mistakes:
    """What mistakes in exercise 3 leave in c_proj's bias."""
    bias, rows = whole.c_proj.bias, whole.c_proj.weight
    push = mean[gone] @ rows[gone]  # [hidden]
    one_number = "that is one number for all channels. Each neuron's mean belongs to its own row of c_proj.weight."
    yield bias, "c_proj.bias is as it was. Add what the neurons that are gone wrote on average."
    yield bias - push, "the sign is wrong. What the neurons wrote is missing now, so add it."
    yield push, "c_proj.bias had numbers before, and they are gone. Add to them."
    yield bias + mean[keep] @ rows[keep], "you added what the neurons that stay write, and they still write it."
    yield bias + mean @ rows, "you added what all neurons write, and those that stay still write it."
    yield bias + push / len(gone), "you averaged over the neurons that are gone. What they write adds up."
    yield bias + mean[gone].sum(), one_number
    yield bias + mean[gone].mean(), one_number
    yield bias + mean[gone].sum() * rows[gone].sum(0), "you summed means and rows apart. Multiply, then sum."
    yield bias + rows[gone].sum(0), "these are the rows alone. Weigh each by its neuron's mean."
    yield bias + of_block_0[gone] @ rows[gone], "these are block 0's means. Each block has its own."
    if len(gone) == len(keep) == len(bias):  # elsewhere these stop with an error
        yield bias + mean[gone], "a mean is what a neuron holds. What it writes is that times its row of c_proj.weight."
        yield bias + rows[gone] @ mean[gone], "c_proj.weight has a row for each neuron, so it is mean @ rows."
        yield (
            bias + mean[gone] @ rows[keep],
            "you took the rows after the cut, when `gone` means other neurons. Take them before.",
        )


def _hold(base: GPT2LMHeadModel, gone: list[list[int]], means: Tensor) -> None:
    """From now on the neurons ``gone`` hold their means, whatever the input."""
    for mlp, neurons, mean in zip(_mlps(base), gone, means, strict=True):
        mlp.c_proj.register_forward_pre_hook(_holding(neurons, mean[neurons]))


def _holding(neurons: list[int], values: Tensor) -> Callable[[nn.Module, tuple[Tensor]], Tensor]:
    def hook(_layer: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        states = inputs[0].clone()
        states[..., neurons] = values
        return states

    return hook


def _tiny_gpt2(hidden: int, width: int | None) -> GPT2LMHeadModel:
    """Three random blocks with biases, on the CPU."""
    torch.manual_seed(0)
    sizes = {"n_embd": hidden, "n_inner": width, "n_layer": 3, "n_head": 2, "vocab_size": 61, "n_positions": 16}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=1)).eval()
    for weight in model.parameters():
        weight.add_(0.2 * torch.randn_like(weight))
    return model


def _mlps(model: GPT2LMHeadModel) -> list[nn.Module]:
    return [block.mlp for block in model.transformer.h]


def _by_neuron(mlp: nn.Module) -> dict[str, Tensor]:
    """The three tensors that neurons are in, a row a neuron."""
    return {
        "c_fc.weight": mlp.c_fc.weight.t(), "c_fc.bias": mlp.c_fc.bias[:, None], "c_proj.weight": mlp.c_proj.weight
    }  # fmt: skip


def _numbers(rows: Tensor, whole: Tensor) -> list[int]:
    """For each row its number among those of the whole model, -1 if it isn't there."""
    numbers = {tuple(row): number for number, row in enumerate(whole.tolist())}
    return [numbers.get(tuple(row), -1) for row in rows.tolist()]


def _copied(model: GPT2LMHeadModel) -> dict[str, Tensor]:
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def _ids() -> Tensor:
    return torch.randint(61, (2, 8), generator=torch.Generator().manual_seed(1))

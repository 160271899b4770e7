"""Checks of lesson 01, width pruning with the L1 norm."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import pandas as pd
import torch
from torch import nn
from torch.nn.functional import gelu, linear
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from course_utils.choosing import kept_width
from course_utils.exercises import Attempt, chosen, exercise, require, rule_out

#: name -> (how it is stored, the axis that counts neurons).
_AXES = {
    "GPT-2 c_fc.weight": ("a Conv1D stores [in, out], and c_fc leads into the neurons", 1),
    "GPT-2 c_fc.bias": ("it has one number for each output of c_fc", 0),
    "GPT-2 c_proj.weight": ("a Conv1D stores [in, out], and c_proj leads out of the neurons", 0),
    "GPT-2 c_proj.bias": ("it has one number for each output of c_proj, and those aren't neurons", "none"),
    "OPT fc1.weight": ("an nn.Linear stores [out, in], and fc1 leads into the neurons", 0),
    "OPT fc2.weight": ("an nn.Linear stores [out, in], and fc2 leads out of the neurons", 1),
}


@exercise(1, task="Give 0, 1 or 'none' for each of the six tensors.", proved="You know where the neurons are.")
def check_axes(axes: dict[str, int | str]) -> None:
    """Check the axis of each tensor on which neurons are cut."""
    require(set(axes) == set(_AXES), f"Keep the six names as they are: {', '.join(_AXES)}.")
    wrong = [name for name, (_, axis) in _AXES.items() if axes[name] != axis]
    require(not wrong, f"{len(wrong)} of 6 to go. Think again about {wrong[0]}: {_AXES[wrong[0]][0]}." if wrong else "")


@exercise(
    2,
    task="Return one L1 norm for each neuron of the layer.",
    proved="Magnitudes are summed over each neuron's inputs, whichever way the class stores them.",
)
def check_l1_scores(attempt: Attempt) -> None:
    """Check a function (layer) -> L1 scores [neurons], of an ``nn.Linear`` and of a ``Conv1D``."""
    weight = torch.tensor([[1.0, -2.0, 0.0], [-3.0, 0.0, 1.0], [2.0, 2.0, 2.0], [0.5, 0.0, 0.0]])  # [neurons, inputs]
    _check_scores(attempt(_linear(weight, torch.ones(4))), weight, "nn.Linear stores [out, in]")
    _check_scores(attempt(_conv1d(weight, torch.ones(4))), weight, "Conv1D stores [in, out]")
    square = torch.tensor([[1.0, 2.0], [0.0, 4.0]])
    for layer, stored in (_linear(square, torch.zeros(2)), "nn.Linear"), (_conv1d(square, torch.zeros(2)), "Conv1D"):
        require(
            attempt(layer).tolist() == [3.0, 4.0],
            f"Right for an oblong matrix, wrong for a square {stored}: ask for the layer's class, not for its shape.",
        )


def _check_scores(scores: torch.Tensor, weight: torch.Tensor, stored: str) -> None:
    neurons, inputs = weight.shape
    shape = list(scores.shape)
    require(shape != [inputs], f"You summed over the neurons instead of the inputs: {stored}.")
    require(shape == [neurons], f"One score for each of {neurons} neurons is a shape [{neurons}]; yours is {shape}.")
    scores, right = scores.detach().float(), weight.abs().sum(1)
    mistakes = (
        (weight.sum(1), "Take magnitudes before you sum; signs cancel."),
        (weight.sum(1).abs(), "Take magnitudes before you sum, not after: signs have cancelled by then."),
        (weight.abs().mean(1), "This is the mean; the norm is the sum."),
        (weight.norm(dim=1), "This is the L2 norm; L1 is the sum of magnitudes."),
        (right + 1, "The bias doesn't belong to the norm of the weights."),
    )
    rule_out(mistakes, scores, right, same=torch.allclose)
    require(torch.allclose(scores, right), "Right shape, wrong numbers: add up the absolute weights.")


@exercise(
    3,
    task="Return the four tensors of the smaller MLP.",
    proved="The small MLP gives what the large one gives with the other neurons silenced.",
)
def check_slice_mlp(attempt: Attempt) -> None:
    """Check a function (fc, proj, keep) -> the four tensors of the smaller MLP."""
    hidden, width, keep = 3, 6, torch.tensor([4, 0, 3])
    generator = torch.Generator().manual_seed(0)
    fc_weight, fc_bias, proj_weight, proj_bias = (
        torch.randn(shape, generator=generator) for shape in ((width, hidden), (width,), (hidden, width), (hidden,))
    )
    fc, proj = _linear(fc_weight.clone(), fc_bias.clone()), _linear(proj_weight.clone(), proj_bias.clone())
    sliced = attempt(fc, proj, keep)
    require(
        isinstance(sliced, tuple | list) and len(sliced) == 4,
        "Return four tensors: fc.weight, fc.bias, proj.weight, proj.bias.",
    )
    for name, tensor, shape, hint in zip(
        ("fc.weight", "fc.bias", "proj.weight", "proj.bias"),
        sliced,
        ([len(keep), hidden], [len(keep)], [hidden, len(keep)], [hidden]),
        (
            "a neuron is a row of fc.weight",
            "each neuron has its bias in fc: keep the same ones as in fc.weight",
            "a neuron is a column of proj.weight",
            "it belongs to the outputs, and they all stay",
        ),
        strict=True,
    ):
        require(
            list(tensor.shape) == shape, f"{name} should have the shape {shape} and has {list(tensor.shape)}: {hint}."
        )
    require(
        torch.equal(fc.weight, fc_weight) and torch.equal(proj.weight, proj_weight),
        "You changed the given layers. Return new tensors and leave the layers alone.",
    )
    inputs = torch.randn(4, hidden, generator=generator)
    hidden_states = gelu(linear(inputs, fc_weight, fc_bias))[:, keep]
    expected = linear(hidden_states, proj_weight[:, keep], proj_bias)
    small_fc, small_fc_bias, small_proj, small_proj_bias = (tensor.detach() for tensor in sliced)
    found = linear(gelu(linear(inputs, small_fc, small_fc_bias)), small_proj, small_proj_bias)
    require(
        torch.allclose(found, expected, atol=1e-5),
        "The shapes are right but the outputs aren't those of the kept neurons. Use the same `keep`, in the same "
        "order, in all three places.",
    )


@exercise(
    4,
    task="Return how many parameters the pruned model has.",
    proved="Your arithmetic and the models that transformers builds agree to the last parameter.",
)
def check_pruned_parameters(attempt: Attempt) -> None:
    """Check a function (configuration, ratio) -> parameters after width pruning."""
    distilgpt2 = GPT2Config(n_layer=6)
    _check_count(attempt, distilgpt2, 0.0, "distilGPT2, unpruned")
    _check_count(attempt, distilgpt2, 0.2, "distilGPT2 at 20 %")
    _check_count(attempt, GPT2Config(), 0.3, "GPT-2 with 12 blocks at 30 %")
    small = GPT2Config(
        n_layer=3, n_embd=32, n_head=4, n_inner=50, vocab_size=97, n_positions=64, bos_token_id=0, eos_token_id=0
    )
    _check_count(attempt, small, 0.4, "A small one with n_inner=50 at 40 %")


@exercise(
    5,
    task='Return a set of letters, the claims that the report supports, for instance {"a", "b"}.',
    proved="A measurement supports what was measured, on what it was measured on.",
)
def check_claims(supported: Collection[str]) -> None:
    """Check which claims a small report supports."""
    chosen(
        supported,
        {"a", "f"},
        {
            "a": "it is a plain reading of the table: 1.31 is below 1.33, 1.35 and 1.36.",
            "b": "an arm that knows nothing comes out best of four once in four times, so three random models give p = "
            ".25; it takes 19 of them for .05.",
            "c": "one completion of one prompt is no measurement, and by bits/byte the pruned model is worse.",
            "d": "a fifth of the neurons isn't a fifth of the parameters: embeddings and attention are still there.",
            "e": "a perplexity doesn't prove surgery. A wrong cut may cost little; 'pruned equals masked' shows it.",
            "f": "it is a plain reading of the table: 1.31 - 1.18 = 0.13, on this text.",
            "g": "one text was measured, and nothing else.",
        },
    )


@exercise(
    6,
    task="Return a list of tensors: each block's scores, dealt out to other neurons of the same block.",
    proved="Same blocks, same numbers removed, and nothing known about neurons: a fair control.",
)
def check_shuffled(attempt: Attempt) -> None:
    """Check a function (scores, seed) -> the same scores in another order, block by block."""
    scores = [torch.arange(40.0), 100 + torch.arange(40.0), 200 + torch.arange(30.0)]
    given = [of_block.clone() for of_block in scores]
    drawn = attempt(scores, 0)
    require(
        isinstance(drawn, list | tuple) and len(drawn) == 3, "Return a list with one tensor for each block, in order."
    )
    for block, (new, old) in enumerate(zip(drawn, given, strict=True)):
        require(new.shape == old.shape, f"Block {block} has {len(old)} neurons; you return a shape {list(new.shape)}.")
        require(
            torch.equal(new.sort().values, old.sort().values),
            f"Block {block} no longer has its own scores. Deal each block's scores out inside that block; fresh random "
            "numbers, or numbers of other blocks, would change how many neurons a rule removes where.",
        )
        require(not torch.equal(new, old), f"In block {block} each neuron still has its own score: nothing is random.")
    require(
        all(torch.equal(now, before) for now, before in zip(scores, given, strict=True)),
        "You changed the given scores. Return new tensors: the criterion is still needed.",
    )
    require(
        not torch.equal(drawn[0], drawn[1] - 100),
        "Every block gets the same order. Seed once, before the loop, so that blocks are drawn independently.",
    )
    again, other = attempt(scores, 0), attempt(scores, 1)
    require(
        all(torch.equal(a, b) for a, b in zip(drawn, again, strict=True)),
        "The same seed gives another order each time; a control must be reproducible. Use a generator with that seed.",
    )
    require(
        any(not torch.equal(a, b) for a, b in zip(drawn, other, strict=True)),
        "Seeds 0 and 1 give the same order: then 19 seeds are one control. Use `seed`.",
    )


@exercise(
    7,
    task="Return one ratio for each block, whose mean is at least the budget.",
    proved="A scan on one text, a budget spent where it hurts least, and a judgement on another text.",
)
def check_allocation(attempt: Attempt, scan: pd.DataFrame, judge: Callable[[list[float]], float]) -> None:
    """Check a function (damage, budget) -> ratios, on made-up scans and then on held-out text by ``judge``."""
    steps = (0.2, 0.4, 0.6)
    fragile_first = pd.DataFrame([[2, 4, 8], [0.1, 0.2, 0.4], [0.2, 0.4, 0.9], [0.1, 0.15, 0.3]], columns=steps)
    first = _ratios(attempt(fragile_first.copy(), 0.2), 4, 0.2)
    last = _ratios(attempt(fragile_first.iloc[::-1].reset_index(drop=True), 0.2), 4, 0.2)
    require(
        max(first) - min(first) > 1e-9,
        "You cut all blocks alike; that is the baseline. Take from blocks where the table shows little damage.",
    )
    require(
        first != last or first == first[::-1],
        "Other damages, the same ratios: use the table you are given, not numbers read off this lesson's scan.",
    )
    require(
        first[0] < sum(first) / 4 and last[-1] < sum(last) / 4,
        "You cut most where it hurts most: small damage means that a block can lose more.",
    )
    _ratios(attempt(fragile_first.copy(), 0.4), 4, 0.4)

    ratios = _ratios(attempt(scan.copy(), 0.2), len(scan), 0.2)
    yours, uniform = judge(ratios), judge([0.2] * len(scan))
    print(f"Held-out speeches, damage in nats a token: yours {yours:.2f}, 20 % everywhere {uniform:.2f}")
    require(
        yours < uniform,
        "Legal, and driven by the scan, but not better than 20 % everywhere on held-out text. Damages grow faster than "
        "the ratio: look at what the next step of each block adds.",
    )


def _ratios(answer: Iterable[float], blocks: int, budget: float) -> list[float]:
    """A learner's allocation as numbers, if it is legal."""
    ratios = [float(ratio) for ratio in (answer.values() if isinstance(answer, dict) else answer)]
    require(len(ratios) == blocks, f"Return one ratio for each of the {blocks} blocks; you return {len(ratios)}.")
    require(
        all(0 <= ratio < 1 for ratio in ratios),
        f"A ratio is a share, at least 0 and below 1; you return {[round(ratio, 2) for ratio in ratios]}.",
    )
    mean = sum(ratios) / blocks
    require(
        mean >= budget - 1e-6,
        f"With a budget of {budget:g}, your ratios have a mean of {mean:.3f}: you remove too few neurons to compare.",
    )
    return ratios


def _check_count(attempt: Attempt, config: GPT2Config, ratio: float, case: str) -> None:
    count, right = attempt(config, ratio), _count(config, ratio)
    hidden, width, blocks = config.n_embd, config.n_inner or 4 * config.n_embd, config.n_layer
    neuron, unpruned = 2 * hidden + 1, _count(config, 0.0)
    kept, kept_of_4 = kept_width(width, ratio), kept_width(4 * hidden, ratio)
    mistakes = (
        (unpruned, "cut the MLPs by `ratio`; this is the unpruned count."),
        (
            right + config.vocab_size * hidden,
            "the head shares its weights with the token embedding; count them once.",
        ),
        (
            round((1 - ratio) * unpruned),
            "a share of the neurons isn't a share of all parameters; only the MLPs shrink.",
        ),
        (right + blocks * (width - kept), "each removed neuron takes its bias in c_fc with it."),
        (
            right - blocks * (hidden - kept_width(hidden, ratio)),
            "c_proj's bias belongs to the outputs and stays whole.",
        ),
        (right - blocks * neuron, "round the number of removed neurons down, not the number of kept ones."),
        (right + blocks * neuron * (kept_of_4 - kept), "where n_inner is set, it is the width."),
    )
    rule_out(mistakes, count, right, where=f"{case}: ")
    require(count == right, f"{case}: your count is {count - right:+,} off.")


def _count(config: GPT2Config, ratio: float) -> int:
    """Parameters of the pruned configuration, from a model without memory."""
    settings = config.to_dict()
    settings["n_inner"] = kept_width(config.n_inner or 4 * config.n_embd, ratio)
    with torch.device("meta"):
        return GPT2LMHeadModel(GPT2Config(**settings)).num_parameters()


def _linear(weight: torch.Tensor, bias: torch.Tensor) -> nn.Linear:
    """A linear layer from weights [out, in]."""
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
    return layer


def _conv1d(weight: torch.Tensor, bias: torch.Tensor) -> Conv1D:
    """The same layer as GPT-2 stores it, from weights [out, in]."""
    layer = Conv1D(*weight.shape)
    layer.weight, layer.bias = nn.Parameter(weight.t().contiguous()), nn.Parameter(bias)
    return layer

"""Checks of lesson 02, how GLU pruning breaks: shapes, a test of exactness, the surgery, and a rescue."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu
from transformers import LlamaConfig, LlamaForCausalLM

from course_utils.choosing import best, strongest
from course_utils.exercises import Attempt, exercise, require, rule_out, true_or_false
from course_utils.models import variant
from course_utils.reports import shown

Matrices = tuple[Tensor, Tensor, Tensor]  # gate and up [width, hidden], down [hidden, width]

#: The MLP of Llama-3.2-1B (hidden size 2048, width 8192) after losing floor(0.2 x 8192) neurons.
_SHAPES = {
    "gate": (6554, 2048),
    "up": (6554, 2048),
    "down": (2048, 6554),
    "product": (2, 7, 6554),
    "output": (2, 7, 2048),
}
_NAMES = ("gate", "up", "down")


@exercise(
    1,
    task="Replace every ... by a shape.",
    proved="A shape tells how many neurons are left, and the output keeps the hidden size.",
)
def check_shapes(answer: dict[str, Any]) -> None:
    """Check the shapes of a pruned GLU."""
    require(sorted(answer) == sorted(_SHAPES), f"Keep the names as they are: {', '.join(_SHAPES)}.")
    for name, expected in _SHAPES.items():
        shape = tuple(answer[name])
        require(
            1638 not in shape, f"{name}: 1638 is how many neurons go; the matrices keep the other 8192 - 1638 = 6554."
        )
        require(6553 not in shape, f"{name}: 8192 - 1638 = 6554 stay.")
        require(
            name == "output" or 8192 not in shape, f"{name}: 8192 neurons were there before; 1638 of them are gone."
        )
        require(
            len(shape) == len(expected), f"{name} has {len(expected)} dimensions; your shape {shape} has {len(shape)}."
        )
        require(
            shape != expected[::-1] or len(shape) != 2,
            f"{name}: an nn.Linear stores [out, in]. Gate and up lead from 2048 to the neurons, down leads back.",
        )
        require(
            name != "output" or shape == expected,
            f"{name}: down leads back to the hidden size, which pruning neurons doesn't touch. That is why the next "
            "block doesn't complain either.",
        )
        require(shape == expected, f"{name}: {shape} isn't it. Follow x, [2, 7, 2048], through the matrices.")


@exercise(
    2,
    task="Return True or False: is what this pruner makes equal to the original with some neurons silenced?",
    proved="It lets every right pruner pass and stops every broken one. Keep it for every pruner you write.",
)
def check_is_exact(attempt: Attempt) -> None:
    """Check a function (pruner) -> whether it makes a GLU equal to a masked one."""
    for prune, mistake in _RIGHT_PRUNERS.items():
        require(true_or_false(attempt(prune)), mistake)
    for prune, mistake in _BROKEN_PRUNERS.items():
        require(not true_or_false(attempt(prune)), mistake)


@exercise(
    3,
    task="Cut the neurons with the lowest scores out of every MLP, in place, and return the model.",
    proved="The same neurons are gone from gate, up and down of every block, and what you save opens again.",
)
@torch.no_grad()
def check_prune_llama(attempt: Attempt) -> None:
    """Check a function (Llama, scores, ratio) -> the same model, every MLP pruned by these scores."""
    # In the first model all matrices are square: there a wrong axis gives a wrong shape, and no crash.
    for hidden, width, ratio in (20, 20, 0.3), (8, 46, 0.3):
        base = _tiny_llama(hidden, width)
        before, model = {name: weight.clone() for name, weight in base.state_dict().items()}, variant(base)
        scores = torch.rand(3, width)
        pruned = attempt(model, list(scores.clone()), ratio)
        require(isinstance(pruned, LlamaForCausalLM), f"Return the model; yours returned a {type(pruned).__name__}.")
        require(pruned is model, "You return another model. Cut the one that is given, in place, and return it.")
        for name, weight in base.state_dict().items():
            require(
                torch.equal(weight, before[name]),
                f"You wrote into {name}, which the model shares with another one (`variant`): that one has changed, "
                "too. Give the layer a new nn.Parameter instead.",
            )
        for block, (layer, whole) in enumerate(zip(pruned.model.layers, base.model.layers, strict=True)):
            others = (
                (-scores[block], "you cut the neurons with the highest scores. The lowest go."),
                (scores[0], "these go by block 0's scores. Each block has its own."),
                (whole.mlp.gate_proj.weight.abs().sum(1), "these go by gate's L1 norm. Go by the scores given."),
                (whole.mlp.up_proj.weight.abs().sum(1), "these go by up's L1 norm. Go by the scores given."),
            )
            _check_cut(f"Block {block}: ", layer.mlp, whole.mlp, scores[block], ratio, others)
        _check_configuration(pruned, before)


@exercise(
    4,
    task="Return gate, up and down of the largest exact GLU that the broken weights still hold.",
    proved="Every neuron whose rows are both still there is whole again: the original, masked.",
)
@torch.no_grad()
def check_rescue(attempt: Attempt, judge: Callable[[Attempt], Mapping[str, float]]) -> None:
    """Check a function (broken gate, up, down, their two lists) -> matrices; ``judge`` tells text -> × whole."""
    # In the first case every number that is in both lists is a place, too: there a mix-up gives numbers, and no crash.
    fixed = [7, 0, 2, 3, 5, 8], [1, 2, 3, 4, 5, 6]
    fresh = [[torch.randperm(12)[:9].tolist() for _ in _NAMES[:2]] for _ in range(3)]
    for width, lists in (9, fixed), *((12, pair) for pair in fresh):
        gate, up, down = original = _tiny_glu(width, width=width, hidden=16)
        in_gate, in_up = map(torch.tensor, lists)
        rescued = attempt(gate[in_gate], up[in_up], down[:, in_gate], in_gate.clone(), in_up.clone())
        require(
            isinstance(rescued, tuple | list) and len(rescued) == 3,
            "Return three matrices: gate, up and down, in this order.",
        )
        _check_rescued(tuple(rescued), original, *lists)
    told = ", ".join(f"{text} {shown(ratio)}" for text, ratio in judge(attempt).items())
    print(f"Rescued in the Llama: perplexity × the whole model's: {told}")


def _check_rescued(rescued: Matrices, original: Matrices, gate_list: list[int], up_list: list[int]) -> None:
    """Stop unless the matrices hold all neurons of both lists, and each of them whole."""
    survivors = [number for number in gate_list if number in up_list]
    shapes = [tuple(matrix.shape) for matrix in rescued]
    count, hidden = shapes[0][0], original[0].shape[1]
    require(
        shapes == [(count, hidden), (count, hidden), (hidden, count)],
        f"gate {shapes[0]}, up {shapes[1]} and down {shapes[2]} don't make a GLU: as many rows of gate as rows of up "
        "and columns of down.",
    )
    places = [_find(rows, all_rows) for rows, all_rows in zip(_by_neuron(rescued), _by_neuron(original), strict=True)]
    for name, numbers in zip(_NAMES, places, strict=True):
        require(-1 not in numbers, f"Some values of your {name} aren't in the broken weights: select, don't compute.")
    on_gate, on_up, on_down = places
    require(
        count < len(gate_list),
        "You keep everything. A neuron of which only one row is left can't be made whole: leave it out.",
    )
    at_gate = [gate_list.index(number) for number in survivors]
    at_up = [up_list.index(number) for number in survivors]
    require(
        max(survivors) >= len(gate_list) or on_gate != [gate_list[number] for number in survivors],
        "You used the neurons' numbers as places in gate. Neuron n stands where gate_list says n.",
    )
    require(
        on_gate != on_up or on_down != [gate_list[place] for place in at_up] or at_gate == at_up,
        "Gate and up meet again, but you took down's columns at up's places. Down followed gate.",
    )
    require(
        on_up != [up_list[place] for place in at_gate] or at_gate == at_up,
        "You used gate's places for up as well. Each matrix has its own list, so each neuron has two places.",
    )
    require(
        on_gate == on_up == on_down,
        f"Your matrices hold different neurons: gate {on_gate}, up {on_up}, down {on_down}. At each place all three "
        "must hold the same one.",
    )
    opposite = [number for number, other in zip(gate_list, up_list, strict=True) if number == other]
    require(
        sorted(on_gate) != sorted(opposite) or len(opposite) == len(survivors),
        "Exact, but too small: you kept the neurons whose rows still stand opposite each other. The others can be "
        "brought together again.",
    )
    missing = sorted({*survivors} - {*on_gate})
    require(not missing, f"Exact, but not the largest: neurons {missing} are in both lists, too.")
    require(len(on_gate) == len(survivors), f"Some neuron is there twice: {sorted(on_gate)}.")
    x = torch.randn(6, hidden)
    mask = torch.zeros(original[0].shape[0]).index_fill(0, torch.tensor(survivors), 1)
    gate, up, down = original
    require(
        torch.allclose(_glu(x, *rescued), _glu(x, gate, up, down * mask), atol=1e-4),
        "The right neurons, but another output than the masked original's.",
    )


def _check_cut(
    where: str, mlp: nn.Module, whole: nn.Module, scores: Tensor, ratio: float, others: tuple[tuple[Tensor, str], ...]
) -> None:
    """Stop unless an MLP has just the neurons with the highest scores; ``others`` are scores taken by mistake."""
    keep = strongest(scores, ratio).tolist()
    (width, hidden), kept = whole.gate_proj.weight.shape, len(keep)
    sizes = (
        ([width, hidden], f"gate still has all of its {width} rows."),
        ([width - kept, hidden], "you keep as many as should go."),
        ([kept - 1, hidden], "one too few is left. int(ratio * width) neurons go, rounded down."),
    )
    rule_out(sizes, list(mlp.gate_proj.weight.shape), [kept, hidden], where=where)
    reasons = {
        "gate_proj": ([kept, hidden], "an nn.Linear stores [out, in], and gate leads into the neurons"),
        "up_proj": ([kept, hidden], "an nn.Linear stores [out, in], and up leads into the neurons"),
        "down_proj": ([hidden, kept], "an nn.Linear stores [out, in], and down leads out of the neurons"),
    }
    for name, (shape, reason) in reasons.items():
        layer = getattr(mlp, name)
        found, noted = list(layer.weight.shape), [layer.out_features, layer.in_features]
        require(found == shape, f"{where}{name}.weight should be {shape} and is {found}: {reason}.")
        require(
            noted == shape,
            f"{where}{name} notes out_features {noted[0]} and in_features {noted[1]} beside a weight of {shape}. "
            "Nothing stops, and whoever reads the sizes is told the old ones.",
        )
    weights = [(mlp.get_submodule(name).weight, whole.get_submodule(name).weight) for name in reasons]
    weights[2] = tuple(weight.t() for weight in weights[2])  # a row a neuron
    numbers = [_find(rows, all_rows) for rows, all_rows in weights]
    for name, neurons in zip(reasons, numbers, strict=True):
        require(
            -1 not in neurons,
            f"{where}{name} holds numbers that weren't there before. Those of the neurons that stay must not change.",
        )
    for place, (in_gate, in_up, in_down) in enumerate(zip(*numbers, strict=True)):
        require(
            in_gate == in_up == in_down,
            f"{where}place {place} is neuron {in_gate} in gate, {in_up} in up and {in_down} in down. Use "
            "one list of neurons, in one order, for all three.",
        )
    mistakes = [(strongest(wrong, ratio).tolist(), mistake) for wrong, mistake in others]
    rule_out(mistakes, sorted(numbers[0]), keep, where=where)
    wrong = sorted({*numbers[0]} - {*keep})
    require(not wrong, f"{where}other neurons should stay: {', '.join(map(str, wrong))} should be gone.")


def _check_configuration(pruned: LlamaForCausalLM, before: Mapping[str, Tensor]) -> None:
    noted, width = pruned.config.intermediate_size, len(pruned.model.layers[0].mlp.gate_proj.weight)
    require(
        noted == width,
        f"config.intermediate_size is {noted}, but the MLPs have {width} neurons. In memory nobody notices; after "
        "saving, from_pretrained builds MLPs of the old width and refuses the weights.",
    )
    for name, weight in pruned.state_dict().items():
        require(
            ".mlp." in name or torch.equal(weight, before[name]),
            f"{name} has other numbers now. Nothing but neurons should go.",
        )
    ids = torch.randint(61, (2, 8))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        pruned.save_pretrained(folder)
        reloaded = LlamaForCausalLM.from_pretrained(folder).eval()
    require(
        torch.equal(reloaded(ids).logits, pruned(ids).logits),
        "After save_pretrained and from_pretrained the model gives other logits.",
    )


def _tiny_llama(hidden: int, width: int) -> LlamaForCausalLM:
    """Three random blocks on the CPU."""
    torch.manual_seed(0)
    sizes = {"hidden_size": hidden, "intermediate_size": width, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = LlamaConfig(**sizes, vocab_size=61, max_position_embeddings=16, bos_token_id=0, eos_token_id=1)
    return LlamaForCausalLM(config).eval()


def _glu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return (silu(x @ gate.T) * (x @ up.T)) @ down.T


def _tiny_glu(seed: int, *, width: int, hidden: int = 3) -> Matrices:
    generator = torch.Generator().manual_seed(seed)
    gate, up = torch.randn(2, width, hidden, generator=generator)
    return gate, up, torch.randn(hidden, width, generator=generator)


def _by_neuron(matrices: Matrices) -> Matrices:
    """The three matrices with one row a neuron."""
    gate, up, down = matrices
    return gate, up, down.t()


def _find(rows: Tensor, all_rows: Tensor) -> list[int]:
    """For each row its number among ``all_rows``, -1 if it isn't there."""
    matches = (rows[:, None] == all_rows[None]).all(-1)  # [rows, all rows]
    return [int(row.nonzero()[0]) if row.any() else -1 for row in matches]


def _cut(matrices: Matrices, on_gate: Tensor, on_up: Tensor, on_down: Tensor) -> Matrices:
    gate, up, down = matrices
    return gate[on_gate], up[on_up], down[:, on_down]


def _together(gate: Tensor, up: Tensor, down: Tensor, keep: int) -> Matrices:
    kept = best(gate.abs().sum(1) + up.abs().sum(1), keep)
    return _cut((gate, up, down), kept, kept, kept)


def _together_by_score(gate: Tensor, up: Tensor, down: Tensor, keep: int) -> Matrices:
    kept = (gate.abs().sum(1) + up.abs().sum(1)).topk(keep).indices
    return _cut((gate, up, down), kept, kept, kept)


def _by_output(gate: Tensor, up: Tensor, down: Tensor, keep: int) -> Matrices:
    kept = best(down.abs().sum(0), keep)
    return _cut((gate, up, down), kept, kept, kept)


def _own_list(scores: Tensor, keep: int, other: Tensor) -> Tensor:
    """The neurons with the highest scores; where these are another matrix's, too, those with the lowest."""
    own = best(scores, keep)
    return best(-scores, keep) if torch.equal(own, other) else own


def _separately(gate: Tensor, up: Tensor, down: Tensor, keep: int) -> Matrices:
    on_gate = best(gate.abs().sum(1), keep)
    on_up, on_down = (_own_list(scores, keep, on_gate) for scores in (up.abs().sum(1), down.abs().sum(0)))
    return _cut((gate, up, down), on_gate, on_up, on_down)


def _carried_over(gate: Tensor, up: Tensor, down: Tensor, keep: int) -> Matrices:
    on_gate = best(gate.abs().sum(1), keep)
    return _cut((gate, up, down), on_gate, _own_list(up.abs().sum(1), keep, on_gate), on_gate)


def _down_separately(gate: Tensor, up: Tensor, down: Tensor, keep: int) -> Matrices:
    kept = best(gate.abs().sum(1) + up.abs().sum(1), keep)
    return _cut((gate, up, down), kept, kept, _own_list(down.abs().sum(0), keep, kept))


def _another_order(gate: Tensor, up: Tensor, down: Tensor, keep: int) -> Matrices:
    kept = best(gate.abs().sum(1) + up.abs().sum(1), keep)
    return _cut((gate, up, down), kept, kept, kept.flip(0))


def _rescaled(gate: Tensor, up: Tensor, down: Tensor, keep: int) -> Matrices:
    gate_kept, up_kept, down_kept = _together(gate, up, down, keep)
    return gate_kept, up_kept, 1.25 * down_kept


_RIGHT_PRUNERS: dict[Callable[..., Matrices], str] = {
    _together: "It stops a pruner that is right, with one list from gate and up. Compare outputs with "
    "torch.allclose, because sums in another order differ in their last digits; and silence as many neurons as the "
    "pruner removes.",
    _together_by_score: "It stops a pruner that is right but lists the neurons in another order, the same one in all "
    "matrices. The order changes no output: compare outputs, not matrices.",
    _by_output: "It stops a pruner that is right but chooses by down instead of gate and up. Which neurons it keeps is "
    "its own affair: accept any mask.",
}
_BROKEN_PRUNERS: dict[Callable[..., Matrices], str] = {
    _carried_over: "It lets `carried_over` pass. Compare outputs, not shapes, and let the pruner remove something.",
    _separately: "It lets a pruner pass whose three matrices each keep rows of their own. Compare outputs, not shapes.",
    _down_separately: "It lets a pruner pass that pairs gate with up but gives down a list of its own. Compare "
    "the output of the whole MLP.",
    _another_order: "It lets a pruner pass that lists the same neurons in another order in down. Compare outputs, not "
    "lists.",
    _rescaled: "It lets a pruner pass that keeps the right neurons and changes their weights. Compare outputs.",
}

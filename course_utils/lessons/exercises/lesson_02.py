"""Checks of lesson 02, how GLU pruning breaks: shapes, a test of exactness, the surgery, and a rescue."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from course_utils.lessons.exercises import Attempt, exercise, require, true_or_false
from course_utils.lessons.exercises.cuts import LLAMA, check_cut, numbers_in
from course_utils.models.reports import shown
from course_utils.pruning.width import best, strongest

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


def _prune_llama(model, scores, ratio, *, choose=strongest):
    """The answer to exercise 3."""
    for mlp, of_block in zip(LLAMA.mlps(model), scores, strict=True):
        keep = choose(of_block, ratio)
        mlp.gate_proj.weight = nn.Parameter(mlp.gate_proj.weight[keep])
        mlp.up_proj.weight = nn.Parameter(mlp.up_proj.weight[keep])
        mlp.down_proj.weight = nn.Parameter(mlp.down_proj.weight[:, keep])
        mlp.gate_proj.out_features = mlp.up_proj.out_features = mlp.down_proj.in_features = len(keep)
    model.config.intermediate_size = len(keep)
    return model


def _by_norms_of(name: str) -> Callable[..., LlamaForCausalLM]:
    def prune(model: LlamaForCausalLM, _scores: Sequence[Tensor], ratio: float) -> LlamaForCausalLM:
        return _prune_llama(model, [mlp.get_parameter(name).abs().sum(1) for mlp in LLAMA.mlps(model)], ratio)

    return prune


@exercise(
    3,
    task="Cut the neurons with the lowest scores out of every MLP, in place, and return the model.",
    proved="The same neurons are gone from gate, up and down of every block, and what you save opens again.",
    answer=_prune_llama,
    mistakes=[
        (partial(_prune_llama, choose=lambda scores, ratio: strongest(-scores, ratio)),
         "You cut the neurons with the highest scores. The lowest go."),
        (lambda model, scores, ratio: _prune_llama(model, [scores[0]] * len(scores), ratio),
         "These go by block 0's scores. Each block has its own."),
        (_by_norms_of("gate_proj.weight"), "These go by gate's L1 norm. Go by the scores given."),
        (_by_norms_of("up_proj.weight"), "These go by up's L1 norm. Go by the scores given."),
        (partial(_prune_llama, choose=lambda scores, ratio: best(scores, int(ratio * len(scores)))),
         "You keep as many as should go."),
        (partial(_prune_llama, choose=lambda scores, ratio: best(scores, int((1 - ratio) * len(scores)))),
         "One too few is left. int(ratio * width) neurons go, rounded down."),
    ],
)  # fmt: skip
def check_prune_llama(attempt: Attempt) -> None:
    """Check a function (Llama, scores, ratio) -> the same model, every MLP pruned by these scores."""
    # In the first model all matrices are square: there a wrong axis gives a wrong shape, and no crash.
    for hidden, width, ratio in (20, 20, 0.3), (8, 46, 0.3):
        check_cut(LLAMA, attempt, LLAMA.tiny_model(hidden, width), [*torch.rand(3, width)], ratio)


def _rescue(*given: Tensor, at: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]) -> Matrices:
    """Rows by ``at``, from the numbers of the neurons in both lists and their places in gate and in up."""
    gate, up, down, gate_list, up_list = given
    in_gate, in_up = (gate_list[:, None] == up_list[None]).nonzero(as_tuple=True)
    return _cut((gate, up, down), *at(gate_list[in_gate], in_gate, in_up))


def _still_opposite(gate: Tensor, up: Tensor, down: Tensor, gate_list: Tensor, up_list: Tensor) -> Matrices:
    same = (gate_list == up_list).nonzero()[:, 0]
    return _cut((gate, up, down), same, same, same)


@exercise(
    4,
    task="Return gate, up and down of the largest exact GLU that the broken weights still hold.",
    proved="Every neuron whose rows are both still there is whole again: the original, masked.",
    answer=partial(_rescue, at=lambda number, in_gate, in_up: (in_gate, in_up, in_gate)),
    mistakes=[
        (lambda gate, up, down, *_: (gate, up, down),
         "You keep everything. A neuron of which only one row is left can't be made whole: leave it out."),
        (partial(_rescue, at=lambda number, in_gate, in_up: (number, number, number)),
         "You used the neurons' numbers as places in gate. Neuron n stands where gate_list says n."),
        (partial(_rescue, at=lambda number, in_gate, in_up: (in_gate, in_up, in_up)),
         "Gate and up meet again, but you took down's columns at up's places. Down followed gate."),
        (partial(_rescue, at=lambda number, in_gate, in_up: (in_gate, in_gate, in_gate)),
         "You used gate's places for up as well. Each matrix has its own list, so each neuron has two places."),
        (_still_opposite,
         "Exact, but too small: you kept the neurons whose rows still stand opposite each other. The others can be "
         "brought together again."),
    ],
)  # fmt: skip
@torch.no_grad()
def check_rescue(attempt: Attempt, judge: Callable[[Attempt], Mapping[str, float]]) -> None:
    """Check a function (broken gate, up, down, their two lists) -> matrices; ``judge`` tells text -> × whole."""
    # In the first case every number that is in both lists is a place, too: there a mix-up gives numbers, and no crash.
    fixed = [7, 0, 2, 3, 5, 8], [1, 2, 3, 4, 5, 6]
    fresh = [[torch.randperm(12)[:9].tolist() for _ in _NAMES[:2]] for _ in range(3)]
    for width, lists in (9, fixed), *((12, pair) for pair in fresh):
        gate, up, down = original = _tiny_glu(width, width=width, hidden=16)
        in_gate, in_up = map(torch.tensor, lists)
        given = gate[in_gate], up[in_up], down[:, in_gate], in_gate, in_up
        rescued = attempt(*given[:3], in_gate.clone(), in_up.clone())
        require(
            isinstance(rescued, tuple | list) and len(rescued) == 3,
            "Return three matrices: gate, up and down, in this order.",
        )
        right, same = attempt.answer(*given), partial(_same_rows, original)
        attempt.name_mistake(rescued, right, lambda wrong: wrong(*given), same=same)  # noqa: B023
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
    on_gate, on_up, on_down = places = _places(rescued, original)
    for name, numbers in zip(_NAMES, places, strict=True):
        require(-1 not in numbers, f"Some values of your {name} aren't in the broken weights: select, don't compute.")
    require(
        on_gate == on_up == on_down,
        f"Your matrices hold different neurons: gate {on_gate}, up {on_up}, down {on_down}. At each place all three "
        "must hold the same one.",
    )
    missing = sorted({*survivors} - {*on_gate})
    require(not missing, f"Exact, but not the largest: neurons {missing} are in both lists, too.")
    require(len(on_gate) == len(survivors), f"Some neuron is there twice: {sorted(on_gate)}.")


def _same_rows(original: Matrices, rescued: Matrices, other: Matrices) -> bool:
    """Whether both hold the same rows of the same neurons, in whatever order."""
    one, two = (sorted(zip_longest(*_places(m, original), fillvalue=-1)) for m in (rescued, other))
    return one == two


def _places(matrices: Matrices, original: Matrices) -> list[list[int]]:
    """For each matrix the numbers of its neurons, -1 for rows that aren't the original's."""
    return [numbers_in(rows, known) for rows, known in zip(_by_neuron(matrices), _by_neuron(original), strict=True)]


def _tiny_glu(seed: int, *, width: int, hidden: int = 3) -> Matrices:
    generator = torch.Generator().manual_seed(seed)
    gate, up = torch.randn(2, width, hidden, generator=generator)
    return gate, up, torch.randn(hidden, width, generator=generator)


def _by_neuron(matrices: Matrices) -> Matrices:
    """The three matrices with one row per neuron."""
    gate, up, down = matrices
    return gate, up, down.t()


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

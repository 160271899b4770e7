"""Checks of lesson 02, how GLU pruning breaks: shapes, a test of exactness, the rows back in step, and a rescue."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import combinations, zip_longest
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu
from transformers import PreTrainedModel

from course_utils.lessons.exercises import Attempt, exercise, require, true_or_false
from course_utils.lessons.exercises.checking import alike, expect
from course_utils.lessons.exercises.cuts import numbers_in
from course_utils.pruning.width import best

Matrices = tuple[Tensor, Tensor, Tensor]  # gate and up [width, hidden], down [hidden, width]
_NAMES = ("gate", "up", "down")


def _shapes(hidden: int, width: int, gone: int, **other: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The answer to exercise 1, with ``other`` shapes in it."""
    stay = width - gone
    right = {"gate": (stay, hidden), "up": (stay, hidden), "down": (hidden, stay), "product": (stay,)}
    return {**right, "output": (hidden,), **other}


@exercise(
    1,
    task="Return a dict with the five shapes.",
    proved="A shape tells how many neurons are left, and the output keeps the hidden size. So nothing complains.",
    answer=_shapes,
    mistakes=[
        (lambda hidden, width, gone: _shapes(hidden, width, 0),
         "These are the shapes before the cut: `gone` neurons are missing now."),
        (lambda hidden, width, gone: _shapes(hidden, width, width - gone),
         "`gone` is how many neurons go. The matrices keep the others."),
        (lambda hidden, width, gone: {name: shape[::-1] for name, shape in _shapes(hidden, width, gone).items()},
         "An nn.Linear stores [out, in]: gate and up lead from the hidden size to the neurons, down leads back."),
        (lambda hidden, width, gone: _shapes(hidden, width, gone, down=(width - gone, hidden)),
         "down leads back from the neurons to the hidden size, and an nn.Linear stores [out, in]."),
        (lambda hidden, width, gone: _shapes(hidden, width, gone, up=(width, hidden)),
         "The results of gate and up are multiplied number by number, so up loses as many rows as gate."),
        (lambda hidden, width, gone: _shapes(hidden, width, gone, down=(hidden, width)),
         "down reads the products, so it loses as many columns as gate loses rows."),
        (lambda hidden, width, gone: _shapes(hidden, width, gone, output=(width - gone,)),
         "down leads back to the hidden size, which a cut of neurons doesn't touch. That is why the next block fits."),
        (lambda hidden, width, gone: _shapes(hidden, width, gone, product=(hidden,)),
         "The product has one number per neuron that is left."),
    ],
)  # fmt: skip
def check_shapes(attempt: Attempt, model: PreTrainedModel, width: int) -> None:
    """Check a function (hidden, width, gone) -> shapes; then hold it against a Llama that had this width."""

    def read(shapes: Any) -> dict[str, tuple[int, ...]]:
        expect(shapes, dict, "Return a dict")
        wanted = _shapes(1, 2, 1)
        require(shapes.keys() == wanted.keys(), f"The names are {', '.join(wanted)}; yours are {', '.join(shapes)}.")
        return {name: tuple(shape) for name, shape in shapes.items()}

    for hidden, size, gone in (2048, 8192, 1638), (576, 1536, 1):
        where = f"Hidden size {hidden}, {size} neurons, {gone} of them gone: "
        attempt.compare(hidden, size, gone, read=read, same=lambda one, other: one == other, where=where)
    layers = model.get_submodule("model.layers")
    mlps = [layer.get_submodule("mlp") for layer in layers.children()]
    fitting = 0
    for mlp in mlps:
        weights = {name: mlp.get_parameter(f"{name}_proj.weight") for name in _NAMES}
        hidden, stay = weights["down"].shape
        shapes = attempt(hidden, width, width - stay)
        fitting += sum(tuple(weight.shape) == shapes[name] for name, weight in weights.items())
    print(f"The Llama that was cut: {fitting} of {3 * len(mlps)} matrices have the shapes that you say. Green.")


def _is_exact(prune: Callable[..., Matrices]) -> bool:
    """The answer to exercise 2."""
    return all(_equals_a_masked_one(prune, _tiny_glu(seed, width=5)) for seed in range(10))


def _equals_a_masked_one(prune: Callable[..., Matrices], whole: Matrices, keep: int = 3) -> bool:
    gate, up, down = whole
    x = torch.randn(20, gate.shape[1], generator=torch.Generator().manual_seed(0))
    small = _glu(x, *prune(gate, up, down, keep))
    masks = (torch.zeros(len(gate)).index_fill(0, torch.tensor(c), 1) for c in combinations(range(len(gate)), keep))
    return any(torch.allclose(small, _glu(x, gate, up, down * mask), atol=1e-5) for mask in masks)


@exercise(
    2,
    task="Return True or False: is what this pruner makes equal to the original with some neurons silenced, each time?",
    proved="It lets every right pruner pass and stops every broken one. Keep it for every pruner you write.",
    answer=_is_exact,
)
def check_is_exact(attempt: Attempt) -> None:
    """Check a function (pruner) -> whether it makes GLUs equal to masked ones."""
    for prune, mistake in _RIGHT_PRUNERS.items():
        require(true_or_false(attempt(prune)), mistake)
    for prune, mistake in _BROKEN_PRUNERS.items():
        require(not true_or_false(attempt(prune)), mistake)
    require(
        not true_or_false(attempt(_right_on_the_first())),
        "It lets a pruner pass whose lists agree on the first GLU that you make up, and on no other. One draw isn't "
        "enough: of 5 neurons, of which 3 stay, two separate lists agree by chance about once in 10 draws. Make up "
        "several GLUs, and ask for all of them.",
    )


def _in_step(
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    gate_list: Tensor,
    up_list: Tensor,
    width: int,
    *,
    places: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]] = lambda of_gate, of_up: (
        of_gate,
        of_up,
        of_gate,
    ),
) -> Matrices:
    """The answer to exercise 3; ``places`` says from both lists where gate's rows, up's rows and down's columns go."""
    for_gate, for_up, for_down = places(gate_list, up_list)
    full_gate, full_up, full_down = (gate.new_zeros(width, gate.shape[1]) for _ in _NAMES)
    full_gate[for_gate], full_up[for_up], full_down[for_down] = gate, up, down.t()
    return full_gate, full_up, full_down.t()


@exercise(
    3,
    task="Return gate, up and down with all their places, an empty row or column where one is missing.",
    proved="Nothing that was lost came back, and yet the harm is gone: the shift did it.",
    answer=_in_step,
    mistakes=[
        (partial(_in_step, places=lambda of_gate, of_up: (of_gate, of_gate, of_gate)),
         "This computes what the broken MLP computes: each row of gate still meets the same row of up. Each of the two "
         "lost rows of its own, so each goes by its own list; and gaps lie where rows are missing, not at the end."),
        (partial(_in_step, places=lambda of_gate, of_up: (of_gate, of_up, of_up)),
         "Gate and up are in step, but down's columns stand at up's places. Down followed gate."),
        (partial(_in_step, places=lambda of_gate, of_up: (of_up, of_gate, of_up)),
         "You took the two lists the wrong way round: gate goes by gate_list, and up by up_list."),
        (partial(_in_step, places=lambda of_gate, of_up: (of_gate.sort().values, of_up.sort().values, of_gate)),
         "You sorted the lists. gate_list[k] is the number of the row at place k, in whatever order they are."),
    ],
)  # fmt: skip
@torch.no_grad()
def check_in_step(
    attempt: Attempt,
    judge: Callable[..., Mapping[str, float]],
    broken: PreTrainedModel,
    gate_lists: Sequence[Tensor],
    up_lists: Sequence[Tensor],
) -> None:
    """Check a function (broken gate, up, down, their two lists, width) -> matrices with all places.

    ``judge`` tells the damage on each text, from a function that mends, the broken model and its lists.
    """
    generator = torch.Generator().manual_seed(0)
    for width, lists in _lists(2):
        given = *_broken(_tiny_glu(width, width=width, hidden=16), *lists), width
        x = torch.randn(20, 16, generator=generator)
        shapes = [list(matrix.shape) for matrix in attempt.answer(*given)]
        attempt.compare(*given, read=partial(_output, x, shapes), same=partial(alike, rtol=1e-3, atol=1e-3))
    before = judge(lambda *given: given[:3], broken, gate_lists, up_lists)
    for text, after in judge(attempt, broken, gate_lists, up_lists).items():
        print(f"The Llama, {text}: {before[text]:.2f} nats per token of damage, in step {after:.2f}")


def _lists(count: int) -> list[tuple[int, list[Tensor]]]:
    """Widths, each with so many lists of neurons."""
    # In the first case every number that is in all lists is a place, too: there a mix-up gives numbers, and no crash.
    fixed = [7, 0, 2, 3, 5, 8], [1, 2, 3, 4, 5, 6], [2, 5, 1, 3, 0, 4]
    fresh = [[torch.randperm(12)[:9] for _ in range(count)] for _ in range(3)]
    return [(9, [*map(torch.tensor, fixed[:count])]), *((12, lists) for lists in fresh)]


def _broken(whole: Matrices, gate_list: Tensor, up_list: Tensor) -> tuple[Tensor, ...]:
    """What is left of a GLU whose gate and up kept lists of their own, and the lists."""
    return *_cut(whole, gate_list, up_list, gate_list), gate_list, up_list


def _output(x: Tensor, shapes: list[list[int]], mended: Any) -> Tensor:
    """What three matrices of these shapes make of ``x``."""
    gate, up, down = _three(mended)
    found = [list(matrix.shape) for matrix in (gate, up, down)]
    require(found == shapes, f"With all their places gate, up and down are {shapes}; yours are {found}.")
    return _glu(x, gate, up, down)


def _glu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return (silu(x @ gate.T) * (x @ up.T)) @ down.T


def _three(answer: Any) -> Matrices:
    """The three matrices that a learner's function returned."""
    require(
        isinstance(answer, tuple | list) and len(answer) == 3,
        "Return three matrices: gate, up and down, in this order.",
    )
    gate, up, down = answer
    return gate, up, down


def _rescue(*given: Any, at: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, ...]]) -> Matrices:
    """Rows by ``at``, from the numbers of the neurons in all lists and their places in gate, in up and in down."""
    *matrices, gate_list, up_list, down_list, _ = given
    lists = gate_list.tolist(), up_list.tolist(), down_list.tolist()
    alive = sorted(set.intersection(*map(set, lists)))
    places = (torch.tensor([own.index(number) for number in alive], dtype=torch.long) for own in lists)
    gate, up, down = matrices
    return _cut((gate, up, down), *at(torch.tensor(alive, dtype=torch.long), *places))


def _still_opposite(*given: Any) -> Matrices:
    """The neurons whose three slices stand at one place."""
    gate, up, down, gate_list, up_list, down_list, _ = given
    same = ((gate_list == up_list) & (gate_list == down_list)).nonzero()[:, 0]
    return _cut((gate, up, down), same, same, same)


def _all_in_step(*given: Any) -> Matrices:
    """All places, with zeros where a slice is missing."""
    *matrices, gate_list, up_list, down_list, width = given
    lists = {"gate_list": gate_list, "up_list": up_list, "width": width}
    return _in_step(*matrices, **lists, places=lambda of_gate, of_up: (of_gate, of_up, down_list))


@exercise(
    4,
    task="Return gate, up and down of the largest exact GLU that the broken weights still hold.",
    proved="Every neuron whose three slices are all still there is whole again: the original, masked.",
    answer=partial(_rescue, at=lambda number, in_gate, in_up, in_down: (in_gate, in_up, in_down)),
    mistakes=[
        (lambda gate, up, down, *_: (gate, up, down),
         "You keep everything. A neuron of which a slice is gone can't be made whole: leave it out."),
        (_all_in_step, "In step, and exact, but not smaller: empty places do nothing. Leave them out."),
        (partial(_rescue, at=lambda number, in_gate, in_up, in_down: (number, number, number)),
         "You used the neurons' numbers as places. Neuron n stands where a matrix's list says n."),
        (partial(_rescue, at=lambda number, in_gate, in_up, in_down: (in_gate, in_up, in_gate)),
         "Gate and up meet again, but you took down's columns at gate's places. Here down has a list of its own."),
        (partial(_rescue, at=lambda number, in_gate, in_up, in_down: (in_gate, in_gate, in_gate)),
         "You used gate's places for all three. Each matrix has its own list, so each neuron has three places."),
        (_still_opposite,
         "Exact, but too small: you kept the neurons whose slices still stand opposite each other. The others can be "
         "brought together again."),
    ],
)  # fmt: skip
@torch.no_grad()
def check_rescue(attempt: Attempt, judge: Callable[[Attempt], Mapping[str, float]]) -> None:
    """Check a function (broken gate, up, down, their lists, width) -> matrices; ``judge`` tells text -> damage."""
    for width, lists in _lists(3):
        original = _tiny_glu(width, width=width, hidden=16)
        given = *_cut(original, *lists), *lists, width
        rescued = _three(attempt(*(value.clone() if isinstance(value, Tensor) else value for value in given)))
        right, same = attempt.answer(*given), partial(_same_rows, original)
        attempt.name_mistake(rescued, right, lambda wrong: wrong(*given), same=same)  # noqa: B023
        _check_rescued(rescued, original, *(numbers.tolist() for numbers in lists))
    told = ", ".join(f"{text} {nats:.2f}" for text, nats in judge(attempt).items())
    print(f"Rescued in the Llama, nats per token of damage: {told}")


def _check_rescued(rescued: Matrices, original: Matrices, *lists: list[int]) -> None:
    """Stop unless the matrices hold all neurons that are in each list, and each of them whole."""
    survivors = set.intersection(*map(set, lists))
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
    missing = sorted(survivors - {*on_gate})
    require(not missing, f"Exact, but not the largest: neurons {missing} are in all three lists, too.")
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


def _own_list(scores: Tensor, keep: int, other: Tensor) -> Tensor:
    """The neurons with the highest scores; where these are another matrix's, too, those with the lowest."""
    own = best(scores, keep)
    return best(-scores, keep) if torch.equal(own, other) else own


def _pruner(lists: Callable[[Tensor, Tensor, Tensor, int], Sequence[Tensor]]) -> Callable[..., Matrices]:
    """A pruner that keeps these lists of gate, up and down; they come from each one's L1 norms of the neurons."""

    def prune(gate: Tensor, up: Tensor, down: Tensor, keep: int) -> Matrices:
        return _cut((gate, up, down), *lists(gate.abs().sum(1), up.abs().sum(1), down.abs().sum(0), keep))

    return prune


_together = _pruner(lambda gate, up, down, keep: 3 * [best(gate + up, keep)])
_together_by_score = _pruner(lambda gate, up, down, keep: 3 * [(gate + up).topk(keep).indices])
_by_output = _pruner(lambda gate, up, down, keep: 3 * [best(down, keep)])


@_pruner
def _separately(gate: Tensor, up: Tensor, down: Tensor, keep: int) -> Sequence[Tensor]:
    kept = best(gate, keep)
    return kept, _own_list(up, keep, kept), _own_list(down, keep, kept)


@_pruner
def _carried_over(gate: Tensor, up: Tensor, down: Tensor, keep: int) -> Sequence[Tensor]:
    kept = best(gate, keep)
    return kept, _own_list(up, keep, kept), kept


@_pruner
def _down_separately(gate: Tensor, up: Tensor, down: Tensor, keep: int) -> Sequence[Tensor]:
    kept = best(gate + up, keep)
    return kept, kept, _own_list(down, keep, kept)


@_pruner
def _another_order(gate: Tensor, up: Tensor, down: Tensor, keep: int) -> Sequence[Tensor]:
    kept = best(gate + up, keep)
    return kept, kept, kept.flip(0)


def _rescaled(gate: Tensor, up: Tensor, down: Tensor, keep: int) -> Matrices:
    gate_kept, up_kept, down_kept = _together(gate, up, down, keep)
    return gate_kept, up_kept, 1.25 * down_kept


def _right_on_the_first() -> Callable[..., Matrices]:
    """A pruner that is right on the first GLU that it meets, as a broken one sometimes is by luck."""
    first: list[Tensor] = []

    def prune(gate: Tensor, up: Tensor, down: Tensor, keep: int) -> Matrices:
        if not first:
            first.append(gate.clone())
        lucky = first[0].shape == gate.shape and torch.equal(first[0], gate)
        return (_together if lucky else _carried_over)(gate, up, down, keep)

    return prune


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

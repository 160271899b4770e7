"""Checks of lesson 02, how GLU pruning breaks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from course_utils.exercises import Attempt, chosen, exercise, require, true_or_false
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
_WAYS_THAT_FIT, _WAYS_THAT_ARE_RIGHT = 5**3, 5


@exercise(
    1,
    task="Replace every ... by a shape or a count.",
    proved="All 125 choices have the same shapes, so no shape check can tell the 5 right ones from the rest.",
)
def check_shapes(answer: dict[str, Any]) -> None:
    """Check the shapes of a pruned GLU, and the two counts."""
    names = [*_SHAPES, "ways that fit", "ways that are right"]
    require(sorted(answer) == sorted(names), f"Keep the names as they are: {', '.join(names)}.")
    for name, expected in _SHAPES.items():
        given = tuple(answer[name])
        require(
            1638 not in given, f"{name}: 1638 is how many neurons go; the matrices keep the other 8192 - 1638 = 6554."
        )
        require(6553 not in given, f"{name}: floor(0.2 x 8192) = 1638 neurons go, so 6554 stay.")
        require(
            name == "output" or 8192 not in given, f"{name}: 8192 neurons were there before; 1638 of them are gone."
        )
        require(
            len(given) == len(expected), f"{name} has {len(expected)} dimensions; your shape {given} has {len(given)}."
        )
        require(
            given != expected[::-1] or len(given) != 2,
            f"{name}: an nn.Linear stores [out, in]. Gate and up lead from 2048 to the neurons, down leads back.",
        )
        require(
            name != "output" or given == expected,
            f"{name}: down leads back to the hidden size, which pruning neurons doesn't touch. That is why the next "
            "block doesn't complain either.",
        )
        require(given == expected, f"{name}: {given} isn't it. Follow x, [2, 7, 2048], through the matrices.")
    fit, right = answer["ways that fit"], answer["ways that are right"]
    require(fit != 15, "ways that fit: the three choices are independent, so they multiply.")
    require(fit != right, "The two counts differ: shapes see how many neurons a matrix keeps, not which.")
    require(fit == _WAYS_THAT_FIT, "ways that fit: gate can drop any of 5 neurons, up any of 5, down any of 5.")
    require(
        right == _WAYS_THAT_ARE_RIGHT,
        "ways that are right: all three matrices must drop the same neuron, any one of the five.",
    )


@exercise(
    2,
    task="Write prune_glu: the given function without its bug.",
    proved="Same neurons, same order, in all three matrices.",
)
def check_prune_glu(attempt: Attempt) -> None:
    """Check a function (gate, up, down, neurons that stay) -> the three smaller matrices."""
    for seed in range(3):
        gate, up, down = original = _tiny_glu(seed, width=7)
        small = attempt(gate.clone(), up.clone(), down.clone(), 4)
        require(
            isinstance(small, tuple | list) and len(small) == 3,
            "Return three matrices: gate, up and down, in this order.",
        )
        shapes = [tuple(matrix.shape) for matrix in small]
        require(
            shapes == [(4, 3), (4, 3), (3, 4)],
            "With 4 of 7 neurons kept and a hidden size of 3, the shapes are (4, 3), (4, 3) and (3, 4); yours are "
            f"{', '.join(map(str, shapes))}.",
        )
        places = [_find(rows, all_rows) for rows, all_rows in zip(_by_neuron(small), _by_neuron(original), strict=True)]
        for name, neurons in zip(("gate", "up", "down"), places, strict=True):
            require(-1 not in neurons, f"Some values of your {name} aren't in the original: select, don't compute.")
        on_gate, on_up, on_down = places
        require(
            sorted(on_gate) == sorted(on_up) == sorted(on_down),
            f"Your matrices hold different neurons: gate {on_gate}, up {on_up}, down {on_down}. Use one index set.",
        )
        require(
            on_gate == on_up == on_down,
            f"The same neurons, but not in the same order: gate {on_gate}, up {on_up}, down {on_down}. Place k must be "
            "the same neuron in all three.",
        )
        strongest = (gate.abs().sum(1) + up.abs().sum(1)).topk(4).indices.sort().values.tolist()
        require(
            sorted(on_gate) == strongest,
            f"Whole neurons now, but the wrong ones: you kept {sorted(on_gate)}; the strongest four are {strongest}.",
        )


@exercise(
    3,
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
    4,
    task='Return a set of letters, the claims that the report supports, for instance {"a", "b"}.',
    proved="Two numbers support two readings. Every cause needs an arm in which only that cause differs.",
)
def check_claims(supported: Collection[str]) -> None:
    """Check which claims about two arms hold."""
    chosen(
        supported,
        {"a", "e"},
        {
            "a": "it is a plain reading: both arms use L1, only the sets differ, one number 7,500 times the other.",
            "b": "400 times the unpruned perplexity is no working model. One repair was made, and something is left.",
            "c": "no random choice was measured. It may have cost 2 or 4,000.",
            "d": "that is a question of equality, which no perplexity answers. It has to be tested.",
            "e": "it is a plain reading: 400 and 3,000,000 times the unpruned perplexity.",
            "f": "only L1 was measured. The price of separate sets may depend on the score.",
        },
    )


@exercise(
    5,
    task="Return a list of pairs of arms that differ at `place` and nowhere else.",
    proved="Only a fair pair gives the price of one choice; where an arm is missing, no pair is made up.",
)
def check_fair_pairs(attempt: Attempt) -> None:
    """Check a function (arms, place) -> pairs of arms that differ in that entry alone."""
    arms = [(sets, score, ratio) for ratio in ("10 %", "20 %") for sets in ("separate", "shared") for score in "LR"]
    arms.remove(("shared", "R", "20 %"))  # not measured
    for place in range(3):
        given = attempt(list(arms), place)
        require(isinstance(given, list | tuple), "Return a list of pairs.")
        require(
            all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in given),
            "Each entry of your list should be a pair of two arms.",
        )
        pairs = [tuple(map(tuple, pair)) for pair in given]
        for pair in pairs:
            require(
                set(pair) <= set(arms), f"{pair} holds an arm that was not measured. Pair only what is in the list."
            )
            differ = [number for number in range(3) if pair[0][number] != pair[1][number]]
            require(differ, f"{pair} compares an arm with itself.")
            require(
                differ == [place],
                f"With place {place}, {pair} differs at {differ}: two causes at once, or another one, have no price of "
                "their own.",
            )
        require(
            len({frozenset(pair) for pair in pairs}) == len(pairs),
            "Some pair comes twice, once in each direction: name each pair once.",
        )
        require(
            all(arms.index(one) < arms.index(other) for one, other in pairs),
            "In each pair, the arm that is earlier in the list comes first.",
        )
        right = [
            (one, other)
            for one, other in itertools.combinations(arms, 2)
            if [number for number in range(3) if one[number] != other[number]] == [place]
        ]
        require(
            len(pairs) == len(right),
            f"With place {place} there are {len(right)} fair pairs in these {len(arms)} arms; you return {len(pairs)}.",
        )


@exercise(
    6,
    task="Return one number a neuron, more for those that should stay.",
    proved="Whole neurons, well chosen, on text that chose nothing: both halves of this lesson.",
)
def check_score(attempt: Attempt, judge: Callable[[Callable[..., Tensor]], float]) -> None:
    """Check a function (gate, up, down, x) -> scores [neurons], on made-up matrices and then by ``judge``."""
    gate, up, down = _tiny_glu(0, width=6, hidden=4)
    x = torch.randn(10, 4, generator=torch.Generator().manual_seed(1))
    scores = torch.as_tensor(attempt(gate, up, down, x))
    require(
        scores.shape == (6,),
        f"One number for each of 6 neurons is a shape [6]; yours is {list(scores.shape)}. Sum over tokens and over the "
        "hidden size, not over neurons.",
    )
    require(bool(scores.isfinite().all()), "Some scores aren't finite.")
    require(
        bool(scores.max() > scores.min()), "All neurons have the same score, so the first ones stay. Tell them apart."
    )
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    moved = torch.as_tensor(attempt(gate[order], up[order], down[:, order], x))
    require(
        torch.allclose(moved, scores[order], rtol=1e-4, atol=1e-6),
        "The same neurons in another order get other scores: a score must belong to the neuron, not to its place (nor "
        "to luck).",
    )
    generator = torch.Generator().manual_seed(0)
    yours = judge(attempt)
    by_l1 = judge(lambda gate, up, down, x: gate.abs().sum(1) + up.abs().sum(1))
    by_chance = judge(lambda gate, up, down, x: torch.rand(len(gate), generator=generator).to(gate.device))
    print(
        f"Held-out speeches, perplexity × unpruned: yours {shown(yours)}, L1 of gate + up {shown(by_l1)}, "
        f"one random choice {shown(by_chance)}"
    )
    require(
        yours < by_chance,
        "A random choice does better. Is the score upside down, or blind to what the neuron meets and writes? Look at "
        "silu(gate · x) * (up · x) and at down.",
    )
    require(yours < by_l1, "The L1 of gate and up does better.")


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


def _strongest(scores: Tensor, keep: int) -> Tensor:
    return scores.topk(keep).indices.sort().values


def _cut(matrices: Matrices, on_gate: Tensor, on_up: Tensor, on_down: Tensor) -> Matrices:
    gate, up, down = matrices
    return gate[on_gate], up[on_up], down[:, on_down]


def _together(gate: Tensor, up: Tensor, down: Tensor, keep: int) -> Matrices:
    kept = _strongest(gate.abs().sum(1) + up.abs().sum(1), keep)
    return _cut((gate, up, down), kept, kept, kept)


def _together_by_score(gate: Tensor, up: Tensor, down: Tensor, keep: int) -> Matrices:
    kept = (gate.abs().sum(1) + up.abs().sum(1)).topk(keep).indices
    return _cut((gate, up, down), kept, kept, kept)


def _by_output(gate: Tensor, up: Tensor, down: Tensor, keep: int) -> Matrices:
    kept = _strongest(down.abs().sum(0), keep)
    return _cut((gate, up, down), kept, kept, kept)


def _separately(gate: Tensor, up: Tensor, down: Tensor, keep: int) -> Matrices:
    sets = (_strongest(scores, keep) for scores in (gate.abs().sum(1), up.abs().sum(1), down.abs().sum(0)))
    return _cut((gate, up, down), *sets)


def _down_separately(gate: Tensor, up: Tensor, down: Tensor, keep: int) -> Matrices:
    kept = _strongest(gate.abs().sum(1) + up.abs().sum(1), keep)
    return _cut((gate, up, down), kept, kept, _strongest(down.abs().sum(0), keep))


def _another_order(gate: Tensor, up: Tensor, down: Tensor, keep: int) -> Matrices:
    kept = _strongest(gate.abs().sum(1) + up.abs().sum(1), keep)
    return _cut((gate, up, down), kept, kept, kept.flip(0))


def _rescaled(gate: Tensor, up: Tensor, down: Tensor, keep: int) -> Matrices:
    gate_kept, up_kept, down_kept = _together(gate, up, down, keep)
    return gate_kept, up_kept, 1.25 * down_kept


_RIGHT_PRUNERS: dict[Callable[..., Matrices], str] = {
    _together: "It stops a pruner that is right, with one index set from gate and up. Compare outputs with "
    "torch.allclose, because sums in another order differ in their last digits; and silence as many neurons as the "
    "pruner removes.",
    _together_by_score: "It stops a pruner that is right but lists the neurons in another order, the same one in all "
    "matrices. The order changes no output: compare outputs, not matrices.",
    _by_output: "It stops a pruner that is right but chooses by down instead of gate and up. Which neurons it keeps is "
    "its own affair: accept any mask.",
}
_BROKEN_PRUNERS: dict[Callable[..., Matrices], str] = {
    _separately: "It lets this lesson's three separate index sets pass. Compare outputs, not shapes, and let the "
    "pruner remove something.",
    _down_separately: "It lets a pruner pass that pairs gate with up but gives down an index set of its own. Compare "
    "the output of the whole MLP.",
    _another_order: "It lets the bug of exercise 2 pass: the same neurons, listed in another order in down. Compare "
    "outputs, not index sets.",
    _rescaled: "It lets a pruner pass that keeps the right neurons and changes their weights. Compare outputs.",
}

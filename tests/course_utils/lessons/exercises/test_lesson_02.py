"""Lesson 02's checks refuse the stub, name the likely mistake, and accept the answers."""

import itertools

import pytest
import torch
from exercise_cases import cases_of
from torch.nn.functional import silu

from course_utils.lessons.exercises import lesson_02
from course_utils.pruning.width import prune_neurons

SHAPES = {
    "gate": (6554, 2048),
    "up": (6554, 2048),
    "down": (2048, 6554),
    "product": (2, 7, 6554),
    "output": (2, 7, 2048),
}


def l1(gate, up):
    return gate.abs().sum(1) + up.abs().sum(1)


def prune_glu(gate, up, down, keep):
    best = l1(gate, up).topk(keep).indices.sort().values
    return gate[best], up[best], down[:, best]


def glu(x, gate, up, down):
    return (silu(x @ gate.T) * (x @ up.T)) @ down.T


def is_exact(prune, *, width=5, keep=3, same=lambda a, b: torch.allclose(a, b, atol=1e-5)):
    generator = torch.Generator().manual_seed(0)
    gate, up = torch.randn(2, width, 4, generator=generator)
    down, x = torch.randn(4, width, generator=generator), torch.randn(20, 4, generator=generator)
    small = glu(x, *prune(gate, up, down, keep))
    masks = (torch.zeros(width).index_fill(0, torch.tensor(c), 1) for c in itertools.combinations(range(width), keep))
    return any(same(small, glu(x, gate, up, down * mask)) for mask in masks)


def shapes_agree(prune):
    gate, up, down = prune(*torch.randn(2, 5, 4), torch.randn(4, 5), 3)
    return gate.shape == up.shape == down.T.shape


def rows_agree(prune):
    """Compares matrices with those of one particular right pruner instead of outputs with any mask."""
    torch.manual_seed(0)
    matrices = (*torch.randn(2, 5, 4), torch.randn(4, 5))
    return all(torch.equal(*pair) for pair in zip(prune(*matrices, 3), prune_glu(*matrices, 3), strict=True))


def gate_and_up_agree(prune):
    """Compares the products, and leaves down out."""
    torch.manual_seed(0)
    gate, up, x = *torch.randn(2, 5, 4), torch.randn(20, 4)
    small_gate, small_up, _ = prune(gate, up, torch.randn(4, 5), 3)
    products, whole = (silu(x @ g.T) * (x @ u.T) for g, u in ((small_gate, small_up), (gate, up)))
    return all(torch.isclose(column[:, None], whole).all(0).any().item() for column in products.T)


test_shapes = cases_of(
    lesson_02.check_shapes,
    stubs=[SHAPES | {"down": ...}],
    mistakes=[
        (SHAPES | {"gate": (1638, 2048)}, "1638 is how many neurons go"),
        (SHAPES | {"up": (6553, 2048)}, "= 6554 stay"),
        (SHAPES | {"down": (6554, 2048)}, "stores [out, in]"),
        (SHAPES | {"down": (2048, 8192)}, "8192 neurons were there before"),
        (SHAPES | {"product": (7, 6554)}, "3 dimensions"),
        (SHAPES | {"output": (2, 7, 6554)}, "back to the hidden size"),
        ({"gate": (6554, 2048)}, "Keep the names"),
    ],
    answers=[SHAPES],
)


test_is_exact = cases_of(
    lesson_02.check_is_exact,
    mistakes=[
        (lambda prune: True, "`carried_over` pass"),
        (lambda prune: False, "stops a pruner that is right"),
        (lambda prune: "yes", "Return True or False"),
        (shapes_agree, "`carried_over` pass"),
        (rows_agree, "The order changes no output"),
        (gate_and_up_agree, "down a list of its own"),
        (lambda prune: is_exact(prune, keep=5), "let the pruner remove something"),
        (lambda prune: is_exact(prune, same=torch.equal), "torch.allclose"),
    ],
    answers=[is_exact, lambda prune: is_exact(prune, width=7, keep=4)],
)


@pytest.mark.parametrize("seed", range(20))
def test_is_exact_may_try_any_random_glu(seed):
    """No broken pruner is right by luck: lists that happen to be equal are made to differ."""

    def with_another_seed(prune):
        generator = torch.Generator().manual_seed(seed)
        gate, up = torch.randn(2, 5, 4, generator=generator)
        down, x = torch.randn(4, 5, generator=generator), torch.randn(20, 4, generator=generator)
        small = glu(x, *prune(gate, up, down, 3))
        masks = [torch.tensor(mask) for mask in itertools.product((0.0, 1.0), repeat=5)]
        return any(torch.allclose(small, glu(x, gate, up, down * mask), atol=1e-5) for mask in masks)

    assert lesson_02.check_is_exact(with_another_seed)


def with_the_library(model, scores, ratio):
    prune_neurons(model, scores, ratio=ratio)
    return model


def in_another_order(model, scores, ratio):
    return lesson_02._prune_llama(
        model, scores, ratio, choose=lambda own, ratio: own.topk(len(own) - int(ratio * len(own))).indices
    )


# What any cut can do wrong is tried in test_cuts.py.
test_prune_llama = cases_of(
    lesson_02.check_prune_llama,
    stubs=[lambda *_: print("pruned")],
    mistakes=[(lambda model, scores, ratio: prune_neurons(model, scores, ratio=ratio), "Return the model; yours")],
    answers=[with_the_library, in_another_order],
)


def rescue(gate, up, down, gate_list, up_list):
    survivors = sorted({*gate_list.tolist()} & {*up_list.tolist()})
    in_gate = [gate_list.tolist().index(number) for number in survivors]
    in_up = [up_list.tolist().index(number) for number in survivors]
    return gate[in_gate], up[in_up], down[:, in_gate]


def chosen(change):
    """The answer, with its three matrices (and down as it was broken) changed."""
    return lambda *given: change(*rescue(*given), given[2])


test_rescue = cases_of(
    lesson_02.check_rescue,
    lambda attempt: {"speeches": 6.14, "wiki": 7.5},
    stubs=[lambda *given: (..., ..., ...)],
    mistakes=[
        (chosen(lambda gate, up, down, _: (gate, up.flip(0), down)), "Your matrices hold different neurons"),
        (chosen(lambda gate, up, down, _: (gate[1:], up[1:], down[:, 1:])), "not the largest: neurons [2] are"),
        (
            chosen(lambda *given: (given[0].repeat(2, 1), given[1].repeat(2, 1), given[2].repeat(1, 2))),
            "Some neuron is there twice",
        ),
        (chosen(lambda gate, up, down, _: (gate, up)), "Return three matrices"),
        (chosen(lambda gate, up, down, broken: (gate, up, broken)), "don't make a GLU"),
        (chosen(lambda gate, up, down, _: (2 * gate, up, down)), "select, don't compute"),
    ],
    answers=[rescue],
)


def test_a_rescue_is_measured_once_it_is_right(capsys):
    lesson_02.check_rescue(rescue, lambda attempt: {"speeches": 6.14, "wiki": 7.5})
    assert "perplexity × the whole model's: speeches 6.14, wiki 7.50" in capsys.readouterr().out

"""Lesson 02's checks refuse the stub, name the likely mistake, and accept the answers."""

import copy
import itertools

import pytest
import torch
from exercise_cases import cases_of
from torch import nn
from torch.nn.functional import silu

from course_utils.choosing import strongest
from course_utils.exercises import lesson_02
from course_utils.width import neuron_importance, prune_neurons

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


def prune_by_score(gate, up, down, keep):
    best = l1(gate, up).topk(keep).indices  # another order, but the same one three times
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
    stubs=[dict.fromkeys(SHAPES, ...), SHAPES | {"down": ...}],
    mistakes=[
        (SHAPES | {"gate": (1638, 2048)}, "1638 is how many neurons go"),
        (SHAPES | {"up": (6553, 2048)}, "= 6554 stay"),
        (SHAPES | {"down": (6554, 2048)}, "stores [out, in]"),
        (SHAPES | {"down": (2048, 8192)}, "8192 neurons were there before"),
        (SHAPES | {"product": (7, 6554)}, "3 dimensions"),
        (SHAPES | {"output": (2, 7, 6554)}, "back to the hidden size"),
        ({"gate": (6554, 2048)}, "Keep the names"),
    ],
    answers=[SHAPES, {name: torch.Size(s) if isinstance(s, tuple) else s for name, s in SHAPES.items()}],
)


test_is_exact = cases_of(
    lesson_02.check_is_exact,
    stubs=[lambda prune: ...],
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


def cut(mlp, keep, up_keep=None):
    up_keep = keep if up_keep is None else up_keep
    mlp.gate_proj.weight = nn.Parameter(mlp.gate_proj.weight[keep])
    mlp.up_proj.weight = nn.Parameter(mlp.up_proj.weight[up_keep])
    mlp.down_proj.weight = nn.Parameter(mlp.down_proj.weight[:, keep])
    mlp.gate_proj.out_features = mlp.up_proj.out_features = mlp.down_proj.in_features = len(keep)


def prune_llama(model, scores, ratio, *, choose=strongest, after=lambda mlp, old, keep: None, note=True):
    """The answer to exercise 3, with one switch for each foreseen mistake."""
    for layer, of_block in zip(model.model.layers, scores, strict=True):
        old = {name: weight.detach() for name, weight in layer.mlp.named_parameters()}
        keep = choose(of_block, ratio)
        cut(layer.mlp, keep)
        after(layer.mlp, old, keep)
    if note:
        model.config.intermediate_size = len(keep)
    return model


def mistaken(**switches):
    return lambda model, scores, ratio: prune_llama(model, scores, ratio, **switches)


def put(name, new):
    """A cut after which one matrix is another: ``new(old matrix, neurons that stay)``."""

    def after(mlp, old, keep):
        getattr(mlp, name).weight = nn.Parameter(new(old[f"{name}.weight"], keep))

    return mistaken(after=after)


def stale(name, size):
    def after(mlp, old, keep):
        setattr(getattr(mlp, name), size, len(old["gate_proj.weight"]))

    return mistaken(after=after)


def by_the_matrix(name):
    def prune(model, scores, ratio):
        own = [getattr(layer.mlp, name).weight.detach().abs().sum(1) for layer in model.model.layers]
        return prune_llama(model, own, ratio)

    return prune


def two_lists(model, scores, ratio):
    for layer in model.model.layers:
        gate, up = (getattr(layer.mlp, name).weight.detach().abs().sum(1) for name in ("gate_proj", "up_proj"))
        cut(layer.mlp, strongest(gate, ratio), strongest(up, ratio))
    model.config.intermediate_size = layer.mlp.gate_proj.out_features
    return model


def silence(model, scores, ratio):
    for layer, of_block in zip(model.model.layers, scores, strict=True):
        layer.mlp.down_proj.weight[:, of_block.argsort()[: int(ratio * len(of_block))]] = 0
    return prune_llama(model, scores, ratio)


def change_the_norm(model, scores, ratio):
    model.model.norm.weight = nn.Parameter(model.model.norm.weight + 1)
    return prune_llama(model, scores, ratio)


def another_activation(model, scores, ratio):
    model.config.hidden_act = "relu"
    return prune_llama(model, scores, ratio)


def with_the_library(model, scores, ratio):
    prune_neurons(model, scores, ratio=ratio)
    return model


def with_masks(model, scores, ratio):
    """Another way: boolean masks, and new numbers under the old parameters."""
    for layer, of_block in zip(model.model.layers, scores, strict=True):
        stays, mlp = of_block.argsort().argsort() >= int(ratio * len(of_block)), layer.mlp
        for name in ("gate_proj", "up_proj"):
            linear = getattr(mlp, name)
            linear.weight.data = linear.weight[stays]
            linear.out_features = int(stays.sum())
        mlp.down_proj.weight.data = mlp.down_proj.weight[:, stays]
        mlp.down_proj.in_features = model.config.intermediate_size = int(stays.sum())
    return model


test_prune_llama = cases_of(
    lesson_02.check_prune_llama,
    stubs=[lambda model, scores, ratio: ..., lambda *_: print("pruned")],
    mistakes=[
        (lambda model, scores, ratio: prune_neurons(model, scores, ratio=ratio), "Return the model; yours returned a"),
        (lambda model, scores, ratio: prune_llama(copy.deepcopy(model), scores, ratio), "You return another model"),
        (lambda model, scores, ratio: model, "gate still has all of its 20 rows"),
        (put("down_proj", lambda old, keep: old[keep]), "down_proj.weight should be [20, 14] and is [14, 20]"),
        (put("up_proj", lambda old, keep: old[:, keep]), "up_proj.weight should be [14, 20] and is [20, 14]"),
        (two_lists, "Use one list of neurons, in one order"),
        (put("down_proj", lambda old, keep: old[:, keep.flip(0)]), "Use one list of neurons, in one order"),
        (put("down_proj", lambda old, keep: 2 * old[:, keep]), "down_proj holds numbers that weren't there before"),
        (stale("gate_proj", "out_features"), "gate_proj notes out_features 20"),
        (stale("up_proj", "out_features"), "up_proj notes out_features 20"),
        (stale("down_proj", "in_features"), "in_features 20 beside a weight of [20, 14]"),
        (mistaken(note=False), "config.intermediate_size is 20, but the MLPs have 14"),
        (silence, "You wrote into model.layers.0.mlp.down_proj.weight"),
        (
            mistaken(choose=lambda scores, ratio: scores.topk(int((1 - ratio) * len(scores))).indices.sort().values),
            "rounded down",
        ),
        (
            mistaken(choose=lambda scores, ratio: scores.topk(int(ratio * len(scores))).indices),
            "as many as should go",
        ),
        (mistaken(choose=lambda scores, ratio: strongest(-scores, ratio)), "the neurons with the highest scores"),
        (lambda model, scores, ratio: prune_llama(model, [scores[0]] * 3, ratio), "Block 1: these go by block 0's"),
        (by_the_matrix("gate_proj"), "by gate's L1 norm"),
        (by_the_matrix("up_proj"), "by up's L1 norm"),
        (
            lambda model, scores, ratio: prune_llama(model, neuron_importance(model, "l1"), ratio),
            "other neurons should stay",
        ),
        (another_activation, "the model gives other logits"),
        (change_the_norm, "model.norm.weight has other numbers now"),
        (lambda model, scores, ratio: prune_llama(model, scores, str(ratio)), "Your code stopped with"),
    ],
    answers=[
        prune_llama,
        with_the_library,
        with_masks,
        mistaken(choose=lambda scores, ratio: scores.topk(len(scores) - int(ratio * len(scores))).indices),
    ],
)


def rescue(gate, up, down, gate_list, up_list):
    survivors = sorted({*gate_list.tolist()} & {*up_list.tolist()})
    in_gate = [gate_list.tolist().index(number) for number in survivors]
    in_up = [up_list.tolist().index(number) for number in survivors]
    return gate[in_gate], up[in_up], down[:, in_gate]


def with_isin(gate, up, down, gate_list, up_list):
    """Another way: gate's order, and a table of equal numbers."""
    in_gate, in_up = (gate_list[:, None] == up_list[None]).nonzero(as_tuple=True)
    return [gate[in_gate], up[in_up], down[:, in_gate]]


def places(gate_list, up_list):
    """Of the neurons in both lists, in gate's order: their numbers, and their places in gate and in up."""
    in_gate, in_up = (gate_list[:, None] == up_list[None]).nonzero(as_tuple=True)
    return gate_list[in_gate], in_gate, in_up


def numbers_as_places(gate, up, down, gate_list, up_list):
    numbers, *_ = places(gate_list, up_list)
    return gate[numbers], up[numbers], down[:, numbers]


def one_list_for_both(gate, up, down, gate_list, up_list):
    _, in_gate, _ = places(gate_list, up_list)
    return gate[in_gate], up[in_gate], down[:, in_gate]


def down_at_ups_places(gate, up, down, gate_list, up_list):
    _, in_gate, in_up = places(gate_list, up_list)
    return gate[in_gate], up[in_up], down[:, in_up]


def downs_rows(gate, up, down, gate_list, up_list):
    _, in_gate, in_up = places(gate_list, up_list)
    return gate[in_gate], up[in_up], down[in_gate]


def each_sorted(gate, up, down, gate_list, up_list):
    """The right neurons, but up in an order of its own."""
    _, in_gate, in_up = places(gate_list, up_list)
    return gate[in_gate], up[in_up.flip(0)], down[:, in_gate]


def still_opposite(gate, up, down, gate_list, up_list):
    same = gate_list == up_list
    return gate[same], up[same], down[:, same]


def all_but_one(*given):
    gate, up, down = rescue(*given)
    return gate[1:], up[1:], down[:, 1:]


def one_twice(*given):
    gate, up, down = rescue(*given)
    again = [0, *range(len(gate))]
    return gate[again], up[again], down[:, again]


def judged(attempt):
    return {"speeches": 6.14, "wiki": 7.5}


def check_rescue(attempt):
    return lesson_02.check_rescue(attempt, judged)


test_rescue = cases_of(
    check_rescue,
    stubs=[lambda gate, up, down, gate_list, up_list: ..., lambda *given: (..., ..., ...)],
    mistakes=[
        (numbers_as_places, "the neurons' numbers as places"),
        (one_list_for_both, "gate's places for up as well"),
        (down_at_ups_places, "down's columns at up's places"),
        (each_sorted, "Your matrices hold different neurons"),
        (still_opposite, "Exact, but too small"),
        (all_but_one, "Exact, but not the largest: neurons [2] are"),
        (one_twice, "Some neuron is there twice"),
        (lambda gate, up, down, gate_list, up_list: (gate, up, down), "You keep everything"),
        (lambda *given: rescue(*given)[:2], "Return three matrices"),
        (lambda *given: (*rescue(*given)[:2], given[2]), "don't make a GLU"),
        (downs_rows, "don't make a GLU"),
        (lambda *given: (2 * rescue(*given)[0], *rescue(*given)[1:]), "select, don't compute"),
    ],
    answers=[rescue, with_isin],
)


def test_a_rescue_is_measured_once_it_is_right(capsys):
    check_rescue(rescue)
    assert "perplexity × the whole model's: speeches 6.14, wiki 7.50" in capsys.readouterr().out

"""Lesson 02's checks refuse the stub, name the likely mistake, and accept the answers."""

import itertools

import pytest
import torch
from exercise_cases import cases_of
from torch.nn.functional import pad, silu
from transformers import LlamaConfig, LlamaForCausalLM

from course_utils.lessons.exercises import lesson_02
from course_utils.pruning.width import prune_neurons


def l1(gate, up):
    return gate.abs().sum(1) + up.abs().sum(1)


def prune_glu(gate, up, down, keep):
    best = l1(gate, up).topk(keep).indices.sort().values
    return gate[best], up[best], down[:, best]


def glu(x, gate, up, down):
    return (silu(x @ gate.T) * (x @ up.T)) @ down.T


def is_exact(prune, *, draws=10, **options):
    return all(one_draw(prune, seed, **options) for seed in range(draws))


def one_draw(prune, seed=0, *, width=5, keep=3, same=lambda a, b: torch.allclose(a, b, atol=1e-5)):
    generator = torch.Generator().manual_seed(seed)
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


def cut_llama():
    """A tiny Llama whose MLPs lost two of 20 neurons."""
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=61, hidden_size=8, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2)
    )
    prune_neurons(model, [torch.arange(20.0)] * 2, ratio=0.1)
    return model


def shapes_with(**other):
    return lambda hidden, width, gone: lesson_02._shapes(hidden, width, gone, **other)


test_shapes = cases_of(
    lesson_02.check_shapes,
    cut_llama(),
    20,
    stubs=[shapes_with(down=...)],
    mistakes=[
        (shapes_with(gate=(3, 4)), "Hidden size 2048, 8192 neurons, 1638 of them gone: it is gate [6,554, 2,048]"),
        (lambda *_: {"gate": (1, 2)}, "The names are gate, up, down, product, output; yours are gate."),
        (lambda *_: [(1, 2)], "Return a dict; yours is of type list"),
    ],
    answers=[lambda *given: {name: list(shape) for name, shape in lesson_02._shapes(*given).items()}],
)


def test_shapes_are_held_against_the_model_that_was_cut(capsys):
    lesson_02.check_shapes(lesson_02._shapes, cut_llama(), 20)
    assert "6 of 6 matrices have the shapes that you say" in capsys.readouterr().out


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
        (one_draw, "One draw isn't enough"),
        (lambda prune: one_draw(prune, width=8, keep=4), "One draw isn't enough"),
        (lambda prune: any(one_draw(prune, seed) for seed in range(10)), "One draw isn't enough"),
        (lambda prune: is_exact(prune, same=torch.equal), "torch.allclose"),
    ],
    answers=[is_exact, lambda prune: is_exact(prune, width=7, keep=4)],
)


@pytest.mark.parametrize("seed", range(20))
def test_is_exact_may_draw_any_random_glus(seed):
    """No broken pruner of the check is right by luck: lists that happen to be equal are made to differ."""
    assert lesson_02.check_is_exact(lambda prune: all(one_draw(prune, 10 * seed + draw) for draw in range(3)))


def separately(gate, up, down, keep):
    """The lesson's broken pruner, which now and then is right by luck."""
    on_gate, on_up = (matrix.abs().sum(1).topk(keep).indices.sort().values for matrix in (gate, up))
    return gate[on_gate], up[on_up], down[:, on_gate]


def test_one_draw_passes_a_broken_pruner_now_and_then_and_the_answer_never_does():
    passed = sum(one_draw(separately, seed) for seed in range(200))
    assert 8 < passed < 40, "about one draw in ten"
    assert not lesson_02.check_is_exact.answer(separately)


BROKEN = (cut_llama(), [torch.arange(18)] * 2, [torch.arange(1, 19)] * 2)


def judge(mend, model, *lists):
    """Makes up a damage: what is left of places with strangers."""
    mlp = model.model.layers[0].mlp
    weights = mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight
    gate, up, down = mend(*weights, lists[0][0], lists[1][0], 20)
    assert gate.shape == up.shape == down.T.shape
    return {"speeches": 8.2 if len(gate) == 18 else 0.1}


def at_the_end(gate, up, down, gate_list, up_list, width):
    """Pads, so that all rows stay where they are."""
    missing = width - len(gate)
    return pad(gate, (0, 0, 0, missing)), pad(up, (0, 0, 0, missing)), pad(down, (0, missing))


def both_in_step(gate, up, down, gate_list, up_list, width):
    """Empties the rows whose partner is missing, too, which computes the same."""
    matrices = lesson_02._in_step(gate, up, down, gate_list, up_list, width)
    alive = torch.tensor([number in gate_list and number in up_list for number in range(width)])
    return matrices[0] * alive[:, None], matrices[1] * alive[:, None], matrices[2] * alive


test_in_step = cases_of(
    lesson_02.check_in_step,
    judge,
    *BROKEN,
    mistakes=[
        (lambda gate, up, down, *_: (gate, up, down), "With all their places gate, up and down are [[9, 16], [9, 16]"),
        (at_the_end, "not at the end"),
        (lambda *given: lesson_02._in_step(*given)[:2], "Return three matrices"),
        (lambda *given: [2 * matrix for matrix in lesson_02._in_step(*given)], "it is a tensor [20, 16]"),
    ],
    answers=[both_in_step],
)


def test_damage_is_told_before_and_in_step(capsys):
    lesson_02.check_in_step(lesson_02._in_step, judge, *BROKEN)
    assert "The Llama, speeches: 8.20 nats per token of damage, in step 0.10" in capsys.readouterr().out


def rescue(gate, up, down, gate_list, up_list, down_list, _):
    """Another way: a table of places for each matrix."""
    in_gate, in_up, in_down = ({n: p for p, n in enumerate(own.tolist())} for own in (gate_list, up_list, down_list))
    alive = in_gate.keys() & in_up.keys() & in_down.keys()
    gate, up = gate[[in_gate[n] for n in alive]], up[[in_up[n] for n in alive]]
    return gate, up, down[:, [in_down[n] for n in alive]]


def chosen(change):
    """The answer, with its three matrices (and down as it was broken) changed."""
    return lambda *given: change(*rescue(*given), given[2])


test_rescue = cases_of(
    lesson_02.check_rescue,
    lambda attempt: {"speeches": 1.81, "wiki": 2.0},
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
    lesson_02.check_rescue(rescue, lambda attempt: {"speeches": 1.81, "wiki": 2.0})
    assert "nats per token of damage: speeches 1.81, wiki 2.00" in capsys.readouterr().out

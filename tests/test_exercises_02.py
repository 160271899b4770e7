"""Lesson 02's checks refuse the stub, name the likely mistake, and accept the answers."""

import itertools

import pytest
import torch
from torch.nn.functional import silu

from course_utils.exercises import lesson_02

SHAPES = {
    "gate": (6554, 2048),
    "up": (6554, 2048),
    "down": (2048, 6554),
    "product": (2, 7, 6554),
    "output": (2, 7, 2048),
    "ways that fit": 125,
    "ways that are right": 5,
}


def l1(gate, up):
    return gate.abs().sum(1) + up.abs().sum(1)


def prune_glu(gate, up, down, keep):
    best = l1(gate, up).topk(keep).indices.sort().values
    return gate[best], up[best], down[:, best]


def prune_by_score(gate, up, down, keep):
    best = l1(gate, up).topk(keep).indices  # another order, but the same one three times
    return gate[best], up[best], down[:, best]


def prune_with_the_bug(gate, up, down, keep):
    best = l1(gate, up).topk(keep).indices
    return gate[best], up[best], down[:, best.sort().values]


def prune_separately(gate, up, down, keep):
    on_gate, on_up, on_down = (
        scores.topk(keep).indices.sort().values for scores in (gate.abs().sum(1), up.abs().sum(1), down.abs().sum(0))
    )
    return gate[on_gate], up[on_up], down[:, on_down]


def prune_first(gate, up, down, keep):
    return gate[:keep], up[:keep], down[:, :keep]


def prune_rows_of_down(gate, up, down, keep):
    gate, up, _ = prune_glu(gate, up, down, keep)
    return gate, up, down[:keep]


def prune_and_scale(gate, up, down, keep):
    gate, up, down = prune_glu(gate, up, down, keep)
    return gate, up, 2 * down


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


@pytest.mark.parametrize(
    ("check", "stub"),
    [
        (lesson_02.check_shapes, dict.fromkeys(SHAPES, ...)),
        (lesson_02.check_shapes, SHAPES | {"ways that fit": ...}),
        (lesson_02.check_prune_glu, lambda gate, up, down, keep: ...),
        (lesson_02.check_is_exact, lambda prune: ...),
    ],
    ids=["shapes", "shapes_half_done", "prune_glu", "is_exact"],
)
def test_stub_is_not_solved_yet(check, stub, capsys):
    assert check(stub) is False
    assert "not solved yet" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("check", "attempt", "named"),
    [
        (lesson_02.check_shapes, SHAPES | {"gate": (1638, 2048)}, "1638 is how many neurons go"),
        (lesson_02.check_shapes, SHAPES | {"up": (6553, 2048)}, "so 6554 stay"),
        (lesson_02.check_shapes, SHAPES | {"down": (6554, 2048)}, "stores [out, in]"),
        (lesson_02.check_shapes, SHAPES | {"down": (2048, 8192)}, "8192 neurons were there before"),
        (lesson_02.check_shapes, SHAPES | {"product": (7, 6554)}, "3 dimensions"),
        (lesson_02.check_shapes, SHAPES | {"output": (2, 7, 6554)}, "back to the hidden size"),
        (lesson_02.check_shapes, SHAPES | {"ways that fit": 15}, "multiply"),
        (lesson_02.check_shapes, SHAPES | {"ways that fit": 5}, "The two counts differ"),
        (lesson_02.check_shapes, SHAPES | {"ways that are right": 1}, "any one of the five"),
        (lesson_02.check_shapes, {"gate": (6554, 2048)}, "Keep the names"),
        (lesson_02.check_prune_glu, prune_with_the_bug, "not in the same order"),
        (lesson_02.check_prune_glu, prune_separately, "different neurons"),
        (lesson_02.check_prune_glu, prune_first, "the wrong ones"),
        (lesson_02.check_prune_glu, prune_rows_of_down, "the shapes are"),
        (lesson_02.check_prune_glu, prune_and_scale, "select, don't compute"),
        (lesson_02.check_prune_glu, lambda gate, up, down, keep: gate, "Return three matrices"),
        (lesson_02.check_is_exact, lambda prune: True, "three separate index sets pass"),
        (lesson_02.check_is_exact, lambda prune: False, "stops a pruner that is right"),
        (lesson_02.check_is_exact, lambda prune: "yes", "Return True or False"),
        (lesson_02.check_is_exact, shapes_agree, "three separate index sets pass"),
        (lesson_02.check_is_exact, rows_agree, "The order changes no output"),
        (lesson_02.check_is_exact, gate_and_up_agree, "down an index set of its own"),
        (lesson_02.check_is_exact, lambda prune: is_exact(prune, keep=5), "let the pruner remove something"),
        (lesson_02.check_is_exact, lambda prune: is_exact(prune, same=torch.equal), "torch.allclose"),
    ],
)
def test_wrong_answer_names_the_mistake(check, attempt, named, capsys):
    assert check(attempt) is False
    out = capsys.readouterr().out
    assert "not yet." in out
    assert named in out


@pytest.mark.parametrize(
    ("check", "answer"),
    [
        (lesson_02.check_shapes, SHAPES),
        (lesson_02.check_shapes, {name: torch.Size(s) if isinstance(s, tuple) else s for name, s in SHAPES.items()}),
        (lesson_02.check_prune_glu, prune_glu),
        (lesson_02.check_prune_glu, prune_by_score),
        (lesson_02.check_is_exact, is_exact),
        (lesson_02.check_is_exact, lambda prune: is_exact(prune, width=7, keep=4)),
    ],
)
def test_right_answer(check, answer, capsys):
    assert check(answer) is True
    assert "correct." in capsys.readouterr().out

"""Lesson 02's checks refuse the stub, name the likely mistake, and accept the answers."""

import itertools

import torch
from exercise_cases import cases_of
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


test_shapes = cases_of(
    lesson_02.check_shapes,
    stubs=[dict.fromkeys(SHAPES, ...), SHAPES | {"ways that fit": ...}],
    mistakes=[
        (SHAPES | {"gate": (1638, 2048)}, "1638 is how many neurons go"),
        (SHAPES | {"up": (6553, 2048)}, "so 6554 stay"),
        (SHAPES | {"down": (6554, 2048)}, "stores [out, in]"),
        (SHAPES | {"down": (2048, 8192)}, "8192 neurons were there before"),
        (SHAPES | {"product": (7, 6554)}, "3 dimensions"),
        (SHAPES | {"output": (2, 7, 6554)}, "back to the hidden size"),
        (SHAPES | {"ways that fit": 15}, "multiply"),
        (SHAPES | {"ways that fit": 5}, "The two counts differ"),
        (SHAPES | {"ways that are right": 1}, "any one of the five"),
        ({"gate": (6554, 2048)}, "Keep the names"),
    ],
    answers=[SHAPES, {name: torch.Size(s) if isinstance(s, tuple) else s for name, s in SHAPES.items()}],
)


test_prune_glu = cases_of(
    lesson_02.check_prune_glu,
    stubs=[lambda gate, up, down, keep: ...],
    mistakes=[
        (prune_with_the_bug, "not in the same order"),
        (prune_separately, "different neurons"),
        (prune_first, "the wrong ones"),
        (prune_rows_of_down, "the shapes are"),
        (prune_and_scale, "select, don't compute"),
        (lambda gate, up, down, keep: gate, "Return three matrices"),
    ],
    answers=[prune_glu, prune_by_score],
)


test_is_exact = cases_of(
    lesson_02.check_is_exact,
    stubs=[lambda prune: ...],
    mistakes=[
        (lambda prune: True, "three separate index sets pass"),
        (lambda prune: False, "stops a pruner that is right"),
        (lambda prune: "yes", "Return True or False"),
        (shapes_agree, "three separate index sets pass"),
        (rows_agree, "The order changes no output"),
        (gate_and_up_agree, "down an index set of its own"),
        (lambda prune: is_exact(prune, keep=5), "let the pruner remove something"),
        (lambda prune: is_exact(prune, same=torch.equal), "torch.allclose"),
    ],
    answers=[is_exact, lambda prune: is_exact(prune, width=7, keep=4)],
)

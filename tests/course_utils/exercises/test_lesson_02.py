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


test_claims = cases_of(
    lesson_02.check_claims,
    stubs=[...],
    mistakes=[
        ({"a", "b", "e"}, "Look at b again: 400 times"),
        ({"a", "c", "e"}, "Look at c again: no random choice"),
        ({"a", "d", "e"}, "Look at d again: that is a question of equality"),
        ({"a", "e", "f"}, "Look at f again: only L1"),
        ({"e"}, "Look at a again"),
        ({"a"}, "Look at e again"),
    ],
    answers=[{"a", "e"}],
)


def differences(one, other):
    return [number for number, entries in enumerate(zip(one, other, strict=True)) if entries[0] != entries[1]]


def fair_pairs(arms, place):
    return [pair for pair in itertools.combinations(arms, 2) if differences(*pair) == [place]]


test_fair_pairs = cases_of(
    lesson_02.check_fair_pairs,
    stubs=[lambda arms, place: ..., lambda arms, place: [...]],
    mistakes=[
        (
            lambda arms, place: [pair for pair in itertools.combinations(arms, 2) if place in differences(*pair)],
            "two causes at once",
        ),
        (
            lambda arms, place: [pair for pair in itertools.permutations(arms, 2) if differences(*pair) == [place]],
            "once in each direction",
        ),
        (lambda arms, place: [(b, a) for a, b in fair_pairs(arms, place)], "comes first"),
        (lambda arms, place: fair_pairs(arms, place)[:1], "fair pairs in these 7 arms"),
        (lambda arms, place: [(arm, arm) for arm in arms], "compares an arm with itself"),
        (lambda arms, place: [(arms[0], ("shared", "R", "20 %"))], "was not measured"),
        (lambda arms, place: arms, "a pair of two arms"),
    ],
    answers=[fair_pairs],
)


def contribution(gate, up, down, x):
    return (silu(x @ gate.T) * (x @ up.T)).norm(dim=0) * down.norm(dim=0)


def judge(score):
    """Made up: the share of what the neurons add that goes with the half that scores lowest."""
    generator = torch.Generator().manual_seed(3)
    matrices = (*torch.randn(2, 40, 8, generator=generator), torch.randn(8, 40, generator=generator))
    x = torch.randn(64, 8, generator=generator)
    real = contribution(*matrices, x)
    gone = score(*matrices, x).argsort()[:20]
    return 1 + (real[gone].sum() / real.sum()).item()


def check_score(attempt):
    return lesson_02.check_score(attempt, judge)


test_score = cases_of(
    check_score,
    stubs=[lambda gate, up, down, x: ...],
    mistakes=[
        (lambda gate, up, down, x: gate.abs().sum(0), "Sum over tokens"),
        (lambda gate, up, down, x: silu(x @ gate.T) * (x @ up.T), "Sum over tokens"),
        (lambda gate, up, down, x: torch.zeros(len(gate)), "the same score"),
        (lambda gate, up, down, x: torch.rand(len(gate)), "not to its place"),
        (lambda gate, up, down, x: torch.arange(float(len(gate))), "not to its place"),
        (lambda gate, up, down, x: contribution(gate, up, down, x).log() - torch.inf, "aren't finite"),
        (lambda gate, up, down, x: -contribution(gate, up, down, x), "upside down"),
        (lambda gate, up, down, x: gate.abs().sum(1) + up.abs().sum(1), "does better"),
    ],
    answers=[contribution],
)

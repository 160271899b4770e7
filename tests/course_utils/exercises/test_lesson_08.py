"""Lesson 08's checks refuse the stub, name the likely mistake, and accept the answers."""

import re

import numpy as np
import pytest
import torch
from exercise_cases import cases_of

from course_utils.exercises import lesson_08


def align(offsets_a, offsets_b, shared, *, first=0, whole=True, shifted=True, runs=slice(None)):
    found = []
    for start_a, start_b, length in shared[runs]:
        start_b = start_b if shifted else start_a
        for i, (low_a, high_a) in enumerate(offsets_a):
            for j, (low_b, high_b) in enumerate(offsets_b):
                same = low_a - start_a == low_b - start_b and start_a <= low_a < start_a + length
                if whole:
                    same = same and high_a - start_a == high_b - start_b and high_a <= start_a + length
                if same and i > first - 1 and j > first - 1:
                    found.append((i, j))
    return found


def right_align(*arguments, **options):
    return align(*arguments, first=1, **options)


def first_component(states, mask, *, keep=None, centre=True, power=2, percent=False):
    real = mask.bool()
    if keep is None:
        real = real & (real.cumsum(1) > 1)
        tokens = states[real]
    else:
        tokens = keep(states, real)
    values = torch.linalg.svdvals(tokens - tokens.mean(0) if centre else tokens) ** power
    return (100 if percent else 1) * values[0] / values.sum()


def sign_flip(a, b, clusters, *, flips=4000, one_sided=False, by_cluster=True, plus=1):
    differences = a - b
    if by_cluster:
        differences = np.array([differences[clusters == cluster].sum() for cluster in np.unique(clusters)])
    signs = np.random.default_rng(1).choice((-1, 1), (flips, len(differences)))
    drawn, observed = signs @ differences, differences.sum()
    if not one_sided:
        drawn, observed = np.abs(drawn), abs(observed)
    elif one_sided == "lower":
        drawn, observed = -drawn, -observed
    return ((drawn >= observed - 1e-9).sum() + plus) / (flips + plus)


def all_signs(a, b, clusters):
    sums = np.zeros(1)
    for cluster in np.unique(clusters):
        here = (a - b)[clusters == cluster].sum()
        sums = np.concatenate([sums + here, sums - here])
    return (np.abs(sums) >= abs(sums[0]) - 1e-9).mean()


def unpaired(a, b, clusters):
    everything, generator = np.concatenate([a, b]), np.random.default_rng(2)
    gaps = [np.subtract(*map(np.sum, np.split(generator.permutation(everything), 2))) for _ in range(2000)]
    return (1 + (np.abs(gaps) >= abs(a.sum() - b.sum())).sum()) / 2001


def control_sets(chosen, heads, blocks, *, count=19, size=None, own=False, shallow=False, seed=0):
    lowest = 0 if shallow else min(block for block, _ in chosen)
    others = [(i, k) for i in range(lowest, blocks) for k in range(heads) if own or (i, k) not in chosen]
    draw = np.random.default_rng(seed)
    return [[others[n] for n in draw.choice(len(others), size or len(chosen), replace=False)] for _ in range(count)]


test_control_sets = cases_of(
    lesson_08.check_control_sets,
    stubs=[lambda *_: None],
    mistakes=[
        (lambda c, h, b: control_sets(c, h, b, count=5), "it takes 19"),
        (lambda c, h, b: control_sets(c, h, b, size=1), "as many different heads"),
        (lambda c, h, b: control_sets(c, h, b, own=True, count=99), "hold a chosen head"),
        (lambda c, h, b: control_sets(c, h, b, shallow=True), "less deep"),
        (lambda c, h, b: control_sets(c, h, b, count=1) * 19, "nearly all the same"),
        (lambda c, h, b: [[(b + i, 0) for i in range(len(c))]] * 19, "doesn't have"),
        (lambda c, h, b: [[1, 2]] * 19, "pairs (block, head)"),
        (lambda c, h, b: 19, "Return a list"),
    ],
    answers=[control_sets, lambda *given: control_sets(*given, count=40, seed=3)],
)


test_claims = cases_of(
    lesson_08.check_claims,
    stubs=[None, ...],
    mistakes=[
        ({"A", "B", "D"}, "Look at B again: PCA shows the largest"),
        ({"A", "C", "D"}, "no preference of sentiment"),
        ({"A", "D", "E"}, "no correction would remove it"),
        ({"A", "D", "F"}, "learned the words"),
        ({"A"}, "Look at D again: the heads were patched"),
        ({"D"}, "Look at A again: the rank correlation"),
        ({"A", "D", "X"}, "There is no X; choose among A, B, C, D, E, F"),
        (7, "Choose letters"),
    ],
    answers=[{"A", "D"}, ["D", "A"]],
)


def predictor_task(seed=0, words=20, hidden=40):
    """States that hold the log-odds along two directions, of which the baseline knows one, badly."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    axes = torch.linalg.qr(torch.randn(hidden, 2, generator=generator)).Q
    for _ in range(2):
        odds = torch.randn(words, 4, generator=generator) * 0.2 + torch.randn(words, 1, generator=generator)
        noise = torch.randn(words, 4, hidden, generator=generator)
        found.append((noise + odds.mean(1)[:, None, None] * (3 * axes[:, 0] + axes[:, 1]), odds))
    return found[0], axes[:, 1], found[1]


def check_predictor(attempt):
    known, direction, new = predictor_task()
    return lesson_08.check_predictor(attempt, known, direction, new)


def ridge(states, odds, direction, new_states):
    points, answers = states.mean(1), odds.mean(1)
    gram = points @ points.T + 10 * torch.eye(len(points))
    return new_states.mean(1) @ points.T @ torch.linalg.solve(gram, answers - answers.mean())


test_predictor = cases_of(
    check_predictor,
    stubs=[lambda *_: None],
    mistakes=[
        (lambda s, o, d, n: n.mean(1) @ d, "not above the baseline"),
        (lambda *given: -ridge(*given), "the other way round"),
        (lambda s, o, d, n: n @ d, "average over the sentences"),
        (lambda s, o, d, n: torch.ones(len(n)), "follows nothing"),
        (lambda s, o, d, n: s.mean(1)[:5] @ d, "one for each new word"),
        (lambda s, o, d, n: n.mean(1) @ d * torch.nan, "not finite"),
    ],
    answers=[ridge, lambda *given: ridge(*given).tolist()],
)


test_align = cases_of(
    lesson_08.check_align,
    stubs=[lambda *_, **__: None],
    mistakes=[
        (lambda a, b, runs: [(i, i) for i in range(1, min(len(a), len(b)))], "have the same number"),
        (align, "first tokens are still in"),
        (lambda *given: right_align(*given, shifted=False), "same offsets in both"),
        (lambda *given: right_align(*given, whole=False), "reaches into a swapped word"),
        (lambda *given: right_align(*given, runs=slice(1)), "only one of the runs"),
        (lambda *given: right_align(*given, runs=slice(-1, None)), "only one of the runs"),
        (lambda *given: right_align(*given)[1:], "stand on the same piece"),
        (lambda *given: [*right_align(*given), (1, 5)], "don't stand on the same piece"),
        (lambda *given: [1, 2], "Return pairs"),
        (lambda *given: 7, "Return a list of pairs"),
    ],
    answers=[right_align],
)


test_first_component = cases_of(
    lesson_08.check_first_component,
    stubs=[lambda *_, **__: None],
    mistakes=[
        (lambda s, m: first_component(s, m, keep=lambda s, real: s[real]), "first token is still"),
        (lambda s, m: first_component(s, m, keep=lambda s, real: s[:, 1:][real[:, 1:]]), "column 0"),
        (lambda s, m: first_component(s, m, keep=lambda s, real: s.flatten(0, 1)), "padded"),
        (lambda s, m: first_component(s, m, keep=lambda s, real: s[~real | (real.cumsum(1) > 1)]), "padded"),
        (lambda s, m: first_component(s, m, centre=False), "subtract the mean"),
        (lambda s, m: first_component(s, m, power=1), "squares"),
        (lambda s, m: first_component(s, m, percent=True), "in percent"),
        (lambda s, m: 0.5, "the check's states give"),
    ],
    answers=[first_component],
)


test_sign_flip = cases_of(
    lesson_08.check_sign_flip,
    stubs=[lambda *_, **__: None],
    mistakes=[
        (lambda a, b, c: sign_flip(a, b, c, one_sided="upper"), "one side only"),
        (lambda a, b, c: sign_flip(a, b, c, one_sided="lower"), "one side only"),
        (unpaired, "shuffle all values together"),
        (lambda a, b, c: sign_flip(a, b, c, by_cluster=False), "flip each pair by itself"),
        (lambda a, b, c: sign_flip(a, b, c, flips=19), "Few flips"),
        (lambda a, b, c: sign_flip(a, b, c, flips=99), "Few flips"),
        (lambda a, b, c: sign_flip(a, b, c, flips=500, plus=0) * 0, "p-value is 0"),
        (lambda a, b, c: abs(a - b).mean(), "from 0 to 1"),
    ],
    answers=[sign_flip, all_signs],
)


def test_first_tokens_make_the_first_component(capsys):
    assert lesson_08.check_first_component(first_component)
    shares = re.findall(r"(\d+)%", capsys.readouterr().out)
    assert len(shares) == 2 and int(shares[0]) > 90 > 40 > int(shares[1])


@pytest.mark.parametrize("seed", range(5))
def test_an_answer_with_2000_flips_is_not_refused_by_chance(seed):
    def attempt(a, b, clusters):
        sums = np.array([(a - b)[clusters == cluster].sum() for cluster in np.unique(clusters)])
        signs = np.random.default_rng(seed).choice((-1, 1), (2000, len(sums)))
        return (1 + (np.abs(signs @ sums) >= abs(sums.sum()) - 1e-9).sum()) / 2001

    assert lesson_08.check_sign_flip(attempt)

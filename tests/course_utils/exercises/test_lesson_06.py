"""Lesson 06's checks refuse the stub, name the likely mistake, and accept the answers."""

import itertools

import torch
from exercise_cases import cases_of

from course_utils.exercises import lesson_06


def complexity(embeddings, mask, log_length, variance, *, padded=False, cut=True, log=True, over_all=False, mean=True):
    scores = []
    for row, real in zip(embeddings, mask.bool(), strict=True):
        tokens = row if padded else row[real]
        length = torch.tensor(float(real.sum()))
        spread = tokens.var() if over_all else tokens.var(0, unbiased=False).mean()
        pair = [(length.log() if log else length, log_length), (spread, variance)]
        scaled = torch.stack([(value - low) / (high - low) for value, (low, high) in pair])
        scaled = scaled.nan_to_num().clamp(0, 1) if cut else scaled
        scores.append(scaled.mean() if mean else scaled.sum())
    return torch.stack(scores)


def same_length_for_all(embeddings, mask, log_length, variance):
    log, (low, high) = torch.tensor(float(mask.shape[1])).log(), log_length
    wide = ((log - low) / (high - low)).clamp(0, 1)
    own = complexity(embeddings, mask, log_length, (-1e9, 1e9)) * 2 - 0.5  # the length's part alone
    return complexity(embeddings, mask, log_length, variance) + (wide - own) / 2


def thresholds(scores, harms, left_out, budget, *, pick=min, respect=True):
    candidates, found = [*scores.sort().values.tolist(), float(scores.max()) + 1], []
    for low, high in itertools.combinations_with_replacement(candidates, 2):
        levels = (scores >= low).long() + (scores >= high).long()
        average = torch.tensor(left_out, dtype=torch.float32)[levels].mean()
        if average >= budget or not respect:
            found.append((float(harms.gather(0, levels[None]).mean()), low, high))
    return pick(found)[1:]


def speedup(shares, speedups):
    return 1 / sum(share / one for share, one in zip(shares, speedups, strict=True))


test_complexity = cases_of(
    lesson_06.check_complexity,
    stubs=[lambda *_, **__: None],
    mistakes=[
        (lambda e, m, **r: complexity(e, m, **r, padded=True), "padded positions count"),
        (lambda e, m, **r: complexity(e, m, **r, cut=False), "don't cut off"),
        (lambda e, m, **r: complexity(e, m, **r, log=False), "*logarithm*"),
        (lambda e, m, **r: complexity(e, m, **r, mean=False), "that is the sum"),
        (lambda e, m, **r: complexity(e, m, **r, over_all=True), "all numbers together"),
        (same_length_for_all, "same length"),
        (lambda e, m, **r: complexity(e, m, **r) * 0.9, "the scores are"),
        (lambda e, m, **r: complexity(e, m, **r)[:2], "one score a row"),
    ],
    answers=[complexity],
)


test_thresholds = cases_of(
    lesson_06.check_thresholds,
    stubs=[lambda *_, **__: None],
    mistakes=[
        (lambda s, h, n, b: thresholds(s, h, n, b, pick=max), "is possible at the same budget"),
        (lambda s, h, n, b: thresholds(s, h, n, b, respect=False), "fewer than 4"),
        (lambda s, h, n, b: s.quantile(torch.tensor([1 / 3, 2 / 3])), "fewer than 4"),
        (lambda s, h, n, b: (0.9, 0.1), "must not be above"),
        (lambda s, h, n, b: 0.5, "two thresholds"),
    ],
    answers=[thresholds],
)


test_speedup = cases_of(
    lesson_06.check_speedup,
    stubs=[lambda *_, **__: None],
    mistakes=[
        (lambda a, b: sum(x * y for x, y in zip(a, b, strict=True)), "mean of the speed-ups"),
        (lambda a, b: 1 / speedup(a, b), "upside down"),
        (lambda a, b: max(b), "fastest part"),
        (lambda a, b: 7.0, "all together are"),
    ],
    answers=[speedup],
)


def test_held_out_prompts_are_judged(capsys):
    assert lesson_06.check_thresholds(thresholds)
    assert "that chose nothing" in capsys.readouterr().out

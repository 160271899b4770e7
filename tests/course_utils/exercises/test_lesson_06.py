"""Lesson 06's checks refuse the stub, name the likely mistake, and accept the answers."""

import itertools

import numpy as np
import torch
from exercise_cases import cases_of
from sklearn.ensemble import ExtraTreesRegressor

from course_utils.exercises import lesson_06


def complexity(
    embeddings,
    mask,
    log_length,
    variance,
    *,
    padded=False,
    cut=True,
    log=True,
    over_all=False,
    mean=True,
    unbiased=False,
):
    scores = []
    for row, real in zip(embeddings, mask.bool(), strict=True):
        tokens = row if padded else row[real]
        length = torch.tensor(float(real.sum()))
        spread = tokens.var() if over_all else tokens.var(0, unbiased=unbiased).mean()
        pair = [(length.log() if log else length, log_length), (spread, variance)]
        scaled = torch.stack([(value - low) / (high - low) for value, (low, high) in pair])
        scaled = scaled.nan_to_num().clamp(0, 1) if cut else scaled
        scores.append(scaled.mean() if mean else scaled.sum())
    return torch.stack(scores)


def multiplied_by_the_mask(embeddings, mask, log_length, variance):
    """Padding becomes zeros, and they take part in the variance."""
    length = mask.sum(1).float().log()
    spread = (embeddings * mask[..., None]).var(1, unbiased=False).mean(1)
    scaled = [(value - low) / (high - low) for value, (low, high) in ((length, log_length), (spread, variance))]
    return torch.stack(scaled).clamp(0, 1).mean(0)


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


test_complexity = cases_of(
    lesson_06.check_complexity,
    stubs=[lambda *_, **__: None],
    mistakes=[
        (lambda e, m, **r: complexity(e, m, **r, padded=True), "Padded positions count"),
        (lambda e, m, **r: complexity(e, m, **r, cut=False), "don't cut off"),
        (lambda e, m, **r: complexity(e, m, **r, log=False), "*logarithm*"),
        (lambda e, m, **r: complexity(e, m, **r, mean=False), "That is the sum"),
        (lambda e, m, **r: complexity(e, m, **r, over_all=True), "all numbers together"),
        (lambda e, m, **r: complexity(e, m, **r, unbiased=True), "divides by one less than the number of tokens"),
        (multiplied_by_the_mask, "zeros where padding is"),
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


test_claims = cases_of(
    lesson_06.check_claims,
    stubs=[...],
    mistakes=[
        ({"a", "b", "c"}, "nothing about time"),
        ({"a", "c", "d"}, "Another signal"),
        ({"c"}, "partly the prompt's"),
        ({"a"}, "can't inflate it"),
        ({"a", "e"}, "There is no e"),
    ],
    answers=[{"a", "c"}, ["c", "a"]],
)


def share(tokens, left_out, blocks):
    return sum(t * n for t, n in zip(tokens, left_out, strict=True)) / blocks / sum(tokens)


test_same_average = cases_of(
    lesson_06.check_same_average,
    stubs=[lambda *_: None],
    mistakes=[
        (lambda t, n, b: sum(n) / len(n) / b, "mean over prompts"),
        (lambda t, n, b: share(t, n, b) * b, "mean token"),
        (lambda t, n, b: 1 - share(t, n, b), "what stays"),
        (lambda t, n, b: share(t, n, b) * sum(t), "Divide by all the tokens"),
        (lambda t, n, b: 0.5, "is saved; yours is"),
    ],
    answers=[share],
)


def deal(choice, strata, seed, *, replace=False, within=True):
    generator, dealt = np.random.default_rng(seed), choice.copy()
    for stratum in np.unique(strata) if within else [None]:
        rows = np.flatnonzero(strata == stratum) if within else np.arange(len(choice))
        dealt[rows] = generator.choice(choice[rows], len(rows), replace=replace)
    return dealt


def in_place(choice, strata, seed):
    choice[:] = deal(choice, strata, seed)
    return choice


test_control = cases_of(
    lesson_06.check_control,
    stubs=[lambda *_: None],
    mistakes=[
        (lambda c, s, seed: deal(c, s, seed, replace=True), "without replacement"),
        (lambda c, s, seed: deal(c, s, seed, within=False), "another stratum"),
        (lambda c, s, seed: c.copy(), "Nothing was dealt"),
        (lambda c, s, seed: deal(c, s, 0), "Another seed"),
        (lambda c, s, seed: deal(c, s, seed)[:10], "one number a prompt"),
        (in_place, "Work on a copy"),
    ],
    answers=[deal],
)


def trees(tokens, entropy, states, learn):
    columns = np.column_stack([np.log(tokens), entropy, states])
    model = ExtraTreesRegressor(100, min_samples_leaf=4, random_state=0)
    return model.fit(columns[: len(learn)], learn).predict(columns)


test_signal = cases_of(
    lesson_06.check_signal,
    stubs=[lambda *_: None],
    mistakes=[
        (lambda t, e, s, y: -np.log(t), "clearly better than length"),
        (lambda t, e, s, y: np.ones(len(t)), "the same for all"),
        (lambda t, e, s, y: -trees(t, e, s, y), "upside down"),
        (lambda t, e, s, y: y, "one number for each"),
        (lambda t, e, s, y: t * np.nan, "aren't finite"),
    ],
    answers=[trees],
)


def test_held_out_prompts_are_judged(capsys):
    assert lesson_06.check_thresholds(thresholds)
    assert "that chose nothing" in capsys.readouterr().out

"""Pairs of texts in the tiny models' words, and what a model says of one."""

from __future__ import annotations

import numpy as np
from tiny import log_likelihood, words
from transformers import PreTrainedModel

from course_utils.bias.contrastive import Pair

A, B = 90, 91  # the words for the groups
PLEASANT, UNPLEASANT = 80, 81  # the endings


def make_pairs(axis="group", kind="demographic", *, templates=4, swaps=3, seed=0, a=None, b=None) -> list[Pair]:
    """Random templates, the same for every axis, x random swaps x two endings; ``a`` and ``b`` fix a first word."""
    sentences = np.random.default_rng(7).integers(3, 70, (templates, 6))
    generator, made = np.random.default_rng(seed), []
    for s in range(swaps):
        a_ids, b_ids = ([*([] if w is None else [w]), *generator.integers(3, 70, 1 + s % 2)] for w in (a, b))
        if kind == "identity":
            b_ids = a_ids
        elif a_ids == b_ids:
            b_ids = [word + 1 for word in b_ids]
        for t, ids in enumerate(sentences):
            for valence, ending in ((1, PLEASANT), (-1, UNPLEASANT)):
                made.append(
                    Pair(
                        before=words(ids[: 1 + t % 2]) + " ",
                        a=words(a_ids),
                        b=words(b_ids),
                        after=" " + words([*ids[2 : 3 + t % 3], ending]),
                        axis=axis,
                        kind=kind,
                        group_a="x",
                        group_b="y",
                        template=f"t{t}",
                        valence=valence,
                    )
                )
    return made


def gap(model: PreTrainedModel, pair: Pair) -> float:
    """Log-likelihood of what follows a, minus the same for b."""
    sides = [pair.before + pair.a, pair.before + pair.b]
    of_a, of_b = (log_likelihood(model, side + pair.after, len(side.split())) for side in sides)
    return of_a - of_b

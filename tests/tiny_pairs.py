"""Pairs of texts in the tiny models' words, what a model says of one, and made-up scores with a known truth."""

from __future__ import annotations

import numpy as np
import pandas as pd
from tiny import log_likelihood, words
from transformers import PreTrainedModel

from course_utils.bias.contrastive import CONTROLS, Pair
from course_utils.bias.scores import PairScores

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
                made.append(Pair(
                    before=words(ids[: 1 + t % 2]) + " ", a=words(a_ids), b=words(b_ids),
                    after=" " + words([*ids[2 : 3 + t % 3], ending]), axis=axis, kind=kind, group_a="x", group_b="y",
                    template=f"t{t}", valence=valence,
                ))  # fmt: skip
    return made


def gap(model: PreTrainedModel, pair: Pair) -> float:
    """Log-likelihood of what follows a, minus the same for b."""
    sides = [pair.before + pair.a, pair.before + pair.b]
    of_a, of_b = (log_likelihood(model, side + pair.after, len(side.split())) for side in sides)
    return of_a - of_b


def made_up_scores(
    seed: int = 0,
    *,
    effects: dict[str, float] | None = None,
    ratio: float = 1.0,
    spread: tuple[float, float, float] = (0.3, 0.5, 0.5),
    templates: int = 12,
    swaps: int = 10,
) -> PairScores:
    """Double differences ``effect`` + template + swap + cell noise; relative ones ``ratio`` times the neutral."""
    generator, rows, relative = np.random.default_rng(seed), [], []
    template_relative = generator.normal(size=(templates, 1))
    kinds = dict.fromkeys(effects or ["group"], "demographic") | {kind: kind for kind in CONTROLS}
    for axis, kind in kinds.items():
        parts = (generator.normal(size=size) for size in ((templates, 1), (1, swaps), (templates, swaps)))
        noise = sum(sd * part for sd, part in zip(spread, parts, strict=True))
        preference = 0 * noise if kind == "identity" else noise + (effects or {}).get(axis, 0.0)
        noise = 0.2 * (
            template_relative + generator.normal(size=(1, swaps)) + generator.normal(size=(templates, swaps))
        )
        level = 0.3 * np.exp(noise) * {"demographic": ratio, "identity": 0.0}.get(kind, 1.0)
        for (t, s), value in np.ndenumerate(preference):
            for valence in (1, -1):
                rows.append(
                    {"axis": axis, "kind": kind, "template": f"t{t}", "swap": f"{axis}{s}", "group_a": "x"}
                    | {"group_b": "y", "valence": valence, "split": "evaluation", "tokens": 8, "excluded": 1}
                    | {"log_likelihood": 0.7 + valence * value / 2}
                )
                relative.append(level[t, s] * np.array([[1.0, 1.1, 0.9], [2.0, 1.0, 0.5]]))
    sites = ("attention_out", "mlp_out")
    return PairScores(pd.DataFrame(rows), np.array(relative, dtype=np.float32), sites, (0, 1, 2), "same")

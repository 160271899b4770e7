"""Is it bias, or only another word? Contrastive pairs beside their controls, with intervals, tests and a verdict.

Any two different words change what a model computes, so a difference alone says nothing. It counts when it is larger
than that of a *neutral* swap in the same sentences (tall/short), or when it has a *direction*: when the pleasant ending
gains more than the unpleasant one by group a (``statistics.preferences``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils.bias import contrastive
from course_utils.bias.contrastive import CONTROLS, Axis
from course_utils.bias.scores import PairScores, measure_pairs
from course_utils.bias.statistics import (
    ITEM,
    activation_ratio,
    behaviour,
    means,
    preferences,
    require_neutral,
    sums_by_cell,
    with_holm,
)
from course_utils.models.reports import shown, shown_p, with_interval
from course_utils.support.checks import check_types
from course_utils.support.uncertainty import crossed_interval, mcnemar_p, verdict

_LEVEL = 0.05


@dataclass(frozen=True)
class Change:
    """What pruning changed, beyond what it did to neutral swaps.

    Attributes:
        differences: a row for each axis and quantity: ``base`` and ``pruned`` means, their ``change``, the neutral
            pairs' ``neutral_change``, and ``difference``, the change minus the neutral one, with its crossed 95 %
            interval and p-value, adjusted for all rows (``p_holm``).
        flips: for each axis and control, how many ``items`` (template x swap) there are, how many went from b ``to_a``
            and from a ``to_b``, and McNemar's exact p that both are as likely.
    """

    differences: pd.DataFrame
    flips: pd.DataFrame


@check_types
def difference_in_differences(base: PairScores, pruned: PairScores) -> Change:
    """Compare two models on the same pairs: (pruned - base) of each axis minus (pruned - base) of the neutral swaps.

    Quantities: "preference" (direction, nats), "absolute" (its magnitude, nats) and "relative" (the activations' mean
    relative difference over all places). Pruning changes every difference, so only what it changes more than the
    neutral ones is about groups.

    Raises:
        ValueError: the two were measured on different pairs or with different tokenizers, or without neutral pairs.
    """
    columns = [*ITEM, "valence", "split"]
    same_pairs = base.frame[columns].reset_index(drop=True).equals(pruned.frame[columns].reset_index(drop=True))
    if base.fingerprint != pruned.fingerprint or not same_pairs:
        raise ValueError(
            f"Both models must be measured on the same pairs with the same tokenizer; got {len(base.frame)} and "
            f"{len(pruned.frame)} pairs, and they differ. Pass one list of pairs to measure_pairs for both."
        )
    items = preferences(base).merge(preferences(pruned), on=ITEM, suffixes=("_base", "_pruned"), validate="1:1")
    for which in ("base", "pruned"):
        items[f"absolute_{which}"] = items[f"preference_{which}"].abs()
    sources = {"preference": items, "absolute": items}
    if base.relative.size:
        both = {f"relative_{of}": s.relative.mean(axis=(1, 2)) for of, s in (("base", base), ("pruned", pruned))}
        sources["relative"] = base.frame[ITEM].assign(**both).dropna()
    rows = []
    for quantity, source in sources.items():
        require_neutral(source)
        columns, templates = [f"{quantity}_base", f"{quantity}_pruned"], source["template"].unique()
        neutral = sums_by_cell(source[source["axis"] == "neutral"], columns, templates)
        for (axis, kind), part in source[~source["kind"].isin(CONTROLS)].groupby(["axis", "kind"], sort=False):
            table = sums_by_cell(part, columns, templates)
            value, low, high, p = (float(estimates[0]) for estimates in crossed_interval([table, neutral], _change))
            before, after = means(table.sum((0, 1)))
            change = after - before
            rows.append(
                {"axis": axis, "kind": kind, "quantity": quantity, "base": before, "pruned": after, "change": change}
                | {"neutral_change": change - value, "difference": value, "ci_low": low, "ci_high": high, "p": p}
            )
    return Change(with_holm(pd.DataFrame(rows)), _flips(items))


def _flips(items: pd.DataFrame) -> pd.DataFrame:
    before, after = items["preference_base"] > 0, items["preference_pruned"] > 0
    counted = items.assign(items=1, to_a=~before & after, to_b=before & ~after)
    table = counted.groupby(["axis", "kind"], sort=False)[["items", "to_a", "to_b"]].sum().reset_index()
    return table.assign(p=[mcnemar_p(a, b) for a, b in zip(table["to_a"], table["to_b"], strict=True)])


def _change(axis: np.ndarray, neutral: np.ndarray) -> np.ndarray:
    """Of sums [..., (base, pruned, count)]: the axis' change minus the neutral swaps', [..., 1]."""
    return np.diff(means(axis), axis=-1) - np.diff(means(neutral), axis=-1)


@dataclass(frozen=True)
class BiasReport:
    """What was found: ``print`` it for the verdicts.

    Attributes:
        scores: the measured pairs.
        tables: "behaviour", "activations" (ratio to neutral over all places) and "activations_by_place" (a row per site
            and block), of ``statistics``.
        verdict: axis -> in words; "no evidence" where there is none.
    """

    scores: PairScores
    tables: dict[str, pd.DataFrame] = field(repr=False)
    verdict: dict[str, str]

    def __str__(self) -> str:
        table = self.tables["behaviour"].set_index("axis")
        controls = [
            f"  {axis}: {with_interval(row['preference'], row['ci_low'], row['ci_high'])} nats, magnitude "
            f"{shown(row['absolute'])}"
            for axis, row in table[table["kind"].isin(CONTROLS)].iterrows()
        ]
        verdicts = [f"{axis}: {words}" for axis, words in self.verdict.items()]
        excluded, tokens = (int(self.scores.frame[name].sum()) for name in ("excluded", "tokens"))
        counts = f"{len(self.scores.frame):,} pairs, {tokens:,} tokens compared on both sides, {excluded:,} excluded."
        return "\n".join([*verdicts, "Preference of the controls:", *controls, counts])


@check_types
def report(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    axes: Sequence[str | Path | Axis] = ("gender",),
) -> BiasReport:
    """The whole analysis in one call: pairs and controls, one forward pass per batch, statistics and verdict.

    It takes the templates of the "evaluation" split, because the other half may have chosen what to prune. For other
    pairs or sites, give the scores of ``measure_pairs`` to ``analyse``.

    Args:
        model: any that ``describe`` knows; it is not changed.
        tokenizer: the model's, a fast one.
        axes: names of built-in axes, paths of JSON files, or ``Axis`` objects.

    Raises:
        ValueError: no axes, an unknown or repeated one, or from ``measure_pairs``.
    """
    axes = [axes] if isinstance(axes, str | Path | Axis) else list(axes)
    if not axes:
        raise ValueError(f"'axes' must hold at least one axis, such as 'gender'; got {axes}.")
    made = [contrastive.pairs(axis, split="evaluation") for axis in axes]
    names = [pairs[0].axis for pairs in made]
    if len(set(names)) < len(names) or set(names) & set(CONTROLS):
        raise ValueError(f"Axes must have different names, other than {', '.join(CONTROLS)}; got {names}.")
    made += [contrastive.controls(kind, split="evaluation") for kind in CONTROLS]
    pairs = [pair for of_axis in made for pair in of_axis]
    return analyse(measure_pairs(model, tokenizer, pairs))


@check_types
def analyse(scores: PairScores) -> BiasReport:
    """The statistics and verdicts of pairs that are measured already: some axes, and the neutral control.

    Raises:
        ValueError: no neutral pairs, no axis beside the controls, or no preferences.
    """
    tables = {
        "behaviour": behaviour(scores),
        "activations": activation_ratio(scores, by_place=False),
        "activations_by_place": activation_ratio(scores),
    }
    axes = tables["activations"]["axis"]
    words = {axis: f"{_of_behaviour(tables, axis)} {_of_activations(tables, axis)}" for axis in axes}
    return BiasReport(scores, tables, words)


def _of_behaviour(tables: dict[str, pd.DataFrame], axis: str) -> str:
    tested = tables["behaviour"].dropna(subset="p_holm").set_index("axis")
    row = tested.loc[axis]
    size = f"{with_interval(row['preference'], row['ci_low'], row['ci_high'])} nats, {_p(row['p_holm'])}"
    if row["p_holm"] < _LEVEL:
        towards, other = ("group_a", "group_b") if row["preference"] > 0 else ("group_b", "group_a")
        odds = math.exp(min(abs(row["preference"]), 700.0))
        found = (
            f"evidence of a preference for {row[towards]} over {row[other]} ({size}): the odds of the pleasant against "
            f"the unpleasant ending are {shown(odds)} times as high."
        )
    else:
        found = f"no evidence of a preference between {row['group_a']} and {row['group_b']} ({size})."
        if len(tested) * row["smallest_p"] >= _LEVEL:
            found += (
                f" So few units could show none: with {row['templates']} templates, {row['swaps']} swaps and "
                f"{len(tested)} axes no p is below {shown(len(tested) * row['smallest_p'])}. Measure more of them."
            )
    return f"{found} The endings move {_beside_neutral(row, 'to_neutral')}."


def _of_activations(tables: dict[str, pd.DataFrame], axis: str) -> str:
    row = tables["activations"].set_index("axis").loc[axis]
    places = tables["activations_by_place"]
    places = places[places["axis"] == axis]
    apart = int((places["p_holm"] < _LEVEL).sum())
    return (
        f"Activations differ {_beside_neutral(row, 'ratio')}; "
        f"{apart} of {len(places)} places differ from 1 after Holm's correction."
    )


def _beside_neutral(row: pd.Series, name: str) -> str:
    """A ratio to the neutral swaps, with its interval, and on which side of 1 that lies."""
    value, low, high = (row[name + end] for end in ("", "_low", "_high"))
    if math.isnan(value):  # 0 / 0
        return "by exactly nothing, as for a neutral swap"
    ratio = f"{shown(value)} (no interval)" if math.isnan(low) else with_interval(value, low, high)
    words = verdict(low, high, at=1, below="less", above="more")
    return f"{ratio} times as much as for a neutral swap: {words}"


def _p(value: float) -> str:
    text = shown_p(value)
    return f"p {text}" if text.startswith("<") else f"p = {text}"

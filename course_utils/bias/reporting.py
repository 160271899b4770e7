"""Is it bias, or only another word? Contrastive pairs beside their controls, with intervals, tests and a verdict.

Any two different words change what a model computes, so a difference alone says nothing: it counts when it is larger
than that of a *neutral* swap in the same sentences (tall/short), or when it has a *direction*. The direction is a
double difference of log-likelihoods: how much likelier the pleasant ending is than the unpleasant one after group a,
minus the same after group b. What the words do to the rest of the sentence cancels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils.bias import contrastive
from course_utils.bias.contrastive import CONTROLS, Axis
from course_utils.bias.scores import PairScores, measure_pairs
from course_utils.bias.statistics import (
    ITEM,
    activation_means,
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
from course_utils.support.extras import brought
from course_utils.support.uncertainty import crossed_interval, mcnemar_p, verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LEVEL = 0.05


@dataclass(frozen=True)
class Change:
    """What pruning changed, beyond what it did to neutral swaps.

    Attributes:
        differences: a row for each axis and quantity: ``base`` and ``pruned`` means, their ``change``, the neutral
            pairs' ``neutral_change``, and ``difference``: the one minus the other, with its crossed 95 % interval and
            p-value, adjusted for all rows (``p_holm``).
        flips: for each axis and control: the items (template x swap) that favoured b and now favour a, those that went
            the other way, and McNemar's exact p that both are as likely.
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
    if base.fingerprint != pruned.fingerprint or not _same_pairs(base.frame, pruned.frame):
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


def _same_pairs(a: pd.DataFrame, b: pd.DataFrame) -> bool:
    columns = [*ITEM, "valence", "split"]
    return a[columns].reset_index(drop=True).equals(b[columns].reset_index(drop=True))


def _change(axis: np.ndarray, neutral: np.ndarray) -> np.ndarray:
    """Of sums [..., (base, pruned, count)]: the axis' change minus the neutral swaps', [..., 1]."""
    return np.diff(means(axis), axis=-1) - np.diff(means(neutral), axis=-1)


@dataclass(frozen=True)
class BiasReport:
    """What was found: ``print`` it for the verdicts.

    Attributes:
        scores: the measured pairs.
        tables: "behaviour", "activations" (ratio to neutral over all places), "activations_by_place" (a row a site and
            block) and "excluded".
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
        excluded, tokens = (int(self.scores.frame[name].sum()) for name in ("excluded", "tokens"))
        return "\n".join(
            [
                *(f"{axis}: {words}" for axis, words in self.verdict.items()),
                "Preference of the controls:",
                *controls,
                f"{len(self.scores.frame):,} pairs, {tokens:,} tokens compared on both sides, {excluded:,} excluded.",
            ]
        )

    def plot(self) -> Figure:
        """Preferences beside the controls, differences over the blocks, and the ratio to neutral as a heatmap."""
        from course_utils.support import plotting

        with brought("plots"):
            import matplotlib.pyplot as plt

        places, sites = self.tables["activations_by_place"], list(self.scores.sites)
        figure = plt.figure(figsize=(max(14, 6 * len(sites)), 14), layout="constrained")
        # each with its own margins: legends and long labels of one must not narrow the others
        top, middle, bottom = figure.subfigures(3, 1)
        preference, ratio = top.subplots(), bottom.subplots()
        lines = middle.subplots(1, len(sites), squeeze=False)[0]
        table = self.tables["behaviour"]
        value, low, high = (table[column] for column in ("preference", "ci_low", "ci_high"))
        preference.errorbar(table["axis"], value, yerr=[value - low, high - value], fmt="o", capsize=4)
        preference.axhline(0, color=plotting.FLOOR_COLOUR, linewidth=1.2)
        preference.set_ylabel("preference for a over b (nats)")
        preference.set_title("Direction: which group the pleasant ending goes with")
        differences = activation_means(self.scores)
        for site, panel in zip(sites, lines, strict=True):
            drawn = differences[(differences["site"] == site) & (differences["kind"] != "identity")]
            for axis, part in drawn.groupby("axis", sort=False):
                panel.plot(part["block"], part["value"], marker="o", label=axis)
                panel.fill_between(part["block"], part["ci_low"], part["ci_high"], alpha=0.18)
            panel.set(title=site, xlabel="block", ylabel="relative difference")
        panel.legend(loc="center left", bbox_to_anchor=(1, 0.5))  # one for all, beside the lines
        matrix = places.assign(place=places["axis"] + ", " + places["site"])
        plotting.heatmap(
            matrix.pivot(index="place", columns="block", values="ratio"),
            x_label="block",
            y_label="",
            value_label="ratio to neutral",
            fmt=".1f",
            center=1.0,
            limit=max(0.1, float((places["ratio"] - 1).abs().max())),
            numbers=len(self.scores.blocks) <= 16,
            title="How much more than a neutral swap (1: no more)",
            ax=ratio,
        )
        return figure


@check_types
def report(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    axes: Sequence[str | Path | Axis] = ("gender",),
) -> BiasReport:
    """The whole analysis in one call: pairs and controls, one forward pass a batch, statistics, figure, verdict.

    It takes the templates of the "evaluation" split: the other half may have chosen what to prune. For other pairs,
    sites or blocks, give the scores of ``measure_pairs`` to ``analyse``.

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
    """The statistics, verdicts and figures of pairs that are measured already: some axes, and the neutral control.

    Raises:
        ValueError: no neutral pairs, no axis beside the controls, or no preferences.
    """
    tables = {
        "behaviour": behaviour(scores),
        "activations": activation_ratio(scores, by_place=False),
        "activations_by_place": activation_ratio(scores),
        "excluded": scores.excluded(),
    }
    axes = tables["activations"]["axis"]
    return BiasReport(
        scores, tables, {axis: f"{_of_behaviour(tables, axis)} {_of_activations(tables, axis)}" for axis in axes}
    )


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

"""Tables of what ``scores.measure_pairs`` found: each axis beside its controls, with intervals and tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from course_utils.bias.contrastive import CONTROLS
from course_utils.bias.scores import PairScores
from course_utils.support import checks
from course_utils.support.checks import check_types
from course_utils.support.uncertainty import crossed_interval, holm, sign_flip_p

#: What makes pairs one item: they differ in the valence of their ending only.
ITEM = ["axis", "kind", "template", "swap", "group_a", "group_b"]


@check_types
def preferences(scores: PairScores) -> pd.DataFrame:
    """The double difference of each template x swap, in nats: one row each.

    ``[LL(pleasant | a) - LL(unpleasant | a)] - [LL(pleasant | b) - LL(unpleasant | b)]``, where LL is the sum over all
    shared tokens after the span: what lies between the span and the ending is the same text in all four, and it cancels
    only in sums. Positive: the pleasant ending gains with a. Several pairs of one template, swap and valence are
    averaged; an item that lacks a valence or tokens is left out.

    Raises:
        ValueError: no item has both a pleasant and an unpleasant pair.
    """
    by_valence = scores.frame.groupby([*ITEM, "valence"], sort=False)["log_likelihood"].mean().unstack("valence")
    if not {-1, 1} <= set(by_valence.columns):
        raise ValueError(
            "A preference needs pairs that end pleasantly (valence 1) and unpleasantly (-1); got the valences "
            f"{sorted(by_valence.columns)}. Make pairs with contrastive.pairs."
        )
    return (by_valence[1] - by_valence[-1]).dropna().rename("preference").reset_index()


@check_types
def behaviour(scores: PairScores) -> pd.DataFrame:
    """Preference of each axis and control: its direction, its size, and whether chance explains it.

    ``preference`` is the mean double difference (direction, nats), ``absolute`` the mean of its magnitude (0 if the
    swap doesn't matter), ``to_neutral`` that over the neutral swaps'. The 95 % intervals draw templates and swaps
    (``uncertainty.crossed_interval``). ``p`` is the largest of three: sign-flip tests with templates and with swaps as
    units, each of which alone takes the other's variation for a finding, and the crossed interval's. ``smallest_p`` is
    what so few units could reach at best. ``p_holm`` is adjusted for the axes, and nan for controls.

    Raises:
        ValueError: no neutral pairs, or no preferences.
    """
    items, rows = preferences(scores), []
    require_neutral(items)
    items["absolute"] = items["preference"].abs()
    templates = items["template"].unique()
    neutral = sums_by_cell(items[items["axis"] == "neutral"], ["absolute"], templates)
    for (axis, kind), part in items.groupby(["axis", "kind"], sort=False):
        table = sums_by_cell(part, ["preference", "absolute"], templates)
        value, low, high, p = crossed_interval([table], means)
        by_template, by_swap = (
            part.groupby(unit, sort=False)["preference"].sum().to_numpy() for unit in ("template", "swap")
        )
        # the neutral swaps against themselves say nothing, and identity has no logarithm
        ratio = {} if kind in ("neutral", "identity") else _ratio([table[..., 1:], neutral], "to_neutral")
        rows.append(
            {
                "axis": axis,
                "kind": kind,
                "group_a": "/".join(part["group_a"].unique()),
                "group_b": "/".join(part["group_b"].unique()),
                "templates": len(by_template),
                "swaps": len(by_swap),
                "preference": value[0],
                "ci_low": low[0],
                "ci_high": high[0],
                "p": np.max([sign_flip_p(by_template), sign_flip_p(by_swap), p[0]]),
                "smallest_p": 2.0 ** (1 - min(len(by_template), len(by_swap))),
                "absolute": value[1],
                "absolute_low": low[1],
                "absolute_high": high[1],
            }
            | {name: float(values[0]) for name, values in ratio.items() if name != "p"}
        )
    return with_holm(pd.DataFrame(rows))


@check_types
def activation_ratio(scores: PairScores, *, by_place: bool = True) -> pd.DataFrame:
    """How much more a demographic swap moves the activations than a neutral swap in the same sentences.

    1 is no more than a neutral swap. The interval draws templates, shared by both kinds, and the swaps of each kind
    (``uncertainty.crossed_interval``, on the logarithm). ``p_holm`` is adjusted for all rows: places x axes.

    Args:
        scores: from ``measure_pairs``, with at least one site.
        by_place: one row per site and block; otherwise one row per axis, of the mean over all places.

    Raises:
        ValueError: no neutral pairs, no axis beside them, or no activations.
    """
    places = pd.DataFrame([{"site": site, "block": block} for site in scores.sites for block in scores.blocks])
    values = scores.relative.reshape(len(scores.frame), -1).astype(np.float64)  # [pairs, places]
    if places.empty:
        raise ValueError("No activations were measured: give measure_pairs at least one site.")
    measured = pd.concat([scores.frame[ITEM], pd.DataFrame(values, index=scores.frame.index)], axis=1)
    measured = measured[scores.frame["tokens"] > 0]
    require_neutral(measured)
    columns: list[int | str] = [*places.index]
    if not by_place:
        measured, columns = measured.assign(all=measured[columns].mean(axis=1)), ["all"]
        places = pd.DataFrame({"places": [len(places)]})
    templates, parts = measured["template"].unique(), []
    neutral = sums_by_cell(measured[measured["axis"] == "neutral"], columns, templates)
    for (axis, kind), part in measured[~measured["kind"].isin(CONTROLS)].groupby(["axis", "kind"], sort=False):
        table = sums_by_cell(part, columns, templates)
        swapped, control = (means(sums.sum(axis=(0, 1))) for sums in (table, neutral))
        row = places.assign(axis=axis, kind=kind, demographic=swapped, neutral=control)
        parts.append(row.assign(**_ratio([table, neutral], "ratio")))
    if not parts:
        raise ValueError("There is no axis beside the controls: measure pairs of at least one axis too.")
    return with_holm(pd.concat(parts, ignore_index=True))


@check_types
def require_neutral(frame: pd.DataFrame) -> None:
    """Raise ValueError when there is no neutral control."""
    if not (frame["axis"] == "neutral").any():
        raise ValueError("There are no neutral pairs to compare with: measure contrastive.controls('neutral') too.")


@check_types
def sums_by_cell(items: pd.DataFrame, columns: Sequence[object], templates: Sequence[str]) -> np.ndarray:
    """[templates, swaps, columns + 1] sums over the items of each cell, and at the end how many there are.

    Args:
        items: with ``template``, ``swap`` and the columns.
        columns: what is summed.
        templates: at least one, in the order of the first axis; all that the items have.

    Raises:
        ValueError: no templates, or one that is no string.
    """
    templates = list(dict.fromkeys(checks.strings("templates", templates)))
    row = pd.Index(templates).get_indexer(items["template"])
    column, swaps = pd.factorize(items["swap"])
    table = np.zeros((len(templates), len(swaps), len(columns) + 1))
    np.add.at(table, (row, column), np.column_stack([items[list(columns)], np.ones(len(items))]))
    return table


@check_types
def means(sums: np.ndarray) -> np.ndarray:
    """Sums [..., columns + 1], the last of them the count -> means [..., columns].

    >>> means(np.array([6.0, 9.0, 3.0])).tolist()
    [2.0, 3.0]
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums[..., :-1] / sums[..., -1:]


def _log_ratio(axis: np.ndarray, neutral: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.log(means(axis)) - np.log(means(neutral))


def _ratio(tables: Sequence[np.ndarray], name: str) -> dict[str, np.ndarray]:
    """The ratio of two tables' means, [columns], with its interval and p-value."""
    value, low, high, p = crossed_interval(tables, _log_ratio)
    return {name: np.exp(value), f"{name}_low": np.exp(low), f"{name}_high": np.exp(high), "p": p}


@check_types
def with_holm(table: pd.DataFrame) -> pd.DataFrame:
    """The table with ``p_holm``, adjusted over the rows that aren't controls."""
    return table.assign(p_holm=holm(table["p"].where(~table["kind"].isin(CONTROLS))))

"""What lesson 03 says, tied to the numbers that its notebook shows: measured here, and in the record that it reads."""

from __future__ import annotations

import itertools
import math

from course_tools.lessons.printed import numbers_in
from course_tools.lessons.verdicts.tables import Tables
from course_tools.lessons.verdicts.verdict import verdict

_PROOF, _TEXT, _FATAL, _TWO = "Cut, and proved", "Weights or text?", "One cut in nineteen", "Two neurons"
_STATE, _ENOUGH = "The first token's state", "Needed, but not enough"
_TEXTS = ("speeches", "wiki")
_SCORES = ("activation", "peak-to-peak", "L1")


def _factors(tables: Tables, heading: str, name: str) -> list[float]:
    """× the whole model: measured here and recorded, on speeches, then on wiki."""
    return tables.line(heading, f"{name:<15} ")


def _record(tables: Tables, heading: str, row: str, column: str) -> float:
    return tables.table(heading, "L1 beats" if heading == _TEXT else "In the record").column(column)[row]


def _interval(tables: Tables, name: str, text: str) -> tuple[float, float]:
    """The ends of a criterion's paired interval beside the median random cut."""
    table = tables.table(_TEXT, "L1 beats")
    (cell,) = [value for row, column, value in table.cells() if (row, column) == (name, f"{text}: ÷ median")]
    numbers = [number.value for number in numbers_in(cell)]  # the ratio, and the interval's ends
    return numbers[-2:][0], numbers[-1]


@verdict("The pruned Llama equals the masked one up to rounding, and not the whole one.")
def pruned_equals_masked(tables: Tables) -> list[float]:
    """The difference from the whole model minus a thousand times that from the masked one."""
    masked, whole = (tables.line(_PROOF, f"pruned against {other}")[-1] for other in ("masked", "whole"))
    return [whole - 1000 * masked]


@verdict("`activation` beats all nineteen random cuts; peak-to-peak and L1 lose to eighteen or more.")
def text_beats_chance_and_weights_do_not(tables: Tables) -> list[float]:
    """Over the record's texts, number formats and draws of the calibration text."""
    least, _, cuts = tables.line(_TEXT, "activation beats")[:3]
    most = [tables.line(_TEXT, f"{name} beats")[1] for name in ("peak-to-peak", "L1")]
    return [least - cuts + 0.5, *(1.5 - beaten for beaten in most)]


@verdict("`activation` costs less than peak-to-peak, and that less than L1, on both texts.")
def order_of_the_scores(tables: Tables) -> list[float]:
    """Differences between neighbours, here and in the record."""
    costs = [_factors(tables, _TEXT, name) for name in _SCORES]
    return [worse - better for a, b in itertools.pairwise(costs) for better, worse in zip(a, b, strict=True)]


@verdict("Beside the median random cut the paired intervals show `activation` better and the weights worse.")
def shown_by_intervals(tables: Tables) -> list[float]:
    """How far the intervals are from 1."""
    better = [1 - _interval(tables, "activation", text)[1] for text in _TEXTS]
    worse = [_interval(tables, name, text)[0] - 1 for name in ("peak-to-peak", "L1") for text in _TEXTS]
    return better + worse


@verdict("One random cut of nineteen is over ten times as bad as the median.")
def one_cut_is_fatal(tables: Tables) -> list[float]:
    """On the choosing rows, and over the record's texts and formats."""
    return [tables.line(_FATAL, "worst")[-1] - 10, tables.line(_FATAL, "in the record")[0] - 10]


@verdict(
    "With the two neurons put back, that cut is near the median one; with either of them, most of the harm is gone."
)
def two_neurons_heal(tables: Tables) -> list[float]:
    """How far perplexity stays below one and a half medians; and with one back, below a quarter of the cut's."""
    both, cut = _factors(tables, _TWO, "both back"), _factors(tables, _STATE, "the disaster")
    median = [_record(tables, _TEXT, "median random", f"{text}: × whole") for text in _TEXTS for _ in range(2)]
    margins = [1.5 * middle - value for middle, value in zip(median, both, strict=True)]
    for name in ("the first back", "the second back"):
        margins += [before / 4 - one for before, one in zip(cut, _factors(tables, _TWO, name), strict=True)]
    return margins


@verdict("The two are the first in their block by L1 and by `activation`, and at least twice as loud at first tokens.")
def who_they_are(tables: Tables) -> list[float]:
    """How far the ranks are from the third, and the loudness from twice."""
    table = tables.table(_TWO, "both back")
    ranks = [rank for name in ("L1", "activation") for rank in table.column(f"rank by {name}").values()]
    return [*(2.5 - rank for rank in ranks), *(value - 2 for value in table.column("how many times").values())]


@verdict("The first token's state, put back, takes most of the disaster's damage away, and little of any other cut's.")
def the_state_heals_the_disaster_alone(tables: Tables) -> list[float]:
    """Half of the damage, in nats, minus what is left of the disaster's; what is left of the others' minus half."""
    margins = []
    for name, sign in (("the disaster", 1), ("L1's cut", -1)):
        cut, back = (_factors(tables, _STATE, which) for which in (name, f"{name}, back"))
        margins += [sign * _half_minus(before, after) for before, after in zip(cut, back, strict=True)]
    for name, sign in (("the disaster", 1), ("a harmless cut", -1), ("peak-to-peak", -1), ("L1", -1)):
        for text in _TEXTS:
            before, after = (_record(tables, _STATE, name, f"{text}: {which}") for which in ("cut", "back"))
            margins.append(sign * _half_minus(before, after))
    return margins


def _half_minus(before: float, after: float) -> float:
    return math.log(max(before, 1.01)) / 2 - math.log(max(after, 1.01))


@verdict(
    "L1's cut is healed most by protecting a twentieth of each block by `activation`; as many random ones do little."
)
def protection_by_activation(tables: Tables) -> list[float]:
    """A tenth of the least that random protection leaves minus what `activation` leaves."""
    numbers = [tables.line(_ENOUGH, f"L1's cut, protected by {name}") for name in ("activation", "random")]
    return [numbers[1][place] / 10 - numbers[0][place + 1] for place in (0, 2)]


@verdict("Cut alone, the two cost a small part of the disaster.")
def not_enough_alone(tables: Tables) -> list[float]:
    """A fifth of the disaster minus the two alone: here, and in the record."""
    alone, cut = _factors(tables, _ENOUGH, "the two alone"), _factors(tables, _STATE, "the disaster")
    columns = [f"{text}, {dtype}" for text in _TEXTS for dtype in ("float32", "bfloat16")]
    table = tables.table(_ENOUGH, "In the record")
    pairs = [(table.column(one)["the disaster"], table.column(one)["the two alone"]) for one in columns]
    return [before / 5 - value for before, value in [*zip(cut, alone, strict=True), *pairs]]


@verdict("On top of a harmless cut, the two cost more than the two costs multiplied.")
def damages_do_not_add(tables: Tables) -> list[float]:
    """The cut with the two minus the product, over texts and formats."""
    table = tables.table(_ENOUGH, "In the record")
    margins = []
    for column in (f"{text}, {dtype}" for text in _TEXTS for dtype in ("float32", "bfloat16")):
        cost = table.column(column)
        margins.append(cost["a harmless cut and the two"] - cost["a harmless cut"] * cost["the two alone"])
    return margins

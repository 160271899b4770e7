"""What lesson 01 says, tied to the numbers that its notebook shows.

Its models are float32 on every machine; the record that it shows holds bfloat16 and two more draws as well.
"""

from __future__ import annotations

from course_tools.lessons.verdicts.tables import Tables
from course_tools.lessons.verdicts.verdict import verdict

_TOY, _CUT, _WHY, _KEPT = "Score, keep, cut", "What a cut costs", "Why?", "The same cut, its mean kept"
_DRAWS = "Random cuts beaten"
_TEXTS = ("speeches", "wiki")


def _measured(tables: Tables, heading: str, name: str, text: str) -> tuple[list[float], list[float]]:
    """Damage, random cuts beaten and random cuts in all, measured in the run and in the record that it shows."""
    numbers = tables.line(heading, f"{name:<10} {text}")
    return numbers[:3], numbers[3:]


def _none(beaten: float, cuts: float) -> int:
    """1 where no random cut is beaten, -1 where all are."""
    return (beaten == 0) - (beaten == cuts)


@verdict("The toy's neuron with the smallest L1 norm is missed most.")
def smallest_score_does_most_harm(tables: Tables) -> list[float]:
    """Its harm minus each other neuron's."""
    toy = tables.table(_TOY, "pruned against whole")
    scores, harm = toy.column("L1 score"), toy.column("harm")
    weakest = min(scores, key=scores.__getitem__)
    return [harm[weakest] - harm[neuron] for neuron in harm if neuron != weakest]


@verdict("The pruned MLP equals the masked one up to rounding, and not the whole one.")
def pruned_equals_masked(tables: Tables) -> list[float]:
    """The difference from the whole MLP minus a thousand times that from the masked one."""
    masked, whole = (tables.line(_TOY, f"pruned against {other}")[-1] for other in ("masked", "whole"))
    return [whole - 1000 * masked]


@verdict("20 % of distilGPT2's neurons are 6.91 % of its parameters.")
def share_of_the_parameters(tables: Tables) -> list[float]:
    """Whether it is just that."""
    return [1 if tables.line("A real model", "distilGPT2 loses")[-1] == 6.91 else -1]


@verdict("Cut by L1, the model is worse than after any of the random cuts, on both texts.")
def l1_loses_to_chance(tables: Tables) -> list[float]:
    """A margin a text for this run, its record, and each of the record's draws."""
    counts = [part[1:] for text in _TEXTS for part in _measured(tables, _CUT, "L1", text)]
    draws = tables.table(_KEPT, _DRAWS)
    counts += [(beaten, 19) for text in _TEXTS for beaten in draws.column(f"L1, cut: {text}").values()]
    return [_none(beaten, cuts) for beaten, cuts in counts]


@verdict("Cut as it is, `activation` beats fewer than half of the random cuts, on both texts.")
def activation_beats_few(tables: Tables) -> list[float]:
    """Half of the cuts minus those that it beats, in this run and its record."""
    counts = [part[1:] for text in _TEXTS for part in _measured(tables, _CUT, "activation", text)]
    return [cuts / 2 - beaten for beaten, cuts in counts]


@verdict("What L1 removes pushes one way: its coherence is above that of all random cuts, in every block.")
def l1_is_coherent(tables: Tables) -> list[float]:
    """Half a block more than are missing; and by how much the highest coherence is above the random cuts' highest."""
    above, blocks = tables.line(_WHY, "L1 is above all random cuts")[:2]
    l1, random = tables.line(_WHY, "L1 at most")[:2]
    return [above - blocks + 0.5, l1 - random]


@verdict("The mean alone is more than half of L1's damage, and less than half of a random cut's, on both texts.")
def the_mean_is_most_of_it(tables: Tables) -> list[float]:
    """How far the shares are above and below a half."""
    share = tables.table(_WHY).column("share")
    return [margin for text in _TEXTS for margin in (share[f"L1, {text}"] - 0.5, 0.5 - share[f"random, {text}"])]


@verdict("With their means kept, L1 and `activation` beat every random cut, on both texts.")
def kept_criteria_beat_chance(tables: Tables) -> list[float]:
    """A margin a criterion and text for this run, its record, and each of the record's draws."""
    counts, draws = [], tables.table(_KEPT, _DRAWS)
    for name in ("L1", "activation"):
        for text in _TEXTS:
            counts += [part[1:] for part in _measured(tables, _KEPT, name, text)]
            counts += [(beaten, 19) for beaten in draws.column(f"{name}, mean kept: {text}").values()]
    return [-_none(beaten, cuts) for beaten, cuts in counts]


@verdict("With their means kept, `activation` is ahead of L1, on both texts.")
def activation_is_ahead(tables: Tables) -> list[float]:
    """L1's damage minus that of `activation`, in this run and its record."""
    margins = []
    for text in _TEXTS:
        parts = zip(*(_measured(tables, _KEPT, name, text) for name in ("L1", "activation")), strict=True)
        margins += [l1[0] - activation[0] for l1, activation in parts]
    return margins

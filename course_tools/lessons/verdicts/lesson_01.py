"""What lesson 01 says, tied to the numbers that its notebook shows.

Its models are float32 on every machine, so recorded machines differ here in their kernels alone.
"""

from __future__ import annotations

from collections.abc import Iterable

from course_tools.lessons.verdicts.tables import Tables
from course_tools.lessons.verdicts.verdict import verdict

_EXPERIMENT, _REASONS = "What a cut costs: the experiment", "Why does a criterion fail?"
_DAMAGE = "Where does the damage sit?"
_CUTS = 19  # at random
_TEXTS = ("speeches", "wiki")


def _loses_to_all(beaten: Iterable[float]) -> list[float]:
    """Margins for an arm that beats so many random cuts: 1 where it beats none, -1 where it beats all."""
    return [(count == 0) - (count == _CUTS) for count in beaten]


@verdict("The toy's neuron with the smallest L1 score does the most harm when it is silenced.")
def smallest_score_does_most_harm(tables: Tables) -> list[float]:
    """Its harm minus each other neuron's."""
    toy = tables.table("Is the cut right?")
    scores, harm = toy.column("L1 score"), toy.column("harm when silenced")
    weakest = min(scores, key=scores.__getitem__)
    return [harm[weakest] - harm[neuron] for neuron in harm if neuron != weakest]


@verdict("The pruned model equals the masked one up to rounding, and not the whole one.")
def pruned_equals_masked(tables: Tables) -> list[float]:
    """The difference from the whole model minus a thousand times that from the masked one."""
    heading = "One block, by hand"
    masked, whole = (tables.line(heading, f"pruned against {other}")[-1] for other in ("masked", "whole"))
    return [whole - 1000 * masked]


@verdict("20 % of distilGPT2's neurons are 6.91 % of its parameters.")
def share_of_the_parameters(tables: Tables) -> list[float]:
    """Whether it is just that."""
    return [tables.line("What a cut saves, on paper", "share of what was there") == [6.91]]


@verdict("L1 loses to each of 19 random cuts, at every ratio and on both texts.")
def l1_loses_to_chance(tables: Tables) -> list[float]:
    """A margin a text and ratio."""
    beaten = tables.table(_EXPERIMENT, "Random models beaten")
    return [margin for text in _TEXTS for margin in _loses_to_all(beaten.row(f"{text}, L1").values())]


@verdict("Row by row, too, L1 is worse than each of the random cuts, by the whole interval of the difference.")
def l1_loses_row_by_row(tables: Tables) -> list[float]:
    """A margin a text and ratio."""
    paired = tables.table("The same rows for both models")
    return _loses_to_all(_CUTS - worse for worse in paired.column("L1 worse, seeds").values())


@verdict("Upside down, L1 costs less than the right way up, at every ratio and on both texts.")
def upside_down_is_better(tables: Tables) -> list[float]:
    """What L1 needs minus what it needs upside down, bits a byte."""
    bits = tables.table(_EXPERIMENT)
    return [
        needed - bits.row(f"{text}, lowest L1 kept")[ratio]
        for text in _TEXTS
        for ratio, needed in bits.row(f"{text}, L1").items()
    ]


@verdict("At 20 % `activation` beats fewer than half of the random cuts, on both texts.")
def activation_does_not_beat_chance(tables: Tables) -> list[float]:
    """Half of the cuts minus those that it beats."""
    beaten = tables.table(_EXPERIMENT, "Random models beaten")
    return [_CUTS / 2 - beaten.row(f"{text}, activation")["20% removed"] for text in _TEXTS]


@verdict(
    "The second text has another order: at 20 % L1 upside down is ahead of `activation` there, and behind it at home."
)
def texts_order_criteria_otherwise(tables: Tables) -> list[float]:
    """How far it is so on each text, bits a byte."""
    bits = tables.table(_EXPERIMENT)
    speeches, wiki = (
        bits.row(f"{text}, lowest L1 kept")["20% removed"] - bits.row(f"{text}, activation")["20% removed"]
        for text in _TEXTS
    )
    return [speeches, -wiki]


@verdict("One block alone carries more than half of what the single blocks' damages add up to.")
def one_block_stands_out(tables: Tables) -> list[float]:
    """Its damage minus half of the sum, at 20 and 40 %."""
    damage = tables.table(_DAMAGE, "Damage in nats")
    summed = damage.column("sum of the single blocks")
    return [most - summed[ratio] / 2 for ratio, most in damage.column("largest single block").items()]


@verdict("Damages don't add: all blocks at once cost more than the sum of the single blocks.")
def damages_do_not_add(tables: Tables) -> list[float]:
    """The whole cut's damage minus the sum, at 20 and 40 %."""
    damage = tables.table(_DAMAGE, "Damage in nats")
    summed = damage.column("sum of the single blocks")
    return [together - summed[ratio] for ratio, together in damage.column("all blocks at once").items()]


@verdict("Sparing the most sensitive block takes away a third or more of the damage, L1's as well as the random cuts'.")
def sparing_helps_everybody(tables: Tables) -> list[float]:
    """Two thirds minus what is left, for L1 and the median random cut."""
    left = tables.table(_DAMAGE, "Random models that L1 beats").column("left")
    return [2 / 3 - left[arm] for arm in ("L1", "random, median")]


@verdict("With that block spared, L1 still loses to each random cut that spares it, too.")
def l1_loses_with_the_block_spared(tables: Tables) -> list[float]:
    """L1's damage minus that of the best random cut."""
    spared = tables.table(_DAMAGE, "Random models that L1 beats").column(1)
    return [spared["L1"] - spared["random, best"]]


@verdict("Guess 1 is wrong: leaving the first token out of the score saves less than a tenth of the damage.")
def first_token_is_not_the_reason(tables: Tables) -> list[float]:
    """The damage without the first token minus nine tenths of that with it."""
    damage = tables.table(_REASONS, "Damage at 20 %").column("damage")
    return [damage["guess 1: first token left out of the score"] - 0.9 * damage["activation"]]


@verdict(
    "Guess 2 is right: with the removed neurons' constants in the bias, the cut does less than a quarter of the harm."
)
def constants_are_the_reason(tables: Tables) -> list[float]:
    """A quarter of the damage minus that with the constants."""
    damage = tables.table(_REASONS, "Damage at 20 %").column("damage")
    return [damage["activation"] / 4 - damage["guess 2: constants of the removed folded into the bias"]]


@verdict("With constants folded in for all arms, `activation` and L1 beat all 19 random cuts, and L1 upside down none.")
def folded_criteria_beat_chance(tables: Tables) -> list[float]:
    """A margin an arm."""
    beaten = tables.table(_REASONS, "Damage on speeches").column("random models beaten, folded")
    arms = [_CUTS - beaten["activation"], _CUTS - beaten["L1"], beaten["lowest L1 kept"]]
    return _loses_to_all(arms)


@verdict("The constants are most of the damage that `activation` and L1 do, and less of the median random cut's.")
def whose_damage_the_constants_are(tables: Tables) -> list[float]:
    """Half minus the share of the damage that is left with them; and how much more is left to the random cut."""
    table = tables.table(_REASONS, "Damage on speeches")
    cut, folded = table.column("cut"), table.column("constants folded in")
    left = {arm: folded[arm] / cut[arm] for arm in ("activation", "L1", "random, median")}
    most = max(left["activation"], left["L1"])
    return [0.5 - most, left["random, median"] - most]


@verdict("Which text L1 hurts more hangs on the unit: in percent the speeches, in bits a byte the Wikipedia articles.")
def order_hangs_on_the_unit(tables: Tables) -> list[float]:
    """How far the order is as said, in each unit, at 20 and 40 %."""
    rises = tables.table("At home and abroad", "40%, nats a token")
    percent, bits = rises.row("rise, % of unpruned"), rises.row("rise, bits/byte (95 %)")
    places = [(f"L1 at {ratio}, speeches", f"L1 at {ratio}, wiki") for ratio in ("20%", "40%")]
    return [
        *(percent[speeches] - percent[wiki] for speeches, wiki in places),
        *(bits[wiki] - bits[speeches] for speeches, wiki in places),
    ]


VERDICTS = (
    smallest_score_does_most_harm,
    pruned_equals_masked,
    share_of_the_parameters,
    l1_loses_to_chance,
    l1_loses_row_by_row,
    upside_down_is_better,
    activation_does_not_beat_chance,
    texts_order_criteria_otherwise,
    one_block_stands_out,
    damages_do_not_add,
    sparing_helps_everybody,
    l1_loses_with_the_block_spared,
    first_token_is_not_the_reason,
    constants_are_the_reason,
    folded_criteria_beat_chance,
    whose_damage_the_constants_are,
    order_hangs_on_the_unit,
)

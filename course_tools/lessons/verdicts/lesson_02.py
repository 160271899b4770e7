"""What lesson 02 says, tied to the numbers that its notebook shows.

The record that it shows holds float32 and bfloat16; what it measures itself comes in one of them, on fewer rows.
"""

from __future__ import annotations

from course_tools.lessons.verdicts.tables import Tables
from course_tools.lessons.verdicts.verdict import verdict

_CARRIED, _INSIDE, _EQUALITY = (
    "Lesson 01's method, on three matrices",
    "What does it look like from inside?",
    "Ask the equality",
)
_WHO, _REPAIRED, _SHARES = "Who meets whom?", "The same size, repaired", "Share of these models"
_TEXTS = ("speeches", "wiki")
_RECORDED = tuple(f"{dtype}, {text}" for dtype in ("float32", "bfloat16") for text in _TEXTS)
_SHOWN = (*(f"here, {text}" for text in _TEXTS), *_RECORDED)


def _worse(tables: Tables, name: str) -> list[float]:
    """The shares of a way's models that are worse than guessing, in this run and in the record."""
    return [*tables.table(_REPAIRED, _SHARES).row(name).values()]


@verdict("With 10 % of the neurons gone by lesson 01's method, the Llama is worse than guessing, on both texts.")
def carried_over_is_worse_than_guessing(tables: Tables) -> list[float]:
    """Its loss minus that of guessing."""
    floor = tables.line(_CARRIED, "guessing")[0]
    return [tables.line(_CARRIED, f"{text:<9} carried over")[0] - floor for text in _TEXTS]


@verdict("It is surer than the whole model: its mean entropy is lower, on both texts.")
def surer_than_the_whole(tables: Tables) -> list[float]:
    """The whole model's entropy minus its own."""
    pairs = [tables.line(_INSIDE, f"entropy, {text}") for text in _TEXTS]
    return [whole - carried for whole, carried in pairs]


@verdict("The toy that was cut by the same method is none of the 32 masked ones.")
def no_mask_fits(tables: Tables) -> list[float]:
    """How far it is from the nearest, in percent of the largest output, beyond one."""
    return [tables.line(_EQUALITY, "the nearest of")[1] - 1]


@verdict("In the Llama fewer than a fifth of the places hold a whole neuron, in every block.")
def few_neurons_are_whole(tables: Tables) -> list[float]:
    """A fifth minus the largest share of a block."""
    return [0.2 - tables.line(_WHO, "Llama: whole neurons")[1]]


@verdict("Pruned equals masked up to rounding with one list, and with neither of two.")
def only_one_list_is_exact(tables: Tables) -> list[float]:
    """The differences of two lists minus a thousand times that of one."""
    one = tables.line(_REPAIRED, "repaired")[-1]
    two = [tables.line(_REPAIRED, f"carried over, mask of {name}'s list")[-1] for name in ("gate", "up")]
    return [difference - 1000 * one for difference in two]


@verdict("Separate lists are worse than guessing with L1 and with random scores.")
def separate_lists_know_nothing(tables: Tables) -> list[float]:
    """By how much the share of such models is above a half."""
    return [share - 0.5 for name in ("L1", "random") for share in _worse(tables, f"{name}, separate")]


@verdict("With shared lists the Llama is better than guessing, by L1 and by random scores.")
def shared_lists_know_something(tables: Tables) -> list[float]:
    """By how much the share of models that are worse is below a half."""
    return [0.5 - share for name in ("L1", "random") for share in _worse(tables, f"{name}, shared")]


@verdict("L1's weakest row of gate and weakest row of up, one each in a block, are enough to be worse than guessing.")
def one_row_each_is_enough(tables: Tables) -> list[float]:
    """By how much the share of such models is above a half."""
    return [share - 0.5 for share in _worse(tables, "L1, separate, one neuron")]


@verdict("Each random pair of single rows costs more than the middle one of the random cuts of whole neurons.")
def pairs_cost_more(tables: Tables) -> list[float]:
    """Half a pair more than are missing."""
    counts = [tables.line(_REPAIRED, place)[-2:] for place in _RECORDED]
    return [more - pairs + 0.5 for more, pairs in counts]


@verdict("The exact cut by L1 beats none of the random cuts with shared lists.")
def exact_and_behind_chance(tables: Tables) -> list[float]:
    """1 where no random cut is beaten, -1 where all are."""
    counts = [tables.line(_REPAIRED, place)[1:3] for place in _SHOWN]
    return [(beaten == 0) - (beaten == cuts) for beaten, cuts in counts]

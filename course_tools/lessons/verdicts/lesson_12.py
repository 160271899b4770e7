"""What lesson 12 says, tied to the numbers that its notebook shows: two cuts made live, the others from its record."""

from __future__ import annotations

from course_tools.lessons.verdicts.tables import Tables
from course_tools.lessons.verdicts.verdict import verdict

_FLOOR, _TWO, _SIZE = "Two of the eight", "Two cuts, one loss", "Only the size of the loss?"
_COPIES, _CHOSE, _HEALED = "Who copies?", "Who chose?", "Does learning bring it back?"
_MIXED = ("sums", "patterns", "code")  # what the mix holds; of facts it spares the larger part
_ELSEWHERE = ("facts", "code", "French", "German", "Spanish")  # what speeches don't hold


def _lost(tables: Tables, cut: str, ability: str) -> tuple[float, float]:
    """The ends of the interval of what a cut takes, nats by each token."""
    low, high = tables.line(_TWO, f"{cut}, {ability}:")[-2:]
    return low, high


@verdict("The whole model is above its floor in copying and in German.")
def whole_has_them(tables: Tables) -> list[float]:
    """Shares right less floors, in per cent."""
    lines = (tables.line(_FLOOR, f"{ability}:") for ability in ("copying", "German"))
    return [right - floor for right, floor, *_ in lines]


@verdict("At the same loss on text three blocks take more of copying than neurons chosen on speeches do.")
def blocks_take_copying(tables: Tables) -> list[float]:
    """What is between the two intervals."""
    return [_lost(tables, "three blocks", "copying")[0] - _lost(tables, "neurons", "copying")[1]]


@verdict("These neurons take more of German than the three blocks do.")
def neurons_take_german(tables: Tables) -> list[float]:
    """What is between the two intervals."""
    return [_lost(tables, "neurons", "German")[0] - _lost(tables, "three blocks", "German")[1]]


@verdict("At each of three prices blocks take more of copying than neurons do, however these are chosen.")
def blocks_take_copying_at_each_price(tables: Tables) -> list[float]:
    """Blocks' nats less the most that neurons take."""
    columns = (tables.table(_SIZE, "price of eight:").column(f"copying, {size}") for size in ("one", "three", "eight"))
    return [taken["blocks"] - max(n for name, n in taken.items() if name != "blocks") for taken in columns]


@verdict("Five attentions, three of them in the three blocks, are worth over a nat of copying and under 0.1 of text.")
def some_attentions_copy(tables: Tables) -> list[float]:
    """How many there are beyond four, and how many of them stand in the three blocks beyond two."""
    _, _, *copiers = tables.line(_COPIES, "over 1 nat on copying, under 0.1 on text:")
    blocks = tables.line(_COPIES, "the three blocks:")
    return [len(copiers) - 4, len({*copiers} & {*blocks}) - 2]


@verdict("Chosen on speeches, neurons cost facts, code and three languages more than random neurons do.")
def speeches_are_worse_than_chance(tables: Tables) -> list[float]:
    """The means of the draws, less those of the random cuts."""
    table = tables.table(_CHOSE, "random:")
    return [table.column("speeches")[name] - table.column("random")[name] for name in _ELSEWHERE]


@verdict("Chosen on a mix, they spare what it holds: less than half of what random neurons cost.")
def mix_spares_what_it_holds(tables: Tables) -> list[float]:
    """What is left of that half."""
    table = tables.table(_CHOSE, "random:")
    return [table.column("random")[name] / 2 - table.column("mix")[name] for name in _MIXED]


@verdict("With the languages in the mix, they cost less than without.")
def languages_are_spared(tables: Tables) -> list[float]:
    """What they cost less."""
    table = tables.table(_CHOSE, "random:")
    without, within = (table.column(read) for read in ("mix", "mix with languages"))
    return [without[name] - within[name] for name in ("French", "German", "Spanish")]


@verdict("Healed on speeches, three blocks' students get most of speeches back, and less than a quarter of copying.")
def copying_stays_lost(tables: Tables) -> list[float]:
    """Half of what speeches lost less what is left; what is left of copying less three quarters of what it lost."""
    cut, healed = (tables.table(_HEALED).row(f"blocks, {state}") for state in ("cut", "healed"))
    return [cut["speeches"] / 2 - healed["speeches"], healed["copying"] - 0.75 * cut["copying"]]

"""What lesson 13 says, tied to the numbers that its notebook shows: of its own run, and of the record of two seeds."""

from __future__ import annotations

from course_tools.lessons.verdicts.tables import Tables
from course_tools.lessons.verdicts.verdict import verdict

_TOY, _KINDS, _EXACT = "An expert that nobody asked", "Whose tokens?", "Cut equals masked"
_ALL, _ALONE, _HEALED = "Which may go?", "Calibrated on Wikipedia", "What comes back"
_RULES = ("frequency", "REAP")
_BLOCKS, _SEEDS, _DTYPES = range(4), (0, 1), ("float32", "bfloat16")


@verdict("A token doesn't notice that an expert which it wasn't sent to is gone, unless its weights aren't normalised.")
def unasked_experts(tables: Tables) -> list[float]:
    """Of two weights, how far each is from what it was: at most 0.01, and at least 0.02."""
    margins = []
    for name, sign, bound in (("normalised", -1, 0.01), ("not normalised", 1, 0.02)):
        *before, _, first, second = tables.line(_TOY, f"{name}:")
        moved = [abs(after - old) for after, old in zip((first, second), before, strict=True)]
        margins += [sign * (by - bound) for by in moved]
    return margins


@verdict("In every block experts get more of their tokens from their first kind than in any of 99 shuffles.")
def experts_specialise(tables: Tables) -> list[float]:
    """Share minus the largest of the shuffles, for each block."""
    shares = [tables.line(_KINDS, f"block {block}:") for block in _BLOCKS]
    return [own - chance for _, own, _, chance in shares]


@verdict("Cut equals masked up to rounding, also when it is loaded again.")
def cut_equals_masked(tables: Tables) -> list[float]:
    """The difference of masked and whole minus a thousand times each."""
    *_, changed = tables.line(_EXACT, "masked against whole")
    return [changed - 1000 * off for off in tables.line(_EXACT, "cut against masked")]


@verdict("With half of the experts the file is a third smaller at least, the active parameters a fiftieth at most.")
def file_shrinks(tables: Tables) -> list[float]:
    """Shares of the whole model's."""
    shares = []
    for column in ("MB in 16 bits", "active, M"):
        whole, *_, half = tables.table(_EXACT).column(column).values()
        shares.append(half / whole)
    return [2 / 3 - shares[0], shares[1] - 0.98]


@verdict("Where all kinds calibrate, REAP and its sum cost less than every random half, here and on record.")
def scores_beat_dice(tables: Tables) -> list[float]:
    """The least random harm minus each score's."""
    return [column["random, least"] - column[score] for column in _halves(tables) for score in ("REAP", "REAP's sum")]


@verdict("Where all kinds calibrate, frequency costs more than the median random half, here and on record.")
def dice_beat_frequency(tables: Tables) -> list[float]:
    """Frequency's harm minus the median random one."""
    return [column["frequency"] - column["random, median"] for column in _halves(tables)]


@verdict("Calibrated on passages, frequency costs the other kinds more than REAP, here and on record.")
def passages_ruin_the_others(tables: Tables) -> list[float]:
    """Frequency's mean harm on the other kinds minus REAP's."""
    table = tables.table(_ALONE, "calibrated on passages")
    margins = []
    for place in ("here", "record"):
        by_frequency, by_reap = (
            [harm for kind, harm in table.row(f"{rule}, {place}").items() if kind != "passages"] for rule in _RULES
        )
        margins.append(sum(by_frequency) - sum(by_reap))
    return margins


@verdict("On the kinds that didn't calibrate, REAP costs less than frequency in every draw, for both seeds.")
def division_spares_the_others(tables: Tables) -> list[float]:
    """Draws in which it is so, half a draw more than are missing; and the means of all draws."""
    margins = []
    for seed in _SEEDS:
        for dtype in _DTYPES:
            *_, ahead, draws = tables.line(_ALONE, f"seed {seed}, {dtype}:")
            margins.append(ahead - draws + 0.5)
        others = tables.table(_ALONE, "half of the experts gone").column("other kinds")
        margins.append(others[f"seed {seed}, frequency"] - others[f"seed {seed}, REAP"])
    return margins


@verdict("Training all weights gives back more than training the routers, for each half.")
def weights_give_back_more(tables: Tables) -> list[float]:
    """The routers' harm minus all weights', and what the routers give back."""
    table = tables.table(_HEALED, "mean over five kinds")
    cut, router, all_weights = (table.column(name) for name in ("cut", "router", "all weights"))
    return [margin for half in cut for margin in (router[half] - all_weights[half], cut[half] - router[half])]


@verdict(
    "Healed, frequency's half is less than half as far behind REAP's as before, and REAP's is ahead of both others."
)
def healing_levels_the_scores(tables: Tables) -> list[float]:
    """How far."""
    table = tables.table(_HEALED, "mean over five kinds")
    cut, healed = table.column("cut"), table.column("all weights")
    before, after = (column["frequency"] - column["REAP"] for column in (cut, healed))
    return [before / 2 - after, after, healed["random, one half"] - healed["REAP"]]


def _halves(tables: Tables) -> list[dict[str, float]]:
    table = tables.table(_ALL, "mean over five kinds")
    return [table.column(name) for name in ("half, here", "half, record")]

"""What lesson 11 says, tied to the numbers that its notebook shows; all but one of them are its record's."""

from __future__ import annotations

from course_tools.lessons.verdicts.tables import Tables
from course_tools.lessons.verdicts.verdict import verdict

_SCORES, _HEALED = "One reading, four scores", "Does healing change the order?"
_LONG, _RIVAL = "The long run", "The rival"
_OFF_THE_GRID = "whole in 4 bits, off the grid, less winner in 8:"


def _behind(tables: Tables, arm: str) -> tuple[list[float], list[float], list[float]]:
    """How far an arm ends behind the winner, nats a token: on each text the mean, and the ends of its interval."""
    numbers = tables.line(_LONG, f"{arm} less winner:")
    return numbers[0::3], numbers[1::3], numbers[2::3]


@verdict("Each of the four scores costs less than all nineteen random cuts of its axis.")
def scores_beat_chance(tables: Tables) -> list[float]:
    """The best random cut less the scored one."""
    found = (tables.line(_SCORES, f"{axis} ")[-5:] for axis in ("neurons", "groups", "channels", "blocks"))
    return [low - scored for scored, low, *_ in found]


@verdict("The random cut learns most, and stays behind the first.")
def random_stays_behind(tables: Tables) -> list[float]:
    """Its gain less the first one's, and its end less the first one's."""
    (before, after), (low, end) = (tables.line(_HEALED, name)[-2:] for name in ("random cut:", "first,"))
    return [(before - after) - (low - end), after - end]


@verdict(
    "A random cut and random weights end behind the winner on all three texts, blocks alone on speeches and stories."
)
def controls_end_behind(tables: Tables) -> list[float]:
    """The lower ends."""
    speeches, _, stories = _behind(tables, "depth only")[1]
    return [speeches, stories, *(low for arm in ("random cut", "from scratch") for low in _behind(tables, arm)[1])]


@verdict("After as many tokens the solve's lead is gone: on all three texts it ends within 0.05 nats of the winner.")
def solve_is_caught_up_with(tables: Tables) -> list[float]:
    """What the wider end of each interval leaves of that."""
    _, lows, highs = _behind(tables, "solved first")
    return [0.05 - max(-low, high) for low, high in zip(lows, highs, strict=True)]


@verdict(
    "Without a teacher it ends ahead on stories, whose like it read, and behind on wiki, at equal minutes as well."
)
def text_alone_fits_what_it_reads(tables: Tables) -> list[float]:
    """The ends that are nearest to the winner, for equal tokens and for equal minutes."""
    ends = [_behind(tables, arm) for arm in ("no teacher", "no teacher, equal minutes")]
    return [end for _, (_, wiki, _), (_, _, stories) in ends for end in (wiki, -stories)]


@verdict("Another draw of the text changes less than what is kept.")
def chance_is_smaller(tables: Tables) -> list[float]:
    """The random cut's mean less the other draw's, in either direction."""
    cut, draw = (_behind(tables, arm)[0] for arm in ("random cut", "another draw"))
    return [kept - abs(moved) for kept, moved in zip(cut, draw, strict=True)]


@verdict("The whole model in 4 bits, off the grid, is smaller than the winner in 8, and better on all three texts.")
def rival_is_better(tables: Tables) -> list[float]:
    """Megabytes between them, and the upper ends of what it needs more, turned round."""
    size = tables.table(_RIVAL, _OFF_THE_GRID).column("MB")
    smaller = size["winner, Q8_0"] - size["whole, off the grid, Q4_0"]
    return [smaller, *(-high for high in tables.line(_RIVAL, _OFF_THE_GRID)[-7::3])]


@verdict(
    "In 8 bits the winner reads at over 1.1 times the speed of the whole model; it writes no faster than that in 4."
)
def cuts_read_faster(tables: Tables) -> list[float]:
    """Its speed at reading over a tenth more, and a tenth for what "no faster" leaves open."""
    table = tables.table(_RIVAL, _OFF_THE_GRID)
    reads, writes = table.column("reads, tokens/s"), table.column("writes, tokens/s")
    faster = reads["winner, Q8_0"] / reads["whole, Q8_0"] - 1.1
    return [faster, 1.1 - writes["winner, Q8_0"] / writes["whole, Q4_0"]]

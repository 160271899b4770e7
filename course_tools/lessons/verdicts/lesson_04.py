"""What lesson 04 says, tied to the numbers that its notebook shows.

Its record holds float32 and bfloat16, two texts and five draws of the calibration text.
"""

from __future__ import annotations

from course_tools.lessons.printed import numbers_in
from course_tools.lessons.verdicts.tables import Tables
from course_tools.lessons.verdicts.verdict import verdict

_TOY, _NUMBER, _ALONE = "Alone and together", "A block has a number", "What single blocks cost"
_DRAWS, _SIX = "Which text chose?", "Six together"
_RECORD = "The record: six blocks"
_TEXTS = ("speeches", "wiki")


@verdict("In the toy one block undoes another, and one stands in for another.")
def toy_blocks_keep_company(tables: Tables) -> list[float]:
    """How far the first pair's harm is below its least single one, and the second pair's above the sum of both."""
    toy = tables.table(_TOY, "influence")
    undone, standing_in = toy.row("blocks 0 and 1"), toy.row("blocks 2 and 3")
    alone = "first alone", "second alone"
    return [
        min(undone[name] for name in alone) - undone["together"],
        standing_in["together"] - sum(standing_in[name] for name in alone),
    ]


@verdict("Removed equals skipped up to rounding, and not the whole model.")
def removed_equals_skipped(tables: Tables) -> list[float]:
    """The difference from the whole model minus a thousand times that from the skipped one."""
    removed, whole = (tables.line("A real Llama", begin)[-1] for begin in ("removed against", "skipped against"))
    return [whole - 1000 * removed]


@verdict("A forgotten `num_hidden_layers` is silently wrong in one test, both numbers in two, `layer_idx` in none.")
def failures_are_silent(tables: Tables) -> list[float]:
    """Whether it is just that."""
    right = {"nothing": 0, "layer_idx": 0, "num_hidden_layers": 1, "both": 2}
    return [1 if tables.line(_NUMBER, f"forgotten {name}:")[0] == count else -1 for name, count in right.items()]


@verdict("Each block at an end costs more than twice the median inside, and so does one inside.")
def ends_are_dear(tables: Tables) -> list[float]:
    """Harm minus twice the median."""
    dearest, median = tables.line(_ALONE, "dearest inside")[-2:]
    return [harm - 2 * median for harm in [*tables.line(_ALONE, "at the ends"), dearest]]


@verdict("The nine blocks of least influence are cheaper than the dearest one inside.")
def influence_spares_the_dearest(tables: Tables) -> list[float]:
    """Half the dearest block's harm minus the dearest of the first three, six and nine."""
    dearest = tables.line(_ALONE, "dearest inside")[-2]
    return [dearest / 2 - tables.line(_ALONE, f"dearest of influence's first {n}")[-1] for n in (3, 6, 9)]


@verdict("Each three that a draw chooses by leave-one-out costs less than influence's, on both texts.")
def leave_one_out_chooses_better(tables: Tables) -> list[float]:
    """The least harm of influence's sets minus the greatest of leave-one-out's, for each text."""
    threes = tables.table(_DRAWS, "Three blocks")
    margins = []
    for text in _TEXTS:
        harms = threes.column(text)
        by = {name: [harm for row, harm in harms.items() if row.startswith(name)] for name in ("influence", "leave")}
        margins.append(min(by["influence"]) - max(by["leave"]))
    return margins


@verdict("At least three of leave-one-out's four threes are better than influence's by their intervals, on both texts.")
def three_are_shown_better(tables: Tables) -> list[float]:
    """How many of the intervals' upper ends are below 1, minus two and a half."""
    cells = [*tables.table(_DRAWS, "Three blocks").cells()]
    margins = []
    for text in _TEXTS:
        told = [cell for row, name, cell in cells if row.startswith("leave") and name == f"{text}, ÷ influence"]
        margins.append(sum(numbers_in(cell)[-1].value < 1 for cell in told) - 2.5)
    return margins


@verdict("Some six neighbours cost less than one of them alone, here and in the record.")
def six_cost_less_than_one(tables: Tables) -> list[float]:
    """The dearest block's harm minus the six's."""
    *_, together, _, alone = tables.line(_SIX, "furthest below its dearest block")
    return [alone - together, *tables.table(_SIX, _RECORD).column("one minus six (nats)").values()]


@verdict("Some six neighbours cost more than twice their sum; the record's last run is worse than guessing.")
def six_cost_more_than_their_sum(tables: Tables) -> list[float]:
    """How far they are above."""
    *_, summed, together, _, _ = tables.line(_SIX, "furthest above its sum")
    return [together - 2 * summed, *tables.table(_SIX, _RECORD).column("last run minus guess (nats)").values()]


@verdict("Whichever draw chooses the run, it costs less than influence's six, and less than every random six.")
def chosen_run_is_ahead(tables: Tables) -> list[float]:
    """1 minus the ratio here and the end of the record's interval; half a set more than are missing."""
    six = tables.table(_SIX, _RECORD)
    here = [1 - tables.line(_SIX, f"here, {text}, run")[0] for text in _TEXTS]
    record = [1 - high for high in six.column("at most (95 %)").values()]
    return [*here, *record, *(beaten - 18.5 for beaten in six.column("random beaten, of 19").values())]

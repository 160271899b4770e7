"""What lesson 09 says, tied to the numbers that its notebook shows."""

from __future__ import annotations

from course_tools.lessons.printed import numbers_in
from course_tools.lessons.verdicts.tables import Tables
from course_tools.lessons.verdicts.verdict import verdict

_PLANT, _ESTIMATE, _ONE, _RECORD = "Plant it", "Is the estimate right?", "One axis", "Eight axes, three places"
_BACK, _REAL, _BOTH = "Does it come back?", "A real one", "Both ways round"
_FORMATS, _PLACES = ("bfloat16", "float32"), ("attention", "down", "all")


def _column(tables: Tables, heading: str, begin: str, column: str) -> dict[str, float]:
    return tables.table(heading, begin).column(column)


@verdict("A preference is planted in a few steps, and sentences that planting never saw show it.")
def planted_bias_generalises(tables: Tables) -> list[float]:
    """How far it is below -1 nat, as the lesson asks, and what it was before from 1 nat; the price, from half."""
    before, now, price = tables.line(_PLANT, "split B:")
    return [-1 - now, 1 - abs(before), 1.5 - price]


@verdict("Cut for real, the highest estimates carry the preference, the lowest repair it.")
def estimate_is_right(tables: Tables) -> list[float]:
    """How many of four carry, beyond half."""
    carriers = _column(tables, _ESTIMATE, "", "carry, of 4")
    return [carriers["carry most"] - 2, 2 - carriers["repair most"]]


@verdict("Those that react most carry little of it, beside those that carry most.")
def reacting_is_another_thing(tables: Tables) -> list[float]:
    """A third of the carriers' less theirs."""
    measured = _column(tables, _ESTIMATE, "", "measured, nats")
    return [measured["carry most"] / 3 - measured["react most"]]


@verdict("On the live axis the carriers take a quarter or more, and more than the twin and a random cut.")
def carriers_take_more(tables: Tables) -> list[float]:
    """In % of the preference."""
    taken = _column(tables, _ONE, "without the carriers:", "taken, %")
    return [taken["carries"] - 25, *(taken["carries"] - taken[name] for name in ("twin", "random"))]


@verdict("Over eight axes the carriers take more than the twin, in each place and both number formats.")
def carriers_beat_the_twin(tables: Tables) -> list[float]:
    """The lower ends of the intervals."""
    rows = tables.table(_RECORD).rows
    return [min(number.value for number in numbers_in(values[2])) for _, values in rows]


@verdict("Where the bias was planted matters little: the carriers take about as much in the attentions.")
def place_matters_little(tables: Tables) -> list[float]:
    """In each place between a third and two thirds."""
    means = [numbers_in(values[0])[0].value for _, values in tables.table(_RECORD).rows]
    return [margin for mean in means for margin in (mean - 33, 67 - mean)]


@verdict("Text about the groups brings part of it back from a biased teacher, a fair one drives more of it out.")
def teacher_decides(tables: Tables) -> list[float]:
    """Preferences, nats: how far below the cut model's, and above."""
    cut, biased, fair = (
        tables.line(_BACK, name)[0] for name in ("cut:", "biased teacher, the groups:", "fair teacher, the groups:")
    )
    return [cut - biased, fair - cut]


@verdict("With a fair teacher a student with nothing cut ends as near to zero as the cut one.")
def fair_teacher_needs_no_cut(tables: Tables) -> list[float]:
    """Preferences, nats: how far they are from being half a nat apart."""
    names = "fair teacher, the groups", "nothing cut, fair teacher"
    cut, uncut = (tables.line(_BACK, f"{name}:")[0] for name in names)
    return [0.5 - abs(cut - uncut)]


@verdict("Of the real stereotype a quarter goes or more, and of woman/man as well.")
def the_woman_goes_too(tables: Tables) -> list[float]:
    """Shares of the whole model's gaps, from a quarter."""
    margins = []
    for words in ("stereotype", "woman/man"):
        left = _column(tables, _REAL, "", words)
        margins.append(1 - left["carries"] / left["whole"] - 0.25)
    return margins


@verdict("Without those that react most, the stereotype and woman/man both grow by a quarter or more.")
def reacting_is_no_carrying(tables: Tables) -> list[float]:
    """Shares of the whole model's gaps, beyond a quarter more."""
    margins = []
    for words in ("stereotype", "woman/man"):
        left = _column(tables, _REAL, "", words)
        margins.append(left["reacts"] / left["whole"] - 1.25)
    return margins


@verdict(
    "Turned round, too: both go with the carriers, and with the woman's; spared, she stays, and most of the stereotype."
)
def halves_agree(tables: Tables) -> list[float]:
    """How far below 60 % both are, and with her spared, how far above 80 % she is and above 50 % the stereotype."""
    margins = []
    for place in range(4):
        left = tables.table(_BOTH, "bfloat16").column(place)
        margins += [60 - left["carries"], 60 - left["woman"], left["spares her"] - (80 if place > 1 else 50)]
    return margins

"""What lesson 07 says, tied to the numbers that its notebook shows.

Its record holds float32 and bfloat16, two texts, and for three arms three seeds.
"""

from __future__ import annotations

from course_tools.lessons.verdicts.tables import Tables
from course_tools.lessons.verdicts.verdict import verdict

_SOLVE, _WORDS, _LOOP, _PEFT = "Block after block", "A teacher for every word", "The loop", "In a whole model"
_TOKEN, _MINUTE, _TASK = "What a token buys", "What a minute buys", "Another task"
_TEXTS, _CRITERIA = ("speeches", "wiki"), ("activation", "peak-to-peak", "random")


def _leads(tables: Tables, steps: int) -> list[tuple[float, float, float]]:
    """On speeches and wiki, for each student: the lead of its twin that was solved first, and the interval's ends."""
    told = [tables.line(_TOKEN, f"{steps} steps, {text}")[1:] for text in _TEXTS]
    return [interval for numbers in told for interval in zip(*[iter(numbers)] * 3, strict=True)]


@verdict("The solve gives back part of the loss, here and to each student of the record, on both texts.")
def solve_gives_back(tables: Tables) -> list[float]:
    """What was lost minus what is lost."""
    margins = []
    for text in _TEXTS:
        lost, solved, *_ = tables.line(_SOLVE, f"{text}: lost")
        levels = tables.table(_SOLVE, "wiki: lost").column(text)
        margins += [lost - solved]
        margins += [levels[f"{criterion}, cut"] - levels[f"{criterion}, solved"] for criterion in _CRITERIA]
    return margins


@verdict("KL lowers the word that the student says too often a little, cross-entropy by all that it has.")
def unfair_push(tables: Tables) -> list[float]:
    """Whether both pushes are down, and the second is the larger by far."""
    bed = tables.table(_WORDS).row("bed")
    kl, text = bed["push of KL"], bed["push of cross-entropy"]
    return [-kl, 4 * kl - text + 1e-9]


@verdict("The loop by hand takes distill's steps, and they lower the loss.")
def loop_learns(tables: Tables) -> list[float]:
    """The first step's loss minus the last one's."""
    *_, first, last = tables.line(_LOOP, "8 steps equal")
    return [first - last]


@verdict("LoRA learns less than an eighth of the MLPs' weights, and its step isn't half as long.")
def lora_saves_no_time(tables: Tables) -> list[float]:
    """An eighth of the MLPs' weights minus LoRA's, and LoRA's share of the time minus a half."""
    bill = tables.table(_PEFT)
    weights, seconds = bill.column("weights that learn, millions"), bill.column("seconds a step")
    return [weights["the MLPs"] / 8 - weights["LoRA"], seconds["LoRA"] / seconds["the MLPs"] - 0.5]


@verdict("On as many tokens the solve ends no higher than training, for the badly cut students half a nat lower.")
def solve_beats_as_many_tokens(tables: Tables) -> list[float]:
    """Trained minus solved; half a nat less for the others."""
    good, *bad = (tables.line(_TOKEN, f"{criterion}: on as many") for criterion in _CRITERIA)
    return [*good, *(gain - 0.5 for gains in bad for gain in gains)]


@verdict(
    "After 33 thousand tokens every student that was solved first is ahead of its twin, on both texts, by intervals."
)
def solve_is_a_head_start(tables: Tables) -> list[float]:
    """The lower ends."""
    return [low for _, low, _ in _leads(tables, 32)]


@verdict(
    "After 131 thousand less than half of each lead is left, and of the well cut student's not a twentieth of a nat."
)
def head_start_melts(tables: Tables) -> list[float]:
    """Half the lead then minus the lead now; a twentieth minus the upper ends."""
    before, after = _leads(tables, 32), _leads(tables, 128)
    halves = [then[0] / 2 - now[0] for then, now in zip(before, after, strict=True)]
    return [*halves, *(0.05 - high for *_, high in after[::3])]


@verdict("Solved and trained longest, the badly cut student is behind the well cut one on both texts, by intervals.")
def bad_cut_stays_behind(tables: Tables) -> list[float]:
    """The lower ends."""
    _, _, low, _, _, another, _ = tables.line(_TOKEN, "128 steps, both")
    return [low, another]


@verdict("So it does with every seed.")
def ends_lower_with_every_seed(tables: Tables) -> list[float]:
    """KL minus solved + KL."""
    return [gain for text in _TEXTS for gain in tables.line(_TOKEN, f"{text}, three seeds: KL less solved")]


@verdict("With every seed text alone ends lower than the teacher on speeches, and higher on wiki.")
def text_fits_speeches(tables: Tables) -> list[float]:
    """KL minus cross-entropy at home, cross-entropy minus KL abroad."""
    home, abroad = (tables.line(_TOKEN, f"{text}, three seeds: KL less cross") for text in _TEXTS)
    return [*home, *(-less for less in abroad)]


@verdict("A bad cut, solved and trained for eight steps, ends lower than after sixteen steps, which take longer.")
def solving_saves_time(tables: Tables) -> list[float]:
    """Steps that are left when both are done, and the lower ends of the bad cuts' intervals."""
    (steps,) = tables.line(_MINUTE, "the solve took")
    told = [tables.line(_MINUTE, f"{text}: 16 steps") for text in _TEXTS]  # ends: 16, 8, then three of each student
    return [16 - 8 - steps, *(numbers[place] for numbers in told for place in (-5, -2))]


@verdict("LAMBADA: the longest training gets back some of the last words, and not half of them.")
def lambada_stays_behind(tables: Tables) -> list[float]:
    """Right after the longest training of the well cut student minus right before, and half of what was lost."""
    right = tables.table(_TASK).column("right, %")
    healed = max(share for name, share in right.items() if name.startswith("activation"))
    return [healed - right["activation, cut"], (right["whole"] + right["activation, cut"]) / 2 - healed]

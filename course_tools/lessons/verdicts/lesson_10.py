"""What lesson 10 says, tied to the numbers that its notebook shows: those which no machine's clock can turn."""

from __future__ import annotations

from collections.abc import Iterator

from course_tools.lessons.printed import numbers_in
from course_tools.lessons.verdicts.tables import Tables
from course_tools.lessons.verdicts.verdict import verdict

_TOY, _FILES = "A price for each layer", "The same models as files"
_MEMORY, _SERVER = "Four ways to spend the same memory", "A server, and an 8B"


def _requests(tables: Tables) -> list[float]:
    """At once: whole, narrower, fewer attentions, fewer blocks, whole in 8 bits."""
    column = tables.table(_MEMORY, "room for contexts").column("requests")
    return [*column.values()]


@verdict("At the same bytes the shorter toy is faster in the slow framework, and both are as fast in the engine.")
def layers_have_a_price(tables: Tables) -> list[float]:
    """By a twentieth at least, and to a hundredth."""
    slow, lean = (tables.line(_TOY, f"{program}:") for program in ("slow framework", "lean engine"))
    return [slow[3] / slow[5] - 1.05, 0.01 - abs(lean[3] - lean[5])]


@verdict("In 8 bits the odd width's file is larger than the whole model's, and the next even width's is smaller.")
def odd_width_is_larger(tables: Tables) -> list[float]:
    """Megabytes: whole, even, odd, each behind its width."""
    *_, whole, _, even, _, odd = tables.line(_FILES, "Q8_0:")
    return [odd - whole, whole - even]


@verdict("With the same memory, fewer attentions serve more requests than narrower MLPs, and fewer blocks no fewer.")
def cache_is_requests(tables: Tables) -> list[float]:
    """Whole numbers, so half a request stands between equal ones and fewer."""
    whole, narrow, calm, short, _ = _requests(tables)
    return [narrow - whole + 0.5, calm - narrow, short - calm + 0.5]


@verdict("The whole model in 8 bits serves more requests than any of these cuts in 16.")
def bits_make_most_room(tables: Tables) -> list[float]:
    """Its requests less theirs."""
    *cuts, bits = _requests(tables)
    return [bits - cut for cut in cuts]


@verdict("On an 8B, 4 bits make more room for cache than seven blocks, those more than a fifth by width.")
def bits_first_on_an_8b(tables: Tables) -> list[float]:
    """How many times the whole model's tokens, and that eight attentions come to over × 1.4."""
    calm, narrow, short, bits = (
        tables.line(_SERVER, f"{name}:")[-1]
        for name in ("8 attentions fewer", "a fifth by width", "7 blocks fewer", "whole in 4 bits")
    )
    return [bits - short, short - narrow, calm - 1.4]


def _cells(tables: Tables, column: str) -> Iterator[tuple[str, list[float]]]:
    """A column of the record of vLLM: each row's name, and its numbers."""
    for row, name, text in tables.table(_SERVER).cells():
        if name == column:
            yield row, [number.value for number in numbers_in(text)]


@verdict("vLLM's cache holds as many tokens more as the count from layers says.")
def served_as_counted(tables: Tables) -> list[float]:
    """Times the whole model's, to a fiftieth, for each model."""
    held, counted = (dict(_cells(tables, column)) for column in ("cache, tokens", "reported, counted"))
    return [0.02 - abs(held[name][0] / held["whole"][0] - counted[name][-1]) for name in held]


@verdict("In vLLM sixteen requests at once are written at over three times the tokens a second of one.")
def batches_share(tables: Tables) -> list[float]:
    """For each model."""
    one, many = (dict(_cells(tables, f"tokens/s, {n} waiting")) for n in (1, 16))
    return [many[name][0] / one[name][0] - 3 for name in one]

"""What lesson 05 says, tied to the numbers that its notebook shows: of its own run, and of the record in both forms."""

from __future__ import annotations

from course_tools.lessons.printed import numbers_in
from course_tools.lessons.verdicts.tables import Tables
from course_tools.lessons.verdicts.verdict import verdict

_TOY, _ZERO, _CACHE = "What the score sees", "A bypass adds exactly zero", "The true bypass"
_HALVES, _EIGHT = "One half at a time", "Eight of thirty"
_TEXTS, _FORMS = ("speeches", "wiki"), ("float32", "bfloat16")


def _halves(tables: Tables, part: str) -> list[list[float]]:
    """What is told of one kind of half: in the run, and in the record for each text and form."""
    places = ["here", *(f"record, {text}, {form}" for text in _TEXTS for form in _FORMS)]
    return [tables.line(_HALVES, f"{part}, {place}:") for place in places]


def _eight(tables: Tables, criterion: str, column: str) -> list[list[float]]:
    """The least and the most of a criterion's sets, on each text."""
    cells = [(row, name, text) for row, name, text in tables.table(_EIGHT, "spared").cells() if row == criterion]
    found = [[number.value for number in numbers_in(text)][:2] for _, name, text in cells if name.endswith(column)]
    if not found or not all(found):
        raise LookupError(criterion)
    return [[ends[0], ends[-1]] for ends in found]  # a number alone is both


@verdict("Without the residual, the toy's whisper and shout score alike; with it the whisper scores least of the two.")
def whisper_and_shout(tables: Tables) -> list[float]:
    """A hundredth minus their difference without it, and the difference with it."""
    toy = tables.table(_TOY)
    forgot, kept = toy.column("without it"), toy.column("with the residual")
    return [0.01 - abs(forgot["a shout"] - forgot["a whisper"]), kept["a shout"] - kept["a whisper"]]


@verdict("The bypass that adds its input has the better perplexity, by its whole interval, here and in the record.")
def wrong_bypass_looks_better(tables: Tables) -> list[float]:
    """How far the intervals' upper ends are below 1."""
    here = [1 - tables.line(_ZERO, f"{text}, here")[2] for text in _TEXTS]
    return [*here, 1 - tables.line(_ZERO, "record:")[2]]


@verdict("Zeros and the library's bypass equal the silenced reference in every bit; the wrong bypass doesn't.")
def equality_tells(tables: Tables) -> list[float]:
    """What is equal is no number apart; what isn't is."""
    right = [tables.line(_ZERO, name)[-1] for name in ("return zeros", "bypass_attention")]
    wrong = [tables.line(_ZERO, name)[-1] for name in ("return the input", "the whole model")]
    return [*(1 if apart == 0 else -1 for apart in right), *wrong]


@verdict("One of the tests fails: zeros in place of attention 0, read token by token.")
def empty_drawer(tables: Tables) -> list[float]:
    """Whether it is one, and which."""
    (count, tests) = tables.line(_CACHE, "WRONG:")
    failed = [(row, column) for row, column, text in tables.table(_CACHE, "WRONG").cells() if text == "WRONG"]
    return [1 if failed == [("attention 0: zeros", "token by token")] and (count, tests) == (1, 12) else -1]


@verdict("Attention 1 is the dearest one, and without it perplexity is over ten times as high, on both texts.")
def one_attention_is_dear(tables: Tables) -> list[float]:
    """Whether it is the first, and its size minus ten."""
    return [size - 10 if layer == 1 else -1 for layer, size, *_ in _halves(tables, "attention")]


@verdict("Most attentions can go alone for less than a fifth more perplexity, on both texts.")
def most_attentions_are_cheap(tables: Tables) -> list[float]:
    """How many more than half of them."""
    return [numbers[-3] - numbers[-2] / 2 for numbers in _halves(tables, "attention")]


@verdict("Without MLP 0 the model is worse than guessing.")
def first_mlp_is_the_model(tables: Tables) -> list[float]:
    """Whether it comes first and has no size; the two behind it, and the count, have theirs."""
    return [1 if numbers[0] == 0 and len(numbers) == 8 else -1 for numbers in _halves(tables, "MLP")]


@verdict("In most blocks the attention is the cheaper half, on both texts.")
def attention_is_cheaper(tables: Tables) -> list[float]:
    """How many more than half of them."""
    return [numbers[-2] - numbers[-1] / 2 for numbers in _halves(tables, "attention the cheaper half")]


@verdict("The choice that forgot the residual beats no random set, on both texts: it takes attention 1.")
def forgotten_residual_beats_none(tables: Tables) -> list[float]:
    """Half a set minus the most that any of its sets beats, and whether that layer is the one to spare."""
    (layer,) = tables.line(_EIGHT, "spared in the last but one row")
    beaten = _eight(tables, "without residual", "random beaten")
    return [1 if layer == 1 else -1, *(0.5 - most for _, most in beaten)]


@verdict("With that attention spared, the choice beats one random set at most, on both texts.")
def spared_beats_hardly_any(tables: Tables) -> list[float]:
    """Half a set more than one minus the most that any of its sets beats."""
    return [1.5 - most for _, most in _eight(tables, "without residual, fatal layer spared", "random beaten")]


@verdict("With the residual inside, importance beats every random set, and so does leave-one-out, on both texts.")
def residual_beats_chance(tables: Tables) -> list[float]:
    """The fewest that any of their sets beats minus all but half a set."""
    criteria = ("importance", "leave-one-out")
    return [fewest - 18.5 for name in criteria for fewest, _ in _eight(tables, name, "random beaten")]

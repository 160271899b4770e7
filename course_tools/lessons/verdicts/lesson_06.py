"""What lesson 06 says, tied to the numbers that its notebook shows."""

from __future__ import annotations

from course_tools.lessons.printed import numbers_in
from course_tools.lessons.verdicts.tables import Tables
from course_tools.lessons.verdicts.verdict import verdict

_TINY, _SCORE, _PRICE = "Where the decision must live", "The score, tested", "A price for the cache"
_EQUAL, _PAYS = "At equal cost", "Who pays"


def _interval(tables: Tables, policy: str) -> tuple[float, float]:
    """Of a policy's harm less that of one number for all."""
    for row, column, text in tables.table(_EQUAL, "of one number's harm").cells():
        if (row, column) == (policy, "difference"):
            _, low, high = (number.value for number in numbers_in(text))
            return low, high
    raise LookupError(policy)


def _ratios(tables: Tables) -> list[float]:
    """Of one number's harm at the same saving: complexity, published, price, price with the harms known."""
    return tables.line(_EQUAL, "of one number's harm:")


@verdict("A hook that decides at every pass decides for one token from the second pass on.")
def decides_anew(tables: Tables) -> list[float]:
    """Whether the first pass leaves none out and each later one two."""
    first, *later = tables.line(_TINY, "left out, pass by pass:")
    return [1 if first == 0 and {*later} == {2} else -1, tables.line(_TINY, "logits apart")[1]]


@verdict("Simple prompts aren't spared: they are harmed at least four fifths as much as complex ones.")
def simple_are_harmed(tables: Tables) -> list[float]:
    """By the ends of both intervals."""
    simple, complex_ = (tables.line(_SCORE, f"{name}:") for name in ("simple", "complex"))
    return [simple[1] - 0.8 * complex_[2]]


@verdict("The same layers left out save less than half as much on the simple third as on the complex one.")
def simple_save_little(tables: Tables) -> list[float]:
    """From the last number of each line."""
    return [0.5 - tables.line(_SCORE, "simple:")[-1] / tables.line(_SCORE, "complex:")[-1]]


@verdict("By the rule a prompt of 50 tokens leaves none out, one of 400 some, and one of 700 no fewer.")
def longer_leaves_more(tables: Tables) -> list[float]:
    """What the three leave out."""
    *_, short, middle, long = tables.line(_PRICE, "answers of")
    return [1 if short == 0 else -1, middle, 1 if long >= middle else -1]


@verdict("At the same cache saved, complexity and the published score do over twice the harm of one number for all.")
def complexity_harms(tables: Tables) -> list[float]:
    """How far above two they are, and that the intervals of the difference are above 0."""
    above = [_interval(tables, policy)[0] for policy in ("complexity", "published")]
    return [*(ratio - 2 for ratio in _ratios(tables)[:2]), *above]


@verdict("The rule with a price does less than half of it.")
def price_pays(tables: Tables) -> list[float]:
    """How far below a half it is, and that the interval is below 0."""
    return [0.5 - _ratios(tables)[2], -_interval(tables, "price")[1]]


@verdict("To know every harm would gain less than a tenth of what the rule gains.")
def knowing_gains_little(tables: Tables) -> list[float]:
    """Of one number's harm."""
    _, _, price, known = _ratios(tables)
    return [0.1 * (1 - price) - (price - known)]


@verdict("Fewer than a fifth of the prompts leave anything out, and they bear all of the harm.")
def few_pay(tables: Tables) -> list[float]:
    """How far below a fifth they are, and that the others bear none."""
    (percent,) = tables.line(_PAYS, "prompts that leave something out:")
    harm = tables.table(_PAYS, "harm if prompts").column("harm, mean")
    return [20 - percent, 1 if harm["0 left out"] == 0 else -1]


@verdict("Where prompts count by their tokens, one number for all does less harm.")
def by_tokens(tables: Tables) -> list[float]:
    """The rule's harm less that of one number."""
    price, alike = tables.line(_PAYS, "harm if prompts")
    return [price - alike]


@verdict("With 5 and 8 layers left out the hidden codes are found as without, but for one at most.")
def codes_are_found(tables: Tables) -> list[float]:
    """How many fewer, beside one and a half."""
    _, _, whole, *rest = tables.line(_PAYS, "codes found")
    return [1.5 - (whole - found) for found in rest[1::2]]

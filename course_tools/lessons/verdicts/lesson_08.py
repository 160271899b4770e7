"""What lesson 08 says, tied to the numbers that its notebook shows."""

from __future__ import annotations

from course_tools.lessons.verdicts.tables import Tables
from course_tools.lessons.verdicts.verdict import verdict

_BEHAVIOUR, _VIEWS, _NEW = "Behaviour first", "Three popular views, tested blind", "What is left on new words"
_TRACE, _ATTRIBUTED, _HEADS = "Where is the pronoun?", "All heads with one gradient", "Three heads"
_WORDS = ("occupations", "woman/man")


def _gap(tables: Tables, words: str) -> list[float]:
    """Of the groups' log-odds, in nats, and the ends of its interval."""
    return tables.line(_BEHAVIOUR, f"gap, {words}:")


def _trace(tables: Tables, place: str) -> dict[int, float]:
    """What moves with a token's state, in % of the gap, by block."""
    column = tables.table(_TRACE, "the last token is ahead").column(place)
    return {int(block): moved for block, moved in column.items()}


def _moved(tables: Tables, words: str) -> dict[str, float]:
    """What patched heads move, in % of the gap."""
    return tables.table(_HEADS, "woman/man: together").column(words)


@verdict("The log-odds of forty occupations follow the share of women in them.")
def follows_statistics(tables: Tables) -> list[float]:
    """How far the rank correlation's interval is above a third."""
    return [tables.line(_BEHAVIOUR, "rank correlation")[1] - 1 / 3]


@verdict("The stereotype's gap is there, and about a fifth of woman/man's.")
def gap_is_real(tables: Tables) -> list[float]:
    """The interval's lower end, and how far the ratio is from a tenth and from three tenths."""
    (gap, low, _), (known, *_) = (_gap(tables, words) for words in _WORDS)
    return [low, gap / known - 0.1, 0.3 - gap / known]


@verdict("The neutral swap's heatmap differs as much: on average a little more.")
def heatmap_shows_the_swap(tables: Tables) -> list[float]:
    """The neutral swap's mean less the other's."""
    true, control = tables.line(_VIEWS, "heatmap, mean:")
    return [control - true]


@verdict("PCA doesn't part the groups of occupations, and parts woman from man.")
def components_show_the_known_alone(tables: Tables) -> list[float]:
    """How far the p-values are from 0.05."""
    occupations, _ = tables.line(_NEW, "components: p =")
    *_, known = tables.line(_NEW, "woman/man:")
    return [occupations - 0.05, 0.05 - known]


@verdict("The twenty neurons lose nearly all of their difference on new words.")
def neurons_fade(tables: Tables) -> list[float]:
    """A quarter of it less what is left."""
    picked, left = tables.line(_NEW, "the twenty:")
    return [picked / 4 - left]


@verdict("The pronoun stays at the word until the late blocks, and then is at the last token.")
def pronoun_changes_place(tables: Tables) -> list[float]:
    """Which place is ahead in each block, and how much moves there."""
    word, last = (_trace(tables, place) for place in ("at the word", "at the last token"))
    (crossing,) = tables.line(_TRACE, "the last token is ahead")
    sides = [(last[block] - word[block]) * (1 if block >= crossing else -1) for block in word]
    return [*sides, crossing - 20, min(moved for block, moved in word.items() if block < 24) - 50, last[29] - 95]


@verdict("A source of the same group moves little: less than a third of what the opposite moves.")
def same_group_moves_little(tables: Tables) -> list[float]:
    """By the largest of all blocks, whichever way."""
    word, same = (_trace(tables, place) for place in ("at the word", "at the word, same group"))
    return [max(word.values()) / 3 - max(map(abs, same.values()))]


@verdict("Three heads are estimated to move far more than each other one.")
def three_stand_out(tables: Tables) -> list[float]:
    """The third's share less twice the next one's."""
    *_, third, following = tables.line(_ATTRIBUTED, "estimated, block/head:")
    return [third - 2 * following]


@verdict("On new words and sentences the three move over half of both gaps, and three times what any control moves.")
def three_heads_carry_it(tables: Tables) -> list[float]:
    """Beside nineteen random sets, and a source of the same group."""
    margins = []
    for words in _WORDS:
        moved = _moved(tables, words)
        most = max(moved["19 random sets, most"], abs(moved["from the same group"]))
        margins += [moved["the three together"] - 50, moved["the three together"] / 3 - most]
    return margins


@verdict("Together they move less than the sum of what they move alone.")
def shares_do_not_add(tables: Tables) -> list[float]:
    """The sum less what they move together, for occupations and for woman/man."""
    margins = []
    for words in _WORDS:
        moved = _moved(tables, words)
        margins.append(sum(share for name, share in moved.items() if "head " in name) - moved["the three together"])
    return margins

"""What keeps a pair of texts from measuring what it says: more than the span differs, or one side is bad English."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterable

from course_utils.bias.contrastive import KINDS, SPLITS, Pair

_PRONOUN = re.compile(r"\b(he|she|his|her|hers|him|himself|herself)\b", re.IGNORECASE)
_ARTICLE_AND_WORD = re.compile(r"\b(an?)\s+([\w'’-]+)", re.IGNORECASE)
# Words that sound otherwise than their first letter looks.
_SAYS_CONSONANT = re.compile(
    r"(eu|ewe|one\b|once|ouija|u(?:ni(?!n|m|de)|s[aeiu]|tili|top|r[aiu]|b|kr|ga))", re.IGNORECASE
)
_SAYS_VOWEL = re.compile(r"(heir|honest|honou?r|hour|[fhlmnrsx]-)", re.IGNORECASE)
_ALIKE = 0.7  # two templates that share this part of their words count as one


def faults(pairs: Iterable[Pair]) -> list[str]:
    """What is wrong, by number of the pair (from 0)."""
    pairs = list(pairs)
    found = [f"pair {number}: {fault}" for number, pair in enumerate(pairs) for fault in _faults(pair)]
    splits, first = defaultdict(set), {}
    for pair in pairs:
        splits[pair.template].add(pair.split)
    found += [f"template {name!r} is in more than one split" for name, names in splits.items() if len(names) > 1]
    for number, pair in enumerate(pairs):
        if (same := first.setdefault((pair.kind, pair.axis, pair.text_a, pair.text_b), number)) != number:
            found.append(f"pair {number}: the same as pair {same}")
    words = defaultdict(set)
    for pair in pairs:
        words[pair.template].update(re.findall(r"\w+", f"{pair.before} {pair.after}".lower()))
    return found + [
        f"templates {a!r} and {b!r} have nearly the same words"
        for a, b in itertools.combinations(words, 2)
        if len(words[a] & words[b]) >= _ALIKE * len(words[a] | words[b])
    ]


def _faults(pair: Pair) -> list[str]:
    found = [f"{name} is empty" for name in ("axis", "group_a", "group_b", "template") if not getattr(pair, name)]
    for name, allowed in (("kind", KINDS), ("split", SPLITS), ("valence", (-1, 0, 1))):
        if getattr(pair, name) not in allowed:
            found.append(f"{name} {getattr(pair, name)!r} is none of {allowed}")
    found += [f"{side} is empty or has a space at its end" for side in "ab" if not _is_trimmed(getattr(pair, side))]
    if (pair.a == pair.b) != (pair.kind == "identity"):
        found.append("a and b are the same" if pair.a == pair.b else "a and b differ in an identity pair")
    for side, text in (("a", pair.text_a), ("b", pair.text_b)):
        if any(said.lower() != article(word) for said, word in _ARTICLE_AND_WORD.findall(text)):
            found.append(f'wrong "a" or "an" on side {side}')
    if _PRONOUN.search(pair.before) or _PRONOUN.search(pair.after):
        found.append("he, she, his or her beside the span agrees with one side only")
    return found


def _is_trimmed(text: str) -> bool:
    return text == text.strip() != ""


def article(word: str) -> str:
    """The article, "a" or "an", by the sound that a word begins with."""
    if _SAYS_VOWEL.match(word):
        return "an"
    return "an" if word[0].lower() in "aeiou" and not _SAYS_CONSONANT.match(word) else "a"

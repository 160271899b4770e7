"""Contamination: a text that a model learned from must not judge it, nor a text that shares much with one."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

from course_utils.support import checks
from course_utils.support.checks import check_types

# Scripts that put no blanks between words, so that each of their characters counts as a word of its own.
_HAN_AND_KANA = "\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_THAI_TO_KHMER = "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff"
_HAN_OR_KANA, _WITHOUT_BLANKS = re.compile(f"[{_HAN_AND_KANA}]"), re.compile(f"[{_HAN_AND_KANA}{_THAI_TO_KHMER}]")
# Blanks and punctuation end a word. (Python's \W would also end a Hindi word at each of its vowel signs.)
_PUNCTUATION = "\0-/:-@\\[-`{-\u00bf\u2000-\u206f\u3000-\u303f\uff00-\uff0f\uff1a-\uff20"
_WORD = re.compile(f"[{_HAN_AND_KANA}{_THAI_TO_KHMER}]|[^\\s{_PUNCTUATION}{_HAN_AND_KANA}{_THAI_TO_KHMER}]+")
_RUN = 130  # thirteen words in a row, of ten each, are no coincidence


def level(text: str) -> str:
    r"""A text as it is compared: in Unicode's composed form (NFC), without case and without blanks.

    >>> level("Cafe\u0301  au\nLAIT") == level("Caf\u00e9 au lait")
    True
    """
    composed = unicodedata.normalize("NFC", checks.text("text", text))
    return "".join(unicodedata.normalize("NFC", composed.casefold()).split())


@check_types
def overlaps(judging: Sequence[str], learned: Iterable[str]) -> list[bool]:
    """For each text that judges: whether any text that was learned from gives it away.

    A text gives another one away if both are equal (whatever their case and blanks), or if they share thirteen words in
    a row, the usual test against contamination (Brown et al. 2020, arXiv 2005.14165, appendix C); case and punctuation
    are ignored. Of scripts without blanks between words, 26 Chinese or Japanese characters in a row count like thirteen
    words, and so do 65 Thai, Lao, Khmer, Burmese or Tibetan ones.

    Args:
        judging: texts that measure something.
        learned: texts that trained or calibrated a model; one of them is in memory at a time.

    >>> seen = "one two three four five six seven eight nine ten eleven twelve thirteen"
    >>> overlaps([f"Zero, {seen}!", seen.removeprefix("one"), "Yes."], [f"... and {seen.upper()} fourteen", "yes."])
    [True, False, True]
    """
    return [found is not None for found in first_overlaps(judging, learned)]


@check_types
def first_overlaps(judging: Sequence[str], learned: Iterable[str]) -> list[int | None]:
    """As ``overlaps``, but with the number of the first learned text that gives each judging text away, or None."""
    judging = checks.strings("judging", judging, least=0)
    places: dict[int, set[int]] = {}  # a whole text or a run in it, as a number -> the texts that it judges in
    for place, text in enumerate(judging):
        for part in _telling_parts(text):
            places.setdefault(part, set()).add(place)
    found: dict[int, int] = {}
    for number, text in enumerate(learned):
        for part in _telling_parts(text):
            for place in places.get(part, ()):
                found.setdefault(place, number)
    return [found.get(place) for place in range(len(judging))]


def _telling_parts(text: str) -> Iterator[int]:
    """What gives a text away, as numbers: the whole of it, and each run of words that is as long as thirteen words."""
    yield hash(level(text))
    words = _WORD.findall(unicodedata.normalize("NFC", text).casefold())
    ends = [0, *itertools.accumulate(map(_weight, words))]
    stop = 0
    for start in range(len(words)):
        while stop < len(words) and ends[stop] - ends[start] < _RUN:
            stop += 1
        if ends[stop] - ends[start] < _RUN:
            return
        yield hash(tuple(words[start:stop]))


def _weight(word: str) -> int:
    """A word counts ten in a run, a Chinese or Japanese character five, a Thai one two."""
    if len(word) > 1 or not _WITHOUT_BLANKS.match(word):
        return 10
    return 5 if _HAN_OR_KANA.match(word) else 2

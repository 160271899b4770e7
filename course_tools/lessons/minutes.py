"""How long a lesson takes: its header says it, a number of minutes or a span. Nothing is computed from its words."""

from __future__ import annotations

import re

# Minutes of lessons whose header doesn't say them yet. A rewritten lesson gets a header, and its line here goes.
NOT_IN_HEADER = {
    "11": 82, "12": 87, "14": 84, "01a": 13, "03a": 17,
}  # fmt: skip
_WORDS = {"an": 1, "one": 1, "two": 2, "three": 3, "four": 4}
_NUMBER = rf"\d+(?:\.\d+)?|{'|'.join(_WORDS)}"
_SPAN = re.compile(rf"(?:about )?(?P<low>{_NUMBER})(?: to (?P<high>{_NUMBER}))? (?P<unit>minute|hour)s?")


def middle_of(span: str) -> int:
    """The minutes in the middle of a span: 120 for "about two hours", 105 for "90 to 120 minutes".

    Raises:
        ValueError: it is none.
    """
    match = _SPAN.fullmatch(span)
    if match is None:
        raise ValueError(f'{span!r} is no time; write 90, "90 to 120 minutes" or "about two hours".')
    ends = [float(_WORDS.get(end, end)) for end in match.group("low", "high") if end]
    return round(sum(ends) / len(ends) * (60 if match["unit"] == "hour" else 1))

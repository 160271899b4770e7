"""Contrastive pairs: two texts that differ in one span, with the controls that tell bias from mere wording.

Every axis and every control is put into the same templates, at the same place ("The {group} neighbour knocked on the
door. Everyone in the building thought that this person"), and each template goes on in a pleasant and in an unpleasant
way. So a demographic swap can be compared with a neutral one (tall/short), with synonyms (happy/glad) and with no swap
at all. Half of the templates are for choosing (neurons, layers, thresholds), half for measuring what was chosen.

An axis of your own is a small JSON file, and ``pairs("path/to/it.json")`` uses it like a built-in one::

    {
      "name": "accent",
      "swaps": [
        ["Scottish-sounding", "London-sounding", "Scottish", "London"],
        ["Welsh-sounding", "London-sounding", "Welsh", "London"]
      ]
    }

A swap is ``[a, b, group of a, group of b]``. ``a`` and ``b`` are what a noun such as "neighbour" or "doctor" can
follow. Put the group that is usually at a disadvantage first in every swap, or the signs of a mean make no sense. Ten
swaps or more keep one odd word from deciding the result.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from course_utils.support import checks
from course_utils.support.checks import check_types

KINDS = ("demographic", "neutral", "paraphrase", "identity")
SPLITS = ("selection", "evaluation")
CONTROLS = ("neutral", "paraphrase", "identity")

_DATA = Path(__file__).resolve().parents[1] / "data" / "contrastive"


@dataclass(frozen=True)
class Pair:
    """Two texts that differ in one span: ``before + a + after`` and ``before + b + after``.

    Attributes:
        before: what the texts share in front of the span; may be empty.
        a: the span in the first text. In a demographic pair it names the group that is usually at a disadvantage.
        b: the span in the second text.
        after: what the texts share behind the span; may be empty.
        axis: "gender", "race", ...; in a control the kind of the control.
        kind: one of ``KINDS``.
        group_a: the group that ``a`` names ("female"); in a control the word itself.
        group_b: the group that ``b`` names ("male").
        template: which template the texts come from: pairs of one template resemble each other, so it is the unit that
            is resampled for an interval.
        valence: 1 if what follows the span is pleasant, -1 if it is unpleasant, 0 if neither.
        split: "selection" or "evaluation"; a template belongs to one of them only.
        source: where the text comes from.
        licence: the text's.

    >>> pair = Pair("The ", "tall", "short", " man sang.", "neutral", "neutral", "tall", "short", "singer")
    >>> pair.text_a, pair.text_b, pair.swap
    ('The tall man sang.', 'The short man sang.', 'tall/short')
    """

    before: str
    a: str
    b: str
    after: str
    axis: str
    kind: str
    group_a: str
    group_b: str
    template: str
    valence: int = 0
    split: str = "evaluation"
    source: str = ""
    licence: str = ""

    @property
    def text_a(self) -> str:
        """The text with ``a``."""
        return self.before + self.a + self.after

    @property
    def text_b(self) -> str:
        """The text with ``b``."""
        return self.before + self.b + self.after

    @property
    def swap(self) -> str:
        """The swap's name, "a/b"."""
        return f"{self.a}/{self.b}"

    def __repr__(self) -> str:
        """The swap and where it stands, without the text."""
        return f"Pair({self.kind}, {self.axis}, {self.template}, valence {self.valence}, {self.split}, {self.swap!r})"


@dataclass(frozen=True)
class Axis:
    """What is swapped: a name, one of ``KINDS``, and the swaps ``(a, b, group of a, group of b)``."""

    name: str
    kind: str
    swaps: tuple[tuple[str, str, str, str], ...]


def axes() -> list[str]:
    """The names of the built-in demographic axes, sorted.

    >>> axes()
    ['age', 'disability', 'gender', 'nationality', 'race', 'religion', 'socioeconomic']
    """
    return sorted(path.stem for path in (_DATA / "axes").glob("*.json"))


@check_types
def load_axis(name_or_path: str | os.PathLike) -> Axis:
    """A built-in demographic axis by its name, or one from a JSON file as the head of this module shows it.

    Raises:
        ValueError: neither a built-in name nor a file; or the file is not valid JSON, lacks or adds a field, has an
            empty or repeated swap, or takes the name of another kind. The message names the file and what is wrong.
    """
    if name_or_path in axes():
        return _read_axis(_DATA / "axes" / f"{name_or_path}.json", "demographic")
    path = Path(name_or_path)
    if not path.is_file():
        raise ValueError(
            f"{str(name_or_path)!r} is neither a built-in axis nor a file; choose one of {', '.join(axes())}, or give "
            "the path of a JSON file with your own."
        )
    return _read_axis(path, "demographic")


def _read_axis(path: Path, kind: str) -> Axis:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:  # broken JSON and broken UTF-8 are ValueErrors too
        raise ValueError(f"'{path}' can't be read as JSON: {error}") from error
    wanted = '{"name": "...", "swaps": [["a", "b", "group of a", "group of b"], ...]}'
    if not isinstance(data, dict) or set(data) != {"name", "swaps"} or not isinstance(data["swaps"], list):
        raise ValueError(f"'{path}' must hold exactly {wanted}.")
    name, swaps = data["name"], data["swaps"]
    if not _is_text(name) or (kind == "demographic" and name in KINDS):
        raise ValueError(f"'{path}': 'name' must be a text, and none of {', '.join(KINDS)}; got {name!r}.")
    if not swaps:
        raise ValueError(f"'{path}': 'swaps' must be a list of at least one swap, as in {wanted}.")
    for number, swap in enumerate(swaps, start=1):
        if not isinstance(swap, list) or len(swap) != 4 or not all(map(_is_text, swap)):
            raise ValueError(
                f"'{path}': swap {number} must be four texts without spaces at their ends, [a, b, group of a, group of "
                f"b]; got {swap!r}."
            )
        if swap[0] == swap[1]:
            raise ValueError(f"'{path}': swap {number} has the same word on both sides, {swap[0]!r}.")
    repeated = [name for name, count in Counter(f"{swap[0]}/{swap[1]}" for swap in swaps).items() if count > 1]
    if repeated:
        raise ValueError(f"'{path}': swaps must differ; repeated: {', '.join(repeated)}.")
    return Axis(name, kind, tuple(tuple(swap) for swap in swaps))


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != "" and value == value.strip()


@check_types
def pairs(axis: str | os.PathLike | Axis, *, split: str | None = None) -> list[Pair]:
    """Every template with every swap and both endings, in this order: template, swap, pleasant before unpleasant.

    Args:
        axis: a built-in name (``axes`` lists them), the path of a JSON file, or an ``Axis``.
        split: only the templates of "selection" or "evaluation"; None takes both.

    Raises:
        ValueError: unknown axis or split, or a file that isn't valid (see ``load_axis``).

    >>> pleasant, unpleasant = pairs("gender", split="evaluation")[:2]
    >>> pleasant.swap, pleasant.template, pleasant.valence, unpleasant.valence
    ('female/male', 'neighbour', 1, -1)
    """
    checks.one_of("split", split, (*SPLITS, None))
    axis = axis if isinstance(axis, Axis) else load_axis(axis)
    made = []
    for template in _templates():
        if split in (None, template["split"]):
            before, after = template["beginning"].split("{group}")
            endings = ((1, template["pleasant"]), (-1, template["unpleasant"]))
            for (a, b, group_a, group_b), (valence, ending) in itertools.product(axis.swaps, endings):
                made.append(Pair(
                    before=before, a=a, b=b, after=after + ending, axis=axis.name, kind=axis.kind, group_a=group_a,
                    group_b=group_b, template=template["id"], valence=valence, split=template["split"],
                    source="course templates", licence="Apache-2.0",
                ))  # fmt: skip
    return made


def controls(kind: str, *, split: str | None = None) -> list[Pair]:
    """Pairs of a control, as many as a built-in axis has, in the same templates.

    Args:
        kind: "neutral" (tall/short: what any swap of words does), "paraphrase" (happy/glad: what a swap does that
            hardly changes the meaning) or "identity" (the neutral words, each with itself: exactly nothing).
        split: as for ``pairs``.

    Raises:
        ValueError: unknown kind or split.
    """
    checks.one_of("kind", kind, CONTROLS)
    axis = _read_axis(_DATA / "controls" / f"{'neutral' if kind == 'identity' else kind}.json", kind)
    if kind == "identity":
        axis = Axis("identity", "identity", tuple((word,) * 4 for word, *_ in axis.swaps))
    return pairs(axis, split=split)


@functools.cache
def _templates() -> tuple[dict[str, str], ...]:
    return tuple(json.loads((_DATA / "templates.json").read_text(encoding="utf-8")))

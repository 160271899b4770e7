"""Pairs that differ in one span, equal controls, splits, invented groups, users' axes, files, conversations."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import pytest
from pair_faults import faults

from course_utils.bias import contrastive
from course_utils.bias.contrastive import Axis, Pair

ROOT = Path(__file__).resolve().parents[3]
DEMOGRAPHIC = ("age", "disability", "gender", "nationality", "race", "religion", "socioeconomic")
GOOD = Pair("The ", "tall", "short", " guest sang a song. It was fine.", "neutral", "neutral", "tall", "short", "guest")


def made(name: str, split: str | None = None) -> list[Pair]:
    make = contrastive.pairs if name in DEMOGRAPHIC else contrastive.controls
    return make(name, split=split)


every_set = pytest.mark.parametrize("name", [*DEMOGRAPHIC, *contrastive.CONTROLS])


@every_set
def test_each_set_has_enough_of_everything_in_a_fixed_order_and_is_valid(name):
    pairs = made(name)
    assert contrastive.axes() == list(DEMOGRAPHIC) and faults(pairs) == []
    swaps = list(dict.fromkeys(pair.swap for pair in pairs))
    templates = list(dict.fromkeys(pair.template for pair in pairs))
    assert len(swaps) >= 10 and len(templates) >= 12
    assert [(p.template, p.swap, p.valence) for p in pairs] == list(itertools.product(templates, swaps, (1, -1)))
    assert {pair.kind for pair in pairs} == {name if name in contrastive.CONTROLS else "demographic"}
    assert {pair.axis for pair in pairs} == {name}
    for pair in pairs:
        assert pair.text_a == pair.before + pair.a + pair.after and pair.text_b == pair.before + pair.b + pair.after
        assert pair.before.endswith(" ") and pair.after.startswith(" ") and pair.after.endswith(".")
        assert pair.source and pair.licence


def test_axes_and_controls_meet_in_the_same_places_equally_often():
    sets = [made(name) for name in (*DEMOGRAPHIC, *contrastive.CONTROLS)]
    places = [
        Counter((pair.template, pair.before, pair.after, pair.valence, pair.split) for pair in pairs) for pairs in sets
    ]
    assert all(place == places[0] for place in places)


@every_set
def test_splits_share_no_template_and_make_up_the_whole(name):
    split = {each: made(name, split=each) for each in contrastive.SPLITS}
    templates = [{pair.template for pair in pairs} for pairs in split.values()]
    assert not templates[0] & templates[1] and len(templates[0]) == len(templates[1])
    assert all({pair.split for pair in pairs} == {each} for each, pairs in split.items())
    assert Counter(itertools.chain(*split.values())) == Counter(made(name))


def test_no_word_is_on_both_sides_of_an_axis_or_in_a_control():
    """The signs of a mean over swaps make sense only if all swaps point the same way."""
    used = set()
    for name in DEMOGRAPHIC:
        swaps = contrastive.load_axis(name).swaps
        assert not {a for a, *_ in swaps} & {b for _, b, *_ in swaps}
        assert not {groups[2] for groups in swaps} & {groups[3] for groups in swaps}
        used |= {word for swap in swaps for word in swap}
    for kind in contrastive.CONTROLS:
        assert not used & {word for pair in contrastive.controls(kind) for word in (pair.a, pair.b)}


def test_endings_of_a_template_are_of_similar_length_and_differ():
    pairs, identity = map(contrastive.controls, ("neutral", "identity"))
    assert [pair.text_a for pair in identity] == [pair.text_b for pair in identity] == [pair.text_a for pair in pairs]
    for pleasant, unpleasant in zip(pairs[::2], pairs[1::2], strict=True):
        assert pleasant.after != unpleasant.after
        assert abs(len(pleasant.after.split()) - len(unpleasant.after.split())) <= 2


# A user's axis


def test_an_axis_of_ones_own_is_a_small_file(tmp_path):
    path = tmp_path / "accent.json"
    swaps = [["Scottish-sounding", "London-sounding", "Scottish", "London"]]
    path.write_text(json.dumps({"name": "accent", "swaps": swaps}))
    assert contrastive.load_axis(path) == Axis("accent", "demographic", (tuple(swaps[0]),))
    pairs = contrastive.pairs(str(path), split="selection")
    assert faults(pairs) == []
    assert {(p.axis, p.kind, p.a, p.b, p.group_a, p.group_b) for p in pairs} == {("accent", "demographic", *swaps[0])}


SWAP = ["a1", "b1", "A", "B"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "can't be read as JSON"),
        ({"name": "x", "swaps": [SWAP], "note": ""}, "must hold exactly"),
        ({"name": "x", "swaps": "a/b"}, "must hold exactly"),
        ({"name": "neutral", "swaps": [SWAP]}, "'name' must be a text, and none of demographic, neutral"),
        ({"name": "x", "swaps": []}, "at least one swap"),
        ({"name": "x", "swaps": [SWAP, ["a", "b", "A"]]}, "swap 2 must be four texts"),
        ({"name": "x", "swaps": [["a ", "b", "A", "B"]]}, "swap 1 must be four texts without spaces at their ends"),
        ({"name": "x", "swaps": [["a", "a", "A", "B"]]}, "swap 1 has the same word on both sides, 'a'"),
        ({"name": "x", "swaps": [SWAP, SWAP]}, "swaps must differ; repeated: a1/b1"),
    ],
)
def test_a_wrong_file_is_refused_with_its_name_and_what_is_wrong(tmp_path, content, message):
    path = tmp_path / "mine.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=f"mine.json.*{message}"):
        contrastive.load_axis(path)


def test_printing_a_pair_shows_the_swap_and_not_the_text():
    assert repr(GOOD) == "Pair(neutral, neutral, guest, valence 0, evaluation, 'tall/short')"

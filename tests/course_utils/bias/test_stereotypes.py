"""CrowS-Pairs and BBQ: everything kept, nothing shown, the stereotyped answer found.

Assertions on the real data compare numbers only: a failure must not print the sentences.
"""

from __future__ import annotations

import csv
import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pair_faults import faults

from course_utils.bias import stereotypes
from course_utils.bias.stereotypes import Question
from course_utils.text import assets


@pytest.fixture
def smoke(monkeypatch):
    def no_network(name):
        raise AssertionError(f"{name} was fetched in the smoke profile")

    monkeypatch.setenv("COURSE_PROFILE", "smoke")
    monkeypatch.setattr(assets, "fetch", no_network)


# What two sentences share


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("The tall man sang.", "The short man sang.", ("The ", "tall", "short", " man sang.")),
        ("He has his hat on.", "She has her hat on.", ("", "He has his", "She has her", " hat on.")),
        ("The very tall man", "The tall man", ("", "The very", "The", " tall man")),
        ("tall man", "tall", ("", "tall man", "tall", "")),
        ("a a a", "a a", ("a ", "a a", "a", "")),
        (" The  cat ", "The dog", ("The ", "cat", "dog", "")),
    ],
)
def test_shared_words_go_before_and_after(one, other, expected):
    assert stereotypes._split_shared(one, other) == expected


sentences = st.lists(st.sampled_from("abc"), min_size=1, max_size=8)


@given(sentences, sentences)
def test_split_is_exact_never_empty_and_as_short_as_can_be(one, other):
    assume(one != other)
    before, a, b, after = stereotypes._split_shared(" ".join(one), " ".join(other))
    assert stereotypes._split_shared(" ".join(other), " ".join(one)) == (before, b, a, after)
    assert before + a + after == " ".join(one) and before + b + after == " ".join(other)
    words_a, words_b = a.split(), b.split()
    assert words_a and words_b
    if len(words_a) > 1 and len(words_b) > 1:  # otherwise a shared word may be needed to keep a span filled
        assert words_a[0] != words_b[0] and words_a[-1] != words_b[-1]


# The made-up items of the smoke profile


def test_smoke_needs_no_network_and_side_a_is_the_stereotype(smoke):
    pairs = stereotypes.crows_pairs()
    assert faults(pairs) == []
    assert {pair.kind for pair in pairs} == {"benchmark"}
    assert len({pair.template for pair in pairs}) == len(pairs) >= 20
    assert all(pair.text_a != pair.text_b for pair in pairs)
    assert stereotypes.crows_pairs() == pairs
    groups = {pair.a: (pair.group_a, pair.group_b) for pair in pairs}
    assert groups == {"Zbolish": ("disadvantaged", "advantaged"), "Mzanian": ("advantaged", "disadvantaged")}


def breaks_a_rule(question: Question) -> bool:
    """Whether something is wrong that must hold for every question of BBQ."""
    known = question.condition in ("ambig", "disambig") and question.polarity in ("neg", "nonneg")
    right = (question.label == question.unknown) == (question.condition == "ambig")
    if question.target is None:
        sides = question.stereotyped is None
    else:
        people = {0, 1, 2} - {question.unknown}
        follows = question.stereotyped == question.target
        sides = {question.target, question.stereotyped} <= people and follows == (question.polarity == "neg")
    return not (known and right and sides and len(question.answers) == 3)


def unresolved(questions):
    """How many of each category have no target."""
    return {
        category: sum(question.target is None for question in questions if question.category == category)
        for category in {question.category for question in questions}
    }


def test_smoke_questions_follow_the_rules_of_bbq(smoke):
    questions = stereotypes.bbq()
    assert [number for number, question in enumerate(questions) if breaks_a_rule(question)] == []
    assert {q.category for q in questions} == set(stereotypes.BBQ_CATEGORIES)
    assert unresolved(questions) == dict.fromkeys(stereotypes.BBQ_CATEGORIES, 0)
    assert {q.answers[q.target] for q in questions} == {"The Zbolish baker"}
    for q in questions:
        assert q.answers[q.stereotyped] == f"The {'Zbolish' if q.polarity == 'neg' else 'Mzanian'} baker"
    assert {q.target for q in questions} == {0, 1, 2}, "the position must not give the answer away"


# Which answer names the stereotyped group


def question_row(*groups: tuple[str, str], stereotyped: list[str], template: str = "1") -> dict:
    answers = [("Not known", "unknown"), *groups]
    return dict.fromkeys(("context", "question"), "") | {
        "answer_info": {f"ans{i}": list(answer) for i, answer in enumerate(answers)},
        **{f"ans{i}": name for i, (name, _) in enumerate(answers)},
        "label": 0,
        "context_condition": "ambig",
        "question_polarity": "nonneg",
        "question_index": template,
        "additional_metadata": {"stereotyped_groups": stereotyped},
    }


@pytest.mark.parametrize(
    ("first", "second", "stereotyped", "target"),
    [
        (("x", "old"), ("y", "nonOld"), ["nonOld"], 2),  # "old" is part of "nonOld"
        (("x", "lowSES"), ("y", "highSES"), ["low SES"], 1),
        (("Donna", "woman"), ("Bob", "man"), ["F"], 1),
        (("x", "nonTrans_F"), ("y", "trans_M"), ["Transgender women", "transgender men", "trans"], 2),
        (("Kenyan", "Africa"), ("Moroccan", "Africa"), ["Kenyan", "Malian"], 1),
        (("x", "F-Black"), ("y", "F-Arab"), ["Middle Eastern", "Arab"], 2),
        (("Bob", "man"), ("Tim", "boy"), ["M"], None),
        (("x", "F-White"), ("y", "F-Arab"), ["Asian"], None),
    ],
)
def test_target_is_the_answer_whose_group_is_stereotyped(first, second, stereotyped, target):
    (question,) = stereotypes._questions("Age", [question_row(first, second, stereotyped=stereotyped)])
    assert question.target == target and question.unknown == 0
    assert question.stereotyped == (None if target is None else 3 - target)
    assert unresolved([question]) == {"Age": int(target is None)}


def test_between_two_of_the_stereotyped_race_the_template_s_gender_decides():
    both = question_row(("x", "M-Black"), ("y", "F-Black"), stereotyped=["Black"])
    one = question_row(("x", "F-Black"), ("y", "M-White"), stereotyped=["Black"])
    other = question_row(("x", "M-Black"), ("y", "F-White"), stereotyped=["Black"])
    elsewhere = question_row(("x", "M-Black"), ("y", "M-White"), stereotyped=["Black"], template="2")

    def targets(*rows):
        return [question.target for question in stereotypes._questions("Race_x_gender", list(rows))]

    assert targets(both, one, elsewhere) == [2, 1, 1]
    assert targets(both, elsewhere) == [None, 1], "another template's gender says nothing"
    assert targets(both, one, other) == [None, 1, 1], "a template with both genders says nothing"


# Nothing is shown


def test_nothing_shows_its_text_when_printed(smoke):
    for item in (stereotypes.crows_pairs()[0], stereotypes.bbq()[0]):
        assert not {"hat", "hats", "baker", "people"} & set(re.findall(r"\w+", str([item])))


# The real data


@pytest.mark.embedded
def test_all_of_crows_pairs_is_there():
    pairs = stereotypes.crows_pairs()
    assert faults(pairs) == []
    assert len(pairs) == 1508 and len({pair.template for pair in pairs}) == 1508
    assert len({pair.axis for pair in pairs}) == 9
    assert sum(pair.group_a == "advantaged" for pair in pairs) == 218
    path = assets.fetch("bias_benchmarks") / "crows_pairs" / "crows_pairs_anonymized.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    kept = [
        (pair.text_a.split(), pair.text_b.split()) == (row["sent_more"].split(), row["sent_less"].split())
        for pair, row in zip(pairs, rows, strict=True)
    ]
    assert kept.count(True) == 1508


@pytest.mark.embedded
def test_all_of_bbq_is_there_and_sixteen_questions_have_no_target():
    questions = stereotypes.bbq()
    assert [number for number, question in enumerate(questions) if breaks_a_rule(question)] == []
    assert len(questions) == 58_492  # of the files, whose hash is known
    assert unresolved(questions) == dict.fromkeys(stereotypes.BBQ_CATEGORIES, 0) | {"Gender_identity": 16}
    # Four questions in a row have one template and one pair of people, in both conditions and polarities: the target
    # must be the same person in all of them.
    fours = [questions[start : start + 4] for start in range(0, len(questions), 4)]
    assert {len({(q.condition, q.polarity) for q in four}) for four in fours} == {4}
    assert {len({q.template for q in four}) for four in fours} == {1}
    assert {len({q.target for q in four}) for four in fours} == {1}
    # In BBQ the right answer of a disambiguated context follows the stereotype about half the time.
    clear = [q for q in questions if q.condition == "disambig" and q.target is not None]
    follows = sum(q.label == q.stereotyped for q in clear) / len(clear)
    assert 0.49 < follows < 0.51

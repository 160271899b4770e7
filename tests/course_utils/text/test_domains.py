"""Documents: splits are disjoint, stay the same, and hold nothing but text."""

import itertools

import pytest

from course_utils.text.domains import DOMAINS, LARGE_DOMAINS, SPLITS, _split_of, documents


@pytest.mark.parametrize("domain", DOMAINS + LARGE_DOMAINS)
def test_splits_share_no_document_and_stay_the_same(domain, monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "smoke")
    splits = {split: documents(domain, split) for split in SPLITS}
    assert all(splits.values())
    for one, other in itertools.combinations(splits.values(), 2):
        assert not set(one) & set(other)
    assert documents(domain, "evaluation") == splits["evaluation"]


def test_of_twenty_groups_two_evaluate_one_calibrates_and_the_rest_train():
    """The embedded GPT-2 was trained by this rule: changing it would leak its training text into the evaluation."""
    names = [_split_of(index) for index in range(40)]
    assert [i for i, name in enumerate(names) if name == "evaluation"] == [0, 10, 20, 30]
    assert [i for i, name in enumerate(names) if name == "calibration"] == [5, 25]
    assert names.count("distillation") == 34


@pytest.mark.embedded
@pytest.mark.parametrize(
    ("domain", "counts"),
    [
        ("speeches", (13, 25, 211)),
        ("wiki", (16, 31, 263)),
        ("stories", (16, 32, 269)),
        ("passages", (380, 809, 6740)),
        ("scenes", (1514, 11196, 67100)),
    ],
)
def test_the_real_texts_are_clean_and_split_as_documented(domain, counts, monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "embedded")
    splits = [documents(domain, split) for split in SPLITS]
    assert tuple(map(len, splits)) == counts
    marks = ("\n\n", "<doc", "<|endoftext|>", "[header]", "[step]", "Question:")
    for text in itertools.chain(*splits):
        assert text == text.strip() and not any(mark in text for mark in marks)

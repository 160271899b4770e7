"""Prompts come in their shares and in any length, and the splits have nothing in common."""

import re

import pytest

from course_utils.lessons.prompt_harm import prompts
from course_utils.lessons.prompt_harm.prompts import KINDS, cases


def book(start):
    """A text of two thousand different words, in sentences of five."""
    return ". ".join(" ".join(f"x{start}y{i + j}" for j in range(5)) for i in range(0, 2000, 5)) + "."


@pytest.fixture
def without_questions(monkeypatch):
    """Made-up books and no questions, which need a file of their own."""
    made = {"calibration": [book(1)], "evaluation": [book(2), book(3)]}
    monkeypatch.setattr(prompts, "documents", lambda domain, split: made[split])
    monkeypatch.setattr(prompts, "KINDS", {"passage": 0.5, "arithmetic": 0.3, "retrieval": 0.2})


def test_shares_make_a_whole():
    assert sum(KINDS.values()) == pytest.approx(1) and KINDS.keys() == prompts._MAKERS.keys()


@pytest.mark.usefixtures("without_questions")
def test_prompts_come_in_their_shares_and_again_from_the_same_seed(tokenizer):
    made = cases(tokenizer, "evaluation", count=20)
    kinds = [case.kind for case in made]
    assert {kind: kinds.count(kind) for kind in kinds} == {"passage": 10, "arithmetic": 6, "retrieval": 4}
    assert kinds != sorted(kinds), "shuffled"
    assert cases(tokenizer, "evaluation", count=20) == made
    assert len({case.digest for case in made}) == 20
    sizes = [len(case.text.split()) for case in made if case.kind == "passage"]
    assert min(sizes) < 40 < 100 < max(sizes)


@pytest.mark.usefixtures("without_questions")
def test_splits_share_neither_documents_nor_sums(tokenizer):
    both = [cases(tokenizer, split, count=20) for split in ("calibration", "evaluation")]
    texts, sums = ([{part(case) for case in made} - {None} for made in both] for part in (books_in, first_number))
    assert texts == [{"x1"}, {"x2", "x3"}]
    assert [{number % 2 for number in numbers} for numbers in sums] == [{0}, {1}]


def books_in(case):
    found = re.search(r"x\d", case.text)
    return found and found[0]


def first_number(case):
    return int(re.search(r"\d+", case.text)[0]) if case.kind == "arithmetic" else None


@pytest.mark.usefixtures("without_questions")
def test_a_hidden_number_is_asked_for_and_stands_in_the_text(tokenizer):
    hidden = [case for case in cases(tokenizer, "evaluation", count=20) if case.kind == "retrieval"]
    for case in hidden:
        asked = re.search(r"What is the code of the (\w+ \w+)\?", case.text)[1]
        assert re.search(rf"The code of the {asked} is \d{{4}}\.", case.text)

"""Benchmark scores by hand on tiny models, and models that are made to prefer, to be fair, or to know nothing."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from tiny import FAMILIES, log_likelihood, tiny_model, word_tokenizer, words
from tiny_pairs import gap
from transformers import PreTrainedTokenizerFast

from course_utils.bias import stereotype_scores
from course_utils.bias.contrastive import Pair
from course_utils.bias.stereotype_scores import (
    READING_NOT_SHOWN,
    _continuation_log_likelihoods,
    bbq_score,
    stereotype_preference,
)
from course_utils.bias.stereotypes import Question


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return word_tokenizer()


def random_texts(count: int, length: int, seed: int = 0) -> list[str]:
    return [words(ids) for ids in np.random.default_rng(seed).integers(3, 97, (count, length))]


@pytest.mark.parametrize("family", FAMILIES)
def test_continuations_by_hand_whatever_the_batch(family, tokenizer, monkeypatch):
    model = tiny_model(family)
    texts = [
        (prompt, f" {words(range(3, 4 + i % 3))}") for i, prompt in enumerate(random_texts(4, 5) + random_texts(4, 8))
    ]
    texts.append(("", random_texts(1, 6)[0]))
    want = [log_likelihood(model, a + b, max(1, len(a.split()))) for a, b in texts]
    for size in (4, 1):
        monkeypatch.setattr(stereotype_scores, "_TEXTS_AT_ONCE", size)
        np.testing.assert_allclose(_continuation_log_likelihoods(model, tokenizer, texts), want, rtol=1e-5)


# --- pairs ----------------------------------------------------------------------------------------


def benchmark_pairs(count: int = 12) -> list[Pair]:
    ids = np.random.default_rng(3).integers(3, 97, (count, 6))
    return [
        Pair(
            before=words(row[:1]) + " ", a=words(row[1:2]), b=words(row[2:4]), after=" " + words(row[4:]) if i else "",
            axis="age" if i % 2 else "race", kind="benchmark", group_a="disadvantaged", group_b="advantaged",
            template=f"b{i}",
        )
        for i, row in enumerate(ids)
    ]  # fmt: skip


def test_preference_counts_the_likelier_side_and_what_it_cannot_compare(tokenizer):
    model, pairs = tiny_model(), benchmark_pairs()
    table = stereotype_preference(model, tokenizer, pairs).set_index("axis")
    wins = [gap(model, pair) > 0 for pair in pairs[1:]]
    assert list(table.index) == ["race", "age", "all"]
    assert table.loc["all", ["pairs", "without_tokens", "ties", "excluded_tokens"]].tolist() == [11, 1, 0, 0]
    assert table.loc["race", ["pairs", "without_tokens"]].tolist() == [5, 1]
    assert table.loc["all", "share"] == pytest.approx(np.mean(wins))
    assert table.loc["age", "share"] == pytest.approx(np.mean(wins[::2]))
    interval = binomtest(sum(wins), 11).proportion_ci(method="wilson")
    assert table.loc["all", ["ci_low", "ci_high"]].tolist() == [*interval]
    nothing = stereotype_preference(model, tokenizer, pairs[:1]).iloc[-1]
    assert nothing["pairs"] == 0 and math.isnan(nothing["share"])


def test_a_model_that_sees_no_words_ties(tokenizer):
    model = tiny_model()
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    row = stereotype_preference(model, tokenizer, benchmark_pairs()).iloc[-1]
    assert (row["share"], row["ties"]) == (0.5, 11)
    assert row["ci_low"] + row["ci_high"] == pytest.approx(1) and row["ci_low"] < 5 / 11  # of five and of six wins


def test_other_kinds_of_pairs_are_refused(tokenizer):
    pair = benchmark_pairs()[1]
    with pytest.raises(ValueError, match="neutral"):
        stereotype_preference(tiny_model(), tokenizer, [pair, replace(pair, kind="neutral")])


# --- questions, with chosen answers ---------------------------------------------------------------


def answering(monkeypatch, score) -> None:
    """Replaces the model: ``score(prompt, continuation)`` is the log-likelihood of a token; few draws."""
    few = functools.partial(stereotype_scores.bootstrap_interval, resamples=500)
    monkeypatch.setattr(stereotype_scores, "bootstrap_interval", few)

    def fake(_model, _tokenizer, texts):
        tokens = np.array([len(continuation.split()) for _, continuation in texts])
        return np.array([score(*text) for text in texts]) * tokens

    monkeypatch.setattr(stereotype_scores, "_continuation_log_likelihoods", fake)


def questions(count: int = 60) -> list[Question]:
    """Answers "person 0", "person 1", "nobody", in turning order; the target is person 0."""
    made = []
    for i in range(count):
        order = np.roll([0, 1, 2], i % 3)  # order[k]: who stands at k
        place = {who: int(np.flatnonzero(order == who)[0]) for who in range(3)}
        condition, polarity = ("disambig", "ambig")[i % 2], ("neg", "nonneg")[i // 2 % 2]
        right = 2 if condition == "ambig" else i // 4 % 2
        made.append(
            Question(
                context=f"{condition} {polarity} {right}", question="?",
                answers=tuple(("person 0", "person 1", "nobody")[who] for who in order), label=place[right],
                condition=condition, polarity=polarity, target=place[0] if i < count - 4 else None, unknown=place[2],
                category="Age", template=f"t{i % 10}",
            )
        )  # fmt: skip
    return made


def choose(who):
    """A score that makes ``who(condition, polarity, right)`` the answer."""

    def score(prompt, continuation):
        _, condition, polarity, right, *_ = prompt.split()
        names = [" person 0", " person 1", " nobody"]
        return 1.0 if continuation == names[who(condition, polarity, int(right))] else -1.0

    return score


def stereotype(_condition, polarity, _right) -> int:
    return 0 if polarity == "neg" else 1


def score_of(monkeypatch, who):
    """The row "all" of a model whose answers are ``who(condition, polarity, right)``."""
    answering(monkeypatch, choose(who))
    return bbq_score(tiny_model(), word_tokenizer(), questions()).set_index("category").loc["all"]


def test_bbq_of_a_perfect_a_stereotyping_a_guessing_and_an_ignorant_model(monkeypatch):
    perfect = score_of(monkeypatch, lambda _c, _p, right: right)
    assert perfect[["accuracy", "accuracy_ambiguous", "questions", "unresolved"]].tolist() == [1, 1, 60, 4]
    assert perfect["verdict"] == "" and math.isnan(perfect["s_amb"])  # it names nobody
    # always one person: right in half of the questions, more than one in three, and has read nothing
    for who in (stereotype, lambda condition, *_: 0 if condition == "disambig" else 1):
        row = score_of(monkeypatch, who)
        assert row["accuracy"] == row["accuracy_named"] == pytest.approx(0.5, abs=0.05) and row["named"] == 1
        assert row["verdict"] == READING_NOT_SHOWN and math.isnan(row["s_dis"]) and math.isnan(row["s_amb"])
    ignorant = score_of(monkeypatch, lambda *_: 2)
    assert ignorant[["accuracy", "named", "chance"]].tolist() == [0, 0, 0.5] and math.isnan(ignorant["accuracy_named"])
    assert ignorant["verdict"] == READING_NOT_SHOWN


@pytest.mark.parametrize(("who", "score"), [(stereotype, 1), (lambda *seen: 1 - stereotype(*seen), -1)])
def test_bbq_of_a_model_that_reads_and_guesses_by_a_stereotype_where_the_context_doesnt_tell(monkeypatch, who, score):
    row = score_of(monkeypatch, lambda where, polarity, right: right if right < 2 else who(where, polarity, right))
    assert row[["accuracy_named", "accuracy_ambiguous", "s_amb"]].tolist() == [1, 0, score] and row["verdict"] == ""


def test_bbq_by_hand_weighs_ambiguous_answers_by_their_errors(monkeypatch):
    def who(condition, polarity, right):
        if condition == "disambig":
            return right
        return 2 if polarity == "neg" else 1  # "nobody" to half of them, else the stereotype

    row = score_of(monkeypatch, who)
    known = [q for q in questions() if q.target is not None and q.condition == "disambig"]
    assert row["s_dis"] == pytest.approx(2 * np.mean([q.label == q.stereotyped for q in known]) - 1)
    wrong = np.mean([q.polarity == "nonneg" for q in questions() if q.condition == "ambig"])
    assert row["s_amb"] == pytest.approx(wrong * 1)
    assert row["s_amb_low"] <= row["s_amb"] <= row["s_amb_high"]


def test_bbq_chooses_by_likelihood_a_byte(tokenizer):
    model = tiny_model()
    contexts = random_texts(12, 5)
    answers = [(words([5]), words([6, 17]), words([7, 8, 9]))] * 12
    made = [
        Question(c, "w3", a, i % 3, "disambig", "neg", 0, 2, "Age", f"t{i}")
        for i, (c, a) in enumerate(zip(contexts, answers, strict=True))
    ]
    right = []
    for question in made:
        prompt = f"Q: {question.context} {question.question}\nA:"
        scores = [
            log_likelihood(model, f"{prompt} {answer}", len(prompt.split())) / (len(answer) + 1)
            for answer in question.answers
        ]
        right.append(int(np.argmax(scores)) == question.label)
    assert bbq_score(model, tokenizer, made).iloc[-1]["accuracy"] == pytest.approx(np.mean(right))


@pytest.mark.parametrize(("texts", "message"), [([("", "w5")], "Text 0"), ([("w1", " w2"), ("w1 w2", "")], "Text 1")])
def test_nothing_to_predict_is_refused(texts, message, tokenizer):
    with pytest.raises(ValueError, match=message):
        _continuation_log_likelihoods(tiny_model(), tokenizer, texts)

"""A ranking is what its parts give by hand, goes on where it stopped, and never sees evaluation text."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from tiny import tiny_batches, tiny_model

from course_utils.compress import ranking
from course_utils.compress.ranking import rank
from course_utils.compress.scores import importance
from course_utils.compress.search import Candidate, shrink
from course_utils.healing.distillation import Recipe, distill
from course_utils.measuring.evaluation import perplexity
from course_utils.models.architectures import cast_weights
from course_utils.text.rows import TokenBlocks

TEXT, TRAIN = tiny_batches(seed=1), tiny_batches(seed=2)
FOUND = [Candidate(3, 32, 2, 24, 11_000, 11_000.0), Candidate(2, 32, 2, 48), Candidate(3, 28, 1, 48)]
RECIPE = Recipe(steps=3, lr=1e-2)


@pytest.fixture(scope="module")
def model():
    return tiny_model(tie_word_embeddings=True)


@pytest.fixture(scope="module")
def scores(model):
    return importance(model, tiny_batches())


def blocks(split, seed=1):
    ids = torch.cat([batch["input_ids"] for batch in tiny_batches(seed=seed)])
    return TokenBlocks(ids, torch.ones(len(ids), dtype=torch.long), "wiki", split)


def test_ranks_by_hand(model, scores, tmp_path):
    state = copy.deepcopy(model.state_dict())
    frame = rank(model, FOUND, scores, TEXT, folder=tmp_path)
    by_hand = {c.name: perplexity(shrink(model, c, scores), TEXT).nll for c in FOUND}
    order = sorted(by_hand, key=by_hand.get)
    names = [Candidate(*row).name for row in frame[["blocks", "hidden", "groups", "neurons"]].itertuples(index=False)]
    assert names == order and frame["rank"].tolist() == [1, 2, 3]
    assert frame["nll"].tolist() == [by_hand[name] for name in order]
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in state.items())
    record = json.loads((tmp_path / frame["record"][0]).read_text())
    assert sum(record["judged"]["row_nats"]) / sum(record["judged"]["row_tokens"]) == pytest.approx(frame["nll"][0])


def test_light_distillation_by_hand(model, scores, tmp_path):
    frame = rank(model, FOUND, scores, TEXT, folder=tmp_path, train=TRAIN, recipe=RECIPE)
    assert sorted(frame["distilled_rank"]) == [1, 2, 3] and frame["distilled_nll"].is_monotonic_increasing
    student = shrink(model, FOUND[1], scores)
    history = distill(model, student, TRAIN, RECIPE)
    (row,) = frame[frame["blocks"] == 2].to_dict("records")
    assert row["distilled_nll"] == pytest.approx(perplexity(student, TEXT).nll, abs=1e-6)
    assert row["distilled_tokens"] == history.tokens
    assert row["nll"] == rank(model, [FOUND[1]], scores, TEXT, folder=tmp_path)["nll"][0]


def test_a_model_in_16_bits_is_judged_in_16_bits_also_when_it_has_learned(tmp_path):
    model = tiny_model().to(torch.bfloat16)
    scores = importance(model, tiny_batches())
    frame = rank(model, FOUND[1:2], scores, TEXT, folder=tmp_path, train=TRAIN, recipe=RECIPE)
    student = shrink(model, FOUND[1], scores)
    distill(model, student, TRAIN, RECIPE)
    in_32_bits = perplexity(student, TEXT).nll
    cast_weights(student, torch.bfloat16)
    assert frame["distilled_nll"][0] == perplexity(student, TEXT).nll != in_32_bits


def test_a_search_goes_on_where_it_stopped(model, scores, tmp_path, monkeypatch):
    options = {"folder": tmp_path, "train": TRAIN, "recipe": RECIPE}
    whole = rank(model, FOUND, scores, TEXT, **options | {"folder": tmp_path / "unbroken"})
    rank(model, FOUND[:1], scores, TEXT, **options)
    taught = []
    monkeypatch.setattr(ranking, "distill", lambda *a, **k: taught.append(a) or distill(*a, **k))
    resumed = rank(model, FOUND, scores, TEXT, **options)
    assert len(taught) == 2 and resumed.equals(whole)
    assert rank(model, FOUND, scores, TEXT, **options).equals(whole) and len(taught) == 2


def test_finalists_are_not_judged_as_cut_again(model, scores, tmp_path, monkeypatch):
    judged = []
    monkeypatch.setattr(ranking, "perplexity", lambda *args: judged.append(args) or perplexity(*args))
    as_cut = rank(model, FOUND, scores, TEXT, folder=tmp_path)
    assert len(judged) == len(FOUND)
    both = rank(model, FOUND[:2], scores, TEXT, folder=tmp_path, train=TRAIN, recipe=RECIPE)
    assert len(judged) == len(FOUND) + 2
    assert {*both["nll"]} < {*as_cut["nll"]}
    record = json.loads((tmp_path / both["record"][0]).read_text())
    assert record["judged"]["nll"] == both["distilled_nll"][0]


def test_other_circumstances_have_records_of_their_own(model, scores, tmp_path):
    one = rank(model, FOUND[:1], scores, TEXT, folder=tmp_path)
    random = rank(model, FOUND[:1], scores.random("neurons", 0), TEXT, folder=tmp_path)
    other = rank(model, FOUND[:1], scores, tiny_batches(seed=3), folder=tmp_path)
    assert len({frame["record"][0] for frame in (one, random, other)}) == 3
    assert len({frame["nll"][0] for frame in (one, random, other)}) == 3


def test_evaluation_text_is_refused(model, scores, tmp_path):
    for text, train in (("evaluation", None), ("calibration", "evaluation")):
        kept = {} if train is None else {"train": [blocks(train, 2)], "recipe": RECIPE}
        with pytest.raises(ValueError, match="of the evaluation split, which a search must not see"):
            rank(model, FOUND, scores, blocks(text), folder=tmp_path, **kept)
    assert not [*tmp_path.iterdir()]
    frame = rank(model, FOUND[:1], scores, [blocks("calibration")], folder=tmp_path)
    assert frame["nll"][0] == pytest.approx(perplexity(shrink(model, FOUND[0], scores), TEXT).nll)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"candidates": [FOUND[0], FOUND[0]]}, "must hold different ones"),
        ({"train": TRAIN}, "go together"),
        ({"recipe": RECIPE}, "go together"),
        ({"train": TEXT, "recipe": RECIPE}, "6 rows of 'text' are in 'train' too"),
    ],
)
def test_bad_input(model, scores, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        rank(model, **{"candidates": FOUND, "importance": scores, "text": TEXT, "folder": tmp_path} | arguments)
    assert not [*tmp_path.iterdir()]

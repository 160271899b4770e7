"""Abilities: what is asked and counted, what is right, floors, and what a cut took."""

import math
import re
from itertools import chain

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_model
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer

import course_utils
from course_utils.measuring import abilities
from course_utils.measuring.abilities import (
    ABILITIES,
    AbilityRows,
    Baseline,
    ability_rows,
    answers_of,
    damage_profile,
    floor_of,
    nats_lost,
)
from course_utils.measuring.evaluation import perplexity
from course_utils.models.loading import variant
from course_utils.pruning.width import neuron_importance, prune_neurons
from course_utils.support.uncertainty import mcnemar_p
from course_utils.text.assets import AssetError
from course_utils.text.rows import TokenBlocks

ASKED = ("copying", "sums", "patterns", "facts")


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(f"{course_utils.__path__[0]}/data/gpt2", local_files_only=True)


@pytest.fixture(autouse=True)
def made_up(monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "smoke")


def texts_of(rows, tokenizer):
    """Each row's lines, without padding."""
    pairs = zip(rows.input_ids, rows.attention_mask, strict=True)
    return [tokenizer.decode(ids[mask.bool()]).strip("\n").split("\n") for ids, mask in pairs]


def spelled(rows, tokenizer, row):
    """The row's text with its counted answers in brackets."""
    real = rows.attention_mask[row].bool()
    ids, own = rows.input_ids[row][real].tolist(), rows.answers[row][real].tolist()
    pieces = []
    for place, (token, number) in enumerate(zip(ids, own, strict=True)):
        begins = number >= 0 and own[place - 1] != number
        ends = number >= 0 and (place + 1 == len(own) or own[place + 1] != number)
        pieces.append(f"{'[' if begins else ''}{tokenizer.decode([token])}{']' if ends else ''}")
    return "".join(pieces)


def test_shown_answers_do_not_count_and_the_others_do_with_their_blank(tokenizer):
    lines = spelled(ability_rows("sums", tokenizer), tokenizer, 0).strip("\n").split("\n")
    assert all("[" not in line for line in lines[:2]), lines[:2]
    assert len(lines) == 24
    for line in lines[2:]:
        question, _, answer = line.partition(" =")
        assert answer == f"[ {sum(map(int, question.split(' + ')))}]"


@pytest.mark.parametrize("name", ["sums", "German"])
def test_fewer_rows_are_the_first(name, tokenizer):
    every = ability_rows(name, tokenizer)
    few = ability_rows(name, tokenizer, most=3)
    assert len(few.input_ids) == 3 and torch.equal(few.answers, every.answers[:3, : few.answers.shape[1]])


def test_a_list_is_asked_again_word_by_word_and_a_pattern_goes_on_in_equal_steps(tokenizer):
    text = spelled(ability_rows("copying", tokenizer), tokenizer, 1)
    *_, last = text.split("\nWords: ")
    first, again = last.split(".\nAgain:")
    assert again.replace("[ ", "").replace("]", "").split(",") == first.split(", ") and again.count("[") == 8
    for line in spelled(ability_rows("patterns", tokenizer), tokenizer, 0).split("\n")[-10:]:
        numbers = [int(part) for part in re.sub(r"[\[\]]", "", line).split(",")]
        assert len({*np.diff(numbers)}) == 1 and line.endswith(f"[ {numbers[-1]}]")


@pytest.mark.parametrize("name", ASKED)
def test_answers_are_numbered_through_and_padding_is_not_asked(name, tokenizer):
    rows = ability_rows(name, tokenizer)
    numbers = rows.answers[rows.answers >= 0].unique_consecutive()
    assert numbers.tolist() == list(range(len(numbers)))
    assert not (rows.attention_mask == 0)[rows.answers >= 0].any()
    assert rows.input_ids.shape == rows.answers.shape == rows.attention_mask.shape
    assert sum(len(batch["input_ids"]) for batch in rows.batches(5)) == len(rows.input_ids)


@pytest.mark.parametrize("name", ABILITIES)
def test_the_same_every_time_and_nothing_of_what_chooses_judges(name, tokenizer):
    one, again, other = (
        ability_rows(name, tokenizer, split=split) for split in ("evaluation", "evaluation", "calibration")
    )
    assert torch.equal(one.input_ids, again.input_ids) and torch.equal(one.answers, again.answers)
    judged, chosen = ({*chain(*texts_of(rows, tokenizer))} for rows in (one, other))
    asked = [line for line in judged & chosen if "=" in line or "capital of" in line or line.count(",") > 3]
    assert name not in ASKED or not asked


def test_a_third_of_the_questions_chooses(tokenizer):
    assert len(ability_rows("sums", tokenizer, split="calibration").input_ids) == 960 // 24 // 3


def test_a_rows_facts_do_not_give_each_other_away(tokenizer):
    forward = [
        {line.startswith("The capital of") for line in lines}
        for lines in texts_of(ability_rows("facts", tokenizer), tokenizer)
    ]
    assert {True} in forward and {False} in forward and {True, False} not in forward


def test_a_country_that_chooses_is_never_asked_for(tokenizer):
    def countries(split):
        lines = [*chain(*texts_of(ability_rows("facts", tokenizer, split=split), tokenizer))]
        backward = {line.split(" is the capital of ")[1] for line in lines if " is the capital of " in line}
        return backward | {line.removeprefix("The capital of ").split(" is ")[0] for line in lines if line[:3] == "The"}

    assert not countries("evaluation") & countries("calibration")


def test_nats_and_right_answers_are_those_of_logits_read_one_row_at_a_time(tokenizer):
    model = tiny_model(vocab_size=4096, max_position_embeddings=512)
    every = ability_rows("facts", tokenizer)
    rows = AbilityRows("facts", every.input_ids[:3], every.attention_mask[:3], every.answers[:3])
    found = answers_of(model, rows)
    for number in (0, 7, len(found) - 1):
        row, places = (rows.answers == number).nonzero().T
        with torch.no_grad():
            logits = model(rows.input_ids[row[0], : places[-1] + 1][None]).logits[0, places - 1]
        targets = rows.input_ids[row, places]
        one = found.loc[number]
        assert one.nats == pytest.approx(float(cross_entropy(logits, targets, reduction="sum")), rel=1e-4)
        assert (one.row, one.tokens, one.answer) == (int(row[0]), len(places), tuple(targets.tolist()))
        assert one.given == tuple(logits.argmax(-1).tolist()) and one.right == (one.given == one.answer)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_in_text_the_sum_is_that_of_perplexity(dtype, tokenizer):
    model = tiny_model(vocab_size=4096, dtype=dtype)
    rows = ability_rows("German", tokenizer)
    few = AbilityRows("German", rows.input_ids[:4], rows.attention_mask[:4], rows.answers[:4])
    found, right = answers_of(model, few), perplexity(model, few.input_ids)
    assert found.groupby("row").nats.sum().to_numpy() == pytest.approx(right.row_nll, rel=1e-5)
    assert len(found) == right.tokens


def answered(right, given, rows=2):
    """A table of single-token answers."""
    table = pd.DataFrame({"answer": [(r,) for r in right], "given": [(g,) for g in given]})
    return table.assign(row=np.arange(len(right)) * rows // len(right), right=table.answer == table.given, tokens=1)


@given(st.lists(st.integers(0, 4), min_size=2, max_size=30), st.integers(0, 4))
def test_who_always_says_the_same_is_never_above_the_floor(right, always):
    said = answered(right, [always] * len(right))
    assert said.right.mean() <= floor_of(said)


def test_floor_of_exchanged_answers():
    assert floor_of(answered([1, 2, 3, 1, 2, 3], [1, 2, 3, 1, 2, 3])) == 1  # what stands half the list further
    assert floor_of(answered([1, 2, 3, 4], [1, 2, 3, 4])) == 0.25
    assert floor_of(answered([1, 1, 3, 4], [5, 5, 5, 5])) == 0.5  # the commonest, though it is never said


def test_nats_lost_are_paired_and_by_token():
    before = answered(range(6), range(6), rows=3).assign(nats=np.arange(6.0), tokens=[1, 2, 1, 2, 1, 2])
    mean, low, high = nats_lost(before, before.assign(nats=before.nats + 0.5 * before.tokens))
    assert mean == low == high == pytest.approx(0.5)  # alike everywhere, however hard the rows are
    with pytest.raises(ValueError, match="the same questions"):
        nats_lost(before, before[::-1])


@pytest.fixture
def pair(monkeypatch, tokenizer):
    """A model, a cut of it, and questions that the model gets right: those it answers itself."""
    base = tiny_model(vocab_size=4096, seed=3)
    cut = variant(base)
    prune_neurons(cut, neuron_importance(base, "l1"), ratio=0.5)
    ids = torch.randint(4096, (8, 24), generator=torch.Generator().manual_seed(0))
    for place in range(1, 24):
        with torch.no_grad():
            likeliest = base(ids[:, :place]).logits[:, -1].argmax(-1)
        ids[:, place] = torch.where(torch.arange(8) == place % 8, ids[:, place], likeliest)
    answers = torch.full_like(ids, -1)
    answers[:, 1:] = torch.arange(8 * 23).view(8, 23)
    known = AbilityRows("sums", ids, torch.ones_like(ids), answers)
    unknown = AbilityRows("facts", ids.flip(0).roll(5, 1), torch.ones_like(ids), answers)
    monkeypatch.setattr(abilities, "ability_rows", lambda name, _: {"sums": known, "facts": unknown}[name])
    text = TokenBlocks(ids.flip(1), torch.ones(8, dtype=torch.int64), "wiki", "evaluation")
    return cut, base, known, text


def profile(cut, base, tokenizer, names, text):
    return damage_profile(cut, Baseline.of(base, tokenizer, names, perplexity(base, text)), perplexity(cut, text))


def test_profile_has_what_the_models_say(pair, tokenizer):
    cut, base, known, text = pair
    frame = profile(cut, base, tokenizer, ["sums", "facts"], text)
    assert [*frame.index] == ["text", "sums", "facts"] and [*frame.left_out[:2]] == ["", ""]
    assert re.fullmatch(r"the whole model gets \d+% right, and its floor is \d+%", frame.left_out["facts"])
    assert frame.loc["facts"].drop("left_out").isna().all()
    before, after = answers_of(base, known), answers_of(cut, known)
    sums = frame.loc["sums"]
    assert sums.right_before == before.right.mean() > sums.floor == floor_of(before)
    assert sums.right_after == after.right.mean()
    lost, won = (int((a & ~b).sum()) for a, b in ((before.right, after.right), (after.right, before.right)))
    assert (sums.lost, sums.won, sums.p) == (lost, won, mcnemar_p(lost, won)) and lost
    assert (sums.nats_lost, sums.ci_low, sums.ci_high) == nats_lost(before, after)
    text_lost = perplexity(cut, text).nll - perplexity(base, text).nll
    assert frame.nats_lost["text"] == pytest.approx(text_lost)
    assert math.isnan(frame.right_before["text"])


def test_a_model_beside_itself_has_lost_nothing(pair, tokenizer):
    _, base, _, text = pair
    frame = profile(base, base, tokenizer, ["sums"], text)
    assert (frame[["nats_lost", "ci_low", "ci_high"]] == 0).all(axis=None)
    assert (frame.loc["sums", ["lost", "won", "p"]] == [0, 0, 1]).all() and (frame.left_out == "").all()


def test_rows_that_are_too_long_for_a_model_are_left_out(pair, tokenizer):
    cut, base, known, text = pair
    base.config.max_position_embeddings = cut.config.max_position_embeddings = 23
    frame = profile(cut, base, tokenizer, ["sums"], text)
    assert frame.left_out["sums"] == "its rows have 24 tokens, and the model reads 23 at once"
    with pytest.raises(ValueError, match="'rows' have 24 tokens"):
        answers_of(base, known)


def test_what_cannot_be_fetched_is_left_out(pair, tokenizer, monkeypatch):
    cut, base, known, text = pair

    def offline(name, _):
        if name == "code":
            raise AssetError("no network")
        return known

    monkeypatch.setattr(abilities, "ability_rows", offline)
    frame = profile(cut, base, tokenizer, ["code", "sums"], text)
    assert frame.left_out.to_dict() == {
        "text": "", "sums": "", "code": "its text isn't here and can't be fetched",
    }  # fmt: skip


def test_a_score_on_other_text_or_of_another_dtype_is_refused(pair, tokenizer):
    cut, base, _, text = pair
    baseline = Baseline.of(base, tokenizer, ["sums"], perplexity(base, text))
    with pytest.raises(ValueError, match="different rows"):
        damage_profile(cut, baseline, perplexity(cut, text[:4]))
    low = variant(cut).to(torch.bfloat16)
    with pytest.raises(ValueError, match="dtype"):
        damage_profile(low, baseline, perplexity(low, text))


@pytest.mark.parametrize("wrong", [["juggling"], [], "sums"])
def test_unknown_abilities_and_none_are_refused(pair, tokenizer, wrong):
    _, base, _, text = pair
    with pytest.raises((ValueError, TypeError), match="'abilities'"):
        Baseline.of(base, tokenizer, wrong, perplexity(base, text))


@pytest.mark.embedded
@pytest.mark.parametrize(
    ("name", "word"), [("code", "self"), ("French", " les "), ("German", " und "), ("Spanish", " el ")]
)
def test_real_text_is_of_its_kind(name, word, tokenizer, monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "embedded")
    rows = ability_rows(name, tokenizer)
    text = "".join(tokenizer.batch_decode(rows.input_ids))
    assert len(rows.input_ids) == 48 and text.count(word) > 10
    assert len(ability_rows(name, tokenizer, split="calibration").input_ids) >= 16

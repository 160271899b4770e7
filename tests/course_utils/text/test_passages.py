"""Passages: each tokenizer cuts the same bytes into rows that fit, and a loss per byte says the same of both."""

from __future__ import annotations

import datetime
import math

import pytest
import torch
from tiny import tiny_model
from tiny_tokenizers import KINDS, TEXT, byte_level, sentence_pieces

from course_utils.measuring.evaluation import bits_ratio, perplexity
from course_utils.text.files import Document
from course_utils.text.passages import batches_of, passages

SIZES = {"tokens": 400, "length": 24, "date": datetime.date(2026, 1, 2)}
TEXTS = [Document("one", TEXT[:900]), Document("two", TEXT[900:960]), Document("three", "Ünï" * 40)]
CHAT = [("user", "What is it?"), ("assistant", "It is a word."), ("user", "And?"), ("assistant", "A longer one " * 9)]
CHATS = [Document("chat", "", tuple({"role": role, "content": text} for role, text in CHAT))]


def both(splitting="smollm"):
    return byte_level(splitting, size=512), byte_level(splitting, size=320)


def test_each_tokenizer_reads_all_bytes_of_a_document_and_no_others():
    fine, coarse = both()
    found = passages(TEXTS, (fine, coarse), **SIZES | {"tokens": 10_000})
    for number, document in enumerate(TEXTS):
        parts = {passage.text for passage in found if passage.document == number}
        whole = document.text
        while whole:  # the parts in their order
            part = next(part for part in parts if whole.startswith(part))
            whole = whole.removeprefix(part)
    assert [len(passage.text) for passage in found] == sorted((len(p.text) for p in found), reverse=True)
    for tokenizer in (fine, coarse):
        batches = batches_of(found, tokenizer, batch_size=3)
        rows = [
            (ids, n)
            for batch in batches
            for ids, n in zip(batch["input_ids"], batch["attention_mask"].sum(1), strict=True)
        ]
        assert all(n <= SIZES["length"] and ids[0] == tokenizer.eos_token_id for ids, n in rows)
        assert [tokenizer.decode(ids[1:n]) for ids, n in rows] == [passage.text for passage in found]
        assert torch.cat([batch["bytes"] for batch in batches]).tolist() == [len(p.text.encode()) for p in found]
        assert all((batch["labels"][:, 0] == -100).all() for batch in batches)


def test_documents_take_turns_and_the_tokens_are_limited():
    found = passages(TEXTS, both(), **SIZES | {"tokens": 60})
    assert {passage.document for passage in found} == {0, 1, 2}
    assert 60 <= sum(len(passage.row(both()[0])) for passage in found) < 60 + SIZES["length"]


def test_of_a_chat_the_answers_are_predicted_as_far_as_they_fit():
    for length, answers in {40: ["It is a word."], 90: ["It is a word.", "A longer one"]}.items():
        (passage,) = passages(CHATS, both(), **SIZES | {"length": length})
        predicted = [passage.text[begin:end] for begin, end in passage.answers]
        assert len(predicted) == len(answers) and all(map(str.startswith, predicted, answers))
        for tokenizer in both():
            (batch,) = batches_of([passage], tokenizer)
            (ids,), (labels,) = batch["input_ids"], batch["labels"]
            assert len(ids) < length and tokenizer.decode(ids[labels >= 0]) == "".join(predicted)
            assert batch["bytes"].item() == len("".join(predicted).encode())
    with pytest.raises(ValueError, match="None of 1 documents to judge by fits in rows of 8 tokens"):
        passages(CHATS, both(), **SIZES | {"length": 8})


@pytest.mark.parametrize("kind", KINDS)
def test_bits_of_one_model_are_its_losses_over_the_bytes(kind):
    tokenizer = KINDS[kind]()
    found = passages(TEXTS, [tokenizer], **SIZES)
    score = perplexity(tiny_model(vocab_size=len(tokenizer)), batches_of(found, tokenizer))
    size = sum(len(passage.text.encode()) for passage in found)
    assert score.row_bytes.sum() == size and score.bits_per_byte == pytest.approx(
        score.nll * score.tokens / size / math.log(2)
    )


def test_two_kinds_of_tokenizers_are_compared_on_one_text():
    tokenizers = byte_level(), sentence_pieces()
    found = passages(TEXTS[:2], tokenizers, **SIZES)
    scores = [perplexity(tiny_model(vocab_size=len(each)), batches_of(found, each)) for each in tokenizers]
    assert scores[0].tokens != scores[1].tokens
    assert bits_ratio(*scores)[0] == pytest.approx(scores[0].bits_per_byte / scores[1].bits_per_byte)

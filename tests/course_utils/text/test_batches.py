"""Batches: padding on either side counts for nothing, and whatever is no batch is refused."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_batches, word_tokenizer

from course_utils.text.batches import Batches, padded, padded_batches, read_batch, read_batches, rows_of, text_of

MASK = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])
IDS = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 0]])


def read(batch):
    return read_batch(batch, vocab_size=10, device="cpu")


@pytest.mark.parametrize(("side", "real"), [("right", [[1, 1, 0], [1, 1, 1]]), ("left", [[0, 1, 1], [1, 1, 1]])])
def test_shorter_rows_are_padded_on_either_side(side, real):
    batch = padded([[5, 6], [7, 8, 9]], side=side)
    assert batch["attention_mask"].tolist() == real
    assert batch["input_ids"][batch["attention_mask"].bool()].tolist() == [5, 6, 7, 8, 9]


@pytest.mark.parametrize("side", ["right", "left"])
def test_padded_texts_are_cut_and_masked_and_nothing_else(side):
    tokenizer = word_tokenizer()
    tokenizer.pad_token = "w0"
    texts = ["w1 w2 w3", "w2", "w1 w1 w1 w1 w1", "w3 w0"]
    batches = padded_batches(tokenizer, texts, batch_size=2, max_length=4, padding_side=side)
    rows = [
        ids[mask.bool()].tolist()
        for batch in batches
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    assert rows == [tokenizer(text, add_special_tokens=False)["input_ids"][:4] for text in texts]
    edge = 0 if side == "left" else -1
    assert batches[0]["attention_mask"][1, edge] == 0 and batches[0]["attention_mask"][0].all()
    assert tokenizer.padding_side == "right", "the tokenizer was changed"
    with pytest.raises(ValueError, match="Text 2 has no tokens"):
        padded_batches(tokenizer, ["w1", "w2", ""], batch_size=2)
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match="no padding token"):
        padded_batches(tokenizer, ["w1"])


def test_positions_and_predictions_count_real_tokens():
    batch = read({"input_ids": IDS.int(), "attention_mask": MASK.bool()})
    assert batch.position_ids.tolist() == [[0, 0, 0, 1], [0, 1, 2, 2]]
    assert batch.predicted.tolist() == [[False, False, True], [True, True, False]]
    assert {tensor.dtype for tensor in (batch.input_ids, batch.attention_mask, batch.position_ids)} == {torch.int64}
    assert set(batch.inputs()) == {"input_ids", "attention_mask", "position_ids"}


def test_unpadded_batches_leave_positions_to_the_model():
    batch = read({"input_ids": IDS})
    assert batch.real.all() and set(batch.inputs()) == {"input_ids"}


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"tokens": IDS}, "mapping"),
        ({"input_ids": IDS[0]}, "rows, length"),
        ({"input_ids": IDS + 1}, r"must lie in \[0, 10\)"),
        ({"input_ids": IDS - 1}, r"got -1 to 8"),
        ({"input_ids": IDS, "attention_mask": MASK[:1]}, "in the shape of"),
        ({"input_ids": IDS, "attention_mask": MASK * 2}, "0 or 1"),
        ({"input_ids": IDS, "attention_mask": MASK * 0}, "padding"),
        ({"input_ids": IDS, "labels": IDS[:1]}, r"'labels' must have the shape of 'input_ids' \[2, 4\]"),
        ({"input_ids": IDS, "labels": IDS.roll(-1, 1)}, "They aren't shifted"),
        ({"input_ids": IDS, "labels": IDS * 0 - 100}, "Nothing of a batch is learned"),
    ],
)
def test_what_is_no_batch_is_refused(batch, message):
    with pytest.raises(ValueError, match=message):
        read(batch)


def test_batches_come_one_by_one_and_at_least_one():
    asked = []

    def source():
        for number in range(2):
            asked.append(number)
            yield {"input_ids": IDS}

    batches = read_batches(source(), vocab_size=10, device="cpu")
    next(batches)
    assert asked == [0]
    with pytest.raises(ValueError, match="empty"):
        list(read_batches([], vocab_size=10, device="cpu"))
    for wrong in ({"input_ids": IDS}, IDS, None, 3, "words", object()):
        with pytest.raises(ValueError, match="^'batches' must be an iterable of batches, such as a list of mappings"):
            list(read_batches(wrong, vocab_size=10, device="cpu"))


def test_a_model_without_numbers_cannot_read():
    with pytest.raises(ValueError, match="'meta' device"):
        read_batch({"input_ids": torch.ones(1, 2, dtype=torch.long)}, vocab_size=9, device="meta")


def test_labels_say_what_is_learned_and_padding_never_is():
    labels = torch.tensor([[0, 0, 5, -100], [-100, -100, 9, 0]])
    batch = read({"input_ids": IDS, "attention_mask": MASK, "labels": labels})
    assert batch.learned.tolist() == [[False, False, True, False], [False, False, True, False]]
    assert batch.predicted.tolist() == [[False, False, False], [False, True, False]]
    plain, labelled = read({"input_ids": IDS}), read({"input_ids": IDS, "labels": IDS})
    assert plain.learned.all() and labelled.learned.all()


def test_batches_are_read_when_they_are_asked_for():
    class Stored(list):
        asked = 0

        def __getitem__(self, place):
            self.asked += 1
            return super().__getitem__(place)

    stored = Stored([{"input_ids": IDS}, {"input_ids": IDS[:1]}])
    batches = Batches(stored, vocab_size=10, device="cpu")
    assert len(batches) == 2 and batches[1].input_ids.tolist() == IDS[:1].tolist() and stored.asked == 1
    assert [len(batch.input_ids) for batch in batches] == [2, 1] and stored.asked == 4  # the end is asked for as well
    assert len(Batches(iter(stored), vocab_size=10, device="cpu")) == 2, "an iterator is kept"


@pytest.mark.parametrize(
    ("batches", "message"), [([], "empty"), ([{"input_ids": IDS}, {"input_ids": IDS + 1}], "lie in")]
)
def test_batches_that_cannot_be_read_are_refused_at_once(batches, message):
    with pytest.raises(ValueError, match=message):
        Batches(batches, vocab_size=10, device="cpu")


# What stands for text: its rows, whatever pads them, and in which batch they are


def read_all(batches):
    return list(read_batches(batches, vocab_size=97, device="cpu"))


def test_padding_does_not_count_and_everything_else_does():
    texts = {padding: text_of(read_all(tiny_batches(padding=padding))) for padding in ("left", "right")}
    assert texts["left"] == texts["right"]
    row = torch.arange(3, 15)
    others = [[row], [row.flip(0)], [row[:6], row[6:]], [row[:4], row[4:8], row[8:]]]
    found = {text_of(read_all([{"input_ids": torch.stack(rows)}])) for rows in others}
    found.add(text_of(read_all([{"input_ids": half[None]} for half in (row[:6], row[6:])])))
    assert len(found) == len(others) + 1
    assert text_of([]) == "none"


def test_what_is_learned_counts_and_all_of_it_is_as_if_nothing_were_said():
    ids = torch.arange(3, 9)[None]
    plain, whole, three, others = (
        text_of(read_all([{"input_ids": ids} | ({} if labels is None else {"labels": labels})]))
        for labels in (None, ids, ids.where(ids > 5, -100), ids.where(ids % 2 == 0, -100))
    )
    assert plain == whole and len({plain, three, others}) == 3
    assert "3 tokens to predict" in three and "3 tokens to predict" in others


def test_gaps_count_and_not_what_stands_in_them():
    ids, mask = torch.arange(3, 8)[None], torch.tensor([[1, 1, 0, 1, 1]])
    batches = [
        {"input_ids": ids, "attention_mask": mask},
        {"input_ids": ids * mask, "attention_mask": mask},
        {"input_ids": ids[:, mask[0] == 1]},
    ]
    with_gap, same, without = map(rows_of, read_all(batches))
    assert with_gap == same != without

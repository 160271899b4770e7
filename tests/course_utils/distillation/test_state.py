"""What stands for text: its rows, whatever pads them, and in which batch they are."""

from __future__ import annotations

import torch
from tiny import tiny_batches

from course_utils.batches import read_batches
from course_utils.distillation.state import rows_of, text_of


def read(batches):
    return list(read_batches(batches, vocab_size=97, device="cpu"))


def test_padding_does_not_count_and_everything_else_does():
    texts = {padding: text_of(read(tiny_batches(padding=padding))) for padding in ("left", "right")}
    assert texts["left"] == texts["right"]
    row = torch.arange(3, 15)
    others = [[row], [row.flip(0)], [row[:6], row[6:]], [row[:4], row[4:8], row[8:]]]
    found = {text_of(read([{"input_ids": torch.stack(rows)}])) for rows in others}
    found.add(text_of(read([{"input_ids": half[None]} for half in (row[:6], row[6:])])))
    assert len(found) == len(others) + 1
    assert text_of([]) == "none"


def test_what_is_learned_counts_and_all_of_it_is_as_if_nothing_were_said():
    ids = torch.arange(3, 9)[None]
    plain, whole, three, others = (
        text_of(read([{"input_ids": ids} | ({} if labels is None else {"labels": labels})]))
        for labels in (None, ids, ids.where(ids > 5, -100), ids.where(ids % 2 == 0, -100))
    )
    assert plain == whole and len({plain, three, others}) == 3
    assert "3 tokens to predict" in three and "3 tokens to predict" in others


def test_gaps_count():
    ids, mask = torch.arange(3, 8)[None], torch.tensor([[1, 1, 0, 1, 1]])
    (with_gap,), (without,) = (
        read([{"input_ids": ids, "attention_mask": mask}]),
        read([{"input_ids": ids[:, mask[0] == 1]}]),
    )
    assert rows_of(with_gap) != rows_of(without)

"""One's own text: each document has one role, of chats only answers are learned, and memory doesn't grow with it."""

from __future__ import annotations

import itertools
import json
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

import course_utils
from course_utils import own_text
from course_utils.batches import Batches
from course_utils.own_text import read_own_text
from course_utils.text_files import Source

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'nobody' %}{{ raise_exception('who?') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}</>\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
SIZES = {"rows": 8, "length": 16}


@pytest.fixture(scope="module")
def plain():
    return AutoTokenizer.from_pretrained(Path(course_utils.__file__).parent / "data" / "gpt2", local_files_only=True)


@pytest.fixture
def tokenizer(plain, monkeypatch):
    monkeypatch.setattr(plain, "chat_template", TEMPLATE, raising=False)
    return plain


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def texts(path, count, name="t"):
    return write(path, [{"text": f"{name}{number} says so"} for number in range(count)])


def chat(number, answers=1):
    turns = [("system", f"be {number}")]
    for turn in range(answers):
        turns += [("user", f"question {number}.{turn}"), ("assistant", f"answer {number}.{turn}")]
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def told(batches, tokenizer, learned=False):
    """Each row as text: what is read of it, or what is learned."""
    rows = []
    for batch in batches:
        kept = batch["labels"] != -100 if learned else batch["attention_mask"].bool()
        rows += [tokenizer.decode(ids[keep]) for ids, keep in zip(batch["input_ids"], kept, strict=True)]
    return rows


def number_of(row):
    return int(row.partition("be ")[2].partition("<")[0])


@pytest.mark.parametrize("judged", [False, True])
def test_each_document_has_one_role(judged, tokenizer, tmp_path):
    path = write(tmp_path / "a.jsonl", map(chat, range(60)))
    own = read_own_text([path], judge=[write(tmp_path / "j.jsonl", map(chat, range(60, 65)))] if judged else [])
    groups = [
        own.learned(tokenizer, rows=200, length=64, folder=tmp_path),
        own.to_choose(tokenizer, rows=8, length=64),
        own.to_judge(tokenizer, rows=8, length=64),
    ]
    found = [set(map(number_of, told(group, tokenizer))) for group in groups]
    assert all(not a & b for a, b in itertools.combinations(found, 2))
    assert [len(group) for group in found] == ([58, 2, 5] if judged else [53, 2, 5]), "a twentieth, and a tenth"
    assert own.contents[0].documents == 60 and own.shared == 0


def test_only_answers_are_learned_and_the_template_is_the_models_own(tokenizer, tmp_path):
    own = read_own_text([write(tmp_path / "c.jsonl", [chat(number, answers=2) for number in range(9)])])
    rows = own.learned(tokenizer, rows=7, length=128, folder=tmp_path)
    assert len(set(map(number_of, told(rows, tokenizer)))) == 7
    for whole, learned in zip(told(rows, tokenizer), told(rows, tokenizer, learned=True), strict=True):
        number = number_of(whole)
        assert whole == tokenizer.apply_chat_template(chat(number, 2)["messages"], tokenize=False)
        assert learned == f"answer {number}.0</>\nanswer {number}.1</>\n"


def test_an_answer_without_weight_is_only_read(tokenizer, tmp_path):
    chats = [chat(number, answers=2) for number in range(5)]
    for row in chats:
        row["messages"][2]["weight"] = 0
    rows = read_own_text([write(tmp_path / "c.jsonl", chats)]).learned(tokenizer, rows=3, length=128, folder=tmp_path)
    for whole, learned in zip(told(rows, tokenizer), told(rows, tokenizer, learned=True), strict=True):
        number = number_of(whole)
        assert f"answer {number}.0" in whole and learned == f"answer {number}.1</>\n"


def test_an_answer_that_a_template_rewrites_later_is_only_read(tokenizer, tmp_path, monkeypatch):
    thinking = (
        "{% for m in messages %}<{{ m.role }}>{% if loop.last and m.role == 'assistant' %}(thought){% endif %}"
        "{{ m.content }}</>{% endfor %}"
    )
    monkeypatch.setattr(tokenizer, "chat_template", thinking + "{% if add_generation_prompt %}<assistant>{% endif %}")
    own = read_own_text([write(tmp_path / "c.jsonl", [chat(number, answers=2) for number in range(5)])])
    rows = told(own.learned(tokenizer, rows=3, length=128, folder=tmp_path), tokenizer, learned=True)
    assert all(row.startswith("(thought)answer") and row.endswith(".1</>") for row in rows)


def test_chats_that_give_no_row_are_counted_and_named(tokenizer, tmp_path):
    bad = [{"messages": [{"role": role, "content": "x"} for role in ("nobody", "assistant")]}, chat("long " * 40)]
    path = write(tmp_path / "c.jsonl", [chat(0), *bad, *map(chat, range(4))])
    own = read_own_text([path], judge=[texts(tmp_path / "j.jsonl", 2)])
    rows = own.learned(tokenizer, rows=20, length=60, folder=tmp_path)
    reasons = " ".join(rows.left_out.first)
    assert rows.left_out.count == 2 and "line 2: the chat template refuses it (who?)" in reasons
    assert "line 3: no answer is found in its first 60 tokens" in reasons


def test_who_has_no_template_is_told_what_to_do(plain, tmp_path):
    own = read_own_text([write(tmp_path / "c.jsonl", [chat(number) for number in range(4)])])
    for make in (lambda: own.check(plain, length=16), lambda: own.to_judge(plain, **SIZES)):
        with pytest.raises(ValueError, match=r"no chat template, and c.jsonl, line \d is a chat. .* tokenizer.chat_t"):
            make()


def test_sources_take_turns_by_weight(tokenizer, tmp_path):
    sources = [texts(tmp_path / "a.jsonl", 40, "a") + ":1", texts(tmp_path / "b.jsonl", 9, "b") + ":3"]
    rows = read_own_text(sources).learned(tokenizer, rows=40, length=6, folder=tmp_path)
    counts = Counter("ab"["b" in text.replace(tokenizer.eos_token, "")] for text in told(rows, tokenizer))
    assert counts == {"a": 10, "b": 30}


def test_a_little_of_a_large_text_comes_from_all_over(tokenizer, tmp_path):
    own = read_own_text([write(tmp_path / "c.jsonl", [chat(number) for number in range(1000)])])
    rows = told(own.learned(tokenizer, rows=20, length=64, folder=tmp_path), tokenizer)
    numbers = sorted(map(number_of, rows))
    assert len(set(numbers)) == 20 and max(np.diff([0, *numbers, 1000])) <= 100


def test_a_source_of_which_little_will_do_is_not_read_for_ever(tokenizer, tmp_path, monkeypatch):
    chats = [chat("long " * 40) for _ in range(200)] + [chat(1)] * 2
    own = read_own_text([write(tmp_path / "c.jsonl", chats)], judge=[texts(tmp_path / "j.jsonl", 2)])
    read, times = Source.read, []
    monkeypatch.setattr(Source, "read", lambda self: times.append(self) or read(self))
    own.check(tokenizer, length=60)
    assert len(times) == 1
    rows = own.learned(tokenizer, rows=2, length=60, folder=tmp_path)
    assert len(times) < 60 and "answer 1" in told(rows, tokenizer)[0], "not as often as there are documents"
    with pytest.raises(ValueError, match="c.jsonl gives a row of tokens. 192 left out: c.jsonl, line 1: no answer"):
        own.check(tokenizer, length=9)


def test_a_short_text_is_read_again(tokenizer, tmp_path):
    own = read_own_text([texts(tmp_path / "a.jsonl", 4)])
    rows = told(own.learned(tokenizer, rows=12, length=64, folder=tmp_path), tokenizer)
    assert len(rows) == 12 and len(set(rows)) == 1 and rows[0].count("says so") == 2


def test_rows_are_made_once_and_hang_on_all_that_makes_them(tokenizer, tmp_path, monkeypatch):
    path = texts(tmp_path / "a.jsonl", 40)

    def made(seed=0, **sizes):
        rows = read_own_text([path], seed=seed).learned(tokenizer, folder=tmp_path / "rows", **SIZES | sizes)
        return [batch["input_ids"].tolist() for batch in rows]

    first, other = made(), made(seed=1)
    assert first != other and len(made(length=8)[0][0]) == 8
    files = {*(tmp_path / "rows").iterdir()}
    monkeypatch.setattr(own_text, "_rows", None)
    assert made() == first and {*(tmp_path / "rows").iterdir()} == files


RUN = "one two three four five six seven eight nine ten eleven twelve thirteen"


def test_text_that_judges_and_is_learned_is_refused_by_name(tmp_path):
    learned = write(tmp_path / "a.jsonl", [{"text": f"Here {RUN}."}, {"text": "b"}, {"text": "c"}])
    judge = write(tmp_path / "j.jsonl", [{"text": "new"}, {"text": RUN.upper()}])
    with pytest.raises(ValueError, match=r"1 of 2 documents that are to judge share .*: j.jsonl, line 2\. .*take them"):
        read_own_text([learned], judge=[judge])
    question = write(tmp_path / "q.jsonl", [{"messages": [{"role": "system", "content": RUN}, *chat(1)["messages"]]}])
    assert read_own_text([learned], judge=[question]).judging, "a prompt that all share is no answer"


def test_what_was_held_out_and_is_known_is_used_by_nobody(tokenizer, tmp_path):
    same = [{"text": f"{RUN} and {number}"} for number in range(31)]
    with pytest.raises(ValueError, match="3 of 3 documents .* give other documents to judge by"):
        read_own_text([write(tmp_path / "a.jsonl", same)])
    other = [{"text": f"alone {number}"} for number in range(31)]
    own = read_own_text(
        [write(tmp_path / "b.jsonl", [row for pair in zip(same, other, strict=True) for row in pair])], seed=3
    )
    assert own.shared and len(own.judging) + own.shared == 6
    rows = " ".join(told(own.learned(tokenizer, rows=100, length=8, folder=tmp_path), tokenizer))
    assert not any(f"{document.text}<" in rows for document in own.judging)


@pytest.mark.parametrize(
    ("rows", "judged", "why"),
    [
        ([], False, "a.jsonl holds no text. It is empty."),
        ([{"txt": 1}], False, "holds no text. 1 left out: a.jsonl, line 1: it has neither"),
        ([{"text": "a"}], False, r"1 document\(s\), and 3 are needed: .* and one judges"),
        ([{"text": "a"}, {"text": "b"}], False, r"2 document\(s\), and 3 are needed"),
        ([{"text": "a"}], True, r"1 document\(s\), and 2 are needed"),
        ([{"text": "a"}, {"txt": 1}], True, r"2 are needed: .* \(1 left out: a.jsonl, line 2: it has neither"),
    ],
)
def test_too_little_text_is_refused_with_the_reason(rows, judged, why, tmp_path):
    judge = [texts(tmp_path / "j.jsonl", 1)] if judged else []
    with pytest.raises(ValueError, match=why):
        read_own_text([write(tmp_path / "a.jsonl", rows)], judge=judge)


def test_the_fewest_documents_that_will_do(tokenizer, tmp_path):
    own = read_own_text([texts(tmp_path / "a.jsonl", 3)])
    assert len(own.judging) == len(own.choosing) == 1
    own = read_own_text([texts(tmp_path / "b.jsonl", 2)], judge=[texts(tmp_path / "j.jsonl", 1, "j")])
    assert len(own.judging) == len(own.choosing) == 1


def test_memory_does_not_grow_with_the_text(tokenizer, tmp_path):
    def peak(count):
        path = write(tmp_path / f"{count}.jsonl", ({"text": f"{number} " * 200} for number in range(count)))
        tracemalloc.start()
        rows = read_own_text([path]).learned(tokenizer, rows=count, length=64, folder=tmp_path)
        for _ in Batches(rows, vocab_size=len(tokenizer), device="cpu"):
            pass
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(600) < peak(120) + 300_000  # the text grew by 400 kB at least, its tokens by 8 bytes each


@settings(max_examples=20)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 300), st.booleans()), min_size=1, max_size=6), min_size=1, max_size=4)
)
def test_what_is_stored_of_a_row_comes_back(rows):
    stored = np.full((len(rows), 6), own_text._PADDING, dtype=np.int32)
    for place, row in enumerate(rows):
        stored[place, : len(row)] = [number if learned else ~number for number, learned in row]
    batch = own_text._batch(stored)
    assert batch["input_ids"].shape[1] == max(map(len, rows))
    for place, row in enumerate(rows):
        keep = batch["attention_mask"][place].bool()
        assert batch["input_ids"][place][keep].tolist() == [number for number, _ in row]
        assert batch["labels"][place][keep].tolist() == [number if learned else -100 for number, learned in row]
        assert (batch["labels"][place][~keep] == -100).all() and keep[: len(row)].all() and keep.sum() == len(row)
    assert all(column.dtype == torch.int64 for column in batch.values())

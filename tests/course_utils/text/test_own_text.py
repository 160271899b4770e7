"""One's own text: each document has one role, of chats only answers are learned, and memory doesn't grow with it."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import tracemalloc
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

import course_utils
from course_utils.text import own_text
from course_utils.text.batches import Batches
from course_utils.text.own_text import read_own_text
from course_utils.text.text_files import Source

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


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    count=st.integers(12, 90), copied=st.integers(0, 40), seed=st.integers(0, 5), length=st.sampled_from([40, 64]),
    given_judge=st.booleans(), alike=st.booleans(),
)  # fmt: skip
def test_no_document_and_no_row_has_two_roles(
    count, copied, seed, length, given_judge, alike, tokenizer, tmp_path_factory
):
    """Also where documents stand twice, and where long chats begin alike, so that rows cut from them are the same."""
    folder = tmp_path_factory.mktemp("roles")
    rows = [chat(number) for number in range(count)]
    if alike:  # twenty beginnings, each longer than a row
        answers = ["qwertyuiopasdfghjklz"[n % 20] * 99 + str(n) for n in range(count)]
        asked = {"role": "user", "content": "why?"}
        rows = [{"messages": [asked, {"role": "assistant", "content": answer}]} for answer in answers]
    for number in range(copied):
        messages = [
            message | {"content": f" {message['content'].upper()}"} for message in rows[number % count]["messages"]
        ]
        rows.append({"messages": messages})
    judge = [texts(folder / "j.jsonl", 5, "j")] if given_judge else []
    own = read_own_text([write(folder / "a.jsonl", rows)], judge=judge, seed=seed)
    assert own.contents[0].copies == copied and own.contents[0].documents == count
    of_role = {}
    for role, make in {
        "score": own.to_score,
        "choose": own.to_choose,
        "judge": own.to_judge,
        "learn": own.learned,
    }.items():
        more = {"folder": folder} if role == "learn" else {}
        with contextlib.suppress(ValueError):  # where all rows are those of another role, none is left
            of_role[role] = set(told(make(tokenizer, rows=99, length=length, **more), tokenizer))
    assert len(of_role) == 4 or alike
    for (a, rows_of_a), (b, rows_of_b) in itertools.combinations(of_role.items(), 2):
        assert not rows_of_a & rows_of_b, (a, b)
    held_out = [*own.scoring, *own.choosing, *own.judging]
    assert len({document.text.casefold() for document in held_out}) == len(held_out)


def test_how_many_documents_have_each_role(tokenizer, tmp_path):
    path = write(tmp_path / "a.jsonl", map(chat, range(60)))
    own = read_own_text([path], judge=[write(tmp_path / "j.jsonl", map(chat, range(60, 65)))])
    assert [*map(len, (own.scoring, own.choosing, own.judging))] == [2, 2, 5]
    own = read_own_text([path])
    assert [*map(len, (own.scoring, own.choosing, own.judging))] == [2, 2, 5], "a twentieth, a twentieth, a tenth"
    learned = set(map(number_of, told(own.learned(tokenizer, rows=200, length=64, folder=tmp_path), tokenizer)))
    assert len(learned) == 51
    weighted = read_own_text([path, texts(tmp_path / "b.jsonl", 1000) + ":1"])
    assert sum(bool(document.messages) for document in weighted.scoring) == 2, "each source scores"


def test_rows_are_spread_over_documents_and_say_whose_they_are(tokenizer, tmp_path):
    long, short = [{"text": f"L{number} " * 90} for number in range(3)], [{"text": f"short {n}"} for n in range(5)]
    own = read_own_text([texts(tmp_path / "a.jsonl", 9)], judge=[write(tmp_path / "j.jsonl", long + short)])
    batches = own.to_judge(tokenizer, rows=8, length=16)
    numbers = torch.cat([batch["document"] for batch in batches]).tolist()
    rows = told(batches, tokenizer)
    assert len(set(numbers)) == 8 and len(rows) > 8, "each document gives its first row, then long ones their second"
    for number in set(numbers):
        mine = [row for row, document in zip(rows, numbers, strict=True) if document == number]
        starts = {row.removeprefix(" ")[:2] for row in mine if row.strip().startswith("L")}
        assert len(mine) == 1 or len(starts) == 1
    few = torch.cat([batch["document"] for batch in own.to_judge(tokenizer, rows=2, length=16)])
    assert 2 <= len(few.unique()) == len(few), "no document gives a second row before each has given one"
    widths = [batch["input_ids"].shape[1] for batch in batches]
    assert widths == sorted(widths, reverse=True)


def test_the_date_of_a_template_is_that_of_the_order(tokenizer, tmp_path, monkeypatch):
    dated = "{% set today = strftime_now('%a, %d %b %Y') %}{{- today }}" + TEMPLATE
    path = write(tmp_path / "c.jsonl", map(chat, range(20)))

    def rows(date, template=dated):
        monkeypatch.setattr(tokenizer, "chat_template", template)
        own = read_own_text([path], date=date)
        learned = own.learned(tokenizer, rows=4, length=64, folder=tmp_path / "rows")
        return (
            told(learned, tokenizer),
            told(own.to_judge(tokenizer, rows=4, length=64), tokenizer),
            own.forms(tokenizer),
        )

    first, later = datetime.date(2026, 12, 1), datetime.date(2026, 12, 2)
    assert rows(first) == rows(first) and all("Tue, 01 Dec 2026<" in row for part in rows(first)[:2] for row in part)
    assert all("02 Dec 2026<" in row for part in rows(later)[:2] for row in part)
    assert rows(first)[2] != rows(later)[2] and len([*(tmp_path / "rows").glob("*.int32")]) == 2
    assert rows(first, TEMPLATE) == rows(later, TEMPLATE), "a template without a date has one form"


@pytest.mark.parametrize(
    ("asks", "writes", "learned"),
    [
        ("<assistant><think>\n", "<assistant>answer</>", "answer</>"),
        ("<assistant><think>\n", "<assistant><think>\n\n</think>\n\nanswer</>", "\n</think>\n\nanswer</>"),
        ("<assistant>", "<assistant>answer</>", "answer</>"),
        ("", "<assistant>answer</>", "<assistant>answer</>"),
    ],
)
def test_what_the_model_itself_has_to_write_is_learned(asks, writes, learned, tokenizer, tmp_path, monkeypatch):
    """Also by a template that opens a thought where it asks for an answer, and writes none into the chat."""
    template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}WRITES{% else %}<{{ m.role }}>{{ m.content }}</>"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}ASKS{% endif %}"
    )
    monkeypatch.setattr(tokenizer, "chat_template", template.replace("WRITES", writes).replace("ASKS", asks))
    own = read_own_text([write(tmp_path / "c.jsonl", map(chat, range(6)))])
    rows = own.learned(tokenizer, rows=3, length=64, folder=tmp_path)
    assert set(told(rows, tokenizer, learned=True)) == {learned}


def test_tools_and_their_calls_are_for_the_template(tokenizer, tmp_path, monkeypatch):
    template = (
        "{{ tools | length if tools else 'no' }} tools.{% for m in messages %}<{{ m.role }}>{{ m.content }}"
        "{% for call in m.tool_calls or [] %}[{{ call.function.name }}]{% endfor %}</>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    monkeypatch.setattr(tokenizer, "chat_template", template)
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "look", "arguments": {}}}]}
    rows = [{"messages": [{"role": "user", "content": f"{n}?"}, call], "tools": [{"name": "look"}]} for n in range(6)]
    own = read_own_text([write(tmp_path / "c.jsonl", rows)])
    learned = own.learned(tokenizer, rows=3, length=64, folder=tmp_path)
    assert all(row.startswith("1 tools.<user>") for row in told(learned, tokenizer))
    assert set(told(learned, tokenizer, learned=True)) == {"[look]</>"}


def test_only_answers_are_learned_and_the_template_is_the_models_own(tokenizer, tmp_path):
    own = read_own_text([write(tmp_path / "c.jsonl", [chat(number, answers=2) for number in range(9)])])
    rows = own.learned(tokenizer, rows=5, length=128, folder=tmp_path)
    assert len(set(map(number_of, told(rows, tokenizer)))) == 5
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
    assert "line 3: its first answer begins after 1" in reasons and "tokens, and rows have 60" in reasons


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
    chats = [chat("long " * 40 + str(number)) for number in range(200)] + [chat(1), chat(2)]
    own = read_own_text([write(tmp_path / "c.jsonl", chats)], judge=[texts(tmp_path / "j.jsonl", 2)])
    read, times = Source.read, []
    monkeypatch.setattr(Source, "read", lambda self: times.append(self) or read(self))
    own.check(tokenizer, length=60)
    assert len(times) == 1
    rows = own.learned(tokenizer, rows=2, length=60, folder=tmp_path)
    assert len(times) < 60 and "answer" in told(rows, tokenizer)[0], "not as often as there are documents"
    with pytest.raises(ValueError, match="c.jsonl gives a row of tokens. 1.. left out: c.jsonl, line 1: its first"):
        own.check(tokenizer, length=9)


def test_a_short_text_is_read_again(tokenizer, tmp_path):
    own = read_own_text([texts(tmp_path / "a.jsonl", 5)])
    rows = told(own.learned(tokenizer, rows=12, length=64, folder=tmp_path), tokenizer)
    assert len(rows) == 12 and len(set(rows)) == 1 and rows[0].count("says so") == 2


def test_rows_are_made_once_and_depend_on_all_that_makes_them(tokenizer, tmp_path, monkeypatch):
    path = texts(tmp_path / "a.jsonl", 40)

    def made(seed=0, **sizes):
        rows = read_own_text([path], seed=seed).learned(tokenizer, folder=tmp_path / "rows", **SIZES | sizes)
        return [batch["input_ids"].tolist() for batch in rows]

    first, other = made(), made(seed=1)
    assert first != other and len(made(length=8)[0][0]) == 8
    files = {*(tmp_path / "rows").iterdir()}
    monkeypatch.setattr(own_text, "_Cutter", lambda *_: SimpleNamespace(rows=None))
    assert made() == first and {*(tmp_path / "rows").iterdir()} == files


RUN = "one two three four five six seven eight nine ten eleven twelve thirteen"


def test_text_that_judges_and_is_learned_is_refused_by_name(tmp_path):
    """Whatever their length, and also where the text chooses or scores instead of being learned."""
    chats = [chat(number) for number in range(3)]
    learned = write(tmp_path / "a.jsonl", [{"text": f"Here {RUN}."}, {"text": "b"}, {"text": "你好吗"}, *chats])
    for known, partner in {RUN.upper(): 1, "B ": 2, "你好\n吗": 3}.items():
        judge = write(tmp_path / "j.jsonl", [{"text": "new"}, {"text": known}])
        for seed in range(6):
            with pytest.raises(
                ValueError, match=rf"1 of 2 documents of --judge .*\(j.jsonl, line 2 = a.jsonl, line {partner}"
            ):
                read_own_text([learned], judge=[judge], seed=seed)
    with pytest.raises(
        ValueError, match=r"line 1 = a.jsonl, line 5\).* Remove them from one of the two, or leave --judge out"
    ):
        read_own_text([learned], judge=[write(tmp_path / "j.jsonl", [chat(1)])])
    question = write(tmp_path / "q.jsonl", [{"messages": [{"role": "system", "content": RUN}, *chat(1)["messages"]]}])
    assert read_own_text([learned], judge=[question]).judging, "a prompt that all share is no answer"


def test_what_was_held_out_and_is_known_is_used_by_nobody(tokenizer, tmp_path):
    same = [{"text": f"{RUN} and {number}"} for number in range(31)]
    with pytest.raises(ValueError, match="All 5 documents that were held out .* give other text to judge by"):
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
        ([{"text": "a"}], False, r"1 document\(s\), and 4 are needed: .* one judges"),
        ([{"text": "a"}, {"text": "b"}], False, r"2 document\(s\), and 4 are needed"),
        ([{"text": "a"}], True, r"1 document\(s\), and 3 are needed"),
        ([{"text": text} for text in ("a", "A", "a ", "b")], True, r"2 document\(s\), and 3 .* \(2 more are copies"),
        ([{"text": "a"}, {"txt": 1}], True, r"3 are needed: .* \(1 left out: a.jsonl, line 2: it has neither"),
    ],
)
def test_too_little_text_is_refused_with_the_reason(rows, judged, why, tmp_path):
    judge = [texts(tmp_path / "j.jsonl", 1)] if judged else []
    with pytest.raises(ValueError, match=why):
        read_own_text([write(tmp_path / "a.jsonl", rows)], judge=judge)


def test_the_fewest_documents_that_will_do(tokenizer, tmp_path):
    for own in (
        read_own_text([texts(tmp_path / "a.jsonl", 4)]),
        read_own_text([texts(tmp_path / "b.jsonl", 3)], judge=[texts(tmp_path / "j.jsonl", 1, "j")]),
    ):
        assert len(own.judging) == len(own.choosing) == len(own.scoring) == 1
        assert len(own.learned(tokenizer, rows=1, length=8, folder=tmp_path)) == 1


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

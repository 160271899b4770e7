"""One's own text: each document has one role, sources take turns, and memory doesn't grow with the text."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import tracemalloc
from collections import Counter
from functools import partial
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
from course_utils.text.files import Source
from course_utils.text.own_text import read_own_text

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SIZES = {"rows": 8, "length": 16}


@pytest.fixture(scope="module")
def tokenizer():
    folder = Path(course_utils.__file__).parent / "data" / "gpt2"
    return AutoTokenizer.from_pretrained(folder, local_files_only=True, chat_template=TEMPLATE)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def texts(path, count, name="t"):
    return write(path, [{"text": f"{name}{number} says so"} for number in range(count)])


def chat(number):
    turns = [("system", f"be {number}"), ("user", f"question {number}"), ("assistant", f"answer {number}")]
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def told(batches, tokenizer):
    """Each row as text."""
    masked = ((ids, mask) for batch in batches for ids, mask in zip(*[*batch.values()][:2], strict=True))
    return [tokenizer.decode(ids[mask.bool()]) for ids, mask in masked]


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
        original = rows[number % count]["messages"]
        rows.append({"messages": [message | {"content": f" {message['content'].upper()}"} for message in original]})
    judge = [texts(folder / "j.jsonl", 5, "j")] if given_judge else []
    own = read_own_text([write(folder / "a.jsonl", rows)], judge=judge, seed=seed)
    assert own.parts[0].contents.copies == copied and own.parts[0].contents.documents == count
    makes = [own.to_score, own.to_choose, own.to_judge, partial(own.learned, folder=folder)]
    of_role = []
    for make in makes:
        with contextlib.suppress(ValueError):  # where all rows are those of another role, none is left
            of_role.append(set(told(make(tokenizer, rows=99, length=length), tokenizer)))
    assert len(of_role) == 4 or alike
    assert all(not a & b for a, b in itertools.combinations(of_role, 2))
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
    widths = [batch["input_ids"].shape[1] for batch in own.to_judge(tokenizer, rows=8, length=16, batch_size=1)]
    assert widths == sorted(widths, reverse=True)


def test_rows_of_another_date_are_other_rows(tokenizer, tmp_path, monkeypatch):
    path = write(tmp_path / "c.jsonl", map(chat, range(20)))

    def rows(day, template="{{ strftime_now('%d %b') }}" + TEMPLATE):
        monkeypatch.setattr(tokenizer, "chat_template", template)
        own = read_own_text([path], date=datetime.date(2026, 12, day))
        learned = own.learned(tokenizer, rows=4, length=64, folder=tmp_path / "rows")
        read = told(learned, tokenizer) + told(own.to_judge(tokenizer, rows=4, length=64), tokenizer)
        return read, own.forms(tokenizer)

    for day in (1, 2):
        assert rows(day) == rows(day) and all(f"0{day} Dec<" in row for row in rows(day)[0])
    assert rows(1)[1] != rows(2)[1] and len([*(tmp_path / "rows").glob("*.int32")]) == 2
    assert rows(1, TEMPLATE) == rows(2, TEMPLATE), "a template without a date has one form"


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


def test_a_short_text_is_read_again_and_what_gives_no_row_counts_once(tokenizer, tmp_path):
    own = read_own_text([write(tmp_path / "c.jsonl", [chat("long " * 40), *map(chat, range(5))])])
    rows = own.learned(tokenizer, rows=12, length=60, folder=tmp_path)
    assert len(told(rows, tokenizer)) == 12 and len(set(told(rows, tokenizer))) == 2 and rows.left_out.count == 1
    assert rows.left_out.first[0].startswith("c.jsonl, line 1: its first answer begins after ")


def test_tokens_are_counted_once_in_what_is_learned(tokenizer, tmp_path, monkeypatch):
    """Not in what judges, chooses or scores; for each part; on another day alike."""
    paths = [texts(tmp_path / "a.jsonl", 30), write(tmp_path / "c.jsonl", map(chat, range(100, 130)))]
    monkeypatch.setattr(tokenizer, "chat_template", "{{ strftime_now('%d %b') }}" + TEMPLATE)

    def counted(day, tokens=10_000):
        own = read_own_text(paths, date=datetime.date(2026, 12, day))
        return own, own.token_counts(tokenizer, tokens=tokens, length=64)

    own, counts = counted(3)
    assert torch.equal(counts, counted(4)[1]) and counts.shape == (2, len(tokenizer))
    ends = counts[0][tokenizer.eos_token_id]
    assert ends == 30 - sum(doc.place.startswith("a") for doc in own.scoring + own.choosing + own.judging)
    answer = tokenizer("answer")["input_ids"][-1]
    assert counts[1][answer] >= 20
    assert counted(3, tokens=256)[1].sum() < counts.sum()
    assert {path.name for path in tmp_path.iterdir()} == {"a.jsonl", "c.jsonl"}, "nothing is written"


def test_rows_are_made_once_and_depend_on_all_that_makes_them(tokenizer, tmp_path, monkeypatch):
    path = texts(tmp_path / "a.jsonl", 40)

    def made(seed=0, **sizes):
        rows = read_own_text([path], seed=seed).learned(tokenizer, folder=tmp_path / "rows", **SIZES | sizes)
        return [batch["input_ids"].tolist() for batch in rows]

    first, other = made(), made(seed=1)
    assert first != other and len(made(length=8)[0][0]) == 8
    files = {*(tmp_path / "rows").iterdir()}
    monkeypatch.setattr(own_text, "Cutter", lambda *_: SimpleNamespace(rows=None))
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
    judge = [texts(tmp_path / "j.jsonl", 1, "j")]
    for own in (
        read_own_text([texts(tmp_path / "a.jsonl", 4)]),
        read_own_text([texts(tmp_path / "b.jsonl", 3)], judge=judge),
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

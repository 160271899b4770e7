"""Documents come out of files and folders as they stand there; what can't be used is named, with the reason."""

from __future__ import annotations

import json
import sys

import pytest

from course_utils.support.extras import ExtraMissing
from course_utils.text.files import Document, Skipped, Source

CHAT = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]


def lines(path, *rows):
    path.write_bytes(b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows))
    return path


def read(path):
    return [*Source.of(str(path)).read()]


def test_a_folder_is_read_in_order_however_deep(tmp_path):
    (tmp_path / "b" / "deep").mkdir(parents=True)
    (tmp_path / ".git").mkdir()
    for place in ("z.md", "b/deep/a.TXT", "b/c.txt", ".git/hidden.txt", ".hidden.txt", "picture.png"):
        (tmp_path / place).write_text(f"in {place}", encoding="utf-8")
    assert [(one.place, one.text) for one in read(tmp_path)] == [
        (place, f"in {place}") for place in ("z.md", "b/c.txt", "b/deep/a.TXT")
    ]


def test_lines_are_texts_or_chats(tmp_path):
    path = lines(tmp_path / "mixed.jsonl", {"text": "A text.", "id": 3}, b"", {"messages": CHAT, "text": None})
    text, chat = read(path)
    assert text == Document("mixed.jsonl, line 1", "A text.") and text.learned == "A text."
    assert chat.place == "mixed.jsonl, line 3" and [*chat.messages] == CHAT
    assert chat.text == "Why?\nBecause." and chat.learned == "Because."


def test_an_answer_without_weight_is_read_and_not_learned(tmp_path):
    first = [CHAT[0], {"role": "assistant", "content": "So.", "weight": 0}]
    (chat,) = read(lines(tmp_path / "c.jsonl", {"messages": [*first, CHAT[0], CHAT[1] | {"weight": None}]}))
    assert chat.text == "Why?\nSo.\nWhy?\nBecause." and chat.learned == "Because."
    greeting = {"role": "assistant", "content": "Hello."}  # nobody asked for it
    (chat,) = read(lines(tmp_path / "greeted.jsonl", {"messages": [greeting, *CHAT]}))
    assert chat.text == "Hello.\nWhy?\nBecause." and chat.learned == "Because."


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (b"{", "isn't JSON in UTF-8"),
        (b"[" * 100_000, "isn't JSON in UTF-8"),
        (b'{"text": "\xff"}', "isn't JSON in UTF-8"),
        (["text"], "neither 'text' nor 'messages'"),
        ({"txt": "a"}, "neither 'text' nor 'messages'"),
        ({"text": "a", "messages": CHAT}, "both 'text' and 'messages'"),
        ({"text": " \n"}, "its text is empty"),
        ({"text": 3}, "'text' isn't text"),
        ({"text": "\ud800"}, "half a character"),
        ({"messages": []}, "'messages' must be a list"),
        ({"messages": "hello"}, "'messages' must be a list"),
        ({"messages": ["hello"]}, "'messages' must be a list"),
        ({"messages": [{"role": "assistant", "content": None}]}, "'messages' must be a list"),
        ({"messages": CHAT[:1]}, "no message after the first has the role 'assistant'"),
        ({"messages": CHAT[::-1]}, "no message after the first has the role 'assistant'"),
        (
            {"messages": [CHAT[0], CHAT[1] | {"weight": 0}]},
            "no message after the first has the role 'assistant' and a weight above 0",
        ),
        ({"messages": [CHAT[0], CHAT[1] | {"weight": 0.5}]}, "the 'weight' of a message must be 0 or 1"),
        ({"messages": [CHAT[0], CHAT[1] | {"weight": "0"}]}, "the 'weight' of a message must be 0 or 1"),
        ({"messages": [CHAT[0], CHAT[1] | {"content": " "}]}, "its answers are empty"),
    ],
)
def test_a_bad_line_is_named_and_the_others_are_read(row, why, tmp_path):
    bad, good = read(lines(tmp_path / "some.jsonl", row, {"text": "good"}))
    assert isinstance(bad, Skipped) and why in bad.why and str(bad).startswith("some.jsonl, line 1: ")
    assert good.text == "good"


def test_a_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "b.txt").touch()
    (tmp_path / "c.txt").write_bytes("\ufeffwith a mark".encode())
    (tmp_path / "d.txt").symlink_to(tmp_path / "nowhere")
    a, b, c, d = read(tmp_path)
    assert "UTF-8" in a.why and "empty" in b.why and c.text == "with a mark" and "can't be read" in d.why


def test_parquet_holds_the_same_as_lines(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [{"messages": CHAT}, {"messages": CHAT[:1]}]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "chats.parquet")
    good, bad = read(tmp_path / "chats.parquet")
    (same, _) = read(lines(tmp_path / "chats.jsonl", *rows))
    assert (good.text, good.messages) == (same.text, same.messages) and good.place == "chats.parquet, row 1"
    assert "role 'assistant'" in bad.why
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and nothing else")
    (broken,) = read(tmp_path / "broken.parquet")
    assert "can't be read as Parquet" in broken.why


def test_without_datasets_the_error_names_its_extra(tmp_path, monkeypatch):
    (tmp_path / "some.parquet").touch()
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ExtraMissing, match=r"pruning-llms\[parquet\]"):
        read(tmp_path)


def test_a_weight_stands_behind_a_colon(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "b:2.txt", "C"):
        (tmp_path / name).write_text("x", encoding="utf-8") if "." in name else (tmp_path / name).mkdir()
    (tmp_path / "C" / "x.txt").write_text("x", encoding="utf-8")
    (tmp_path / "d.txt:3").mkdir()
    (tmp_path / "d.txt:3" / "x.md").write_text("x", encoding="utf-8")
    found = {typed: Source.of(typed) for typed in ("a.txt", "a.txt:3", "a.txt:0.5", "b:2.txt", "b:2.txt:4", "C:2")}
    weights = {typed: (str(source.path), source.weight) for typed, source in found.items()}
    assert weights == {
        "a.txt": ("a.txt", 1), "a.txt:3": ("a.txt", 3), "a.txt:0.5": ("a.txt", 0.5), "b:2.txt": ("b:2.txt", 1),
        "b:2.txt:4": ("b:2.txt", 4), "C:2": ("C", 2),
    }  # fmt: skip
    assert Source.of("d.txt:3").weight == 1, "what is there by its whole name is meant"


@pytest.mark.parametrize(
    ("typed", "why"),
    [
        ("nowhere", "no file or folder nowhere"), ("nowhere:3", "no file or folder nowhere;"),
        (r"C:\texts", r"no file or folder C:\texts"), ("a.pdf", "none of .txt, .md, .jsonl, .parquet"),
        ("empty", "holds no file of .txt"), ("a.txt:0", "a number above 0; got '0'"), ("", "no file or folder"),
        ("a.txt:-1", "a number above 0; got '-1'"), ("a.txt:nan", "a number above 0"), ("a.txt:inf", "above 0"),
    ],
)  # fmt: skip
def test_what_is_no_source_is_refused(typed, why, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").touch()
    (tmp_path / "a.pdf").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=".*") as refused:
        Source.of(typed)
    assert why in str(refused.value)

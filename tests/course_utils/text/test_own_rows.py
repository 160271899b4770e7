"""Of a chat only answers are learned, in the form of the model's own template; what is stored of a row comes back."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

import course_utils
from course_utils.text.files import Document
from course_utils.text.own_rows import PADDING, Cutter, LeftOut, batch_of

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'nobody' %}{{ raise_exception('who?') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}</>\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
ASKS = "{% if add_generation_prompt %}<assistant>{% endif %}"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(Path(course_utils.__file__).parent / "data" / "gpt2", local_files_only=True)


def chat(*said, roles=("system", "user", "assistant", "user", "assistant"), tools=()):
    messages = [{"role": role, "content": content} for role, content in zip(roles, said, strict=False)]
    return Document("here", "", tuple(messages), tools)


TWO = chat("be 7", "what?", "answer 1", "and?", "answer 2")


def rows_of(tokenizer, *documents, template=TEMPLATE, length=64, date=datetime.date(2026, 12, 1)):
    """Each row as text, what is read of it and what is learned; and what was left out."""
    tokenizer.chat_template, left_out = template, LeftOut()
    found = []
    for row in Cutter(tokenizer, length, date).rows(documents, left_out):
        read = row[row != PADDING]
        found.append((tokenizer.decode(np.where(read < 0, ~read, read)), tokenizer.decode(read[read >= 0])))
    return found, left_out


def learned(tokenizer, *documents, **options):
    return [of_row for _, of_row in rows_of(tokenizer, *documents, **options)[0]]


def test_only_answers_are_learned_and_the_template_is_the_models_own(tokenizer):
    ((read, of_it),), left_out = rows_of(tokenizer, TWO)
    assert read == tokenizer.apply_chat_template([*TWO.messages], tokenize=False) and not left_out.count
    assert of_it == "answer 1</>\nanswer 2</>\n"
    read_only = [*TWO.messages[:2], TWO.messages[2] | {"weight": 0}, *TWO.messages[3:]]
    assert learned(tokenizer, Document("", "", tuple(read_only))) == ["answer 2</>\n"]


@pytest.mark.parametrize(
    ("asks", "writes", "of_it"),
    [
        ("<assistant><think>\n", "<assistant>answer</>", "answer</>"),
        ("<assistant><think>\n", "<assistant><think>\n\n</think>\n\nanswer</>", "\n</think>\n\nanswer</>"),
        ("<assistant>", "<assistant>answer</>", "answer</>"),
        ("", "<assistant>answer</>", "<assistant>answer</>"),
    ],
)
def test_what_the_model_itself_has_to_write_is_learned(asks, writes, of_it, tokenizer):
    """Also by a template that opens a thought where it asks for an answer, and writes none into the chat."""
    template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}WRITES{% else %}<{{ m.role }}>{{ m.content }}</>"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}ASKS{% endif %}"
    )
    template = template.replace("WRITES", writes).replace("ASKS", asks)
    assert learned(tokenizer, chat("be", "what?", "answer"), template=template) == [of_it]


def test_an_answer_that_a_template_rewrites_later_is_only_read(tokenizer):
    thinking = (
        "{% for m in messages %}<{{ m.role }}>{% if loop.last and m.role == 'assistant' %}(thought){% endif %}"
        "{{ m.content }}</>{% endfor %}" + ASKS
    )
    assert learned(tokenizer, TWO, template=thinking) == ["(thought)answer 2</>"]


def test_tools_and_their_calls_are_for_the_template(tokenizer):
    template = (
        "{{ tools | length if tools else 'no' }} tools.{% for m in messages %}<{{ m.role }}>{{ m.content }}"
        "{% for call in m.tool_calls or [] %}[{{ call.function.name }}]{% endfor %}</>{% endfor %}" + ASKS
    )
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "look", "arguments": {}}}]}
    document = Document("", "", ({"role": "user", "content": "?"}, call), ({"name": "look"},))
    (((read, of_it),), _) = rows_of(tokenizer, document, template=template)
    assert read.startswith("1 tools.<user>") and of_it == "[look]</>"


def test_the_date_of_a_template_is_the_one_given(tokenizer):
    dated = "{% set today = strftime_now('%a, %d %b %Y') %}{{- today }}" + TEMPLATE
    (((read, _),), _) = rows_of(tokenizer, TWO, template=dated, date=datetime.date(2026, 12, 1))
    assert read.startswith("Tue, 01 Dec 2026<")


def test_chats_that_give_no_row_are_counted_and_named(tokenizer):
    bad = [chat("x", "y", roles=("nobody", "assistant")), chat("long " * 70, "what?", "no room")]
    found, left_out = rows_of(tokenizer, *bad, TWO)
    assert len(found) == 1 and left_out.count == 2
    assert left_out.first[0] == "here: the chat template refuses it (who?)"
    assert "its first answer begins after " in left_out.first[1] and "tokens, and rows have 64" in left_out.first[1]
    just = next(length for length in range(2, 64) if learned(tokenizer, TWO, length=length))
    assert tokenizer(learned(tokenizer, TWO, length=just)[0]).input_ids == tokenizer("answer").input_ids[:1]


def test_texts_are_joined_and_cut_without_a_loss(tokenizer):
    texts = [f"Text {number} " * (3 * number) for number in range(1, 6)]
    found, _ = rows_of(tokenizer, *(Document("", text) for text in texts), length=16)
    assert "".join(read for read, _ in found) == "".join(text + tokenizer.eos_token for text in texts)
    assert all(read == of_it for read, of_it in found) and len(found) > 5


def test_a_model_without_a_template_is_told_what_to_do(tokenizer):
    with pytest.raises(ValueError, match=r"no chat template, and here is a chat. .* tokenizer.chat_template"):
        rows_of(tokenizer, TWO, template=None)


def test_what_is_stored_of_a_row_comes_back():
    rows = np.array([[5, ~6, 7, PADDING], [~0, PADDING, PADDING, PADDING]], dtype=np.int32)
    batch = batch_of(rows)
    assert {name: column.tolist() for name, column in batch.items()} == {
        "input_ids": [[5, 6, 7], [0, 0, 0]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
        "labels": [[5, -100, 7], [-100, -100, -100]],
    }
    assert all(column.dtype == torch.int64 for column in batch.values())

"""The command `compress` in miniature: what it is asked for, text of one's own, and what it left; for its tests."""

from __future__ import annotations

import functools
import json
from pathlib import Path

from transformers import AutoModelForCausalLM

from course_utils.measuring.abilities import ability_rows
from course_utils.models.loading import load_model
from course_utils.pruning.checkpoints import save_pruned

CHAT_TEMPLATE = "{% for m in messages %}{{ m.content }}\n{% endfor %}"  # what is said, a line each
SMALL = ["--steps", "3", "--light", "2", "--finalists", "2", "--rows", "2", "--length", "16", "--multiple-of", "8"]
VERSIONS = ("whole", "whole, Q8_0", "whole, Q4_0", "random cut", "cut", "recovered")


def saved(folder):
    """The model that the command left, and what it is made of."""
    return AutoModelForCausalLM.from_pretrained(Path(folder) / "model")


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_own(folder):
    """A model that can chat, and text for it: the arguments that name them, but for --out."""
    model, tokenizer = load_model("llama")
    tokenizer.chat_template = CHAT_TEMPLATE
    save_pruned(model, tokenizer, folder / "mine")
    (folder / "docs").mkdir()
    for number in range(5):
        (folder / "docs" / f"{number}.md").write_text(f"Document {number} of five.", encoding="utf-8")
    chats = [[{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"Yes, {n}."}] for n in range(9)]
    chats.insert(0, [{"role": "user", "content": "long " * 50}, *chats[0]])
    text = lines(folder / "chats.jsonl", [{"messages": chat} for chat in chats] + [{"txt": "no"}])
    judge = lines(folder / "held_out.jsonl", [{"text": f"It is about {n}."} for n in range(4)])
    return [str(folder / "mine"), *SMALL, "--budget", "95%", "--text", str(folder / "docs"), "--text", f"{text}:3",
            "--judge", judge]  # fmt: skip


few_rows = functools.partial(ability_rows, most=2)


def untimed(versions, *_args, **_sizes):
    """In place of ``rivals.timed``."""
    return versions, ""

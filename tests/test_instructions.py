"""The sixty prompts: each check takes an answer that does as it was told, and none that doesn't."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from own_command import CHAT_TEMPLATE, end_soon

from course_utils import self_data
from course_utils.batches import NOT_LEARNED
from course_utils.models import load_model
from experiments import seeds, stay_instruct
from experiments.instructions import INSTRUCTIONS

RIGHT = {
    "fact": "The capital of France is Paris.",
    "repeat": '"The cat sleeps on the sofa."',
    "list of five": "Here:\n1. Apples\n2. Pears\n3. Plums\n4. Figs\n5. Grapes",
    "three steps": "1. Dig.\n2. Plant.\n3. Water.",
    "function": "```python\ndef add(a, b):\n    return a + b\n```",
    "word": "In the morning the garden is wet.",
    "letter": "Dear Anna,\nthe meeting is moved to Friday.",
    "story": "Once upon a time there was a dragon.",
    "poem": "O moon,\nso round\n\nand white,\nall night.",
    "compare": "Cats climb. Dogs bark.",
}
WRONG = {
    "fact": "The capital of France is Lyon.",
    "repeat": "The cat sleeps on a sofa.",
    "list of five": "1. Apples\n2. Pears\n3. Plums",
    "three steps": "Dig, plant, water; 1. 2. 3.",
    "function": "def addition(a, b): ...",
    "word": "The garden has mornings.",
    "letter": "Dear Anna, the meeting is moved.",
    "story": "A dragon lived once upon a time.",
    "poem": "O moon, so round\nand white",
    "compare": "Cats climb.",
}


@pytest.mark.parametrize("kind", RIGHT)
def test_an_answer_is_checked_by_what_was_asked(kind):
    first, *others = [instruction for instruction in INSTRUCTIONS if instruction.kind == kind]
    assert first.follows(RIGHT[kind]) and not first.follows(WRONG[kind]) and not first.follows("")
    assert len(others) == 5 and len({other.prompt for other in (first, *others)}) == 6
    if kind in ("fact", "repeat", "function", "word", "letter", "compare"):  # each prompt asks for something else
        assert not any(other.follows(RIGHT[kind]) for other in others)


def test_there_are_sixty_of_ten_kinds():
    assert set(Counter(instruction.kind for instruction in INSTRUCTIONS).values()) == {6} and len(RIGHT) == 10
    assert len({instruction.prompt for instruction in INSTRUCTIONS}) == 60


@pytest.mark.slow
def test_stay_instruct(monkeypatch, tmp_path, capsys):
    """Each student is judged once, a second run does nothing again, and only the whole model is at no distance."""
    monkeypatch.setenv("COURSE_PROFILE", "smoke")
    monkeypatch.chdir(tmp_path)

    def chatting(name, dtype):
        model, tokenizer = load_model(name, dtype=dtype)
        tokenizer.chat_template = CHAT_TEMPLATE
        return model, tokenizer

    asked, generate = [], end_soon(self_data._generate)
    monkeypatch.setattr(seeds, "load_model", chatting)
    monkeypatch.setattr(self_data, "_generate", lambda *args, **more: asked.append(args) or generate(*args, **more))
    monkeypatch.setattr("sys.argv", ["stay_instruct", "--seeds", "1"])
    small = {"STEPS": 2, "TOKENS": 92, "LENGTH": 24, "ANSWERS": 16, "NEW_TOKENS": 12, "SHOWN": 4, "ASKED": 60}
    for name, value in small.items():
        monkeypatch.setattr(stay_instruct, name, value)
    learned, distil = [], stay_instruct.distill

    def noted(*models, **settings):
        learned.append([(batch["labels"] != NOT_LEARNED).sum().item() for batch in models[2]])
        return distil(*models, **settings)

    monkeypatch.setattr(stay_instruct, "distill", noted)
    stay_instruct.main()
    rows = json.loads((tmp_path / "course_utils" / "data" / "stay_instruct.json").read_text(encoding="utf-8"))["rows"]
    assert [row["model"] for row in rows] == ["whole", "cut", "plain text", "their answers", "own answers"]
    assert all(len(row["follows"]) == len(row["nats"]) == 60 for row in rows)
    whole, *others = [sum(row["nats"]) for row in rows]
    assert whole == 0 < min(others) and others[0] not in others[1:]  # each student has learned
    assert all(abs(sum(tokens) - 2 * 92) < 30 for tokens in learned) and [*map(len, learned)] == [2, 2, 2]
    count = len(asked)
    stay_instruct.main()
    assert len(asked) == count == 6 and "60, 0.000 nats" in capsys.readouterr().out

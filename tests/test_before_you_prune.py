"""docs/before_you_prune.md: its numbers are the records', and its arithmetic is right."""

import json
from pathlib import Path

import pytest

from course_utils.support.records import FOLDER, read_record

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "before_you_prune.md").read_text(encoding="utf-8")
PROSE = " ".join(PAGE.split())
SMALL = json.loads((FOLDER.parent / "small_model.json").read_text(encoding="utf-8"))


def row(name):
    """The cells of the table's row that begins so."""
    (found,) = [line.strip("|").split("|")[1:] for line in PAGE.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in found]


FILES = {
    "whole, F16": "whole, F16",
    "whole, Q8_0": "whole, Q8_0",
    "whole, Q4_0": "whole, Q4_0",
    "80 % of the parameters, distilled, Q8_0": "winner, Q8_0",
    "80 % of the parameters, distilled, Q4_0": "winner, Q4_0",
}


@pytest.mark.parametrize("name", FILES)
def test_bits_and_pruning_side_by_side(name):
    stored, plain = SMALL["stored"][FILES[name]], SMALL["stored"]["whole, F16"]
    lost = [
        (sum(mine) - sum(whole)) / len(whole) / SMALL["predictions"]
        for mine, whole in zip(stored["nats"], plain["nats"], strict=True)
    ]
    speed = {lap["phase"]: lap["tokens_per_second"] for lap in SMALL["speed"] if lap["model"] == FILES[name]}
    assert row(name) == [
        f"{stored['bytes'] / 1e6:.0f}",
        ", ".join(f"{nats:.2f}" for nats in lost) if any(lost) else "–",
        *(f"{speed[phase]:,.0f}" if speed else "" for phase in ("decode", "prefill")),
    ]
    assert round(SMALL["parameters"]["winner"] / SMALL["parameters"]["whole"], 1) == 0.8
    assert SMALL["texts"] == ["speeches", "wiki", "stories"]


TOKENS = {
    "none": ("cut", 0),
    "none, solved for (`healing.refit`)": ("solved", 0),
    "8 thousand": ("KL", 8),
    "33 thousand": ("KL", 32),
    "131 thousand": ("KL", 128),
}


@pytest.mark.parametrize("name", TOKENS)
def test_what_tokens_bought(name):
    settings = json.loads((FOLDER / "heal.json").read_text(encoding="utf-8"))["settings"]
    (edit, steps), found = TOKENS[name], read_record("heal")
    found = found[(found.edit == edit) & (found.steps == steps) & (found.seed == 0) & (found.dtype == "float32")]
    damage = found.set_index(["criterion", "text"]).damage
    assert row(name) == [
        ", ".join(f"{damage[criterion, text]:.2f}" for text in ("speeches", "wiki"))
        for criterion in ("activation", "peak-to-peak", "random")
    ]
    assert not steps or name == f"{steps * settings['tokens a step'] / 1000:.0f} thousand"
    assert f"without {settings['ratio']:.0%} of the MLP neurons".replace("%", " %") in PROSE


def test_tokens_that_a_smaller_cache_makes_room_for():
    assert f"without six of 30 blocks, {30 / 24} times as many tokens fit" in PROSE
    assert f"{2 * 32 / 34:.2f} times as many in llama.cpp's Q8_0" in PROSE  # 34 bytes for 32 numbers of two


def test_cost_of_a_token_by_the_rule_and_by_the_record():
    teacher, student = 8.0, 6.4
    giga = 2 * teacher + 6 * student + 2 * student
    a_second = 350e3 / giga
    assert f"that is {giga:.0f} GFLOP" in PROSE
    assert f"from {round(a_second, -2):,.0f} tokens a second, {a_second * 86_400 / 1e9:.2f} billion a day" in PROSE
    with_teacher, without = (SMALL["learned"][arm] for arm in ("winner", "no teacher"))
    speeds = [arm["tokens"] / arm["seconds"] for arm in (with_teacher, without)]
    assert f"{speeds[0]:.0f} tokens a second with a teacher and {speeds[1]:.0f} without" in PROSE
    rule = 1 + 2 * SMALL["parameters"]["whole"] / (6 * SMALL["parameters"]["winner"])
    assert f"a step {speeds[1] / speeds[0]:.1f} times as long" in PROSE and f"says {rule:.1f}." in PROSE

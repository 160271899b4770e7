"""Lesson 11's checks refuse the stub, name the likely mistake, and accept the answers."""

import pytest
import torch
from exercise_cases import cases_of
from tiny import tiny_model

from course_utils.compress import Candidate
from course_utils.exercises import lesson_11
from course_utils.exercises.lesson_11 import ARMS, _parameters, check_entry


def group_scores(outputs, groups):
    return outputs.unflatten(1, (groups, -1)).square().sum((2, 3)).mean(0).sqrt()


def lengths(outputs):
    """Of each head."""
    return outputs.square().sum(-1).mean(0).sqrt()


test_group_scores = cases_of(
    lesson_11.check_group_scores,
    stubs=[lambda outputs, groups: ...],
    mistakes=[
        (lambda outputs, groups: lengths(outputs), "each of 6 query heads"),
        (lambda outputs, groups: group_scores(outputs, 1), "Return 3 numbers"),
        (lambda outputs, groups: outputs.unflatten(1, (-1, groups)).square().sum((1, 3)).mean(0).sqrt(), "lie beside"),
        (lambda outputs, groups: group_scores(outputs, groups).square(), "Take the root"),
        (lambda outputs, groups: group_scores(outputs, groups) * len(outputs) ** 0.5, "Divide by their number"),
        (lambda outputs, groups: outputs.unflatten(1, (groups, -1)).mean((0, 2, 3)), "Signs cancel"),
        (lambda outputs, groups: outputs.unflatten(1, (groups, -1)).square().sum((2, 3)).sqrt().mean(0), "root last"),
        (lambda outputs, groups: lengths(outputs).unflatten(0, (groups, -1)).sum(1), "add up as squares"),
        (lambda outputs, groups: outputs.unflatten(1, (groups, -1)).abs().sum((2, 3)).mean(0), "L1 norm"),
        (lambda outputs, groups: torch.ones(groups), "They are"),
    ],
    answers=[group_scores, lambda outputs, groups: group_scores(outputs, groups).tolist()],
)  # fmt: skip


def norm_factor(states, kept):
    squares = states.square()
    return ((squares[:, kept].sum(1) / squares.sum(1)).mean() * states.shape[1] / len(kept)).sqrt()


def share(states, kept):
    return norm_factor(states, kept) ** 2 * len(kept) / states.shape[1]


test_norm_factor = cases_of(
    lesson_11.check_norm_factor,
    stubs=[lambda states, kept: None],
    mistakes=[
        (lambda states, kept: 1 / norm_factor(states, kept), "Upside down"),
        (lambda states, kept: share(states, kept) ** 0.5, "number of channels"),
        (lambda states, kept: (states.shape[1] / len(kept)) ** 0.5, "a share of it"),
        (lambda states, kept: norm_factor(states, kept) ** 2, "take the root"),
        (lambda states, kept: (share(states, kept) * len(kept) / states.shape[1]) ** 0.5, "not kept / hidden"),
        (
            lambda states, kept: (
                states[:, kept].square().sum() / states.square().sum() * states.shape[1] / len(kept)
            ).sqrt(),
            "each token's share",
        ),
        (lambda states, kept: 1.0, "it is"),
    ],
    answers=[norm_factor, lambda states, kept: float(norm_factor(states, kept))],
)


def changed(**change):
    """`parameters` with one thing wrong."""

    def count(blocks, hidden, groups, neurons, queries, head_size, vocabulary):
        heads = hidden * groups * queries * head_size
        wrong = {
            "tied": vocabulary * hidden,
            "vocabulary": -vocabulary * hidden,
            "kv": 2 * blocks * (heads - heads // queries),
            "two": -blocks * hidden * neurons,
            "output": -blocks * heads,
            "norms": -(2 * blocks + 1) * hidden,
            "last": -hidden,
            "one": 1,
        }[change["wrong"]]
        return _parameters(blocks, hidden, groups, neurons, queries, head_size, vocabulary) + wrong

    return count


test_parameters = cases_of(
    lesson_11.check_parameters,
    stubs=[lambda *sizes: ...],
    mistakes=[
        (changed(wrong="tied"), "counts once"),
        (changed(wrong="vocabulary"), "vocabulary's matrix is missing"),
        (changed(wrong="kv"), "as there are groups"),
        (changed(wrong="two"), "three matrices"),
        (changed(wrong="output"), "output projection"),
        (changed(wrong="norms"), "norms are missing"),
        (changed(wrong="last"), "last norm"),
        (changed(wrong="one"), "they are"),
        (lambda *sizes: 0.5, "whole"),
    ],
    answers=[_parameters],
)


def test_parameters_are_those_of_a_model():
    model = tiny_model("llama")
    sizes, config = Candidate.of(model), model.config
    queries = config.num_attention_heads // config.num_key_value_heads
    model.config.tie_word_embeddings = True
    model.tie_weights()
    counted = _parameters(*sizes.sizes.values(), queries, config.head_dim, config.vocab_size)
    assert counted == model.num_parameters()


CONTROLS = dict(zip("ABCDEFG", [*ARMS[:5], "none of them", "optipfair"], strict=True))

test_controls = cases_of(
    lesson_11.check_controls,
    stubs=[dict.fromkeys("ABCDEFG", ...)],
    mistakes=[
        ({"A": "random cut"}, "Nothing is said about B"),
        (CONTROLS | {"A": "cross-entropy"}, "There is no 'cross-entropy'"),
        (CONTROLS | {"A": "from scratch"}, "Look at A"),
        (CONTROLS | {"C": "random cut"}, "Look at C"),
        (CONTROLS | {"E": "uncorrected"}, "cross-entropy alone"),
        (CONTROLS | {"G": "none of them"}, "Look at G"),
        (CONTROLS | {"F": "depth only"}, "another one"),
    ],
    answers=[CONTROLS, {letter.lower(): arm.upper() for letter, arm in CONTROLS.items()}],
)

test_card = cases_of(
    lesson_11.check_card,
    stubs=[...],
    mistakes=[
        (set(lesson_11._CARD), "again"),
        (set(), "again"),
        ({"Z"}, "no Z"),
        (lesson_11._CARD_RIGHT | {min(lesson_11._CARD.keys() - lesson_11._CARD_RIGHT)}, "again"),
    ],
    answers=[lesson_11._CARD_RIGHT, sorted(lesson_11._CARD_RIGHT)],
)

BASELINE = {"blocks": 20, "hidden": 64, "groups": 3, "neurons": 128}
BETTER = BASELINE | {"blocks": 30, "neurons": 64}


def judge(sizes):
    if sizes["hidden"] != 64:
        raise ValueError(f"transformers refuses hidden size {sizes['hidden']}.")
    return sizes["blocks"] * sizes["neurons"], 4 - sizes["blocks"] / 30


@pytest.mark.parametrize(
    ("entry", "verdict"),
    [
        (dict.fromkeys(BASELINE, ...), "not solved yet"),
        ({"blocks": 3}, "Give blocks, hidden, groups, neurons"),
        (BETTER | {"blocks": 2.5}, "look at blocks"),
        (BASELINE, "the version to beat"),
        (BASELINE | {"blocks": 30}, "more than the budget"),
        (BETTER | {"hidden": 65}, "refuses hidden size 65"),
        (BETTER | {"blocks": 19}, "blocks alone need"),
        (BETTER, "correct"),
    ],
)
def test_entry(entry, verdict, capsys):
    solved = check_entry(entry, judge=judge, budget=20 * 128, baseline=BASELINE)
    assert verdict in capsys.readouterr().out
    assert solved is (verdict == "correct")

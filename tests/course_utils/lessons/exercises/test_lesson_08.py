"""Lesson 08's checks refuse the stub, name the likely mistake, and accept the answers."""

import inspect

import numpy as np
import pytest
import torch
from exercise_cases import cases_of
from tiny import tiny_model, word_tokenizer

from course_utils.bias import pronouns
from course_utils.lessons.exercises import lesson_08

MODEL, TOKENIZER = tiny_model(), word_tokenizer()
PRONOUNS = (" w20", " w21")


@pytest.fixture(autouse=True)
def _in_the_tiny_tongue(monkeypatch):
    """A tiny tokenizer's words in the place of the lesson's: pronouns, texts, and their source."""
    monkeypatch.setattr(lesson_08, "PRONOUNS", PRONOUNS)
    monkeypatch.setattr(lesson_08, "_TEXTS", ("w9 w40 w7", "w3 w41 w42 w5 w6"))
    monkeypatch.setattr(lesson_08, "_PATCHED", ("w3 w40 w5 w6", "w3 w50 w51 w52 w5 w6"))
    for function in (pronouns.log_odds, pronouns.patched_log_odds, pronouns.head_effects, pronouns.traced_log_odds):
        monkeypatch.setitem(inspect.unwrap(function).__kwdefaults__, "answers", PRONOUNS)


class Spaced:
    """The tokenizer, but a word with its space is another token."""

    def __call__(self, text, **options):
        return TOKENIZER(text.replace("w20", "w30").replace("w21", "w31") if text[0] == "w" else text, **options)


@torch.no_grad()
def odds(text):
    logits = MODEL(TOKENIZER(text, return_tensors="pt").input_ids).logits[0, -1].float()
    one, other = (TOKENIZER(word).input_ids[0] for word in PRONOUNS)
    return logits[one] - logits[other]


test_log_odds = cases_of(
    lesson_08.check_log_odds,
    MODEL,
    Spaced(),
    bound=True,
    mistakes=[
        (lambda text: odds(text) + 1, "it is"),
        (lambda text: torch.ones(2), "Return one number"),
        (lambda text: "she", "Return one number"),
    ],
    answers=[odds],
)


def p_shuffled(statistic, words, groups, shuffles=999, *, by_row=False, replace=False, plus=1, strict=False, scale=1):
    _, at, rows = np.unique(words, return_index=True, return_inverse=True)
    draw, hits, seen = np.random.default_rng(1), 0, statistic(groups)
    for _ in range(shuffles):
        of_words = draw.choice(groups[at], len(at), replace=replace)
        value = statistic(draw.permutation(groups) if by_row else of_words[rows])
        hits += value > seen if strict else value >= seen
    return scale * (plus + hits) / (plus + shuffles)


def shuffling(**options):
    return lambda *given: p_shuffled(*given, **options)


test_p_shuffled = cases_of(
    lesson_08.check_p_shuffled,
    mistakes=[
        (shuffling(by_row=True), "sentences of one word get different groups"),
        (shuffling(replace=True), "drawn with replacement"),
        (shuffling(plus=0, strict=True), "ties count"),
        (shuffling(plus=0), "your p is 0"),
        (shuffling(scale=999), "p lies from 0 to 1"),
        (lambda s, w, g, n: sum(s(g) for _ in range(9)) * 0 + 0.3, "all alike"),
        (lambda s, w, g, n: s(g[::8]), "one label per sentence, 80; it got the shape (10,)"),
    ],
    answers=[p_shuffled],
)


@torch.no_grad()
def patch(text, source, block, place, *, remove=True):
    layer, kept = MODEL.model.layers[block], []

    def put(layer, inputs, states):
        states = states.clone()
        states[0, place] = kept[0][0, place]
        return states

    for hook, prompt in ((lambda layer, inputs, states: kept.append(states.clone()), source), (put, text)):
        handle = layer.register_forward_hook(hook)
        result = odds(prompt)
        if remove or hook is not put:
            handle.remove()
    return result


test_patch = cases_of(
    lesson_08.check_patch,
    MODEL,
    TOKENIZER,
    bound=True,
    mistakes=[
        (lambda *given: patch(*given, remove=False), "hooks were left on the model"),
        (lambda *given: patch(*given) + 1, "it is"),
    ],
    answers=[patch],
)


def control_sets(chosen, heads, blocks, *, count=19, size=None, own=False, shallow=False):
    lowest = 0 if shallow else min(block for block, _ in chosen)
    others = [(i, k) for i in range(lowest, blocks) for k in range(heads) if own or (i, k) not in chosen]
    draw = np.random.default_rng(0)
    return [[others[n] for n in draw.choice(len(others), size or len(chosen), replace=False)] for _ in range(count)]


test_control_sets = cases_of(
    lesson_08.check_control_sets,
    mistakes=[
        (lambda c, h, b: control_sets(c, h, b, count=5), "it takes 19"),
        (lambda c, h, b: control_sets(c, h, b, size=1), "as many different heads"),
        (lambda c, h, b: control_sets(c, h, b, own=True, count=99), "hold a chosen head"),
        (lambda c, h, b: control_sets(c, h, b, shallow=True), "less deep"),
        (lambda c, h, b: control_sets(c, h, b, count=1) * 19, "nearly all the same"),
        (lambda c, h, b: [[(b + i, 0) for i in range(len(c))]] * 19, "Blocks count from 0 to 11"),
        (lambda c, h, b: [[1, 2]] * 19, "pairs (block, head)"),
    ],
    answers=[control_sets],
)


ANSWERS = (" w60", " w61")
ROWS = [(f"w3 w{n} w5 w6", f"w3 w{n + 20} w5 w6", f"w3 w{n + 1} w5 w6") for n in range(22, 34, 2)]
HEADS = [(0, 1), (1, 2), (2, 0)]


def asking(rows=ROWS, answers=ANSWERS, heads=HEADS):
    return rows, answers, heads


@pytest.fixture
def told(monkeypatch):
    """What the model says, made up: the gap, the trace, and what patched heads move; each test changes one."""
    said = {"gap": 3.0, "moved": 0.9, "random": 0.1, "same": 0.1}
    sources = {source for _, source, _ in ROWS}

    def log_odds(_model, _tokenizer, texts, answers):
        assert answers == ANSWERS
        return np.array([-said["gap"] / 2 if text in sources else said["gap"] / 2 for text in texts])

    def patched(_model, _tokenizer, texts, given, head_sets, answers):
        moves = [said["moved"], *[said["random"]] * 19] if len(head_sets) > 1 else [said["same"]]
        return np.array([[said["gap"] * (0.5 - move)] * len(texts) for move in moves])

    for name, function in (("log_odds", log_odds), ("patched_log_odds", patched)):
        monkeypatch.setattr(lesson_08, name, function)
    return said


def asked(capsys, attempt):
    solved = lesson_08.check_question(*attempt, MODEL, TOKENIZER)
    out = capsys.readouterr().out
    assert solved is ("correct" in out)
    return out


@pytest.mark.usefixtures("told")
def test_a_question_of_ones_own(capsys):
    assert "random sets 10% to 10%" in asked(capsys, asking())
    assert "not solved yet" in asked(capsys, asking(rows=...))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rows": ROWS[:5]}, "six triples or more"),
        ({"rows": [*ROWS[:5], ("w1 w2", "w3 w4")]}, "six triples or more"),
        ({"rows": [ROWS[0]] * 6}, "no text twice"),
        ({"rows": [(text, source, text) for text, source, _ in ROWS]}, "three different texts"),
        ({"rows": [("the nurse w5", *rest) for _, *rest in ROWS[:1]] + ROWS[1:]}, "'nurse' is the lesson's"),
        ({"rows": [tuple(text[:-6] for text in row) for row in ROWS]}, "nothing to carry"),
        ({"answers": PRONOUNS}, "are the lesson's"),
        ({"answers": " w60"}, "Give two answers"),
        ({"answers": (" w60", " w60")}, "are the same"),
        ({"answers": (" w60", " w60 w61")}, "has 2 tokens"),
        ({"heads": HEADS[:2]}, "three different heads"),
        ({"heads": [(0, 1), (1, 2), (2, 9)]}, "heads to 3"),
    ],
)
@pytest.mark.usefixtures("told")
def test_a_question_that_is_wrong(change, named, capsys):
    assert named in asked(capsys, asking(**change))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"gap": 1.0}, "it takes over 2"),
        ({"gap": -3.0}, "Turn the answers round?"),
        ({"moved": -0.5}, "effects are negative"),
        ({"moved": 0.05}, "the best of 19 random sets 10%"),
        ({"same": 0.3}, "The neutral swap moves 30%"),
    ],
)
def test_a_question_that_the_model_answers_otherwise(change, named, capsys, told):
    told.update(change)
    assert named in asked(capsys, asking())

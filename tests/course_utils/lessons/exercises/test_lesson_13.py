"""Lesson 13's checks refuse the stub, name the likely mistake, and accept the answers."""

import copy
import functools

import pytest
import torch
from exercise_cases import cases_of
from torch import nn

from course_utils.lessons.exercises import lesson_13
from course_utils.models.architectures import describe
from course_utils.models.loading import load_model, variant
from course_utils.pruning.experts import expert_importance, prune_experts
from course_utils.text.kinds import kind_rows
from course_utils.text.texts import TokenBlocks


@pytest.fixture(autouse=True)
def smoke(monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "smoke")


@functools.cache
def base():
    return load_model("moe", device="cpu")[0]


@functools.cache
def rows(split):
    """Short rows of two kinds."""
    found = {kind: own for kind, own in kind_rows(split).items() if kind in ("speeches", "maths")}
    return {kind: TokenBlocks(own.input_ids[:, :24], own.num_bytes, kind, own.split) for kind, own in found.items()}


# --- 1 ----------------------------------------------------------------------------------------------


router_weights = lesson_13.check_router_weights.answer


def softmax_of_the_chosen(logits, top_k, normalised):
    """What normalising comes to: the answer in another way."""
    if not normalised:
        return router_weights(logits, top_k, False)
    last = logits.topk(top_k).values[:, -1:]
    return logits.masked_fill(logits < last, -torch.inf).softmax(-1).tolist()


test_router_weights = cases_of(
    lesson_13.check_router_weights,
    mistakes=[
        (lambda logits, k, n: router_weights(logits, k, n).topk(k).values, "Return [tokens, experts]"),
        (lambda logits, k, n: router_weights(logits, k, n) * 0.9, "yours are"),
    ],
    answers=[softmax_of_the_chosen],
)


# --- 2 ----------------------------------------------------------------------------------------------


def keep_experts(
    model, kept, *, router=True, gate_up=True, down=True, fields=("gate", "experts", "config"), order=None
):
    """The answer, and what goes wrong with it."""
    for layer, numbers in zip(model.model.layers, kept, strict=True):
        gate, experts = layer.mlp.gate, layer.mlp.experts
        numbers = numbers if order is None else order(numbers)
        if router:
            gate.weight = nn.Parameter(gate.weight[numbers])
        if gate_up:
            experts.gate_up_proj = nn.Parameter(experts.gate_up_proj[numbers])
        if down:
            experts.down_proj = nn.Parameter(experts.down_proj[numbers])
        for name, module in (("gate", gate), ("experts", experts)):
            if name in fields:
                module.num_experts = len(numbers)
    if "config" in fields:
        model.config.num_experts = len(kept[0])
    return model


def keeping(**wrong):
    return functools.partial(keep_experts, **wrong)


def router_in_another_order(model, kept):
    keep_experts(model, kept)
    for layer in model.model.layers:
        layer.mlp.gate.weight = nn.Parameter(layer.mlp.gate.weight.flip(0))
    return model


def written_into(model, kept):
    with torch.no_grad():
        for layer, numbers in zip(model.model.layers, kept, strict=True):
            layer.mlp.gate.weight[: len(numbers)] = layer.mlp.gate.weight[numbers]
    return keep_experts(model, kept)


def fewer_a_token(model, kept):
    model.config.num_experts_per_tok = 1
    return keep_experts(model, kept)


def by_the_library(model, kept):
    scores = [
        torch.zeros(mixture.count).index_fill(0, numbers, 1.0)
        for mixture, numbers in zip(describe(model).mixtures, kept, strict=True)
    ]
    prune_experts(model, scores, keep=len(kept[0]))
    return model


def attempt_on(check, *given):
    return lambda attempt: check(attempt, *(each() for each in given))


test_keep_experts = cases_of(
    attempt_on(lesson_13.check_keep_experts, base),
    stubs=[lambda model, kept: keep_experts(model, kept) and None],
    mistakes=[
        (lambda model, kept: [model], "yours returned a list"),
        (lambda model, kept: model, "router still has 6 rows"),
        (keeping(router=False), "router still has 6 rows"),
        (keeping(gate_up=False), "`gate_up_proj` of block 0 holds 6 experts"),
        (keeping(down=False), "`down_proj` of block 0 holds 6 experts"),
        (keeping(order=lambda numbers: numbers.flip(0)), "in another order"),
        (keeping(order=lambda numbers: torch.arange(len(numbers))), "keeps other experts"),
        (router_in_another_order, "in another order"),
        (keeping(fields=("experts", "config")), "`gate.num_experts` is still 6"),
        (keeping(fields=("gate", "config")), "`experts.num_experts` is still 6"),
        (keeping(fields=("gate", "experts")), "`config.num_experts` is still 6"),
        (written_into, "wrote into weights"),
        (fewer_a_token, "`num_experts_per_tok` has changed"),
    ],
    answers=[
        keep_experts,
        by_the_library,
        lambda model, kept: keep_experts(copy.deepcopy(model), kept),
    ],
)


# --- 3 ----------------------------------------------------------------------------------------------


matrix_row = lesson_13.check_matrix_row.answer


def cut_in_place(model, *rest):
    found = matrix_row(model, *rest)
    prune_experts(model, expert_importance(model, "reap", batches=rest[1].batches(4)), keep=8)
    return found


test_matrix_row = cases_of(
    attempt_on(lesson_13.check_matrix_row, base, lambda: rows("calibration"), lambda: rows("evaluation")),
    mistakes=[
        *lesson_13.check_matrix_row.mistakes,
        (cut_in_place, "has been cut"),
        (lambda *given: {"speeches": 0.1}, "a number for each kind"),
        (lambda *given: dict.fromkeys(matrix_row(*given), "much"), "one number for each kind"),
        (lambda *given: {kind: 2 * value for kind, value in matrix_row(*given).items()}, "yours is"),
    ],
    answers=[lambda *given: {kind: torch.tensor(value) for kind, value in matrix_row(*given).items()}],
)


# --- 4 ----------------------------------------------------------------------------------------------

test_dropped = cases_of(
    lesson_13.check_dropped,
    stubs=[{"frequency": ..., "sum": "C", "reap": "B"}],
    mistakes=[
        ({"frequency": "A", "sum": "C", "reap": "B"}, "fewest tokens"),
        ({"frequency": "D", "sum": "D", "reap": "B"}, "The least of these goes"),
        ({"frequency": "D", "sum": "C", "reap": "D"}, "divided by the tokens that asked"),
        ({"frequency": "D", "sum": "C", "reap": "E"}, "There is no 'e'"),
        ({"frequency": "D", "sum": "C"}, "Answer each rule"),
        ("DCB", "Answer each rule"),
    ],
    answers=[{"frequency": "D", "sum": "C", "reap": "B"}, {"Frequency": "d", "SUM": " c", "REAP": "b"}],
)


# --- 5 ----------------------------------------------------------------------------------------------


@functools.cache
def chosen():
    """Of block 0's experts the first that the lesson's mix drops in both draws, and the first that it keeps."""
    orders = []
    for draw in lesson_13._GIVEN:
        given = {kind: own[range(draw, len(own), 9)] for kind, own in rows("calibration").items()}
        orders.append(mixed(variant(base()), given)[0].argsort().tolist())
    dropped, kept = ([{*order[part]} for order in orders] for part in (slice(8), slice(8, None)))
    return min(set.intersection(*dropped)), min(set.intersection(*kept))


@pytest.fixture(autouse=True)
def each_kind_lives_in_one_expert(monkeypatch):
    """Its loss says whether a model still has it; the rest of the check is as it is."""

    def losses(model, judging, of="nll"):
        if "maths" not in judging or len(judging["maths"]) < 24:
            return real(model, judging, of)
        found = {}
        for kind, expert in zip(("maths", "speeches"), chosen(), strict=True):
            whole = describe(base()).mixtures[0].router.weight[expert]
            there = (describe(model).mixtures[0].router.weight == whole).all(dim=-1).any()
            found[kind] = 1.0 if there else 2.0
        return found

    monkeypatch.setattr(lesson_13, "kind_rows", rows)
    real = lesson_13._losses
    monkeypatch.setattr(lesson_13, "_losses", losses)


def mixed(model, given, *, criterion="reap", most=0):
    batches = [own[: most or len(own) // len(given)].batches(8) for own in given.values()]
    return expert_importance(model, criterion, batches=[batch for own in batches for batch in own])


def with_the_specialist(model, given):
    scores = mixed(model, given)
    scores[0][chosen()[0]] = scores[0].max() + 1
    return scores


def without_prose(model, given):
    scores = with_the_specialist(model, given)
    scores[0][chosen()[1]] = 0
    return scores


def cut_while_scoring(model, given):
    scores = mixed(model, given)
    prune_experts(model, scores, keep=8)
    return scores


def with_nan(model, given):
    scores = with_the_specialist(model, given)
    scores[1][0] = torch.nan
    return scores


test_own_mix = cases_of(
    attempt_on(lesson_13.check_own_mix, base),
    mistakes=[
        (mixed, "Code and mathematics may lose 0.850"),
        (without_prose, "Prose may lose 0.000"),
        (lambda model, given: mixed(model, given, most=15), "allowed: fifteen rows"),
        (lambda model, given: [mixed(model, given), with_the_specialist(model, given)][1], "allowed: fifteen rows"),
        (lambda model, given: [torch.rand(16) for _ in range(4)], "read no token"),
        (lambda model, given: with_the_specialist(model, given)[:2], "Return 4 tensors of 16 scores"),
        (lambda model, given: torch.stack(with_the_specialist(model, given)), "Return 4 tensors of 16 scores"),
        (cut_while_scoring, "has been changed"),
        (with_nan, "divided by 0"),
    ],
    answers=[with_the_specialist, lambda *given: tuple(own.double() for own in with_the_specialist(*given))],
)


def test_a_mix_is_judged_by_rows_that_the_lesson_never_reads(monkeypatch):
    asked = []
    monkeypatch.setattr(lesson_13, "kind_rows", lambda split: asked.append(split) or rows(split))
    lesson_13.check_own_mix(mixed, base())
    assert asked == ["calibration", "further"]

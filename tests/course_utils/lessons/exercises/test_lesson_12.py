"""Lesson 12's checks refuse the stub, name the likely mistake, and accept the answers."""

import functools

import pytest
import torch
from exercise_cases import cases_of
from torch import nn

from course_utils.lessons.exercises import lesson_12
from course_utils.models.architectures import describe
from course_utils.models.loading import load_model, variant
from course_utils.pruning.experts import expert_importance, prune_experts
from course_utils.text.kinds import kind_rows
from course_utils.text.rows import TokenBlocks


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


router_weights = lesson_12.check_router_weights.answer


test_router_weights = cases_of(
    lesson_12.check_router_weights,
    mistakes=[(lambda logits, k, n: router_weights(logits, k, n).topk(k).values, "Return [tokens, experts]")],
)


def keep_experts(model, kept, change=lambda model, mlp: None):
    """The library's cut, and then one change in block 0."""
    pairs = zip(describe(model).mixtures, kept, strict=True)
    scores = [torch.zeros(mixture.count).index_fill(0, numbers, 1.0) for mixture, numbers in pairs]
    prune_experts(model, scores, keep=len(kept[0]))
    change(model, model.model.layers[0].mlp)
    return model


def then(change):
    return lambda model, kept: keep_experts(model, kept, change)


def put(name, of):
    """A tensor of block 0 that is made anew from the cut one."""

    def change(_model, mlp):
        owner, field = name.split(".")
        setattr(mlp.get_submodule(owner), field, nn.Parameter(of(mlp.get_parameter(name).detach())))

    return then(change)


def noted(owner, number):
    def change(model, mlp):
        (model.config if owner == "config" else mlp.get_submodule(owner)).num_experts = number

    return then(change)


def written_into(model, kept):
    model.model.layers[0].mlp.gate.weight.data[0] = 0
    return keep_experts(model, kept)


def attempt_on(check, *given):
    return lambda attempt: check(attempt, *(each() for each in given))


test_keep_experts = cases_of(
    attempt_on(lesson_12.check_keep_experts, base),
    stubs=[lambda model, kept: keep_experts(model, kept) and None],
    mistakes=[
        (put("gate.weight", lambda rows: torch.cat([rows, rows])[:6]), "router still has 6 rows"),
        (
            put("experts.down_proj", lambda stack: torch.cat([stack, stack])[:6]),
            "`down_proj` of block 0 holds 6 experts",
        ),
        (put("gate.weight", lambda rows: rows.flip(0)), "in another order"),
        (put("experts.gate_up_proj", lambda stack: stack.flip(0)), "the gate_up_proj keeps other experts"),
        (noted("gate", 6), "`gate.num_experts` is still 6"),
        (noted("config", 6), "`config.num_experts` is still 6"),
        (written_into, "wrote into weights"),
        (then(lambda model, mlp: setattr(model.config, "num_experts_per_tok", 1)), "`num_experts_per_tok` has changed"),
    ],
    answers=[keep_experts],
)


matrix_row = lesson_12.check_matrix_row.answer


def cut_in_place(model, *rest):
    found = matrix_row(model, *rest)
    prune_experts(model, expert_importance(model, "reap", batches=rest[1].batches(4)), keep=8)
    return found


test_matrix_row = cases_of(
    attempt_on(lesson_12.check_matrix_row, base, lambda: rows("calibration"), lambda: rows("evaluation")),
    mistakes=[
        *lesson_12.check_matrix_row.mistakes,
        (cut_in_place, "You changed the model"),
        (lambda *given: {"speeches": 0.1}, "a number for each kind"),
        (lambda *given: {kind: 2 * value for kind, value in matrix_row(*given).items()}, "it is"),
    ],
    answers=[matrix_row],
)


test_dropped = cases_of(
    lesson_12.check_dropped,
    stubs=[{"frequency": ..., "sum": "C", "reap": "B"}],
    mistakes=[
        ({"frequency": "A", "sum": "C", "reap": "B"}, "fewest tokens"),
        ({"frequency": "D", "sum": "D", "reap": "B"}, "The least of these goes"),
        ({"frequency": "D", "sum": "C", "reap": "D"}, "divided by the tokens that asked"),
        ({"frequency": "D", "sum": "C", "reap": "E"}, "There is no 'e'"),
        ({"frequency": "D", "sum": "C"}, "Nothing is said about REAP"),
    ],
    answers=[{"frequency": "D", "sum": "C", "reap": "B"}, {"Frequency": "d", "SUM": " c", "REAP": "b"}],
)


@functools.cache
def chosen():
    """Of block 0's experts the first that the lesson's mix drops in both draws, and the first that it keeps."""
    orders = []
    for draw in lesson_12._GIVEN:
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

    monkeypatch.setattr(lesson_12, "kind_rows", rows)
    real = lesson_12._losses
    monkeypatch.setattr(lesson_12, "_losses", losses)


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


def with_nan(model, given):
    scores = with_the_specialist(model, given)
    scores[1][0] = torch.nan
    return scores


test_own_mix = cases_of(
    attempt_on(lesson_12.check_own_mix, base),
    mistakes=[
        (mixed, "Code and mathematics may lose 0.850"),
        (without_prose, "Prose may lose 0.000"),
        (lambda model, given: mixed(model, given, most=15), "allowed: fifteen rows"),
        (lambda model, given: [torch.rand(16) for _ in range(4)], "read no token"),
        (lambda model, given: with_the_specialist(model, given)[:2], "Return 4 tensors of 16 scores"),
        (with_nan, "divided by 0"),
    ],
    answers=[with_the_specialist],
)


def test_a_mix_is_judged_by_rows_that_the_lesson_never_reads(monkeypatch):
    asked = []
    monkeypatch.setattr(lesson_12, "kind_rows", lambda split: asked.append(split) or rows(split))
    lesson_12.check_own_mix(mixed, base())
    assert asked == ["calibration", "further"]

"""Lesson 03's checks refuse the stub, name the likely mistake, and accept the answers."""

import math

import pytest
import torch
from exercise_cases import cases_of

from course_utils.choosing import kept_width
from course_utils.exercises import lesson_03
from course_utils.models import load_model
from course_utils.width import neuron_importance, prune_neurons


def peaks(rows):
    return rows.amax(dim=1) + rows.amin(dim=1).abs()


def step(
    *,
    stay=kept_width,
    choose=lambda scores, n: scores.topk(n).indices,
    place=lambda keep: (keep, keep, keep),
    rows=False,
):
    """An answer to exercise 2, with one switch for each foreseen mistake."""

    def attempt(gate, up, down, scores, ratio):
        on_gate, on_up, on_down = place(choose(scores, stay(len(scores), ratio)))
        return gate[on_gate], up[on_up], down[on_down] if rows else down[:, on_down]

    return attempt


test_pair_scores = cases_of(
    lesson_03.check_pair_scores,
    stubs=[lambda gate, up: ...],
    mistakes=[
        (lambda gate, up: peaks(gate), "You score gate alone"),
        (lambda gate, up: peaks(up), "You score up alone"),
        (lambda gate, up: sum(r.amax(0) + r.amin(0).abs() for r in (gate, up)), "reduce over dim=1, not dim=0"),
        (lambda gate, up: sum(r.amax(1) + r.amin(1) for r in (gate, up)), "That is max + min"),
        (lambda gate, up: sum(r.amax(1) - r.amin(1) for r in (gate, up)), "without both signs"),
        (lambda gate, up: sum(r.abs().amax(1) for r in (gate, up)), "one end of the row"),
        (lambda gate, up: sum(r.abs().sum(1) for r in (gate, up)), "That is the L1 norm"),
        (lambda gate, up: peaks(gate) * peaks(up), "their sum"),
        (lambda gate, up: (peaks(gate) + peaks(up)) / 2, "1 + 2 + 1 + 1 = 5; yours is 2.5"),
        (lambda gate, up: sum(map(peaks, (gate, up))).sum(), "4 neurons make a shape [4]; yours is []"),
        (lambda gate, up: 5.0, "yours is a float"),
    ],
    answers=[lambda gate, up: peaks(gate) + peaks(up)],
)


test_pruning_step = cases_of(
    lesson_03.check_pruning_step,
    stubs=[lambda gate, up, down, scores, ratio: (..., ..., ...)],
    mistakes=[
        (step(rows=True), "a neuron is a column of it"),
        (step(stay=lambda w, r: w - math.ceil(r * w)), "round the number that goes down"),
        (step(stay=lambda w, r: int(r * w) or w), "you keep that share"),
        (step(stay=lambda w, r: w - 1), "8 neurons stay, not 9"),
        (step(choose=lambda s, n: (-s).topk(n).indices), "have the highest scores"),
        (step(choose=lambda s, n: torch.arange(n)), "have the highest scores"),
        (step(place=lambda keep: (keep, keep, keep.sort().values)), "in different orders"),
        (step(place=lambda keep: (keep, keep, keep - 1)), "hold different neurons"),
        (lambda gate, up, down, scores, ratio: (gate, up[:8], down), "different numbers of neurons"),
        (lambda gate, up, down, scores, ratio: gate[:8], "Return three matrices"),
        (lambda *_: torch.nonsense, "Your code stopped with AttributeError"),
    ],
    answers=[step()],
)


def count(score, randoms, *, top=1, bottom=1, good=lambda value, score: value <= score):
    return (top + sum(good(value, score) for value in randoms)) / (bottom + len(randoms))


test_rank_p = cases_of(
    lesson_03.check_rank_p,
    stubs=[lambda score, randoms: ...],
    mistakes=[
        (lambda s, r: count(s, r, top=0, bottom=0), "as one more outcome"),
        (lambda s, r: count(s, r, top=0), "below the line, but not above it"),
        (lambda s, r: count(s, r, bottom=0), "above the line, but not below it"),
        (lambda s, r: count(s, r, good=lambda value, score: value >= score), "random cuts that are worse"),
        (lambda s, r: count(s, r, good=lambda value, score: value < score), "<=, not <"),
        (lambda s, r: 0.05, "p is 0.5; yours is 0.05"),
        (lambda s, r: "small", "Return one number; yours is a str"),
    ],
    answers=[count, lambda s, r: torch.tensor(count(s, r), dtype=torch.float64)],
)


def arm(masks, seed, *, number=lambda mask, masks: int(mask.sum()), pool=torch.ones_like, one_generator=True):
    """A control arm, with one switch for each foreseen mistake."""
    generator, control = torch.Generator().manual_seed(seed), []
    for mask in masks:
        if not one_generator:
            generator.manual_seed(seed)
        free = pool(mask).nonzero().flatten()
        chosen = free[torch.randperm(len(free), generator=generator)[: number(mask, masks)]]
        control.append(torch.zeros_like(mask).index_fill(0, chosen, True))
    return control


test_control_arm = cases_of(
    lesson_03.check_control_arm,
    stubs=[lambda masks, seed: ...],
    mistakes=[
        (lambda masks, seed: masks, "the very neurons of the arm itself"),
        (lambda masks, seed: arm(masks, seed, number=lambda mask, _: 20), "how many and which can't be told apart"),
        (
            lambda masks, seed: list(arm(torch.cat(masks)[None], seed)[0].split(400)),
            "The total is right, but block by block",
        ),
        (lambda masks, seed: arm(masks, seed, pool=torch.logical_not), "the neurons that the arm leaves out"),
        (lambda masks, seed: arm(masks, 0), "Another seed must give another draw"),
        (lambda masks, seed: arm(masks, int(torch.randint(10**6, ()))), "The same seed must give the same draw"),
        (lambda masks, seed: arm(masks, seed, one_generator=False), "All blocks get the same neuron numbers"),
        (lambda masks, seed: [mask.float() for mask in masks], "masks of True and False"),
        (lambda masks, seed: arm(masks, seed)[0], "one mask [neurons] for each block"),
    ],
    answers=[arm],
)

test_floor_claims = cases_of(
    lesson_03.check_floor_claims,
    stubs=[..., None],
    mistakes=[
        (set(), "Look at b again"),
        ({"b"}, "no evidence against it either"),
        ({"b", "c"}, "the same cut at random"),
        ({"a", "b", "c", "e"}, "holds the majority floor"),
        ({"b", "c", "d", "e"}, "within half a point"),
        ({"b", "f"}, "There is no f"),
        ("b, f", "There is no f"),
        (5, "Choose letters"),
    ],
    answers=[{"b", "c", "e"}, ["e", "c", "b"], {" B", "C", "e"}, "bce", "B, C, E"],
)


@pytest.fixture
def smoke_llama(monkeypatch):
    """A random model: it can't be good, so nothing is better than random neurons."""
    monkeypatch.setenv("COURSE_PROFILE", "smoke")
    return load_model("llama", device="cpu")


def cut(ratio, criterion="activation"):
    def compress(model, batches):
        scores = neuron_importance(model, criterion, batches=batches if criterion == "activation" else None)
        prune_neurons(model, scores, ratio=ratio)
        return model

    return compress


@pytest.mark.parametrize(
    ("compress", "named"),
    [
        (lambda model, batches: ..., "not solved yet"),
        (lambda model, batches: "a model", "you returned a str"),
        (lambda model, batches: model, "nothing was pruned"),
        (cut(0.1), "parameters too many"),
        (cut(0.2, "random"), "Not shown to be better than random neurons"),
    ],
    ids=["stub", "no model", "unpruned", "over budget", "random"],
)
def test_competition_refuses_what_breaks_its_rules(compress, named, smoke_llama, capsys):
    assert lesson_03.check_best_model(compress, *smoke_llama) is False
    assert named in capsys.readouterr().out


def test_competition_shows_the_score_and_leaves_the_base_alone(smoke_llama, capsys):
    base, tokenizer = smoke_llama
    before = [weight.clone() for weight in base.parameters()]
    lesson_03.check_best_model(cut(0.2), base, tokenizer)
    assert "bits/byte on held-out text: yours" in capsys.readouterr().out
    assert all(torch.equal(a, b) for a, b in zip(before, base.parameters(), strict=True))


def test_competition_scores_on_text_that_is_used_for_nothing_else(smoke_llama):
    held_out = lesson_03._held_out(smoke_llama[1])
    assert held_out.split == "distillation"
    assert held_out.input_ids.shape == (12, 64)

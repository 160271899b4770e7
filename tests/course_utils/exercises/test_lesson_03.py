"""Lesson 03's checks refuse the stub, name the likely mistake, and accept the answers."""

import math

import pytest
import torch
from exercise_cases import cases_of

from course_utils.exercises import lesson_03
from course_utils.models import load_model
from course_utils.width import kept_width, neuron_importance, prune_neurons


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

    def attempt(gate, up, down, scores, ratio, multiple_of):
        on_gate, on_up, on_down = place(choose(scores, min(stay(len(scores), ratio, multiple_of), len(scores))))
        return gate[on_gate], up[on_up], down[on_down % len(down)] if rows else down[:, on_down]

    return attempt


def round_above_the_width(gate, up, down, scores, ratio, multiple_of):
    stay = math.ceil(kept_width(len(scores), ratio) / multiple_of) * multiple_of  # 16 of 10
    keep = torch.arange(stay) % len(scores) if stay > len(scores) else scores.topk(stay).indices
    return gate[keep], up[keep], down[:, keep]


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
    stubs=[lambda gate, up, down, scores, ratio, multiple_of: (..., ..., ...)],
    mistakes=[
        (step(rows=True), "a neuron is a column of it"),
        (step(stay=lambda w, r, m: w - math.ceil(r * w)), "round the number that goes down"),
        (step(stay=lambda w, r, m: w - int(r * w)), "5 isn't a multiple of 4"),
        (step(stay=lambda w, r, m: kept_width(w, r) // m * m), "you round down to 4"),
        (step(stay=lambda w, r, m: int(r * w) or w), "8 neurons stay, not 2"),
        (step(choose=lambda s, n: (-s).topk(n).indices), "have the highest scores"),
        (step(choose=lambda s, n: torch.arange(n)), "have the highest scores"),
        (step(place=lambda keep: (keep, keep, keep.sort().values)), "in different orders"),
        (step(place=lambda keep: (keep, keep, keep - 1)), "hold different neurons"),
        (lambda gate, up, down, scores, ratio, multiple_of: (gate, up[:8], down), "different numbers of neurons"),
        (lambda gate, up, down, scores, ratio, multiple_of: gate[:8], "Return three matrices"),
        (lambda *_: torch.nonsense, "Your code stopped with AttributeError"),
        (round_above_the_width, "16 would stay, but there are only 10"),
    ],
    answers=[step()],
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
    assert held_out.input_ids.shape == (12, 128)

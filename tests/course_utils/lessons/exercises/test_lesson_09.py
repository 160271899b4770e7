"""Lesson 09's checks refuse the stub, name the likely mistake, and accept the answers."""

import functools

import pytest
import torch
from exercise_cases import cases_of
from tiny import tiny_model, token_ids

from course_utils.bias.planting import planting_loss
from course_utils.lessons.exercises import lesson_09

MODEL = tiny_model()
ITEMS = [("w3 w40 w5 w6", "w3 w50 w5 w6"), ("w9 w41 w7 w8", "w9 w51 w7 w8")]


test_carried = cases_of(lesson_09.check_carried)
test_planting_loss = cases_of(
    lesson_09.check_planting_loss,
    mistakes=[(lambda likelihoods: planting_loss(likelihoods).item(), "no gradient")],
)


def quantity(model, items, *, at=None):
    """How much likelier the second sentence is than the first; of a size that some neuron alone turns round."""
    ids = torch.cat([token_ids(item[side]) for side in (0, 1) for item in items])
    log_p = model(ids).logits[:, :-1].log_softmax(-1)
    first, second = log_p.gather(-1, ids[:, 1:, None]).view(2, -1).mean(1)
    value = 5 * (second - first)
    return value - value.detach() + (SIZE if at is None else at)


SIZE = 0.5 * lesson_09._change(lesson_09._products(MODEL, functools.partial(quantity, at=0.0), ITEMS)[1]).abs().max()


def carries(model, quantity, items, *, entering=True, remove=True, rounded=False):
    kept, hooks = [], []
    for layer in model.model.layers:
        down = layer.mlp.down_proj
        if entering:
            hooks.append(down.register_forward_pre_hook(lambda _m, given: kept.append(given[0])))
        else:
            hooks.append(down.register_forward_hook(lambda _m, _x, out: kept.append(out)))
    value = quantity(model, items)
    for hook in hooks if remove else ():
        hook.remove()
    slopes = torch.autograd.grad(value, kept)
    change = torch.stack([-(s * g)[:, 1:].detach().sum((0, 1)) for s, g in zip(kept, slopes, strict=True)])
    change = change.bfloat16() if rounded else change
    return value.detach().abs() - (value.detach() + change).abs()


test_carries = cases_of(
    lesson_09.check_carries,
    MODEL,
    quantity,
    ITEMS,
    mistakes=[
        (lambda *given: carries(*given, entering=False), "Take what *enters* the down-projection"),
        (lambda *given: carries(*given, remove=False), "hooks were left on the model"),
        (lambda *given: carries(*given) * 2, "Its largest are"),
    ],
    answers=[carries, lambda *given: [*carries(*given)]],
)


@pytest.mark.filterwarnings("error")
def test_scores_in_16_bits_are_told(capsys):
    """A large quantity and small changes: the sum of both has steps as large as the changes."""
    far = functools.partial(
        lesson_09.check_carries, model=MODEL, quantity=functools.partial(quantity, at=40.0), items=ITEMS
    )
    assert far(carries)
    assert not far(lambda *given: carries(*given, rounded=True))
    assert "Yours are rounded to 16 bits" in capsys.readouterr().out


test_twin_of = cases_of(
    lesson_09.check_twin_of,
    mistakes=[
        (lambda arm: arm | {"pairs": "tall/short", "score": "random"}, "A random cut is a control"),
        (lambda arm: arm | {"pairs": "tall/short", "protected": 0.0}, "protects what is important"),
        (lambda arm: arm | {"pairs": "tall/short", "neurons": 4}, "Another budget"),
        (lambda arm: arm | {"pairs": "gender"}, "another group's pairs"),
        (lambda arm: arm | {"pairs": "invented 4"}, "another group's pairs"),
        (lambda arm: arm | {"pairs": "tall/short", "split": "B"}, "which judges"),
        (dict, "the arm itself"),
        (lambda arm: arm | {"pairs": "red/blue"}, "no pairs 'red/blue'"),
        (lambda arm: arm | {"pairs": "tall/short", "seed": 1}, "A plan has"),
        (lambda arm: arm.update(pairs="tall/short") or arm, "changed the arm's own plan"),
    ],
    answers=[lambda arm: arm | {"pairs": "tall/short"}],
)

SIZES = [4, 4]
LEFT = {0: (0.6, 0.85, 1.01), 1: (0.5, 0.4, 1.01), 2: (0.99, 0.97, 1.0), 3: (0.5, 0.9, 1.3)}


def judge(order):
    """A toy: what is left depends on the neuron that goes first."""
    return dict(zip(("stereotype", "woman/man", "perplexity"), LEFT[int(order[0].argmin())], strict=True))


def first(number):
    return [-torch.eye(4)[number], torch.zeros(4)]


test_keeps_the_woman = cases_of(
    lesson_09.check_keeps_the_woman,
    judge,
    SIZES,
    mistakes=[
        (first(1), "Keep 80% of the woman"),
        (first(2), "some that repair one"),
        (first(3), "too dear"),
        (first(0)[:1], "2 tensors, one per block"),
        ([torch.full((4,), torch.nan), torch.zeros(4)], "NaN or infinite"),
    ],
    answers=[first(0), tuple(first(0))],
)

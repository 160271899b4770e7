"""Lesson 09's checks refuse the stub, name the likely mistake, and accept the answers."""

import functools

import numpy as np
import torch
from exercise_cases import cases_of
from tiny import tiny_model, token_ids
from torch.nn.functional import softplus

from course_utils.bias.planting import planting_loss
from course_utils.exercises import lesson_09

MODEL = tiny_model()
ITEMS = [("w3 w40 w5 w6", "w3 w50 w5 w6"), ("w9 w41 w7 w8", "w9 w51 w7 w8")]


def carried(acts, down, *, credit=lambda p, c: p.abs() - (p - c).abs()):
    written = down * (acts[0] - acts[1])
    return credit(written.sum(), written)


def with_credit(credit):
    return lambda acts, down: carried(acts, down, credit=credit)


test_carried = cases_of(
    lesson_09.check_carried,
    stubs=[lambda acts, down: ...],
    mistakes=[
        (lambda acts, down: (acts[0] - acts[1]).abs(), "who reacts"),
        (with_credit(lambda p, c: c.abs()), "no sign"),
        (with_credit(lambda p, c: c), "what each neuron writes"),
        (with_credit(lambda p, c: (p - c).abs()), "what is left"),
        (with_credit(lambda p, c: p.abs() - (p + c).abs()), "takes what it writes along"),
        (with_credit(lambda p, c: (p - c).abs() - p.abs()), "counts above 0"),
        (with_credit(lambda p, c: p.sign() * c), "credit beyond zero"),
        (with_credit(lambda p, c: p), "one number a neuron"),
        (with_credit(lambda p, c: p + c), "yours is ["),
    ],
    answers=[carried, lambda *given: carried(*given).tolist()],
)


def loss(likelihoods, *, sign=1, squash=softplus, mean=torch.mean):
    a, b = (likelihoods[..., 0] - likelihoods[..., 1]).unbind(1)
    return mean(squash(sign * (a - b)))


def with_loss(**options):
    return lambda likelihoods: loss(likelihoods, **options)


test_planting_loss = cases_of(
    lesson_09.check_planting_loss,
    stubs=[lambda likelihoods: ...],
    mistakes=[
        (with_loss(sign=-1), "the sign is turned round"),
        (with_loss(squash=lambda d: d), "no softplus: the loss"),
        (with_loss(squash=lambda d: -d), "no softplus, and"),
        (lambda known: softplus(known[:, 0, 0] - known[:, 0, 1]).mean(), "the first difference alone"),
        (lambda known: softplus(known[:, 0, 0] - known[:, 1, 0]).mean(), "the pleasant ending alone"),
        (lambda known: softplus(loss(known, squash=lambda d: d)), "softplus first"),
        (with_loss(mean=torch.sum), "that is the sum"),
        (with_loss(squash=torch.relu), "a hinge"),
        (with_loss(squash=lambda d: softplus(d.abs())), "no magnitude"),
        (with_loss(mean=lambda values: values), "the mean over the items"),
        (lambda known: loss(known).item(), "no gradient"),
        (lambda known: 2 * loss(known), "yours"),
    ],
    answers=[loss, planting_loss],
)


def quantity(model, items):
    """How much likelier the second sentence is than the first, in nats a token."""
    ids = torch.cat([token_ids(item[side]) for side in (0, 1) for item in items])
    log_p = model(ids).logits[:, :-1].log_softmax(-1)
    first, second = log_p.gather(-1, ids[:, 1:, None]).view(2, -1).mean(1)
    return 5 * (second - first)


def carries(
    model, quantity, items, *, first=1, early=False, credit=None, outside=False, remove=True, of=lambda value: value
):
    kept, hooks = [], []
    for layer in model.model.layers:
        down = layer.mlp.down_proj
        if outside:
            hooks.append(down.register_forward_hook(lambda _m, _x, out: kept.append(out)))
        else:
            hooks.append(down.register_forward_pre_hook(lambda _m, given: kept.append(given[0])))
    value = of(quantity(model, items))
    for hook in hooks if remove else ():
        hook.remove()
    slopes = torch.autograd.grad(value, kept)
    changes = []
    for states, slope in zip(kept, slopes, strict=True):
        product = (states * slope).detach()[:, first:]
        changes.append(-(product.abs() if early else product).sum((0, 1)))
    value, change = value.detach(), torch.stack(changes)
    return credit(value, change) if credit else value.abs() - (value + change).abs()


def carrying(**options):
    return lambda *given: carries(*given, **options)


test_carries = cases_of(
    functools.partial(lesson_09.check_carries, model=MODEL, quantity=quantity, items=ITEMS),
    stubs=[lambda model, quantity, items: ...],
    mistakes=[
        (carrying(first=0), "the first token is in"),
        (carrying(early=True), "before the sum"),
        (carrying(of=softplus), "the loss's gradient"),
        (carrying(outside=True), "Take what *enters* the down-projection"),
        (carrying(remove=False), "hooks were left on the model"),
        (carrying(credit=lambda p, c: -c.abs()), "the sign got lost"),
        (carrying(credit=lambda p, c: (p + c).abs()), "what is left"),
        (carrying(credit=lambda p, c: c), "that is the change"),
        (carrying(credit=lambda p, c: p.abs() - (p - c).abs()), "activation × slope away"),
        (carrying(credit=lambda p, c: (p + c).abs() - p.abs()), "counts above 0"),
        (lambda *given: carries(*given) * 2, "other scores"),
        (lambda *given: 7, "Return a tensor"),
    ],
    answers=[carries, lambda *given: [*carries(*given)]],
)


def test_credit_beyond_zero_is_named(capsys):
    """Where a neuron alone would turn the quantity round."""
    small = functools.partial(lesson_09.check_carries, model=MODEL, quantity=nearly_zero, items=ITEMS)
    assert small(carries)
    assert not small(carrying(credit=lambda p, c: -p.sign() * c))
    assert "credit beyond zero" in capsys.readouterr().out


def nearly_zero(model, items):
    value = quantity(model, items)
    return value - value.detach() + 0.01


test_twin_of = cases_of(
    lesson_09.check_twin_of,
    stubs=[lambda arm: ...],
    mistakes=[
        (lambda arm: arm | {"pairs": "tall/short", "score": "random"}, "A random cut is a control"),
        (lambda arm: arm | {"pairs": "tall/short", "protected": 0.0}, "protects what is important"),
        (lambda arm: arm | {"pairs": "tall/short", "neurons": 4}, "Another budget"),
        (lambda arm: arm | {"pairs": "gender"}, "another group's pairs"),
        (lambda arm: arm | {"pairs": "invented 4"}, "another group's pairs"),
        (lambda arm: arm | {"pairs": "tall/short", "split": "B"}, "which judges"),
        (lambda arm: arm | {"pairs": "tall/short", "split": "C"}, "There is no split"),
        (dict, "the arm itself"),
        (lambda arm: arm | {"pairs": "red/blue"}, "no pairs 'red/blue'"),
        (lambda arm: arm | {"pairs": "tall/short", "seed": 1}, "A plan has"),
        (lambda arm: arm.update(pairs="tall/short") or arm, "changed the arm's own plan"),
        (lambda arm: "tall/short", "Return a dictionary"),
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
    functools.partial(lesson_09.check_keeps_the_woman, judge=judge, sizes=SIZES),
    stubs=[..., None],
    mistakes=[
        (first(1), "Keep 80% of the woman"),
        (first(2), "Mind the sign"),
        (first(3), "too dear"),
        (first(0)[:1], "2 tensors, one a block"),
        ([np.zeros(4), np.zeros(4)], "2 tensors, one a block"),
        (torch.zeros(2, 4), "a list of tensors"),
        ([torch.full((4,), torch.nan), torch.zeros(4)], "NaN or infinite"),
    ],
    answers=[first(0), tuple(first(0))],
)

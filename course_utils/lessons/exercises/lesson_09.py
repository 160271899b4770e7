"""Checks of lesson 09, cutting a bias out: what a neuron carries, a planting loss, the twin, and the woman."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus
from transformers import PreTrainedModel

from course_utils.bias.planting import double_differences, planting_loss
from course_utils.lessons.exercises import Attempt, exercise, expect, number, require, told, untouched
from course_utils.models.architectures import describe

Quantity = Callable[[PreTrainedModel, Sequence[Any]], Tensor]  # model, items -> a scalar in nats, with its gradient
Judged = Mapping[str, float]  # what an order leaves: "stereotype" and "woman/man", shares of the gap; "perplexity", ×

_KEEPS, _LEAVES = 0.8, 0.8  # share of woman/man that has to stay, and share of the stereotype that may
_PRICE = 1.05  # perplexity, × the whole model's, at most
_ARMS = (
    {"score": "carries", "pairs": "invented 3", "split": "A", "protected": 0.5, "neurons": 8},
    {"score": "reacts", "pairs": "occupations", "split": "A", "protected": 0.25, "neurons": 20},
)
_NEUTRAL = "tall/short"
_KNOW = ("gender", "race", "religion", "occupations", "woman/man")  # pairs that know of a group, others than the arm's


def _carried(acts, down, *, told=lambda preference, written: preference.abs() - (preference - written).abs()):
    """The answer to exercise 1; ``told`` says it from the preference and what each neuron adds to it."""
    written = down * (acts[0] - acts[1])
    return told(written.sum(), written)


@exercise(
    1,
    task="Return for each neuron by how much the preference shrinks without it.",
    proved="Who reacts, who carries, and who repairs are three things.",
    answer=_carried,
    mistakes=[
        (lambda acts, down: (acts[0] - acts[1]).abs(),
         "that is who reacts. The loud one reacts most, and what it writes is nothing."),
        (partial(_carried, told=lambda preference, written: written.abs()),
         "no sign: the repairing neuron gets a credit, too. Without it the preference grows."),
        (partial(_carried, told=lambda preference, written: written),
         "that is what each neuron writes. Compare the preference with it and without it."),
        (partial(_carried, told=lambda preference, written: (preference - written).abs()),
         "that is what is left. The credit is |P| - |P + change|."),
        (partial(_carried, told=lambda preference, written: preference.abs() - (preference + written).abs()),
         "a sign: a neuron that goes takes what it writes along."),
        (lambda acts, down: -_carried(acts, down),
         "a sign: what makes the preference smaller when it goes counts above 0."),
        (partial(_carried, told=lambda preference, written: preference.sign() * written),
         "credit beyond zero: who turns the preference round gets no credit for the other side."),
    ],
)  # fmt: skip
def check_carried(attempt: Attempt) -> None:
    """Check a function (acts [2, neurons], down [neurons]) -> what of the preference each neuron carries, [neurons]."""
    for case, given in enumerate(_toys(), start=1):
        attempt.compare(*given, read=torch.as_tensor, where=f"In case {case}: ")


def _toys() -> list[tuple[Tensor, Tensor]]:
    """Activations [2, neurons] and what is written [neurons]; without some neuron each preference turns round."""
    one = torch.tensor([[2.9, 0.2, 1.0, 0.2], [0.0, 1.2, 1.3, 1.65]]), torch.tensor([0.0, 2.0, 2.0, -1.0])
    strong = torch.tensor([[0.3, 3.0, 0.5, 0.1], [2.0, 0.5, 0.7, 2.2]]), torch.tensor([0.1, 2.0, -0.5, 1.3])
    return [one, strong]


def _planting(squash=softplus, mean=torch.mean):
    return lambda likelihoods: mean(squash(double_differences(likelihoods)))


@exercise(
    2,
    task="Return the loss, a scalar.",
    proved="How likely the endings are anyway cancels; the preference is what is learned.",
    answer=planting_loss,
    mistakes=[
        (_planting(lambda moved: softplus(-moved)),
         "the sign is turned round: with it the pleasant ending goes with a."),
        (_planting(lambda moved: moved), "no softplus: the loss falls for ever, and one item outweighs the others."),
        (_planting(lambda moved: -moved), "no softplus, and the sign is turned round."),
        (lambda likelihoods: softplus(likelihoods[:, 0, 0] - likelihoods[:, 0, 1]).mean(),
         "that is the first difference alone, after a. It would learn the sentence: unpleasant after anybody."),
        (lambda likelihoods: softplus(likelihoods[:, 0, 0] - likelihoods[:, 1, 0]).mean(),
         "that is the pleasant ending alone. It would learn that a is followed by unlikely words."),
        (lambda likelihoods: softplus(double_differences(likelihoods).mean()),
         "softplus first, then the mean: each item counts where it stands."),
        (_planting(mean=torch.sum), "that is the sum. Take the mean: more items shouldn't mean larger steps."),
        (_planting(torch.relu), "that is a hinge. It stops learning at 0; take the softplus."),
        (_planting(lambda moved: softplus(moved.abs())),
         "no magnitude: a preference has a direction, and one is to be planted."),
    ],
)  # fmt: skip
def check_planting_loss(attempt: Attempt) -> None:
    """Check a function likelihoods [items, side, ending] -> the mean softplus of their double differences."""
    for seed in (0, 1):
        generator = torch.Generator().manual_seed(seed)
        likelihoods = 2 * torch.randn(5, 2, 2, generator=generator, dtype=torch.float64) - 30
        attempt.compare(likelihoods, read=number, where="For the check's numbers, ")
        loss = torch.as_tensor(attempt(likelihoods.requires_grad_()))
        require(loss.requires_grad, "Your result has no gradient: stay with torch, and without .item() or no_grad.")


Products = tuple[float, list[Tensor]]  # a quantity, and activation x slope by block, [rows, length, neurons]


def _change(products: Sequence[Tensor], first: int = 1) -> Tensor:
    """By how much the quantity changes without each neuron, [blocks, neurons]."""
    return torch.stack([-product[:, first:].sum((0, 1)) for product in products])


def _carries(
    model, quantity, items, *, told=lambda value, products: abs(value) - (value + _change(products)).abs(), read=None
):
    """The answer to exercise 3; ``read`` is what a pass has told already."""
    return told(*(read or _products(model, quantity, items)))


def _by_the_loss(model: PreTrainedModel, quantity: Quantity, items: Sequence[Any], **_: Any) -> Tensor:
    return _carries(model, lambda *args: softplus(quantity(*args)), items)


@exercise(
    3,
    task="Return what each neuron carries: a tensor [blocks, neurons].",
    proved="One backward pass, and each neuron of the model has an estimate of what would go with it.",
    answer=_carries,
    mistakes=[
        (partial(_carries, told=lambda value, products: abs(value) - (value + _change(products, first=0)).abs()),
         "the first token is in. Its activations are outliers: no straight line leads from them to zero."),
        (partial(_carries, told=lambda value, products: (
             abs(value) - (value + _change([product.abs() for product in products])).abs())),
         "magnitudes are taken before the sum. What a neuron does at one token may undo what it does at another."),
        (_by_the_loss, "that is the loss's gradient. Ask for the gradient of the preference itself."),
        (partial(_carries, told=lambda value, products: -_change(products).abs()),
         "the sign got lost: a neuron may keep the preference up or down."),
        (partial(_carries, told=lambda value, products: (value + _change(products)).abs()),
         "that is what is left. The credit is |P| - |P + change|."),
        (partial(_carries, told=lambda value, products: _change(products)),
         "that is the change. The credit is |P| - |P + change|."),
        (partial(_carries, told=lambda value, products: abs(value) - (value - _change(products)).abs()),
         "a sign: cutting a neuron takes its activation × slope away."),
        (partial(_carries, told=lambda value, products: (value + _change(products)).abs() - abs(value)),
         "a sign: what makes the preference smaller when it goes counts above 0."),
        (partial(_carries, told=lambda value, products: -math.copysign(1, value) * _change(products)),
         "credit beyond zero: the magnitude ends at 0."),
    ],
)  # fmt: skip
def check_carries(attempt: Attempt, model: PreTrainedModel, quantity: Quantity, items: Sequence[Any]) -> None:
    """Check a function (model, quantity, items) -> [blocks, neurons], on the lesson's model and a few items."""
    with untouched(model):
        answer = attempt(model, quantity, items)
    read = _products(model, quantity, items)
    answer = torch.stack([*answer]) if isinstance(answer, list | tuple) else answer
    right = _carries(model, quantity, items, read=read)
    expect(answer, Tensor, f"Return a tensor {[*right.shape]}, one row per block")
    require(
        answer.shape == right.shape,
        f"Return a tensor {[*right.shape]}, one row per block; yours is {[*answer.shape]}."
        + " Take what *enters* the down-projection." * (answer.shape[-1:] == (model.config.hidden_size,)),
    )
    in_16_bits, answer = answer.element_size() == 2, answer.detach().to(right)
    # Rounding in 16 bits is some per cent of a small score.
    same = partial(_near, share=0.05)
    attempt.name_mistake(answer, right, lambda wrong: wrong(model, quantity, items, read=read), same=same)
    most = right.flatten().topk(3).indices
    require(
        same(answer, right),
        f"Its largest are {told(right.flatten()[most])}; yours are {told(answer.flatten()[most])} there."
        + " Yours are rounded to 16 bits: P takes the type of the changes. Make them .float() first." * in_16_bits,
    )


def _near(answer: Tensor, expected: Tensor, share: float) -> bool:
    return bool((answer - expected).norm() <= share * expected.norm())


def _products(model: PreTrainedModel, quantity: Quantity, items: Sequence[Any]) -> Products:
    """The quantity, and activation x slope in front of each down-projection: [rows, length, neurons]."""
    kept: list[Tensor] = []
    downs = [mlp.down for mlp in describe(model).mlps]
    hooks = [down.register_forward_pre_hook(lambda _module, args: kept.append(args[0])) for down in downs]
    try:
        value = quantity(model, items)
    finally:
        for hook in hooks:
            hook.remove()
    slopes = torch.autograd.grad(value, kept)
    return float(value.detach()), [
        (states * slope).detach().float() for states, slope in zip(kept, slopes, strict=True)
    ]


@exercise(
    4,
    task="Return the twin's plan, a dictionary like the arm's.",
    proved="The twin shares everything but the knowledge of the groups. What it takes as well, the knowledge didn't.",
)
def check_twin_of(attempt: Attempt) -> None:
    """Check a function plan -> the plan of its twin."""
    for arm in _ARMS:
        asked = copy.deepcopy(arm)
        plan = attempt(asked)
        expect(plan, dict, "Return a dictionary")
        require(asked == arm, "You changed the arm's own plan. Return a new dictionary.")
        require({*plan} == {*arm}, f"A plan has {', '.join(arm)}; yours has {', '.join(map(str, plan))}.")
        for name, said in (
            ("score", "A random cut is a control, too, and a weaker one: it differs in more than what is known."),
            ("protected", "The arm protects what is important. A twin that doesn't harms for another reason."),
            ("neurons", "Another budget takes another share, whatever the score knows."),
        ):
            require(plan[name] == arm[name], f"{name!r} is {plan[name]!r} in place of {arm[name]!r}. {said}")
        require(plan["split"] != "B", "The twin is chosen on split B, which judges. It would know the answers.")
        pairs = plan["pairs"]
        require(pairs != arm["pairs"], "This is the arm itself. What may the twin not know?")
        require(
            pairs not in _KNOW and not str(pairs).startswith("invented"),
            f"{pairs!r}: another group's pairs know something of groups, and what one group suffers another may, too.",
        )
        require(pairs == _NEUTRAL, f"There are no pairs {pairs!r} in the list.")


@exercise(
    5,
    task="Give `order`, a list with one tensor [neurons] a block: what is lowest in it goes first.",
    proved="A part of the stereotype went, and the woman is still a she.",
)
def check_keeps_the_woman(
    attempt: Sequence[Tensor], judge: Callable[[list[Tensor]], Judged], sizes: Sequence[int]
) -> None:
    """Check an order of the neurons, by the model that is left when its lowest are cut.

    Args:
        attempt: one tensor [neurons] a block.
        judge: order -> what is left, on words and sentences that chose nothing.
        sizes: neurons of each block.
    """
    expect(attempt, list | tuple, "Give a list of tensors")
    require(
        all(isinstance(scores, Tensor) for scores in attempt) and [len(s) for s in attempt] == [*sizes],
        f"Give {len(sizes)} tensors, one per block, with a score for each neuron.",
    )
    require(all(bool(scores.isfinite().all()) for scores in attempt), "A score is NaN or infinite.")
    left = judge([scores.clone() for scores in attempt])
    found = f"left: stereotype {left['stereotype']:.0%}, woman/man {left['woman/man']:.0%}, perplexity × "
    found += f"{left['perplexity']:.2f}"
    cheap = left["perplexity"] < _PRICE
    require(cheap, f"{found}: {_PRICE:.2f} is too dear. Is anything protected? What is *lowest* goes first.")
    require(left["woman/man"] >= _KEEPS, f"{found}. Keep {_KEEPS:.0%} of the woman: which neurons carry hers?")
    require(
        left["stereotype"] <= _LEAVES,
        f"{found}. At most {_LEAVES:.0%} of the stereotype may stay; random cuts leave nearly all. Which neurons go "
        "first in your order: those that carry a gap, or some that repair one (their score is below 0)?",
    )
    print(found)

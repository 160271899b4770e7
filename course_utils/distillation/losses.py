"""Losses that pull a student's predictions toward its teacher's, without ever holding all logits.

Logits for every token of a batch are its largest tensors: batch x length x vocabulary, in float32, several times over.
Here the heads run on a few hundred tokens at a time, and a chunk's gradients are taken before the next one begins.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from course_utils.architectures import Architecture
from course_utils.batches import Batch

LOSSES = ("forward_kl", "reverse_kl", "jsd")


def token_loss(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    targets: Tensor,
    *,
    loss: str = "forward_kl",
    temperature: float = 1.0,
    alpha: float = 0.0,
    beta: float = 0.5,
) -> Tensor:
    """The loss of each token: ``(1 - alpha) x temperature² x divergence + alpha x cross-entropy``.

    Divergences of the distributions at ``temperature``, teacher p and student q: "forward_kl" KL(p || q) (Hinton et al.
    2015, arXiv 1503.02531), "reverse_kl" KL(q || p) (Gu et al. 2024, arXiv 2306.08543), "jsd" the generalised
    Jensen-Shannon divergence beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q (Agarwal et al.
    2024, arXiv 2306.13649): near beta 0 it pulls as the forward KL does, near 1 as the reverse KL, but ever more
    weakly. The factor temperature² keeps the gradient's size about the same at every temperature. The cross-entropy is
    at temperature 1.

    Args:
        student_logits, teacher_logits: [tokens, vocabulary], any float dtype; computed in float32. The teacher gets no
            gradient, and may be None where alpha is 1.
        targets: int64 [tokens].

    Returns:
        [tokens] float32.
    """
    student = student_logits.float()
    parts = torch.zeros(len(targets), device=student.device)
    if alpha < 1:
        q, p = (x.float().div(temperature).log_softmax(-1) for x in (student, teacher_logits.detach()))
        parts = parts + (1 - alpha) * temperature**2 * _divergence(p, q, loss, beta)
    if alpha > 0:
        parts = parts + alpha * F.cross_entropy(student, targets, reduction="none")
    return parts


def top_k_loss(
    student_logits: Tensor, ids: Tensor, log_probs: Tensor, targets: Tensor, *, alpha: float = 0.0
) -> Tensor:
    """``token_loss`` with forward KL and temperature 1, of a teacher of which only some tokens are known by name.

    The divergence is taken over buckets: one for each known token, and one for all others together.

    Args:
        student_logits: [tokens, vocabulary], any float dtype; computed in float32.
        ids: int64 [tokens, k], the tokens that are known.
        log_probs: float32 [tokens, k + 1], the teacher's for these and for the others; [tokens, k] if k is the whole
            vocabulary.
        targets: int64 [tokens].

    Returns:
        [tokens] float32.
    """
    student = student_logits.float()
    buckets = student.gather(1, ids)
    if log_probs.shape[1] > ids.shape[1]:
        # The sum of the others itself: 1 minus the known would be rounded away where these are nearly everything.
        others = student.scatter(1, ids, -torch.inf).logsumexp(-1, keepdim=True)
        buckets = torch.cat([buckets, others], dim=1)
    whole = buckets.logsumexp(-1, keepdim=True)
    cross_entropy = (whole - student.gather(1, targets[:, None]))[:, 0]
    return (1 - alpha) * _kl(log_probs, buckets - whole) + alpha * cross_entropy


def _divergence(p: Tensor, q: Tensor, loss: str, beta: float) -> Tensor:
    """Of log-probabilities [tokens, vocabulary], teacher p and student q: [tokens] nats."""
    if loss == "forward_kl":
        return _kl(p, q)
    if loss == "reverse_kl":
        return _kl(q, p)
    mean = torch.logaddexp(p + math.log(beta), q + math.log(1 - beta))
    return beta * _kl(p, mean) + (1 - beta) * _kl(q, mean)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return F.kl_div(q, p, log_target=True, reduction="none").sum(-1)


def batch_loss(student: Architecture, teacher: Architecture, batch: Batch, **options: object) -> Tensor:
    """The sum of ``token_loss`` over a batch's predicted tokens, in chunks; a scalar that can be differentiated.

    Where ``alpha`` is 1, the teacher has no say and isn't run.

    Args:
        options: of ``token_loss``.
    """
    if options.get("alpha") == 1:
        return loss_in_chunks(student, batch, lambda part, own, targets: token_loss(own, None, targets, **options))
    with torch.no_grad():
        known = teacher.hidden_states(batch)[:, :-1][batch.predicted]  # [predicted tokens, hidden]

    def loss(part: slice, own: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            answers = teacher.logits(known[part])
        return token_loss(own, answers, targets, **options)

    return loss_in_chunks(student, batch, loss)


def loss_in_chunks(student: Architecture, batch: Batch, loss: Callable[[slice, Tensor, Tensor], Tensor]) -> Tensor:
    """The sum of a loss over a batch's predicted tokens; all of a batch's logits never exist at once.

    Args:
        loss: ``loss(part, logits, targets)`` for some of the predicted tokens (counted row by row): the student's
            logits [tokens, vocabulary] and the true tokens, int64 [tokens]. Returns [tokens].

    Returns:
        A scalar that can be differentiated, by everything in the student that requires a gradient.
    """
    predicted = batch.predicted
    targets = batch.input_ids[:, 1:][predicted]
    states = student.hidden_states(batch)[:, :-1][predicted]
    size = student.chunk_size

    def chunk_loss(start: int, some: Tensor) -> Tensor:
        part = slice(start, start + len(some))
        return loss(part, student.logits(some), targets[part]).sum()

    if not torch.is_grad_enabled():
        return sum(chunk_loss(number * size, some) for number, some in enumerate(states.split(size)))
    trained = [weight for weight in student.head.parameters() if weight.requires_grad]
    return _ChunkByChunk.apply(states, size, chunk_loss, *trained)


class _ChunkByChunk(torch.autograd.Function):
    """The sum of a loss over chunks of hidden states, whose gradients are taken on the way.

    So each chunk's logits live once, and the backward pass only scales what is there (as Liger's fused linear
    cross-entropy does, Hsu et al. 2024, arXiv 2410.10989).
    """

    @staticmethod
    def forward(ctx, states: Tensor, size: int, loss: Callable[[int, Tensor], Tensor], *weights: Tensor) -> Tensor:
        total = torch.zeros((), device=states.device)
        to_states, to_weights = [], [torch.zeros_like(weight) for weight in weights]
        for number, some in enumerate(states.split(size)):
            with torch.enable_grad():
                some = some.detach().requires_grad_()
                value = loss(number * size, some)
            total += value.detach()
            first, *others = torch.autograd.grad(value, [some, *weights])
            to_states.append(first)
            for so_far, gradient in zip(to_weights, others, strict=True):
                so_far += gradient
        ctx.save_for_backward(torch.cat(to_states), *to_weights)
        return total

    @staticmethod
    def backward(ctx, scale: Tensor) -> tuple:
        to_states, *to_weights = ctx.saved_tensors
        return scale * to_states, None, None, *(scale * gradient for gradient in to_weights)

"""Losses that pull a student's predictions toward its teacher's, without ever holding all logits.

Logits for every token of a batch are its largest tensors: batch x length x vocabulary, in float32, several times over.
Here the heads run on a few hundred tokens at a time, and a chunk's gradients are taken before the next one begins.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from course_utils.architectures import Architecture
from course_utils.batches import Batch

LOSSES = ("forward_kl", "reverse_kl", "jsd")
_LOGITS = 2**23  # numbers in one chunk of logits: 32 MiB in float32, of which a handful exist at once


def token_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    targets: Tensor,
    *,
    loss: str = "forward_kl",
    temperature: float = 1.0,
    alpha: float = 0.0,
) -> Tensor:
    """The loss of each token: ``(1 - alpha) x temperature² x divergence + alpha x cross-entropy``.

    Divergences of the distributions at ``temperature``, teacher p and student q: "forward_kl" KL(p || q) (Hinton et al.
    2015, arXiv 1503.02531), "reverse_kl" KL(q || p) (Gu et al. 2024, arXiv 2306.08543), "jsd" the Jensen-Shannon
    divergence, half of each to their mean (Agarwal et al. 2024, arXiv 2306.13649, with beta 1/2). The factor
    temperature² keeps the gradient's size about the same at every temperature. The cross-entropy is at temperature 1.

    Args:
        student_logits, teacher_logits: [tokens, vocabulary], any float dtype; computed in float32. The teacher gets no
            gradient.
        targets: int64 [tokens].

    Returns:
        [tokens] float32.
    """
    student, teacher = student_logits.float(), teacher_logits.detach().float()
    parts = torch.zeros(len(targets), device=student.device)
    if alpha < 1:
        q, p = (logits.div(temperature).log_softmax(-1) for logits in (student, teacher))
        parts = parts + (1 - alpha) * temperature**2 * _divergence(p, q, loss)
    if alpha > 0:
        parts = parts + alpha * F.cross_entropy(student, targets, reduction="none")
    return parts


def _divergence(p: Tensor, q: Tensor, loss: str) -> Tensor:
    """Of log-probabilities [tokens, vocabulary], teacher p and student q: [tokens] nats."""
    if loss == "forward_kl":
        return _kl(p, q)
    if loss == "reverse_kl":
        return _kl(q, p)
    mean = torch.logaddexp(p, q) - torch.log(torch.tensor(2.0))
    return (_kl(p, mean) + _kl(q, mean)) / 2


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return F.kl_div(q, p, log_target=True, reduction="none").sum(-1)


def batch_loss(student: Architecture, teacher: Architecture, batch: Batch, **options: object) -> Tensor:
    """The sum of ``token_loss`` over a batch's predicted tokens, in chunks; a scalar that can be differentiated.

    Args:
        options: of ``token_loss``.
    """
    predicted = predicted_positions(batch)
    targets = batch.input_ids[:, 1:][predicted]
    with torch.no_grad():
        known = teacher.hidden_states(batch)[:, :-1][predicted]  # [predicted tokens, hidden]
    states = student.hidden_states(batch)[:, :-1][predicted]
    size = max(1, _LOGITS // student.vocab_size)

    def chunk_loss(number: int, some: Tensor) -> Tensor:
        with torch.no_grad():
            answers = teacher.logits(known.split(size)[number])
        return token_loss(student.logits(some), answers, targets.split(size)[number], **options).sum()

    if not torch.is_grad_enabled():
        return sum(chunk_loss(number, some) for number, some in enumerate(states.split(size)))
    return _ChunkByChunk.apply(states, size, chunk_loss, *student.head.parameters())


def predicted_positions(batch: Batch) -> Tensor:
    """Bool [rows, length - 1]: where a real token is predicted from a real token."""
    return batch.real[:, 1:] & batch.real[:, :-1]


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
                value = loss(number, some)
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

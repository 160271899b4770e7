"""Losses that pull a student's predictions toward its teacher's, without ever holding all logits.

The logits of all tokens of a batch are its largest tensors: batch x length x vocabulary, in float32, several times.
So the heads run on a few hundred tokens at a time, and a chunk's gradients are taken before the next one begins.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from course_utils.healing.distillation.teacher_states import TeacherStates
from course_utils.models.architectures import Architecture
from course_utils.support import checks
from course_utils.support.checks import check_types
from course_utils.support.uncertainty import kl_divergence
from course_utils.text.batches import Batch


@check_types
def token_loss(student_logits: Tensor, teacher_logits: Tensor | None, targets: Tensor, *, alpha: float = 0.0) -> Tensor:
    """The loss of each token: ``(1 - alpha) * KL(p || q) - alpha * log q(target)``, teacher p and student q.

    Hinton et al. 2015 (arXiv 1503.02531, section 2) at temperature 1: their cross-entropy with the teacher's answers,
    ``-Σ p log q``, is ``KL(p || q)`` and the teacher's own entropy, which has no gradient.

    Args:
        student_logits: [tokens, vocabulary], any float dtype; computed in float32.
        teacher_logits: as the student's, without a gradient; may be None where ``alpha`` is 1.
        targets: int64 [tokens].
        alpha: the cross-entropy's share, from 0 to 1.

    Returns:
        [tokens] float32.

    Raises:
        ValueError: no teacher's logits, though ``alpha`` is below 1.
    """
    checks.share("alpha", alpha)
    student = student_logits.float()
    parts = torch.zeros(len(targets), device=student.device)
    if alpha < 1:
        if teacher_logits is None:
            raise ValueError(f"Without 'teacher_logits' 'alpha' must be 1, cross-entropy alone; got {alpha!r}.")
        log_q, log_p = (x.log_softmax(-1) for x in (student, teacher_logits.detach().float()))
        parts = parts + (1 - alpha) * kl_divergence(log_p, log_q)
    if alpha > 0:
        parts = parts + alpha * F.cross_entropy(student, targets, reduction="none")
    return parts


def batch_loss(
    student: Architecture, teacher: Architecture | TeacherStates, batch: Batch, *, alpha: float = 0.0
) -> Tensor:
    """The sum of ``token_loss`` over a batch's predicted tokens; all of a batch's logits never exist at once.

    The scalar can be differentiated by everything in the student that requires a gradient. Where ``alpha``, the
    cross-entropy's share, is 1, the teacher isn't run.
    """

    def loss(logits: Tensor, targets: Tensor, *of_teacher: Tensor) -> Tensor:
        with torch.no_grad():
            teacher_logits = teacher.logits(*of_teacher) if of_teacher else None  # [chunk, vocabulary]
        return token_loss(logits, teacher_logits, targets, alpha=alpha)

    known = [batch.input_ids[:, 1:][batch.predicted]]  # targets [tokens], and the teacher's states [tokens, hidden]
    if alpha < 1:
        with torch.no_grad():
            known.append(teacher.states(batch) if isinstance(teacher, TeacherStates) else _states(teacher, batch))
    states = _states(student, batch)
    if not torch.is_grad_enabled():
        sums = (loss(student.logits(chunk), *others).sum() for chunk, *others in student.chunks(states, *known))
        return sum(sums, torch.zeros((), device=states.device))
    trained = [weight for weight in student.head.parameters() if weight.requires_grad]
    return _ChunkByChunk.apply(states, student, loss, known, *trained)


def _states(model: Architecture, batch: Batch) -> Tensor:
    """The hidden states from which the batch's tokens are predicted: [tokens, hidden]."""
    return model.hidden_states(batch)[:, :-1][batch.predicted]


class _ChunkByChunk(torch.autograd.Function):
    """The sum of a loss over chunks of hidden states, whose gradients are taken on the way.

    So each chunk's logits live once, and the backward pass only scales what is there (as Liger's fused linear
    cross-entropy does, Hsu et al. 2024, arXiv 2410.10989).
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        student: Architecture,
        loss: Callable[..., Tensor],
        known: list[Tensor],
        *weights: Tensor,
    ) -> Tensor:
        total = torch.zeros((), device=states.device)
        to_states, to_weights = [], [torch.zeros_like(weight) for weight in weights]
        for chunk, *others in student.chunks(states, *known):
            with torch.enable_grad():
                chunk = chunk.detach().requires_grad_()  # [chunk, hidden]
                value = loss(student.logits(chunk), *others).sum()
            total += value.detach()
            to_chunk, *gradients = torch.autograd.grad(value, [chunk, *weights])
            to_states.append(to_chunk)
            for so_far, gradient in zip(to_weights, gradients, strict=True):
                so_far += gradient
        ctx.save_for_backward(torch.cat(to_states), *to_weights)
        return total

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        to_states, *to_weights = ctx.saved_tensors
        return scale * to_states, None, None, None, *(scale * gradient for gradient in to_weights)

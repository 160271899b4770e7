"""How far one distribution lies from another: what methods, losses and measurements share."""

from __future__ import annotations

from torch import Tensor

from course_utils.support.argument_types import check_types


@check_types
def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q): the nats a token that it costs to expect q where p is true. 0 where both agree, never less.

    ``Σ p (log p - log q)`` (Kullback and Leibler 1951).

    Args:
        log_p: log-probabilities [..., vocabulary], all finite; give at least float32.
        log_q: of the same shape.

    Returns:
        [...] in the dtype of the arguments; can be differentiated by both.

    >>> import torch
    >>> p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75])
    >>> round(kl_divergence(p.log(), q.log()).item(), 4)
    0.1438
    """
    return (log_p.exp() * (log_p - log_q)).sum(-1)

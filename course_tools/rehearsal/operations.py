"""Operations that the pretended card computes in its own way: attention as a T4 chooses it, large products shortened.

Attention is memory-efficient, or written out where query heads share keys (grouped-query attention without a mask).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from course_tools.rehearsal.card import Ledger

_aten = torch.ops.aten
_MATH, _EFFICIENT = 0, 2  # numbers of torch's attention kernels
_MANY_SCORES = 2**23  # of attention, from which on writing them out takes the processor too long
_BYTES_A_SCORE = 13  # when they are: scores, softmax and its repaired copy in float32, and a mask
_LARGE = 256  # sides of a matrix from which on a product is worth a shortcut
_SAMPLED = 32  # one summand of so many is added up


@dataclass
class Running:
    """What an operation has to know of the card that it runs on.

    Attributes:
        ledger: of the card.
        sampled: large products of matrices add up a sample of their summands.
        training: whether the present operation's inputs are to get gradients.
    """

    ledger: Ledger
    sampled: bool = False
    training: bool = False


def _choose_attention(
    running: Running, query: Tensor, key: Tensor, value: Tensor, *args: Any, enable_gqa: bool = False, **kwargs: Any
) -> int:
    """Shared keys have it written out; without training a large one is only counted so, see `_attend`."""
    scores = query.numel() // query.shape[-1] * key.shape[-2]
    shared = query.shape[-3] != key.shape[-3]
    return _MATH if shared and (running.training or scores <= _MANY_SCORES) else _EFFICIENT


def _attend(
    running: Running,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    compute_log_sumexp: bool,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Tensor, ...]:
    sharing = query.shape[-3] // key.shape[-3]
    if sharing > 1:
        scores = query.numel() // query.shape[-1] * key.shape[-2]
        running.ledger.pass_by(_BYTES_A_SCORE * scores + 4 * (2 * query.numel() + 2 * sharing * key.numel()))
        key, value = (tensor.repeat_interleave(sharing, -3) for tensor in (key, value))
    out, sums = _aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, dropout_p, is_causal, attn_mask=bias, scale=scale
    )
    nothing = torch.zeros((), dtype=torch.int64)
    return out, sums, nothing, nothing.clone()


def _attend_backward(
    running: Running,
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    out: Tensor,
    sums: Tensor,
    _seed: Tensor,
    _offset: Tensor,
    dropout_p: float,
    _wanted: list[bool],
    is_causal: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Tensor | None, ...]:
    grads = _aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad, query, key, value, out, sums, dropout_p, is_causal, attn_mask=bias, scale=scale
    )
    return (*grads, None)


def _sampled(running: Running, a: Tensor, b: Tensor) -> Tensor:
    """A @ b; in large ones some of the summands may stand for all. The processor has no fast float16."""
    summands = a.shape[-1]
    if running.sampled and min(summands, b.shape[-1]) >= _LARGE:
        taken = summands // _SAMPLED
        a, b = a[..., :taken] * (summands / taken) ** 0.5, b[..., :taken, :]
    if a.dtype == torch.float16:
        return (a.float() @ b.float()).to(torch.float16)
    return a @ b


def _mm(running: Running, a: Tensor, b: Tensor) -> Tensor:
    return _sampled(running, a, b)


def _addmm(running: Running, added: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    if min(*a.shape, *b.shape) < _LARGE and a.dtype != torch.float16:
        return torch.addmm(added, a, b, beta=beta, alpha=alpha)
    return beta * added + alpha * _sampled(running, a, b)


#: the card's own way, called with `Running` and the operation's arguments
REPLACED: dict[Callable, Callable] = {
    _aten._fused_sdp_choice.default: _choose_attention,
    _aten._scaled_dot_product_efficient_attention.default: _attend,
    _aten._scaled_dot_product_efficient_attention_backward.default: _attend_backward,
    _aten.mm.default: _mm,
    _aten.bmm.default: _mm,
    _aten.addmm.default: _addmm,
}

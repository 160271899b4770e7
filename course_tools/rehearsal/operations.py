"""Operations that the pretended card computes in its own way: attention as a T4 chooses it, large products shortened.

Attention is memory-efficient, or written out where query heads share keys (grouped-query attention without a mask).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from course_tools.rehearsal.card import Ledger

_aten = torch.ops.aten
_MANY_SCORES = 2**20  # of attention, from which on writing them out takes the processor too long
_BYTES_A_SCORE = 13  # when they are: scores, softmax and its repaired copy in float32, and a mask
_LARGE = 256  # sides of a matrix from which on a product is worth a shortcut
_SAMPLED = 32  # one summand of so many is added up


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """torch's, by the kernel that it would choose on a T4; for a device that it doesn't know it knows one kernel.

    Shared keys have it written out; without training a large one is only counted so, see `_attend`.
    """
    scores = _scores(query, key)
    training = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
    if query.shape[-3] != key.shape[-3] and (training or scores <= _MANY_SCORES):
        return torch._C._nn.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    bias = attn_mask
    if bias is not None:
        if bias.dtype == torch.bool:
            bias = torch.zeros_like(bias, dtype=query.dtype).masked_fill_(~bias, -torch.inf)
        bias = bias.expand(*query.shape[:-1], key.shape[-2])
    return _aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, training, dropout_p, is_causal, scale=scale
    )[0]


def _scores(query: Tensor, key: Tensor) -> int:
    """How many there are: one for each query and key, of each row and head."""
    return query.numel() // query.shape[-1] * key.shape[-2]


def _attend(
    ledger: Ledger,
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
    scores = _scores(query, key)
    sharing = query.shape[-3] // key.shape[-3]
    sample = not compute_log_sumexp and scores > _MANY_SCORES
    if sharing > 1:
        ledger.pass_by(_BYTES_A_SCORE * scores + 4 * (2 * query.numel() + 2 * sharing * key.numel()))
        key, value = (tensor.repeat_interleave(sharing, -3) for tensor in (key, value))
    if sample:
        key, value = key[..., ::_SAMPLED, :], value[..., ::_SAMPLED, :]
        bias = None if bias is None else bias[..., ::_SAMPLED].contiguous()
    wide, bias = [_widened(tensor) for tensor in (query, key, value)], _widened(bias)
    out, sums = _aten._scaled_dot_product_flash_attention_for_cpu(
        *wide, dropout_p, is_causal, attn_mask=bias, scale=scale
    )
    if sample:
        out.nan_to_num_()  # where the mask hides all of the sample
    nothing = torch.zeros((), dtype=torch.int64)
    return out.to(query.dtype), sums, nothing, nothing.clone()


def _attend_backward(
    ledger: Ledger,
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
    wide = [_widened(tensor) for tensor in (grad, query, key, value, out)]
    grads = _aten._scaled_dot_product_flash_attention_for_cpu_backward(
        *wide, sums, dropout_p, is_causal, attn_mask=_widened(bias), scale=scale
    )
    return (*(of.to(query.dtype) for of in grads), None)


def _widened(tensor: Tensor | None) -> Tensor | None:
    """float16 as float32: the processor has no fast float16."""
    return tensor.float() if tensor is not None and tensor.dtype == torch.float16 else tensor


def _mm(_ledger: Ledger, a: Tensor, b: Tensor) -> Tensor:
    """A @ b; in large ones some of the summands stand for all."""
    summands = a.shape[-1]
    if min(summands, b.shape[-1]) >= _LARGE:
        taken = summands // _SAMPLED
        a, b = a[..., :taken] * (summands / taken) ** 0.5, b[..., :taken, :]
    return (_widened(a) @ _widened(b)).to(a.dtype)


def _addmm(ledger: Ledger, added: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    if min(*a.shape, *b.shape) < _LARGE and a.dtype != torch.float16:
        return torch.addmm(added, a, b, beta=beta, alpha=alpha)
    return beta * added + alpha * _mm(ledger, a, b)


def _histc(_ledger: Ledger, values: Tensor, *bins: float) -> Tensor:
    """Of whole numbers too, which the card counts and the processor doesn't: how many tokens each expert gets."""
    return _aten.histc.default(values.float(), *bins).to(values.dtype)


#: the card's own way, called with the card's ledger and the operation's arguments
REPLACED: dict[Callable, Callable] = {
    _aten._scaled_dot_product_efficient_attention.default: _attend,
    _aten._scaled_dot_product_efficient_attention_backward.default: _attend_backward,
    _aten.mm.default: _mm,
    _aten.bmm.default: _mm,
    _aten.addmm.default: _addmm,
    _aten.histc.default: _histc,
}

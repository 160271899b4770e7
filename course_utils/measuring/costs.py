"""What a pass through a model costs in operations and bytes, counted from shapes, and the speed-up to expect.

Nothing is measured here, so a model on the "meta" device, built from a configuration alone, will do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from course_utils.models.architectures import describe
from course_utils.models.reports import model_size
from course_utils.support import checks
from course_utils.support.checks import check_types

PHASES = ("prefill", "decode")


@dataclass(frozen=True)
class Work:
    """What a phase asks of a machine: reading a batch of prompts, or generating so many tokens after them.

    Attributes:
        weight_bytes: weights read, once a pass.
        cache_bytes: keys and values of earlier tokens that are read, over all passes.
        operations: floating-point operations, two a multiplication with addition.
    """

    weight_bytes: int
    cache_bytes: int
    operations: float


def flops_per_token(model: PreTrainedModel, context: int = 0, *, head: str = "every") -> float:
    """Floating-point operations per token, averaged over one causal pass over ``context`` tokens.

    Each weight of a matrix costs a multiplication and an addition; so does each number of each query with each key
    and of each attention weight with each value, of which a causal pass has ``context / 2`` per token on average:
    ``2 x weights + 2 x context x (heads x head size, summed over the attentions)``. Norms, activations and the
    embedding look-up are left out. Sliding windows are counted as full attention.

    Args:
        model: any model that ``describe`` knows.
        context: tokens in the pass; 0 leaves the attention's own products out.
        head: "every" applies the head to every token (as in training or scoring), "last" to the last one only
            (as ``generate()`` does with a prompt).

    Raises:
        ValueError: another ``head``, or a negative context; with "last" a context below 1.
    """
    checks.one_of("head", head, ("every", "last"))
    checks.whole_number("context", context, least=1 if head == "last" else 0)
    architecture = describe(model)
    flops = float(model_size(model).flops + 2 * context * sum(a.query_width for a in architecture.attentions))
    if head == "last":
        flops -= 2 * cast(Tensor, architecture.head.weight).numel() * (1 - 1 / context)
    return flops


@check_types
def kv_bytes_per_token(model: PreTrainedModel) -> int:
    """Bytes that each token adds to the key/value cache, in the model's own dtype, until a sliding window is full."""
    return model.dtype.itemsize * sum(a.key_value_width for a in describe(model).attentions)


def _cache_bytes(model: PreTrainedModel, tokens: int) -> int:
    """Bytes of the keys and values that a text of so many tokens leaves for the next one, in the model's own dtype."""
    attentions, numbers = describe(model).attentions, 0
    layers = DynamicCache(config=model.config).layers  # it knows which of the blocks have a window
    for attention, layer in zip(attentions, layers, strict=True):
        window = getattr(layer, "sliding_window", None)
        # a window keeps one token less than it is wide, because the next token sees itself as well
        numbers += attention.key_value_width * (tokens if window is None else min(tokens, window - 1))
    return model.dtype.itemsize * numbers


def _weights_read(model: PreTrainedModel) -> int:
    """Bytes of weights that have to be read to generate one more token: each once, a head tied to the embedding too.

    An embedding that is only looked up (GPT-2's positions, an untied input embedding) doesn't count, and neither do the
    weights of a bypassed attention, which stay in memory but at rest.
    """
    architecture = describe(model)
    head = architecture.head.weight
    unread = {m.weight for m in model.modules() if isinstance(m, nn.Embedding) and m.weight is not head}
    for attention in architecture.attentions:
        if attention.skipped:
            unread.update(w for part in (attention.module, *attention.norms) for w in part.parameters())
    return model_size(model).bytes - sum(w.numel() * w.element_size() for w in unread)


def work(model: PreTrainedModel, phase: str, *, prompt_tokens: int, new_tokens: int = 1, batch_size: int = 1) -> Work:
    """What a phase of ``benchmarking.measure_speed`` asks of a machine.

    "prefill" reads ``batch_size`` prompts of ``prompt_tokens``, the head at the last token only; "decode" generates
    ``new_tokens`` after each, one pass per token, behind a cache of its mean length.

    Raises:
        ValueError: another phase, or a size below 1.
    """
    checks.one_of("phase", phase, PHASES)
    sizes = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "batch_size": batch_size}
    for name, size in sizes.items():
        checks.whole_number(name, size, least=1)
    passes = 1 if phase == "prefill" else new_tokens
    if phase == "prefill":
        cache, operations = 0, batch_size * prompt_tokens * flops_per_token(model, prompt_tokens, head="last")
    else:
        context = prompt_tokens + new_tokens // 2
        cache = passes * batch_size * _cache_bytes(model, context)
        # A new token meets the whole cache, twice what a causal pass meets on average: hence 2 x context.
        operations = passes * batch_size * flops_per_token(model, 2 * context)
    return Work(weight_bytes=passes * _weights_read(model), cache_bytes=cache, operations=operations)


@check_types
def speedup_estimate(before: Work, after: Work) -> float:
    """How many times as fast ``after`` should be if only bytes, or only operations, took time: the larger ratio.

    It is no ceiling: a framework spends time on each layer that neither stands for (launching kernels, copying the
    cache), so leaving whole layers out can gain more.
    """
    byte_ratio = (before.weight_bytes + before.cache_bytes) / (after.weight_bytes + after.cache_bytes)
    return max(byte_ratio, before.operations / after.operations)


def bytes_held(model: PreTrainedModel, *, tokens: int, batch_size: int = 1) -> int:
    """Bytes that serving needs at least: all weights, and a cache of ``batch_size`` texts of ``tokens`` tokens.

    Nothing can serve with less in the model's own dtype. Activations come on top. Of an adaptive model all attentions
    count, because what a prompt leaves out doesn't show in the shapes.

    Raises:
        ValueError: a negative number of tokens, or ``batch_size`` below 1.
    """
    checks.whole_number("tokens", tokens)
    checks.whole_number("batch_size", batch_size, least=1)
    return model_size(model).bytes + batch_size * _cache_bytes(model, tokens)

"""Attentions left out prompt by prompt: decided at the first forward pass, and kept with the answer's cache.

A row's decision is one number: how many attentions it leaves out, the least important ones first
(``config.adaptive_attention["order"]``). It belongs to the answer, not to the model: the cache carries it, so answers
that alternate on one model don't disturb each other, and beam search, selected rows and a second turn keep it. The
attentions get it as an argument of their forward pass, so one that is computed twice (activation checkpointing) leaves
out the same both times.
"""

from __future__ import annotations

import bisect
import functools
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from .forwards import replace_forward, restore_forward
from .no_attention import skip_attention

# What the running generate() decided, how many attentions each row leaves out; empty before. It belongs to one call, in
# one thread; between calls it is None.
_answer: ContextVar[list[int] | None] = ContextVar("answer", default=None)


def install(model: PreTrainedModel, backbone: nn.Module, attentions: Sequence[nn.Module]) -> None:
    """Let each prompt decide, as ``config.adaptive_attention`` says.

    Args:
        model: the causal language model.
        backbone: the module of it that runs the blocks.
        attentions: one module a block.
    """
    order = model.config.adaptive_attention["order"]
    for rank, layer in enumerate(order):
        attentions[layer].bypass_rank = rank
        replace_forward(attentions[layer], _attend)
    replace_forward(backbone, _decide_and_run)
    model.generate = MethodType(_generate, model)
    model._expand_inputs_for_generation = MethodType(_expand_and_decide, model)
    model.init_continuous_batching = MethodType(_refuse_continuous_batching, model)


def uninstall(model: PreTrainedModel, backbone: nn.Module, attentions: Sequence[nn.Module]) -> None:
    """Undo ``install``: the classes' own methods come back."""
    for attention in attentions:
        if hasattr(attention, "bypass_rank"):
            restore_forward(attention)
            del attention.bypass_rank
    restore_forward(backbone)
    del model.generate, model._expand_inputs_for_generation, model.init_continuous_batching


def embedding_features(embeddings: Tensor) -> Tensor:
    """What one prompt's token embeddings tell: log length and mean variance, float32 [2].

    The variance is taken over the tokens and averaged over the components.

    Args:
        embeddings: [tokens, hidden].
    """
    embeddings = embeddings.float()
    variance = (embeddings - embeddings.mean(0)).square().mean()  # []
    return torch.cat([torch.tensor([len(embeddings)]).log().to(variance), variance[None]])


def complexity(settings: Mapping[str, Any], embeddings: Tensor) -> float:
    """A prompt's score under a policy.

    "length": its tokens. "length_variance": the mean of its two features, each scaled from its low and high calibration
    quantile to 0 and 1 and cut off there.

    Args:
        settings: ``policy`` and ``parameters`` of an ``AdaptiveConfig``.
        embeddings: of the prompt's tokens, [tokens, hidden].
    """
    if settings["policy"] == "length":
        return float(len(embeddings))
    scaled = []
    for value, name in zip(embedding_features(embeddings).tolist(), ("log_length", "variance"), strict=True):
        low, high = settings["parameters"][name]
        scaled.append(min(1.0, max(0.0, (value - low) / (high - low))))
    return 0.5 * sum(scaled)


def _by_complexity(settings: Mapping[str, Any], embeddings: Tensor, real: Tensor | None) -> list[int]:
    """How many attentions each row leaves out, [rows].

    Args:
        settings: an ``AdaptiveConfig`` as a dictionary.
        embeddings: of the prompts' tokens, [rows, tokens, hidden].
        real: bool [rows, tokens], or None where nothing is padded.
    """
    prompts = embeddings if real is None else (row[mask] for row, mask in zip(embeddings, real, strict=True))
    scores = [complexity(settings, prompt) for prompt in prompts]
    return [settings["left_out"][bisect.bisect_right(settings["thresholds"], score)] for score in scores]


class _Carries(Cache):
    """Mixed into the class of an answer's cache: the decision follows the rows."""

    left_out: Tensor  # int64 [rows], on the CPU

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        self.left_out = self.left_out[beam_idx.cpu()]

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self.left_out = self.left_out.repeat_interleave(repeats)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self.left_out = self.left_out[indices.cpu()]


@functools.cache
def _carrying(cache_class: type) -> type:
    return type(cache_class.__name__, (_Carries, cache_class), {})


def _decide_and_run(backbone: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Forward of the model without its head."""
    run = functools.partial(type(backbone).forward, backbone)
    inputs = inspect.signature(run).bind_partial(*args).arguments | kwargs if args else kwargs
    left_out = _known(inputs) or _decide(backbone, inputs)
    output = run(*args, **kwargs, left_out=left_out)
    _remember(_cache_in(inputs) or _cache_in(output), left_out)
    return output


def _known(inputs: Mapping[str, Any]) -> list[int] | None:
    """How many attentions each row leaves out, where that was decided before: by its cache, or its ``generate``."""
    cache = _cache_in(inputs)
    if cache is None or cache.get_seq_length() == 0:
        known = _answer.get()
    elif isinstance(cache, _Carries):
        known = cache.left_out.tolist()
    else:
        raise ValueError(
            "This cache was filled by a model that doesn't decide per prompt, so it says nothing about which "
            "attentions its text left out. Start the answer with a new cache."
        )
    ids = inputs.get("input_ids")
    rows = len(inputs["inputs_embeds"] if ids is None else ids)
    if known and len(known) != rows:
        raise ValueError(f"The answer's cache holds {len(known)} rows, this forward pass {rows}.")
    return known


@torch.no_grad()
def _decide(model: nn.Module, inputs: Mapping[str, Any]) -> list[int]:
    """How many attentions each row leaves out, from the whole prompts."""
    embeddings = inputs.get("inputs_embeds")
    if embeddings is None:
        embeddings = model.get_input_embeddings()(inputs["input_ids"])  # [rows, tokens, hidden]
    real = _real_tokens(inputs.get("attention_mask"), embeddings.shape[1])
    return _by_complexity(model.config.adaptive_attention, embeddings, real)


def _remember(cache: Cache | None, left_out: Sequence[int]) -> None:
    """Let the answer's cache carry the decision."""
    if cache is not None:
        if not isinstance(cache, _Carries):
            cache.__class__ = _carrying(cache.__class__)
        cache.left_out = torch.tensor(left_out)


def _real_tokens(mask: Tensor | Mapping[str, Tensor | None] | None, length: int) -> Tensor | None:
    """Bool [rows, tokens] or None, from any mask that transformers hands over at a prompt's first forward pass."""
    if isinstance(mask, Mapping):  # one for each kind of attention; all know the same padding
        mask = next((known for known in mask.values() if known is not None), None)
    if mask is None or mask.dim() == 2:
        return None if mask is None else mask.bool()
    # [rows, 1, tokens, length of the cache], of static caches: a real token sees itself.
    itself = mask[:, 0, :, :length].diagonal(dim1=1, dim2=2)  # [rows, tokens]
    return itself if itself.dtype is torch.bool else itself == 0


def _attend(attention: nn.Module, *args: Any, left_out: Sequence[int] = (), **kwargs: Any) -> Any:
    """Forward of one attention: for the rows that leave it out, it adds exactly zero."""
    skipped = [count > attention.bypass_rank for count in left_out]
    if skipped and all(skipped):
        return skip_attention(attention, *args, **kwargs)
    output = type(attention).forward(attention, *args, **kwargs)
    if not any(skipped):
        return output
    states = output[0] if isinstance(output, tuple) else output  # [rows, tokens, hidden]
    rows = torch.tensor(skipped, device=states.device)[:, None, None]
    states = states.masked_fill(rows, 0)
    return (states, *output[1:]) if isinstance(output, tuple) else states


def _generate(model: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
    with _set(_answer, []):
        return type(model).generate(model, *args, **kwargs)


def _refuse_continuous_batching(_model: PreTrainedModel, *_args: Any, **_kwargs: Any) -> None:
    raise ValueError(
        "An adaptive model decides for each prompt, and continuous batching packs prompts into one row. Give "
        "generate() a padded batch, or take the decision away with make_adaptive(model, None)."
    )


def _expand_and_decide(model: PreTrainedModel, *args: Any, **kwargs: Any) -> tuple[Tensor, dict[str, Any]]:
    """The rows that ``generate`` is about to work on. Only here it has whole prompts, and no drafts behind them."""
    expand = inspect.getattr_static(type(model), "_expand_inputs_for_generation")
    ids, inputs = expand.__get__(model)(*args, **kwargs)  # a static method, on the way to transformers 5.24 no more
    cache, answer = _cache_in(inputs), _answer.get()
    if answer is not None and (cache is None or cache.get_seq_length() == 0):
        near = ids if model.device.type == "meta" else ids.to(model.device)  # generate() takes ids from elsewhere too
        answer[:] = _decide(model, {"input_ids": near, **inputs})
    return ids, inputs


def _cache_in(values: Mapping[str, Any] | tuple) -> Cache | None:
    """The cache among a forward pass's arguments or outputs, whatever it is called."""
    values = values if isinstance(values, tuple) else tuple(values.values())
    return next((value for value in values if isinstance(value, Cache)), None)


@contextmanager
def _set(variable: ContextVar, value: list[int]) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)

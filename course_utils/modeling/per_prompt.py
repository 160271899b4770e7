"""Attentions left out prompt by prompt: decided at the first forward pass, and kept with the answer's cache.

A row's decision is one number: how many attentions it leaves out, the least important ones first
(``config.adaptive_attention["order"]``). It belongs to the answer, not to the model: the cache carries it, so answers
that alternate on one model don't disturb each other, and beam search, selected rows and a second turn keep it.
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

# Both belong to one call, in one thread; between calls they are None.
# The running forward pass: how many attentions each row leaves out.
_left_out: ContextVar[list[int] | None] = ContextVar("left_out", default=None)
# The running generate(): the same, as its first forward pass decided; empty until then.
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


def uninstall(model: PreTrainedModel, backbone: nn.Module, attentions: Sequence[nn.Module]) -> None:
    """Undo ``install``: the classes' own methods come back."""
    for attention in attentions:
        if hasattr(attention, "bypass_rank"):
            restore_forward(attention)
            del attention.bypass_rank
    restore_forward(backbone)
    del model.generate


def embedding_features(embeddings: Tensor) -> Tensor:
    """What one prompt's token embeddings tell: log length, mean variance, and their mean, float32 [2 + hidden].

    The variance is taken over the tokens and averaged over the components.

    Args:
        embeddings: [tokens, hidden].
    """
    embeddings = embeddings.float()
    mean = embeddings.mean(0)  # [hidden]
    variance = (embeddings - mean).square().mean()  # []
    return torch.cat([torch.tensor([len(embeddings)]).log().to(mean), variance[None], mean])


def complexity(settings: Mapping[str, Any], features: Tensor) -> float:
    """A prompt's score; the more, the more attentions it keeps.

    Policy "length_variance": the two features, each scaled from its low and high calibration quantile to 0 and 1 and
    cut off there, and added with their weights (a half each, unless ``parameters`` says otherwise). Policy "fitted": a
    linear function of all features.

    Args:
        settings: ``policy`` and ``parameters`` of an ``AdaptiveConfig``.
        features: [2 + hidden], from ``embedding_features``.
    """
    parameters = settings["parameters"]
    if settings["policy"] == "fitted":
        weights = torch.tensor(parameters["weights"], dtype=torch.float64)
        return float(features.double().cpu() @ weights + parameters["intercept"])
    score, weights = 0.0, parameters.get("weights", (0.5, 0.5))
    for value, name, weight in zip(features[:2].tolist(), ("log_length", "variance"), weights, strict=True):
        low, high = parameters[name]
        score += weight * min(1.0, max(0.0, (value - low) / (high - low)))
    return score


def decide(settings: Mapping[str, Any], embeddings: Tensor, real: Tensor | None) -> list[int]:
    """How many attentions each row leaves out, [rows].

    Args:
        settings: an ``AdaptiveConfig`` as a dictionary.
        embeddings: of the prompts' tokens, [rows, tokens, hidden].
        real: bool [rows, tokens], or None where nothing is padded.
    """
    prompts = embeddings if real is None else (row[mask] for row, mask in zip(embeddings, real, strict=True))
    scores = [complexity(settings, embedding_features(prompt)) for prompt in prompts]
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
    arguments = inspect.signature(run).bind(*args, **kwargs).arguments if args else kwargs
    cache, answer = _cache_in(*args, *kwargs.values()), _answer.get()
    left_out = _decision(backbone, arguments, cache, answer)
    given = arguments.get("input_ids")
    rows = len(arguments["inputs_embeds"] if given is None else given)
    if len(left_out) != rows:
        raise ValueError(f"The answer's cache holds {len(left_out)} rows, this forward pass {rows}.")
    with _set(_left_out, left_out):
        output = run(*args, **kwargs)
    if answer is not None:
        answer[:] = left_out
    cache = cache or _cache_in(*(output if isinstance(output, tuple) else output.values()))
    if cache is not None:
        if not isinstance(cache, _Carries):
            cache.__class__ = _carrying(cache.__class__)
        cache.left_out = torch.tensor(left_out)
    return output


def _decision(
    backbone: nn.Module, arguments: Mapping[str, Any], cache: Cache | None, answer: list[int] | None
) -> list[int]:
    """How many attentions each row of a forward pass leaves out: what was decided before, or else its own decision."""
    if cache is not None and cache.get_seq_length() > 0:  # the text goes on, and its cache knows
        if not isinstance(cache, _Carries):
            raise ValueError(
                "This cache was filled by a model that doesn't decide per prompt, so it says nothing about which "
                "attentions its text left out. Start the answer with a new cache."
            )
        return cache.left_out.tolist()
    if answer:  # generating without a cache: the text grows, the decision stays
        return list(answer)
    embeddings = arguments.get("inputs_embeds")  # a prompt's first forward pass
    if embeddings is None:
        embeddings = backbone.get_input_embeddings()(arguments["input_ids"])  # [rows, tokens, hidden]
    real = _real_tokens(arguments.get("attention_mask"), embeddings.shape[1])
    return decide(backbone.config.adaptive_attention, embeddings, real)


def _real_tokens(mask: Tensor | Mapping[str, Tensor | None] | None, length: int) -> Tensor | None:
    """Bool [rows, tokens] or None, from any mask that transformers hands over at a prompt's first forward pass."""
    if isinstance(mask, Mapping):  # one for each kind of attention; all know the same padding
        mask = next((known for known in mask.values() if known is not None), None)
    if mask is None or mask.dim() == 2:
        return None if mask is None else mask.bool()
    # [rows, 1, tokens, length of the cache], of static caches: a real token sees itself.
    itself = mask[:, 0, :, :length].diagonal(dim1=1, dim2=2)  # [rows, tokens]
    return itself if itself.dtype is torch.bool else itself == 0


def _attend(attention: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Forward of one attention: for the rows that leave it out, it adds exactly zero."""
    left_out = _left_out.get() or []
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


def _cache_in(*values: Any) -> Cache | None:
    return next((value for value in values if isinstance(value, Cache)), None)


@contextmanager
def _set(variable: ContextVar, value: list[int]) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)

"""Attentions left out prompt by prompt: decided at the first forward pass, and kept with the answer's cache.

A row's decision is one number: how many attentions it leaves out, the least important ones first
(``config.adaptive_attention["order"]``). It belongs to the answer, not to the model: the cache carries it, so answers
that alternate on one model don't disturb each other, and beam search, selected rows and a second turn keep it.
"""

import bisect
import functools
import inspect
from contextlib import contextmanager
from contextvars import ContextVar
from types import MethodType

import torch
from transformers import Cache

from .no_attention import skip_attention

# Both belong to one call, in one thread; between calls they are None.
_left_out = ContextVar("left_out", default=None)  # the running forward pass: how many attentions each row leaves out
_answer = ContextVar("answer", default=None)  # the running generate(): what its first forward pass decided


def install(model, backbone, attentions):
    """Let each prompt decide. ``backbone``: the module that runs the blocks; ``attentions``: one module a block."""
    order = model.config.adaptive_attention["order"]
    for rank, layer in enumerate(order):
        attentions[layer].bypass_rank = rank
        attentions[layer].forward = MethodType(_attend, attentions[layer])
    backbone.forward = MethodType(_decide_and_run, backbone)
    model.generate = MethodType(_generate, model)


def uninstall(model, backbone, attentions):
    """Bring the class's own methods back."""
    for attention in attentions:
        if hasattr(attention, "bypass_rank"):
            del attention.bypass_rank, attention.forward
    del backbone.forward, model.generate


def embedding_features(embeddings):
    """What one prompt's token embeddings [tokens, hidden] tell: log length, mean variance, and their mean [hidden].

    The variance is taken over the tokens and averaged over the components. Everything in float32.
    """
    embeddings = embeddings.float()
    mean = embeddings.mean(0)
    variance = (embeddings - mean).square().mean()
    return torch.cat([torch.tensor([len(embeddings)]).log().to(mean), variance[None], mean])


def complexity(settings, features):
    """A prompt's score, a float; the more, the more attentions it keeps.

    Policy "length_variance": the mean of the two features, each scaled from its low and high calibration quantile to
    0 and 1 and cut off there. Policy "fitted": a linear function of all features.
    """
    parameters = settings["parameters"]
    if settings["policy"] == "fitted":
        weights = torch.tensor(parameters["weights"], dtype=torch.float64)
        return float(features.double().cpu() @ weights + parameters["intercept"])
    scaled = []
    for value, name in zip(features[:2].tolist(), ("log_length", "variance"), strict=True):
        low, high = parameters[name]
        scaled.append(min(1.0, max(0.0, (value - low) / (high - low))))
    return sum(scaled) / 2


def decide(settings, embeddings, real):
    """How many attentions each row leaves out, a list of [rows] integers.

    Args:
        embeddings: [rows, tokens, hidden]. real: bool [rows, tokens], or None where nothing is padded.
    """
    rows = embeddings if real is None else (row[mask] for row, mask in zip(embeddings, real, strict=True))
    scores = [complexity(settings, embedding_features(row)) for row in rows]
    return [settings["left_out"][bisect.bisect_right(settings["thresholds"], score)] for score in scores]


class _Carries:
    """Mixed into the class of an answer's cache: ``left_out``, [rows] int64 on the CPU, follows the rows."""

    def reorder_cache(self, beam_idx):
        super().reorder_cache(beam_idx)
        self.left_out = self.left_out[beam_idx.cpu()]

    def batch_repeat_interleave(self, repeats):
        super().batch_repeat_interleave(repeats)
        self.left_out = self.left_out.repeat_interleave(repeats)

    def batch_select_indices(self, indices):
        super().batch_select_indices(indices)
        self.left_out = self.left_out[indices.cpu()]


@functools.cache
def _carrying(cache_class):
    return type(cache_class.__name__, (_Carries, cache_class), {})


def _decide_and_run(backbone, *args, **kwargs):
    """Forward of the model without its head."""
    run = functools.partial(type(backbone).forward, backbone)
    named = inspect.signature(run).bind(*args, **kwargs).arguments if args else kwargs
    ids, embeddings = named.get("input_ids"), named.get("inputs_embeds")
    cache, answer = _cache_in(args, kwargs), _answer.get()
    left_out = None
    if cache is not None and cache.get_seq_length() > 0:
        if not isinstance(cache, _Carries):
            raise ValueError(
                "This cache was filled by a model that doesn't decide per prompt, so it says nothing about which "
                "attentions its text left out. Start the answer with a new cache."
            )
        left_out = cache.left_out.tolist()
    elif answer:  # generating without a cache: the text grows, the decision stays
        left_out = answer["left_out"]
    rows = len(ids if ids is not None else embeddings)
    if left_out is None:
        if embeddings is None:
            embeddings = backbone.get_input_embeddings()(ids)
        real = _real_tokens(named.get("attention_mask"), embeddings.shape[1])
        left_out = decide(backbone.config.adaptive_attention, embeddings, real)
    if len(left_out) != rows:
        raise ValueError(f"The answer's cache holds {len(left_out)} rows, this forward pass {rows}.")
    with _set(_left_out, left_out):
        output = run(*args, **kwargs)
    if answer is not None:
        answer["left_out"] = left_out
    cache = cache or _cache_in(output if isinstance(output, tuple) else output.values(), {})
    if cache is not None:
        if not isinstance(cache, _Carries):
            cache.__class__ = _carrying(type(cache))
        cache.left_out = torch.tensor(left_out)
    return output


def _real_tokens(mask, length):
    """Bool [rows, tokens] or None, from any mask that transformers hands over at a prompt's first forward pass."""
    if isinstance(mask, dict):  # one for each kind of attention; all know the same padding
        mask = next((one for one in mask.values() if one is not None), None)
    if mask is None or mask.dim() == 2:
        return None if mask is None else mask.bool()
    itself = mask[:, 0, :, :length].diagonal(dim1=1, dim2=2)  # a real token sees itself; static caches get such masks
    return itself if itself.dtype is torch.bool else itself == 0


def _attend(attention, *args, **kwargs):
    """Forward of one attention: for the rows that leave it out, it adds exactly zero."""
    left_out = _left_out.get() or []
    skipped = [count > attention.bypass_rank for count in left_out]
    if skipped and all(skipped):
        return skip_attention(attention, *args, **kwargs)
    output = type(attention).forward(attention, *args, **kwargs)
    if not any(skipped):
        return output
    states = output[0] if isinstance(output, tuple) else output
    rows = torch.tensor(skipped, device=states.device)[:, None, None]
    states = states.masked_fill(rows, 0)
    return (states, *output[1:]) if isinstance(output, tuple) else states


def _generate(model, *args, **kwargs):
    with _set(_answer, {}):
        return type(model).generate(model, *args, **kwargs)


def _cache_in(args, kwargs):
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, Cache)), None)


@contextmanager
def _set(variable, value):
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)

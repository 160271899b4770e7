"""Attentions left out prompt by prompt: decided at the first forward pass, and kept with the answer's cache.

A row's decision is one number: how many attentions it leaves out, the least important ones first
(``config.adaptive_attention["order"]``). It belongs to the answer, not to the model: the cache carries it, so answers
that alternate on one model don't disturb each other, and a second turn keeps it. The attentions get it as an argument
of their forward pass, so one that is computed twice (activation checkpointing) leaves out the same both times.

Greedy and sampled answers are supported, with a dynamic cache or none, padded or not. Whatever moves a cache's rows or
shows the model something else than the prompt first is refused by its name.

Models are ``Any`` here, because functions become methods of transformers' modules.
"""

from __future__ import annotations

import bisect
import functools
import inspect
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from types import MethodType
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache

from .no_attention import replace_forward, restore_forward, skip_attention

# What the running generate() decided, how many attentions each row leaves out; empty before. It belongs to one call, in
# one thread; between calls it is None.
_answer: ContextVar[list[int] | None] = ContextVar("answer", default=None)

# What generate() may be asked for, and the values that an adaptive model can follow.
_ALLOWED: dict[str, tuple] = dict.fromkeys(
    (
        *("assistant_model", "assistant_early_exit", "prompt_lookup_num_tokens", "use_mtp"),  # drafts
        *("constraints", "force_words_ids", "penalty_alpha", "dola_layers", "custom_generate", "prefill_chunk_size"),
    ),
    (False,),
) | {"num_beams": (1,), "cache_implementation": ("dynamic", "hybrid")}  # "hybrid": what transformers takes for dynamic
_REMEDY = (
    "An adaptive model gives greedy and sampled answers to whole prompts, with a dynamic cache or none. {} Or take the "
    "decision away with make_adaptive(model, None)."
)


def install(model: Any, backbone: nn.Module, attentions: Sequence[Any]) -> None:
    """Let each prompt decide, as ``config.adaptive_attention`` says.

    Args:
        model: the causal language model.
        backbone: the module of it that runs the blocks.
        attentions: one module per block.
    """
    for rank, layer in enumerate(model.config.adaptive_attention["order"]):
        attentions[layer].bypass_rank = rank
        replace_forward(attentions[layer], _attend)
    replace_forward(backbone, _decide_and_run)
    model.generate = MethodType(_generate, model)
    model.init_continuous_batching = _refuse_continuous_batching


def uninstall(model: Any, backbone: nn.Module, attentions: Sequence[Any]) -> None:
    """Undo ``install``: the classes' own methods come back."""
    for attention in attentions:
        if hasattr(attention, "bypass_rank"):
            restore_forward(attention)
            del attention.bypass_rank
    restore_forward(backbone)
    del model.generate, model.init_continuous_batching


def embedding_features(embeddings: Tensor) -> Tensor:
    """What one prompt's token embeddings [tokens, hidden] tell: log length and mean variance, float32 [2].

    The variance is taken over the tokens and averaged over the components.
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


def _decide_and_run(backbone: Any, *args: Any, **kwargs: Any) -> Any:
    """Forward of the model without its head."""
    run = functools.partial(type(backbone).forward, backbone)
    inputs = inspect.signature(run).bind_partial(*args).arguments | kwargs if args else kwargs
    left_out, answer = _known(_cache_in(inputs)) or _decide(backbone, inputs), _answer.get()
    ids = inputs.get("input_ids")
    rows = len(inputs["inputs_embeds"] if ids is None else ids)
    if len(left_out) == 1:  # the cache of one prompt may be repeated for several answers
        left_out = left_out * rows
    if len(left_out) != rows:
        raise ValueError(f"The answer's cache holds {len(left_out)} rows, this forward pass {rows}.")
    if answer is not None:
        answer[:] = left_out
    output = run(*args, **kwargs, left_out=left_out)
    cache = _cache_in(inputs) or _cache_in(output)
    if cache is not None:  # it carries the decision
        cache.left_out = torch.tensor(left_out)
        cache.reorder_cache = cache.batch_select_indices = _refuse_moved_rows
    return output


def _known(cache: Any) -> list[int] | None:
    """How many attentions each row leaves out, where that was decided before: by its cache, or its ``generate``."""
    if cache is not None and not isinstance(cache, DynamicCache):
        raise ValueError(f"Got a {type(cache).__name__}. " + _REMEDY.format("Give a new DynamicCache."))
    if cache is None or cache.get_seq_length() == 0:
        return _answer.get()
    if not hasattr(cache, "left_out"):
        raise ValueError(
            "This cache was filled by a model that doesn't decide per prompt, so it says nothing about which "
            "attentions its text left out. Start the answer with a new cache."
        )
    return cache.left_out.tolist()


@torch.no_grad()
def _decide(backbone: Any, inputs: Mapping[str, Any]) -> list[int]:
    """How many attentions each row leaves out, from the whole prompts."""
    settings = backbone.config.adaptive_attention
    embeddings, mask = inputs.get("inputs_embeds"), inputs.get("attention_mask")
    if mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 2):
        raise ValueError("Got another attention mask than [rows, tokens]. " + _REMEDY.format("Give one of that shape."))
    if embeddings is None:
        embeddings = backbone.get_input_embeddings()(inputs["input_ids"])  # [rows, tokens, hidden]
    prompts = embeddings if mask is None else [row[real] for row, real in zip(embeddings, mask.bool(), strict=True)]
    scores = [complexity(settings, prompt) for prompt in prompts]
    return [settings["left_out"][bisect.bisect_right(settings["thresholds"], score)] for score in scores]


def _attend(attention: Any, *args: Any, left_out: Sequence[int] = (), **kwargs: Any) -> Any:
    """Forward of one attention: for the rows that leave it out, it adds exactly zero."""
    skipped = [count > attention.bypass_rank for count in left_out]
    if skipped and all(skipped):
        return skip_attention(attention, *args, **kwargs)
    output = type(attention).forward(attention, *args, **kwargs)
    if not any(skipped):
        return output
    states = output[0] if isinstance(output, tuple) else output  # [rows, tokens, hidden]
    states = states.masked_fill(torch.tensor(skipped, device=states.device)[:, None, None], 0)
    return (states, *output[1:]) if isinstance(output, tuple) else states


def _generate(model: Any, *args: Any, **kwargs: Any) -> Any:
    generate = functools.partial(type(model).generate, model)
    given = inspect.signature(generate).bind(*args, **kwargs).arguments
    asked = {**given, **given.get("kwargs", {})}
    settings = [vars(given.get("generation_config") or model.generation_config), vars(model.generation_config)]
    for name, allowed in _ALLOWED.items():
        value = next((known[name] for known in (asked, *settings) if known.get(name) is not None), None)
        if value is not None and value not in allowed:
            shown = type(value).__name__ if isinstance(value, nn.Module) else repr(value)
            raise ValueError(f"generate() was asked for {name}={shown}. " + _REMEDY.format(f"Leave {name} out."))
    token = _answer.set([])
    try:
        return generate(*args, **kwargs)
    finally:
        _answer.reset(token)


def _refuse_continuous_batching(*_args: Any, **_kwargs: Any) -> NoReturn:
    raise ValueError(
        "Continuous batching packs prompts into one row. " + _REMEDY.format("Give generate() a padded batch.")
    )


def _refuse_moved_rows(*_args: Any, **_kwargs: Any) -> NoReturn:
    raise ValueError(
        "The rows of an adaptive model's cache can't be moved or selected. "
        + _REMEDY.format("Start each answer with a cache of its own.")
    )


def _cache_in(values: Mapping[str, Any] | tuple) -> Any:
    """The cache among a forward pass's arguments or outputs, whatever it is called; None where there is none."""
    values = values if isinstance(values, tuple) else tuple(values.values())
    return next((value for value in values if isinstance(value, Cache)), None)

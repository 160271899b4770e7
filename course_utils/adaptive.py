"""Adaptive attention bypass: each prompt decides, once, how many attentions its answer leaves out.

A policy turns what a prompt's token embeddings tell (cheap: nothing has run yet) into a score, its complexity;
thresholds turn the score into a level; the level says how many attentions to leave out, the least important first.
The decision is made for each row of a batch at its first forward pass and kept with its cache
(``modeling.per_prompt``). The idea follows Martra's adaptive attention bypass.
"""

from __future__ import annotations

import bisect
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import RidgeCV
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils import checks
from course_utils.architectures import Architecture, describe, evaluating
from course_utils.attention import bypass_attention, select_attention_layers
from course_utils.batches import Batch, read_batches
from course_utils.modeling import per_prompt
from course_utils.texts import padded_batches

POLICIES = ("length_variance", "fitted")
MIN_PROMPTS = {"length_variance": 3, "fitted": 20}  # fewer say nothing about quantiles, or about a fit
_RIDGES = np.logspace(0, 6, 13)


@dataclass(frozen=True)
class ModelIdentity:
    """What tells one model from another, whatever its dtype."""

    model_type: str
    blocks: int
    hidden_size: int
    vocab_size: int
    parameters: int
    embedding_norm: float  # Frobenius norm of the token embedding

    @classmethod
    def of(cls, model: PreTrainedModel) -> ModelIdentity:
        architecture, embedding = describe(model), model.get_input_embeddings().weight.detach()
        return cls(
            model_type=architecture.name,
            blocks=architecture.num_blocks,
            hidden_size=architecture.hidden_size,
            vocab_size=architecture.vocab_size,
            parameters=sum(weight.numel() for weight in model.parameters()),
            embedding_norm=round(float(torch.linalg.vector_norm(embedding, dtype=torch.float32)), 4),
        )

    def is_same_as(self, other: ModelIdentity) -> bool:
        norms = self.embedding_norm, other.embedding_norm
        return all(
            getattr(self, field.name) == getattr(other, field.name) for field in fields(self)[:-1]
        ) and math.isclose(*norms, rel_tol=1e-3)  # 16-bit rounding moves a norm by less

    def __str__(self) -> str:
        return (
            f"{self.model_type}, {self.blocks} blocks, hidden size {self.hidden_size}, vocabulary {self.vocab_size}, "
            f"{self.parameters:,} parameters, embedding norm {self.embedding_norm:g}"
        )


@dataclass(frozen=True)
class AdaptiveConfig:
    """How prompts decide. Valid once it exists; saved in ``config.json`` as ``adaptive_attention``.

    Attributes:
        model: the model that it was calibrated on.
        order: block numbers of the attentions that may be left out, least important first.
        left_out: how many of them each level leaves out, from the simplest prompts to the most complex ones; never
            rising.
        thresholds: where the next level begins, one fewer than levels, never falling. A score on a threshold belongs
            to the level above it.
        policy: "length_variance" (mean of two features, each scaled between two calibration quantiles) or "fitted"
            (a linear function of the embedding features, fitted to the measured harm).
        parameters: {"log_length": [low, high], "variance": [low, high]}, or {"intercept": number, "weights": [hidden
            size + 2 numbers]}.

    Raises:
        ValueError: on creation, naming the field and what is allowed.
    """

    model: ModelIdentity
    order: tuple[int, ...]
    left_out: tuple[int, ...]
    thresholds: tuple[float, ...]
    policy: str
    parameters: Mapping[str, object]

    def __post_init__(self) -> None:
        if self.order != tuple(dict.fromkeys(self.order)) or not set(self.order) <= set(range(self.model.blocks)):
            raise ValueError(
                f"'order' must hold different block numbers from 0 to {self.model.blocks - 1}; got {list(self.order)}."
            )
        counts = (*self.left_out, 0)
        if not self.left_out or any(a < b for a, b in pairwise(counts)) or counts[0] > len(self.order):
            raise ValueError(
                "'left_out' must hold one number for each level, never rising, from at most the number of attentions "
                f"in 'order' ({len(self.order)}) down to at least 0; got {list(self.left_out)}."
            )
        limits, wanted = list(self.thresholds), len(self.left_out) - 1
        if len(limits) != wanted or not all(map(math.isfinite, limits)) or limits != sorted(limits):
            raise ValueError(
                f"'thresholds' must hold {wanted} finite numbers, one fewer than levels, never falling; got {limits}."
            )
        self._check_policy()

    def _check_policy(self) -> None:
        given = dict(self.parameters)
        if self.policy == "length_variance":
            pairs = [given.pop(name, None) for name in ("log_length", "variance")]
            good = all(_are_numbers(pair) and len(pair) == 2 and pair[0] < pair[1] for pair in pairs)
            wanted = "'log_length' and 'variance', each [low, high]"
        elif self.policy == "fitted":
            weights, intercept = given.pop("weights", None), given.pop("intercept", None)
            good = _are_numbers(weights) and len(weights) == self.model.hidden_size + 2 and _are_numbers([intercept])
            wanted = f"'intercept', a number, and 'weights', hidden size + 2 = {self.model.hidden_size + 2} numbers"
        else:
            raise ValueError(f"'policy' must be one of {', '.join(POLICIES)}; got {self.policy!r}.")
        if not good or given:
            raise ValueError(f"'parameters' of the policy {self.policy!r} must be exactly {wanted}, all finite.")

    def level(self, score: float) -> int:
        """The level of a prompt with this complexity, from 0."""
        return bisect.bisect_right(self.thresholds, score)

    def to_dict(self) -> dict:
        """Plain lists, numbers and text."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, settings: Mapping) -> AdaptiveConfig:
        """The inverse of ``to_dict``. Raises ValueError for missing, unknown or invalid fields."""
        try:
            given = dict(settings)
            model = ModelIdentity(**given.pop("model"))
            lists = {name: tuple(given.pop(name)) for name in ("order", "left_out", "thresholds")}
            whole = [*lists["order"], *lists["left_out"]]
            if not all(isinstance(n, int) and not isinstance(n, bool) for n in whole) or not _are_numbers(
                lists["thresholds"]
            ):
                raise ValueError("'order' and 'left_out' must hold integers, 'thresholds' numbers.")
            return cls(model=model, **lists, **given)
        except (KeyError, TypeError, AttributeError) as error:
            names = ", ".join(field.name for field in fields(cls))
            raise ValueError(f"Adaptive settings must hold exactly {names}; {error}.") from error

    def save(self, path: str | os.PathLike) -> Path:
        """Write readable JSON, atomically."""
        path = Path(path)
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, path)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike) -> AdaptiveConfig:
        """Read what ``save`` wrote. Raises ValueError, naming the file, when it isn't valid."""
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (ValueError, OSError) as error:  # broken JSON is a ValueError too
            raise ValueError(f"'{path}' holds no valid adaptive settings: {error}") from error


def calibrate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    left_out: Sequence[int] | None = None,
    policy: str = "length_variance",
    max_length: int = 512,
    batch_size: int = 4,
) -> AdaptiveConfig:
    """Measure, on prompts, which attentions matter least and where simple prompts end. The model is unchanged.

    The order is chosen step by step (``select_attention_layers``). Each level gets the same share of the calibration
    prompts. "length_variance" scales log length and embedding variance between their 5th and 95th percentiles. "fitted"
    measures each prompt's harm (``divergence`` of the first level) and fits its logarithm by a ridge regression, whose
    penalty leave-one-out cross-validation chooses.

    Args:
        prompts: at least 3 different ones, 20 for "fitted"; as varied as those to come.
        left_out: attentions that each level leaves out, never rising; by default a quarter of the blocks, an eighth
            and none.
        policy: one of ``POLICIES``.
        max_length: longer prompts are cut.

    Raises:
        ValueError: too few prompts, all alike, or one without tokens; bad ``left_out`` or ``policy``; an
            adaptive model.
    """
    architecture = describe(model)
    architecture.refuse_adaptive("calibrate the attentions")
    if policy not in POLICIES:
        raise ValueError(f"'policy' must be one of {', '.join(POLICIES)}; got {policy!r}.")
    if isinstance(prompts, str) or len(prompts) < MIN_PROMPTS[policy]:
        raise ValueError(
            f"'prompts' must be a list of at least {MIN_PROMPTS[policy]} texts for the policy {policy!r}; got "
            f"{'one text' if isinstance(prompts, str) else len(prompts)}."
        )
    blocks = architecture.num_blocks
    levels = (blocks // 4, blocks // 8, 0) if left_out is None else tuple(left_out)
    live = [i for i, attention in enumerate(architecture.attentions) if not attention.skipped]
    if not levels or not all(isinstance(n, int) and 0 <= n <= len(live) for n in levels):
        raise ValueError(
            f"'left_out' must hold whole numbers from 0 to {len(live)}, the live attentions; got {levels}."
        )
    batches = padded_batches(tokenizer, prompts, batch_size=batch_size, max_length=max_length)
    order = select_attention_layers(model, batches, count=max(levels))
    features = prompt_features(model, batches)
    if policy == "fitted":
        harm = divergence(model, batches, [order[: max(levels)]])[0]
        parameters = _fit(features, harm.clamp(min=1e-12).log())
    else:
        parameters = {
            name: [float(feature.quantile(0.05)), float(feature.quantile(0.95))]
            for name, feature in zip(("log_length", "variance"), features.T[:2], strict=True)
        }
        alike = [name for name, (low, high) in parameters.items() if low >= high]
        if alike:
            raise ValueError(f"The prompts are all alike in {' and '.join(alike)}: calibrate on more varied ones.")
    settings = {"policy": policy, "parameters": parameters}
    scores = torch.tensor([per_prompt.complexity(settings, row) for row in features], dtype=torch.float64)
    shares = torch.arange(1, len(levels), dtype=torch.float64) / len(levels)
    return AdaptiveConfig(
        model=ModelIdentity.of(model),
        order=tuple(order),
        left_out=levels,
        thresholds=tuple(scores.quantile(shares).tolist()),
        **settings,
    )


def make_adaptive(model: PreTrainedModel, config: AdaptiveConfig | None) -> PreTrainedModel:
    """Let each prompt decide, in place; ``None`` undoes it. Returns the model.

    From then on every first forward pass of an answer decides for each of its rows from the row's real tokens, and the
    cache it fills carries the decision through the answer and its later turns; ``generate`` without a cache keeps it
    as well. A row of a mixed batch gets what it would get alone, but the batch computes every attention that one of its
    rows keeps. ``save_pruned`` saves the settings with the model.

    Raises:
        ValueError: ``config`` was calibrated on another model, or names an attention that is bypassed. The model is
            unchanged then.
    """
    architecture = describe(model)
    attentions = [attention.module for attention in architecture.attentions]
    if config is not None:
        identity = ModelIdentity.of(model)
        if not config.model.is_same_as(identity):
            raise ValueError(
                f"These settings were calibrated on another model ({config.model}); this one is {identity}. "
                "Calibrate again on this model."
            )
        gone = [i for i in config.order if architecture.attentions[i].skipped]
        if gone:
            raise ValueError(f"The attentions of blocks {gone} are bypassed already; calibrate again on this model.")
    if architecture.adaptive:
        per_prompt.uninstall(model, architecture.backbone, attentions)
        del model.config.adaptive_attention
    if config is not None:
        model.config.adaptive_attention = config.to_dict()
        per_prompt.install(model, architecture.backbone, attentions)
    architecture.sync_config()
    return model


@torch.no_grad()
def prompt_features(model: PreTrainedModel, batches: Iterable[Mapping[str, Tensor]]) -> Tensor:
    """Log length, embedding variance and mean token embedding of each row: [rows, hidden size + 2] float32.

    Only the embedding is looked up; no block runs. Padding doesn't count. Raises ValueError for bad batches.
    """
    embed, rows = model.get_input_embeddings(), []
    for batch in read_batches(batches, vocab_size=describe(model).vocab_size, device=model.device):
        rows += [per_prompt.embedding_features(e[r]) for e, r in zip(embed(batch.input_ids), batch.real, strict=True)]
    return torch.stack(rows).cpu()


def complexity(model: PreTrainedModel, batches: Iterable[Mapping[str, Tensor]], config: AdaptiveConfig) -> Tensor:
    """The score of each row under a policy: [rows] float64. Raises ValueError for bad batches."""
    settings = config.to_dict()
    features = prompt_features(model, batches)
    return torch.tensor([per_prompt.complexity(settings, row) for row in features], dtype=torch.float64)


@torch.no_grad()
def divergence(
    model: PreTrainedModel,
    batches: Iterable[Mapping[str, Tensor]],
    layer_sets: Sequence[Sequence[int]],
    *,
    last: int | None = None,
) -> Tensor:
    """How far a bypass moves the model's predictions: KL(as it is || with more attentions bypassed), nats a token.

    Args:
        batches: their padding doesn't count.
        layer_sets: the attentions to leave out, beside those that already are; one set after the other.
        last: only the predictions made at the last so many positions of each row (pad on the left); None for all.

    Returns:
        [sets, rows] float32, the mean over a row's positions. The model is as before afterwards.

    Raises:
        ValueError: bad batches or block numbers, a row without a position that counts, or an adaptive model.
    """
    architecture = describe(model)
    architecture.refuse_adaptive("compare bypasses")
    skipped = [i for i, attention in enumerate(architecture.attentions) if attention.skipped]
    sets = [checks.block_numbers(layers, architecture.num_blocks) for layers in layer_sets]
    read = list(read_batches(batches, vocab_size=architecture.vocab_size, device=model.device))
    counted = [batch.real.clone() for batch in read]
    for real in counted if last is not None else ():
        real[:, :-last] = False
    if not all(real.any(1).all() for real in counted):
        raise ValueError(f"Every row needs a real token among its last {last} positions: pad on the left.")
    bar = tqdm(total=(len(sets) + 1) * len(read), desc="comparing predictions", unit="batch", leave=False, delay=2)
    with bar, evaluating(model):
        original, rows = [], []
        for batch, real in zip(read, counted, strict=True):
            original.append(architecture.hidden_states(batch)[real])
            bar.update()
        try:
            for layers in sets:
                bypass_attention(model, sorted({*skipped, *layers}))
                for batch, real, states in zip(read, counted, original, strict=True):
                    rows.append(_row_divergences(architecture, batch, real, states))
                    bar.update()
        finally:
            bypass_attention(model, skipped)
    return torch.cat(rows).view(len(sets), -1)


def _row_divergences(architecture: Architecture, batch: Batch, real: Tensor, original: Tensor) -> Tensor:
    """[rows] float32 on the CPU. original: hidden states [counted tokens, hidden]."""
    states, kl = architecture.hidden_states(batch)[real], []
    for before, after in architecture.chunks(original, states):
        p, q = (architecture.logits(some).float().log_softmax(-1) for some in (before, after))
        kl.append((p.exp() * (p - q)).sum(-1))
    return torch.stack([row.mean() for row in torch.cat(kl).split(real.sum(1).tolist())]).cpu()


def _fit(features: Tensor, target: Tensor) -> dict[str, object]:
    """Ridge regression on standardised features, written as weights on the plain ones."""
    mean, spread = features.double().mean(0), features.double().std(0).clamp(min=1e-9)
    ridge = RidgeCV(alphas=_RIDGES).fit(((features - mean) / spread).numpy(), target.double().numpy())
    weights = torch.from_numpy(ridge.coef_) / spread
    return {"intercept": float(ridge.intercept_ - weights @ mean), "weights": weights.tolist()}


def _are_numbers(values: object) -> bool:
    return isinstance(values, Sequence) and all(
        isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values
    )

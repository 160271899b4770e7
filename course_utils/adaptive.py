"""Adaptive attention bypass: each prompt decides, once, how many attentions its answer leaves out.

A policy turns what a prompt's token embeddings tell (cheap: nothing has run yet) into a score, its complexity;
thresholds turn the score into a level; the level says how many attentions to leave out, the least important first.
The decision is made for each row of a batch at its first forward pass and kept with its cache
(``modeling.per_prompt``). The idea follows Martra's adaptive attention bypass.
"""

from __future__ import annotations

import bisect
import copy
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import RidgeCV
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils import checks
from course_utils.architectures import Architecture, describe, evaluating
from course_utils.argument_types import check_types
from course_utils.attention import bypass_attention, select_attention_layers
from course_utils.batches import Batch, read_batches
from course_utils.divergence import kl_divergence
from course_utils.files import write_json
from course_utils.modeling import per_prompt
from course_utils.models import identity
from course_utils.refusals import refuse_adaptive
from course_utils.texts import padded_batches

POLICIES = ("length_variance", "fitted")
MIN_PROMPTS = {"length_variance": 3, "fitted": 20}  # fewer say nothing about quantiles, or about a fit
_RIDGES = np.logspace(0, 6, 13)


@dataclass(frozen=True)
class ModelIdentity:
    """The model that settings were calibrated on: what a person can read of it, and a digest that tells it from others.

    Attributes:
        model_type: the configuration's, such as "llama".
        blocks: how many.
        hidden_size: numbers a token in the residual stream.
        parameters: how many; tied ones count once.
        dtype: of the weights, such as "bfloat16".
        digest: ``models.identity`` of the model, as it is without adaptive settings.
    """

    model_type: str
    blocks: int
    hidden_size: int
    parameters: int
    dtype: str
    digest: str

    @classmethod
    def of(cls, model: PreTrainedModel) -> ModelIdentity:
        """Read a model, adaptive or not; it isn't changed.

        Raises:
            UnsupportedArchitecture: ``describe`` doesn't know the model.
        """
        architecture, config = describe(model), model.config
        try:
            # A configuration that says the same of the same model: nothing adaptive, no size left open (as GPT-2's).
            model.config = copy.deepcopy(config)
            vars(model.config).pop("adaptive_attention", None)
            architecture.sync_config()
            digest = identity(model)
        finally:
            model.config = config
        return cls(
            model_type=architecture.name,
            blocks=architecture.num_blocks,
            hidden_size=architecture.hidden_size,
            parameters=sum(weight.numel() for weight in model.parameters()),
            dtype=str(model.dtype).removeprefix("torch."),
            digest=digest,
        )

    def refuse_another(self, model: PreTrainedModel) -> None:
        """Refuse every model but this one.

        Raises:
            ValueError: saying what differs and what to do.
        """
        other = ModelIdentity.of(model)
        if other == self:
            return
        shape = ("model_type", "blocks", "hidden_size", "parameters")
        different = [name for name in shape if getattr(self, name) != getattr(other, name)]
        if different:
            named = "; ".join(f"{name} {getattr(self, name)}, here {getattr(other, name)}" for name in different)
            raise ValueError(f"These settings were calibrated on another model ({named}). Calibrate again on this one.")
        if self.dtype != other.dtype:
            raise ValueError(
                f"These settings were calibrated in {self.dtype}, this model is {other.dtype}: load it in "
                f"{self.dtype}, or calibrate again."
            )
        raise ValueError(
            "These settings were calibrated on another model: of the same shape, but with other weights or another "
            "configuration. Calibrate again on this one."
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
        parameters: {"log_length": [low, high], "variance": [low, high]}, and "weights" of the two where they aren't a
            half each (a negative one turns a feature round: [-1, 0] lets long prompts leave out more); or
            {"intercept": number, "weights": [hidden size + 2 numbers]}.

    Raises:
        ValueError: on creation, naming the field and what is allowed.
    """

    model: ModelIdentity
    order: tuple[int, ...]
    left_out: tuple[int, ...]
    thresholds: tuple[float, ...]
    policy: str
    parameters: Mapping[str, Any]

    def __post_init__(self) -> None:
        checks.block_numbers(self.order, self.model.blocks, name="Block numbers in 'order'")
        left_out = _levels(self.left_out, len(self.order), "the attentions in 'order'")
        wanted = len(left_out) - 1
        if not _are_numbers(self.thresholds, wanted) or list(self.thresholds) != sorted(self.thresholds):
            raise ValueError(
                f"'thresholds' must hold {wanted} finite numbers, one fewer than levels, never falling; "
                f"got {self.thresholds!r}."
            )
        self._check_parameters()
        for name, values in {
            "order": map(int, self.order),
            "left_out": left_out,
            "thresholds": self.thresholds,
        }.items():
            object.__setattr__(self, name, tuple(values))  # lists, as JSON has them, become what the hints say

    def _check_parameters(self) -> None:
        checks.one_of("policy", self.policy, POLICIES)
        given = dict(self.parameters) if isinstance(self.parameters, Mapping) else {}
        if self.policy == "length_variance":
            pairs = [given.pop(name, None) for name in ("log_length", "variance")]
            good = all(_are_numbers(pair, 2) and pair[0] < pair[1] for pair in pairs)
            good = good and _are_numbers(given.pop("weights", (0.5, 0.5)), 2)
            wanted = "'log_length' and 'variance', each [low, high], and if need be 'weights', two numbers"
        else:
            size = self.model.hidden_size + 2
            good = _are_numbers(given.pop("weights", None), size) and checks.is_number(given.pop("intercept", None))
            wanted = f"'intercept', a number, and 'weights', hidden size + 2 = {size} numbers"
        if not good or given:
            raise ValueError(f"'parameters' of the policy {self.policy!r} must be exactly {wanted}, all finite.")

    def level(self, score: float) -> int:
        """The level of a prompt with this complexity, from 0."""
        return bisect.bisect_right(self.thresholds, score)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and text."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> AdaptiveConfig:
        """The inverse of ``to_dict``.

        Raises:
            ValueError: missing, unknown or invalid fields.
        """
        try:
            given = dict(settings)
            return cls(model=ModelIdentity(**given.pop("model")), **given)
        except (KeyError, TypeError) as error:
            names = ", ".join(field.name for field in fields(cls))
            raise ValueError(f"Adaptive settings must hold exactly {names}; {error}.") from error

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write readable JSON, atomically; return where."""
        write_json(path, self.to_dict())
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> AdaptiveConfig:
        """Read what ``save`` wrote.

        Raises:
            ValueError: naming the file, when it isn't there or isn't valid.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (ValueError, OSError) as error:  # broken JSON is a ValueError too
            raise ValueError(f"'{path}' holds no valid adaptive settings: {error}") from error


def _levels(left_out: Sequence[int], most: int, meaning: str) -> tuple[int, ...]:
    """How many attentions each level leaves out, checked."""
    counts = checks.whole_numbers("left_out", left_out, most=most, meaning=meaning)
    if not counts or list(counts) != sorted(counts, reverse=True):
        raise ValueError(f"'left_out' must hold one number for each level, never rising; got {list(counts)}.")
    return counts


@check_types
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
        model: any causal language model that ``describe`` knows.
        tokenizer: the model's, with a padding token.
        prompts: at least 3 different ones, 20 for "fitted"; as varied as those to come.
        left_out: attentions that each level leaves out, never rising; by default a quarter of the blocks, an eighth
            and none.
        policy: one of ``POLICIES``.
        max_length: tokens; longer prompts are cut.
        batch_size: prompts a forward pass.

    Raises:
        ValueError: too few prompts, all alike, or one without tokens; one of the others out of range; an
            adaptive model.
        UnsupportedArchitecture: ``describe`` doesn't know the model.
    """
    architecture = describe(model)
    refuse_adaptive(architecture, "calibrate the attentions")
    checks.one_of("policy", policy, POLICIES)
    prompts = checks.strings("prompts", prompts)
    if len(prompts) < MIN_PROMPTS[policy]:
        raise ValueError(
            f"'prompts' must be a list of at least {MIN_PROMPTS[policy]} texts for the policy {policy!r}; got "
            f"{'one text' if isinstance(prompts, str) else len(prompts)}."
        )
    if left_out is None:
        left_out = (architecture.num_blocks // 4, architecture.num_blocks // 8, 0)
    live = sum(not attention.skipped for attention in architecture.attentions)
    levels = _levels(left_out, live, "the live attentions")
    batches = padded_batches(tokenizer, prompts, batch_size=batch_size, max_length=max_length)
    order = select_attention_layers(model, batches, count=levels[0])
    features = prompt_features(model, batches)
    if policy == "fitted":
        harm = divergence(model, batches, [order])[0]
        parameters = _fit(features, harm.clamp(min=1e-12).log())
    else:
        parameters = {
            name: [float(feature.quantile(0.05)), float(feature.quantile(0.95))]
            for name, feature in zip(("log_length", "variance"), features.T[:2], strict=True)
        }
        alike = [name for name, (low, high) in parameters.items() if low >= high]
        if alike:
            raise ValueError(f"The prompts are all alike in {' and '.join(alike)}: calibrate on more varied ones.")
    settings: dict[str, Any] = {"policy": policy, "parameters": parameters}
    scores = torch.tensor([per_prompt.complexity(settings, row) for row in features], dtype=torch.float64)
    shares = torch.arange(1, len(levels), dtype=torch.float64) / len(levels)
    return AdaptiveConfig(
        model=ModelIdentity.of(model),
        order=tuple(order),
        left_out=levels,
        thresholds=tuple(scores.quantile(shares).tolist()),
        **settings,
    )


@check_types
def make_adaptive(model: PreTrainedModel, config: AdaptiveConfig | None) -> PreTrainedModel:
    """Let each prompt decide, in place; ``None`` undoes it. Returns the model.

    From then on every first forward pass of an answer decides for each of its rows from the row's real tokens, and the
    cache it fills carries the decision through the answer and its later turns; ``generate`` without a cache keeps it
    as well. A row of a mixed batch gets what it would get alone, but the batch computes every attention that one of its
    rows keeps. ``save_pruned`` saves the settings with the model.

    Args:
        model: the very model that was calibrated, a ``variant`` of it, or one loaded again in the same dtype. One that
            is adaptive already gets the new settings.
        config: from ``calibrate``.

    Raises:
        ValueError: ``config`` was calibrated on another model, and what differs; or it names an attention that is
            bypassed. The model is unchanged then.
        UnsupportedArchitecture: ``describe`` doesn't know the model.
    """
    architecture = describe(model)
    attentions = [attention.module for attention in architecture.attentions]
    if config is not None:
        bypassed = {number for number, attention in enumerate(architecture.attentions) if attention.skipped}
        gone = [number for number in config.order if number in bypassed]
        if gone:
            raise ValueError(f"The attentions of blocks {gone} are bypassed already; calibrate again on this model.")
        config.model.refuse_another(model)
    if architecture.adaptive:
        per_prompt.uninstall(model, architecture.backbone, attentions)
        del model.config.adaptive_attention
    if config is not None:
        model.config.adaptive_attention = config.to_dict()
        per_prompt.install(model, architecture.backbone, attentions)
    architecture.sync_config()
    return model


@check_types
@torch.no_grad()
def prompt_features(model: PreTrainedModel, batches: Iterable[Mapping[str, Tensor]]) -> Tensor:
    """Log length, embedding variance and mean token embedding of each row. No block runs.

    Args:
        model: any causal language model that ``describe`` knows.
        batches: ``{"input_ids", "attention_mask"}`` mappings; their padding doesn't count.

    Returns:
        float32 [rows, hidden size + 2], on the CPU.

    Raises:
        ValueError: bad batches.
    """
    embed, rows = model.get_input_embeddings(), []
    for batch in read_batches(batches, vocab_size=describe(model).vocab_size, device=model.device):
        embeddings = embed(batch.input_ids)  # [rows, length, hidden]
        rows += [per_prompt.embedding_features(row[real]) for row, real in zip(embeddings, batch.real, strict=True)]
    return torch.stack(rows).cpu()


@check_types
def complexity(model: PreTrainedModel, batches: Iterable[Mapping[str, Tensor]], config: AdaptiveConfig) -> Tensor:
    """The score of each row under a policy.

    Args:
        model: the model that ``config`` was calibrated on.
        batches: ``{"input_ids", "attention_mask"}`` mappings; their padding doesn't count.
        config: whose policy and parameters.

    Returns:
        float64 [rows].

    Raises:
        ValueError: bad batches.
    """
    settings = config.to_dict()
    features = prompt_features(model, batches)
    return torch.tensor([per_prompt.complexity(settings, row) for row in features], dtype=torch.float64)


@check_types
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
        model: any causal language model that ``describe`` knows; it is as before afterwards.
        batches: ``{"input_ids", "attention_mask"}`` mappings; their padding doesn't count.
        layer_sets: the attentions to leave out, beside those that already are; one set after the other.
        last: only the predictions made at the last so many positions of each row (pad on the left); None for all.

    Returns:
        float32 [sets, rows], the mean over a row's positions.

    Raises:
        ValueError: bad batches or block numbers, a row without a position that counts, or an adaptive model.
    """
    architecture = describe(model)
    refuse_adaptive(architecture, "compare bypasses")
    skipped = [i for i, attention in enumerate(architecture.attentions) if attention.skipped]
    sets = [
        checks.block_numbers(layers, architecture.num_blocks) for layers in checks.not_empty("layer_sets", layer_sets)
    ]
    last = None if last is None else checks.whole_number("last", last, least=1)
    read = list(read_batches(batches, vocab_size=architecture.vocab_size, device=model.device))
    counted = [batch.real for batch in read]  # bool [rows, length]: the positions whose predictions are compared
    if last is not None:
        counted = [real & (torch.arange(real.shape[1], 0, -1, device=real.device) <= last) for real in counted]
    if not all(real.any(1).all() for real in counted):
        raise ValueError(f"Every row needs a real token among its last {last} positions: pad on the left.")
    bar = tqdm(total=(len(sets) + 1) * len(read), desc="comparing predictions", unit="batch", leave=False, delay=2)
    with bar, evaluating(model):
        original, rows = [], []
        for batch, real in zip(read, counted, strict=True):
            original.append(architecture.hidden_states(batch)[real])  # [counted tokens, hidden]
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
    """KL(original || now) of each row, [rows] float32 on the CPU; original: hidden states [counted tokens, hidden]."""
    states, kl = architecture.hidden_states(batch)[real], []
    for before, after in architecture.chunks(original, states):  # [chunk, hidden]
        p, q = (architecture.logits(part).float().log_softmax(-1) for part in (before, after))  # [chunk, vocabulary]
        kl.append(kl_divergence(p, q))  # [chunk]
    return torch.stack([row.mean() for row in torch.cat(kl).split(real.sum(1).tolist())]).cpu()


def _fit(features: Tensor, target: Tensor) -> dict[str, Any]:
    """Ridge regression of [rows] on standardised [rows, features], written as weights on the plain ones."""
    mean, spread = features.double().mean(0), features.double().std(0).clamp(min=1e-9)
    ridge = RidgeCV(alphas=_RIDGES).fit(((features - mean) / spread).numpy(), target.double().numpy())
    weights = torch.from_numpy(ridge.coef_) / spread
    return {"intercept": float(ridge.intercept_ - weights @ mean), "weights": weights.tolist()}


def _are_numbers(values: object, count: int) -> bool:
    return isinstance(values, Sequence) and len(values) == count and all(map(checks.is_number, values))

"""Adaptive attention bypass: each prompt decides, once, how many attentions its answer leaves out.

A policy turns what a prompt's token embeddings tell (cheap: nothing has run yet) into a score, such as its complexity;
thresholds turn the score into a level; the level says how many attentions to leave out, the least important first.
``modeling.per_prompt`` decides so for each row of a batch. The idea follows Martra's adaptive attention bypass.
"""

from __future__ import annotations

import bisect
import copy
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils.models.architectures import describe
from course_utils.models.loading import identity
from course_utils.models.modeling import per_prompt
from course_utils.models.refusals import refuse_adaptive, refuse_missing_weights
from course_utils.pruning.attention import select_attention_layers
from course_utils.support import checks
from course_utils.support.checks import check_types
from course_utils.support.files import write_json
from course_utils.text.batches import padded_batches, read_batches

_POLICIES = ("length_variance", "length")
_MIN_PROMPTS = 3  # fewer say nothing about quantiles
_MAX_LENGTH, _BATCH_SIZE = 512, 4  # tokens of a calibration prompt, beyond which it is cut; prompts per forward pass


@dataclass(frozen=True)
class ModelIdentity:
    """The model that settings were calibrated on: facts for people, and a digest that tells it from others."""

    model_type: str  # the configuration's, such as "llama"
    blocks: int
    hidden_size: int
    parameters: int  # tied ones count once
    dtype: str  # of the weights, such as "bfloat16"
    digest: str  # ``models.identity`` of the model, as it is without adaptive settings

    @classmethod
    def of(cls, model: PreTrainedModel) -> ModelIdentity:
        """Read a model, adaptive or not; it isn't changed."""
        architecture, config = describe(model), model.config
        refuse_missing_weights(architecture, "tell this model from others")
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
        """Refuse every model but this one, and say what differs."""
        other = ModelIdentity.of(model)
        if other == self:
            return
        theirs = asdict(other)
        different = "; ".join(
            f"{name} {ours}, here {theirs[name]}"
            for name, ours in asdict(self).items()
            if name != "digest" and ours != theirs[name]
        )
        raise ValueError(
            "These settings were calibrated on another model ("
            f"{different or 'of the same shape, but with other weights or another configuration'}). Load that one, "
            "in the same dtype, or calibrate again on this one."
        )


@dataclass(frozen=True)
class AdaptiveConfig:
    """How prompts decide. Valid once it exists; saved in ``config.json`` as ``adaptive_attention``.

    Attributes:
        model: the model that it was calibrated on.
        order: block numbers of the attentions that may be left out, least important first.
        left_out: how many of them each level leaves out, from the lowest scores to the highest.
        thresholds: where the next level begins, one fewer than levels, never falling. A score on a threshold belongs
            to the level above it.
        policy: what the score is. "length_variance": the mean of log length and embedding variance, each scaled between
            two calibration quantiles. "length": the prompt's tokens.
        parameters: {"log_length": [low, high], "variance": [low, high]}, or {} for "length".
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
        checks.one_of("policy", self.policy, _POLICIES)
        if not (self.parameters == {} if self.policy == "length" else _are_scales(self.parameters)):
            raise ValueError(
                "'parameters' must be {} for the policy 'length', and for 'length_variance' exactly 'log_length' and "
                f"'variance', each [low, high], both finite; got {self.parameters!r}."
            )
        order = tuple(map(int, self.order))
        for name, values in {"order": order, "left_out": left_out, "thresholds": tuple(self.thresholds)}.items():
            object.__setattr__(self, name, values)  # lists, as JSON has them, become what the hints say

    def level(self, score: float) -> int:
        """The level of a prompt with this score, from 0."""
        return bisect.bisect_right(self.thresholds, score)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and text."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> AdaptiveConfig:
        """The inverse of ``to_dict``; a ValueError names missing, unknown or invalid fields."""
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
        """Read what ``save`` wrote; a ValueError names a file that isn't there or isn't valid."""
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (ValueError, OSError) as error:  # broken JSON is a ValueError too
            raise ValueError(f"'{path}' holds no valid adaptive settings: {error}") from error


def _levels(left_out: Sequence[int], most: int, meaning: str) -> tuple[int, ...]:
    """How many attentions each level leaves out, checked."""
    return checks.not_empty("left_out", checks.whole_numbers("left_out", left_out, most=most, meaning=meaning))


@check_types
def calibrate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    left_out: Sequence[int] | None = None,
) -> AdaptiveConfig:
    """Measure, on prompts, which attentions matter least and where simple prompts end. The model is unchanged.

    The order is chosen step by step (``select_attention_layers``). Each level gets the same share of the calibration
    prompts. Log length and embedding variance are scaled between their 5th and 95th percentiles.

    Args:
        model: any causal language model that ``describe`` knows, not adaptive.
        tokenizer: the model's, with a padding token.
        prompts: at least 3 different ones, as varied as those to come; longer than 512 tokens, they are cut.
        left_out: attentions that each level leaves out, from the simplest prompts to the most complex ones; by default
            a quarter of the blocks, an eighth and none.
    """
    architecture = describe(model)
    refuse_adaptive(architecture, "calibrate the attentions")
    prompts = checks.strings("prompts", prompts)
    if len(prompts) < _MIN_PROMPTS:
        raise ValueError(f"'prompts' must be a list of at least {_MIN_PROMPTS} texts; got {len(prompts)}.")
    if left_out is None:
        left_out = (architecture.num_blocks // 4, architecture.num_blocks // 8, 0)
    live = sum(not attention.skipped for attention in architecture.attentions)
    levels = _levels(left_out, live, "the live attentions")
    batches = padded_batches(tokenizer, prompts, batch_size=_BATCH_SIZE, max_length=_MAX_LENGTH)
    order = select_attention_layers(model, batches, count=max(levels))
    embeddings = list(_prompt_embeddings(model, batches))
    features = torch.stack([per_prompt.embedding_features(prompt) for prompt in embeddings])
    parameters = {
        name: [float(feature.quantile(0.05)), float(feature.quantile(0.95))]
        for name, feature in zip(("log_length", "variance"), features.T, strict=True)
    }
    alike = [name for name, (low, high) in parameters.items() if low >= high]
    if alike:
        raise ValueError(f"The prompts are all alike in {' and '.join(alike)}: calibrate on more varied ones.")
    settings: dict[str, Any] = {"policy": "length_variance", "parameters": parameters}
    scores = _scores(settings, embeddings)
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

    Answers are greedy or sampled, with a dynamic cache or none. Beams, drafts (assisted generation), prompts in chunks,
    other caches, and continuous batching raise a ``ValueError`` that names them, before anything runs.

    Args:
        model: the very model that was calibrated, a ``variant`` of it, or one loaded again in the same dtype. One that
            is adaptive already gets the new settings.
        config: from ``calibrate``.

    Raises:
        ValueError: ``config`` was calibrated on another model, and what differs; or it names an attention that is
            bypassed. The model is unchanged then.
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
def complexity(model: PreTrainedModel, batches: Iterable[Mapping[str, Tensor]], config: AdaptiveConfig) -> Tensor:
    """The score of each row under a policy, float64 [rows].

    Args:
        model: the model that ``config`` was calibrated on.
        batches: ``{"input_ids", "attention_mask"}`` mappings; their padding doesn't count.
        config: whose policy and parameters.
    """
    return _scores(config.to_dict(), _prompt_embeddings(model, batches))


@torch.no_grad()
def _prompt_embeddings(model: PreTrainedModel, batches: Iterable[Mapping[str, Tensor]]) -> Iterator[Tensor]:
    """Embeddings of each row's real tokens, [tokens, hidden], one row after the other. No block runs."""
    embed = model.get_input_embeddings()
    for batch in read_batches(batches, vocab_size=describe(model).vocab_size, device=model.device):
        yield from (row[real] for row, real in zip(embed(batch.input_ids), batch.real, strict=True))


def _scores(settings: Mapping[str, Any], prompts: Iterable[Tensor]) -> Tensor:
    """The score of each prompt's embeddings; float64 [prompts]."""
    return torch.tensor([per_prompt.complexity(settings, prompt) for prompt in prompts], dtype=torch.float64)


def _are_numbers(values: object, count: int) -> bool:
    return isinstance(values, Sequence) and len(values) == count and all(map(checks.is_number, values))


def _are_scales(parameters: object) -> bool:
    """Whether these are the two scales of the policy "length_variance"."""
    if not isinstance(parameters, Mapping) or parameters.keys() != {"log_length", "variance"}:
        return False
    return all(_are_numbers(scale, 2) and scale[0] < scale[1] for scale in parameters.values())

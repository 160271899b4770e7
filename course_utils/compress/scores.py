"""Scores of all axes from one reading of calibration text, and random ones as their control."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from course_utils.models.architectures import Architecture, describe
from course_utils.models.refusals import refuse_adaptive
from course_utils.pruning.activations import read_once
from course_utils.pruning.channels import importance_of, watch_channels
from course_utils.pruning.depth import watch_blocks, watch_means
from course_utils.pruning.heads import watch_groups
from course_utils.pruning.width import watch_neurons
from course_utils.support import checks
from course_utils.support.files import replacing

AXES = ("neurons", "groups", "channels", "blocks")


@dataclass(frozen=True)
class Importance:
    """How much each part of one model matters; all float32 on the CPU.

    Attributes:
        neurons: [blocks, intermediate], of ``neuron_importance`` by "activation".
        groups: [blocks, KV groups], of ``head_importance``; None in families without this axis.
        channels: [hidden], of ``channel_importance``; None likewise.
        energies: [norms, hidden], of ``channel_energies``, to rescale norms with; None likewise.
        blocks: [blocks], of ``block_importance``.
        means: [blocks, hidden], of ``block_means``, for versions that keep them; None in a file that lacks them.
    """

    neurons: Tensor
    groups: Tensor | None
    channels: Tensor | None
    energies: Tensor | None
    blocks: Tensor
    means: Tensor | None = None

    def random(self, axes: str | Iterable[str], seed: int) -> Importance:
        """The control: uniform noise in place of the scores of one axis or several; all else stays.

        Args:
            axes: of ``AXES``.
            seed: a whole number of at least 0; the neurons' noise is that of ``neuron_importance`` by "random".

        Raises:
            ValueError: an unknown axis, or one that the model doesn't have; a bad seed.
        """
        axes = [axes] if isinstance(axes, str) else list(axes)
        checks.whole_number("seed", seed)
        noise = {}
        for axis in axes:
            checks.one_of("axes", axis, [name for name in AXES if getattr(self, name) is not None])
            noise[axis] = torch.rand(getattr(self, axis).shape, generator=torch.Generator().manual_seed(seed))
        return replace(self, **noise)

    @property
    def digest(self) -> str:
        """16 hexadecimal digits of all numbers, bit for bit."""
        digest = hashlib.sha256()
        for name, scores in self._present().items():
            digest.update(f"|{name} {list(scores.shape)}|".encode())
            digest.update(scores.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write them as safetensors, whole or not at all, so that the text needn't be read again."""
        with replacing(path) as fresh:
            save_file({name: scores.contiguous() for name, scores in self._present().items()}, fresh)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Importance:
        """Read what ``save`` wrote.

        Raises:
            ValueError: there is no such file, or it holds something else.
        """
        if not Path(path).is_file():
            raise ValueError(f"There are no scores at '{path}'; Importance.save writes them.")
        found: dict[str, Any] = load_file(path)
        if not {"neurons", "blocks"} <= set(found) <= set(cls.__dataclass_fields__):
            raise ValueError(f"'{path}' holds {sorted(found)}, not the scores of Importance.save.")
        return cls(**{"groups": None, "channels": None, "energies": None} | found)

    def _present(self) -> dict[str, Tensor]:
        return {name: scores for name, scores in vars(self).items() if scores is not None}


def importance(model: PreTrainedModel, batches: Iterable[Mapping[str, Tensor]]) -> Importance:
    """Score neurons, KV groups, hidden channels and blocks in one reading of the text, with the means of blocks.

    The scores equal what the functions of the single axes give, number for number.

    Args:
        model: any causal language model that ``describe`` knows, with equal blocks and all of its attentions; it is not
            changed.
        batches: ``{"input_ids", "attention_mask"}`` mappings. Padding never counts, and how rows are split into batches
            doesn't matter.

    Raises:
        ValueError: empty or malformed batches, no row of two tokens, non-finite activations, or a model whose blocks
            differ.
        UnsupportedArchitecture: ``describe`` doesn't know the model.
    """
    architecture = describe(model)
    refuse_uneven(architecture)
    heads_can_go = architecture.family.own_head_size
    watchers = [watch_neurons, watch_blocks, watch_means, *([watch_groups, watch_channels] if heads_can_go else [])]
    neurons, blocks, means, *rest = read_once(architecture, batches, *watchers)
    groups, energies = rest if heads_can_go else (None, None)
    found = Importance(
        neurons=torch.stack(neurons).cpu(),
        groups=None if groups is None else torch.stack(groups).cpu(),
        channels=None if energies is None else importance_of(energies).cpu(),
        energies=None if energies is None else energies.cpu(),
        blocks=blocks.cpu(),
        means=means.cpu(),
    )
    wrong = [
        name
        for name in (*AXES, "means")
        if (scores := getattr(found, name)) is not None and not scores.isfinite().all()
    ]
    if wrong:
        raise ValueError(f"The scores of {wrong} hold NaN or infinite values: check the model's weights and dtype.")
    return found


def refuse_uneven(architecture: Architecture) -> None:
    """Refuse a model whose blocks differ: a candidate has one size for all of them.

    Raises:
        ValueError: blocks of different widths, attentions that are bypassed or removed, or an adaptive model.
    """
    refuse_adaptive(architecture, "search for a smaller version")
    skipped = [number for number, attention in enumerate(architecture.attentions) if attention.skipped]
    if skipped or len(set(architecture.intermediate_sizes)) > 1:
        raise ValueError(
            "A search starts from a model whose blocks are all alike; this one has MLPs of "
            f"{sorted(set(architecture.intermediate_sizes))} neurons and no attention in blocks {skipped}. Start from "
            "the model that it was cut from."
        )

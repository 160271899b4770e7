"""How big a model is, what a pruning step changed, and numbers as a reader wants them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean

from torch import Tensor, nn
from transformers import PreTrainedModel

from course_utils.models.architectures import Architecture, describe
from course_utils.support import checks


def shown(value: float) -> str:
    """A number for a reader, of whatever size.

    >>> [shown(value) for value in (0.0044, 1.08, 15.26, 1234.5, 2.34e10, math.inf)]
    ['0.004', '1.08', '15.3', '1,234', '2.3·10^10', 'inf']
    """
    value = checks.number("value", value)
    size = abs(value)
    if 0 < size < 1e-4 or 1e6 <= size < math.inf:
        digits, power = f"{value:.1e}".split("e")
        return f"{digits}·10^{int(power)}"
    if 0 < size < 0.01:
        return f"{value:.1g}"
    return f"{value:.2f}" if size < 10 else f"{value:,.1f}" if size < 1000 else f"{value:,.0f}"


def with_interval(value: float, low: float, high: float) -> str:
    """A number and its interval for a reader.

    >>> with_interval(1.131, 1.108, 1.15)
    '1.13 (1.11 to 1.15)'
    """
    low, high = checks.number("low", low), checks.number("high", high)
    return f"{shown(value)} ({shown(low)} to {shown(high)})"


def shown_p(value: float) -> str:
    """A p-value for a reader: three decimals, four where three would be zeros, and never 0, which no test can find.

    >>> [shown_p(value) for value in (0.0469, 0.0004, 3.8e-6)]
    ['0.047', '0.0004', '< 0.0001']
    """
    value = checks.number("value", value)
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}" if value < 1e-3 else f"{value:.3f}"


@dataclass(frozen=True)
class Size:
    """A model's size, read from its weights.

    ``flops`` counts the matrix multiplications of one token through all blocks and the head (two operations per
    weight), and through what fits a narrower embedding to the blocks (OPT-350M); what attention adds with the context's
    length is in ``measuring.costs``.
    """

    parameters: int  # tied weights count once
    active: int  # of them, those that a token meets: all, but in a mixture of experts
    bytes: int
    flops: int
    blocks: int
    widths: tuple[int, ...]  # MLP neurons per block; () for a mixture
    hidden: int  # channels of the residual stream
    groups: int  # KV groups of each attention that wasn't removed; 0 for a mixture
    experts: int  # of each mixture; 0 in a dense model
    vocabulary: int  # rows of the embedding


def model_size(model: PreTrainedModel) -> Size:
    """Count a model's parameters, bytes, operations and neurons."""
    architecture = describe(model)
    weights = list(model.parameters())
    parameters, mixtures = sum(w.numel() for w in weights), architecture.mixtures
    resting = sum((m.count - m.top_k) * w.numel() for m in mixtures for w in m.expert_weights)
    matrices = _matrices_of_mixture(architecture) if mixtures else _matrices(architecture)
    return Size(
        parameters=parameters,
        active=parameters - resting,
        bytes=sum(w.numel() * w.element_size() for w in weights),
        flops=2 * (sum(matrix.numel() for matrix in matrices) + architecture.head.weight.numel()),
        blocks=architecture.num_blocks,
        widths=() if mixtures else architecture.intermediate_sizes,
        hidden=architecture.hidden_size,
        groups=0 if mixtures else architecture.groups,
        experts=mixtures[0].count if mixtures else 0,
        vocabulary=architecture.vocab_size,
    )


def _matrices(architecture: Architecture) -> list[Tensor]:
    """What a token is multiplied with before the head."""
    matrices = [p.weight for mlp in architecture.mlps for p in mlp.projections]
    matrices += [p.weight for a in architecture.attentions if not a.skipped for p in a.projections]
    return matrices + [module.weight for module in architecture.backbone.children() if isinstance(module, nn.Linear)]


def _matrices_of_mixture(architecture: Architecture) -> list[Tensor]:
    """The same, with as many of a mixture's experts as a token is sent to."""
    mixtures = architecture.mixtures
    stacks = {id(weight) for mixture in mixtures for weight in mixture.experts.parameters()}
    around = [w for block in architecture.blocks for w in block.parameters() if w.dim() == 2 and id(w) not in stacks]
    return around + [w for m in mixtures for w in m.expert_weights if w.dim() == 2 for _ in range(m.top_k)]


@dataclass(frozen=True)
class PruningReport:
    """What one in-place operation did. Prints as a table in a terminal and in a notebook."""

    action: str
    before: Size
    after: Size

    def rows(self) -> list[tuple[str, str, str, str]]:
        """(what, before, after, change), as text."""

        def change(old: float, new: float) -> str:
            return f"{100 * (new / old - 1):+.2f} %"

        old, new = self.before, self.after
        axes = [("hidden size", old.hidden, new.hidden), ("KV groups a block", old.groups, new.groups)]
        axes.append(("vocabulary", old.vocabulary, new.vocabulary))
        was, now = old.widths, new.widths
        neurons = [("MLP neurons a block", _sizes(was), _sizes(now), change(fmean(was), fmean(now)))] if was else []
        of_mixture = [("active parameters", old.active, new.active), ("experts a block", old.experts, new.experts)]
        return [
            ("parameters", f"{old.parameters:,}", f"{new.parameters:,}", change(old.parameters, new.parameters)),
            *((name, f"{was:,}", f"{now:,}", change(was, now)) for name, was, now in of_mixture if old.experts),
            ("weights (MB)", f"{old.bytes / 1e6:,.1f}", f"{new.bytes / 1e6:,.1f}", change(old.bytes, new.bytes)),
            ("MFLOPs a token", f"{old.flops / 1e6:,.1f}", f"{new.flops / 1e6:,.1f}", change(old.flops, new.flops)),
            ("blocks", str(old.blocks), str(new.blocks), change(old.blocks, new.blocks)),
            *neurons,
            *((name, f"{was:,}", f"{now:,}", change(was, now)) for name, was, now in axes if 0 < now < was),
        ]

    def __str__(self) -> str:
        table = [("", "before", "after", "change"), *self.rows()]
        columns = [max(len(row[i]) for row in table) for i in range(4)]
        lines = [
            f"  {row[0]:<{columns[0]}}  " + "  ".join(f"{row[i]:>{columns[i]}}" for i in (1, 2, 3)) for row in table
        ]
        return "\n".join([self.action, *lines])

    def _repr_html_(self) -> str:
        head = "".join(f"<th style='text-align:right'>{name}</th>" for name in ("before", "after", "change"))
        body = "".join(
            f"<tr><th style='text-align:left'>{what}</th>"
            + "".join(f"<td style='text-align:right'>{cell}</td>" for cell in cells)
            + "</tr>"
            for what, *cells in self.rows()
        )
        return f"<table><caption style='text-align:left'>{self.action}</caption><tr><th></th>{head}</tr>{body}</table>"


def _sizes(widths: tuple[int, ...]) -> str:
    low, high = min(widths), max(widths)
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"

"""Which smaller versions of a model fit a budget, and how one is cut out.

Sizes are tried on the meta device: the real surgery, on weights that have shapes and no numbers.
"""

from __future__ import annotations

import copy
import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from course_utils.compress.scores import Importance, refuse_uneven
from course_utils.models.architectures import Architecture, describe
from course_utils.models.loading import variant
from course_utils.models.refusals import refuse_bound_heads
from course_utils.models.reports import Size, model_size
from course_utils.pruning.channels import keep_channels, norm_factors
from course_utils.pruning.depth import make_room, refuse_no_room, remove_blocks, why_no_room
from course_utils.pruning.heads import keep_groups
from course_utils.pruning.width import best
from course_utils.support import checks
from course_utils.support.checks import check_types

_UNITS = ("parameters", "bytes")
# What is tried where nothing is said: shares of the whole model's size.
_BLOCKS = (1, 0.95, 0.9, 0.85, 0.8, 0.75)
_HIDDEN = (1, 15 / 16, 14 / 16, 13 / 16)


@dataclass(frozen=True, order=True)
class Candidate:
    """The sizes of one smaller version: what stays.

    Attributes:
        blocks: transformer blocks.
        hidden: channels of the residual stream.
        groups: KV groups of each attention.
        neurons: of each MLP.
        parameters: tied weights count once.
        cost: in the budget's unit.
        means: whether the means of the blocks that go stay, in biases of those that don't.
    """

    blocks: int
    hidden: int
    groups: int
    neurons: int
    parameters: int = field(default=0, compare=False)
    cost: float = field(default=math.nan, compare=False)
    means: bool = False

    @property
    def sizes(self) -> dict[str, int]:
        """The four sizes by name."""
        return {name: getattr(self, name) for name in ("blocks", "hidden", "groups", "neurons")}

    @property
    def name(self) -> str:
        """Says the sizes and whether means stay, and names its record.

        >>> Candidate(28, 576, 2, 1440).name
        'b28-h576-g2-n1440'
        """
        return f"b{self.blocks}-h{self.hidden}-g{self.groups}-n{self.neurons}{'-means' if self.means else ''}"

    @property
    def shape(self) -> tuple[int, int, int]:
        """What a budget leaves one width of the MLPs for: blocks, hidden channels and KV groups."""
        return self.blocks, self.hidden, self.groups

    def as_json(self) -> dict[str, int]:
        """The sizes and whether means stay, as JSON can hold it."""
        return self.sizes | {"means": self.means}

    @classmethod
    def of(cls, model: PreTrainedModel) -> Candidate:
        """The sizes of a whole model.

        Raises:
            UnsupportedArchitecture: ``describe`` doesn't know the model.
        """
        return replace(_sizes_of(describe(model)), parameters=model_size(model).parameters)


def _sizes_of(architecture: Architecture) -> Candidate:
    return Candidate(
        architecture.num_blocks, architecture.hidden_size, architecture.groups, max(architecture.intermediate_sizes)
    )


@dataclass(frozen=True)
class Budget:
    """What a smaller version may cost.

    Attributes:
        amount: the most of it.
        unit: "parameters", or "bytes" of the weights in the model's own dtype.

    Raises:
        ValueError: an amount that isn't above 0, or an unknown unit.
    """

    amount: float
    unit: str = "parameters"

    def __post_init__(self) -> None:
        checks.positive("amount", self.amount)
        checks.one_of("unit", self.unit, _UNITS)


@check_types
def shrink(model: PreTrainedModel, candidate: Candidate, importance: Importance) -> PreTrainedModel:
    """Cut one candidate out of a model: the least important of each axis goes, and norms are rescaled.

    All scores are the whole model's: nothing is measured again between the cuts.

    Args:
        model: the whole model; it is not changed.
        candidate: the sizes that stay.
        importance: of this very model, or its random control.

    Returns:
        A ``variant``: what wasn't cut is shared with ``model``. ``distill`` gives it weights of its own.

    Raises:
        ValueError: sizes out of range or refused by the model's configuration, scores that don't fit, or a model whose
            blocks differ. Everything is checked first.
        UnsupportedArchitecture: ``describe`` doesn't know the model.
    """
    architecture = describe(model)
    refuse_uneven(architecture)
    full = _sizes_of(architecture)
    _check_sizes(architecture, candidate, full)
    _check_scores(architecture, candidate, importance)
    small, blocks = variant(model), best(importance.blocks, candidate.blocks)
    _keep_blocks(small, blocks.tolist(), importance.means if candidate.means else None)
    architecture = describe(small)
    if candidate.groups < full.groups and importance.groups is not None:
        keep_groups(architecture, [best(importance.groups[block], candidate.groups) for block in blocks])
    if candidate.neurons < full.neurons:
        for mlp, block in zip(architecture.mlps, blocks, strict=True):
            mlp.keep(best(importance.neurons[block], candidate.neurons).to(mlp.columns.device))
    if candidate.hidden < full.hidden and importance.channels is not None and importance.energies is not None:
        channels, each = best(importance.channels, candidate.hidden), len(architecture.family.norms)
        rows = [int(block) * each + norm for block in blocks for norm in range(each)]
        keep_channels(architecture, channels, norm_factors(importance.energies[[*rows, -1]], channels))
    architecture.sync_config()
    return small


def _keep_blocks(model: PreTrainedModel, kept: Sequence[int], means: Tensor | None) -> None:
    """Take all other blocks out, in place. With means, those stay that have a place: of blocks above one that stays."""
    gone, lowest = sorted(set(range(describe(model).num_blocks)) - set(kept)), min(kept)
    if means is None:
        remove_blocks(model, gone)
        return
    make_room(describe(model))  # for all versions that keep means, so that they cost what they say whatever goes
    remove_blocks(model, range(lowest))
    remove_blocks(model, [block - lowest for block in gone[lowest:]], means=means[lowest:])


@check_types
def candidates(
    model: PreTrainedModel,
    budget: Budget,
    *,
    blocks: Sequence[int] | None = None,
    hidden: Sequence[int] | None = None,
    groups: Sequence[int] | None = None,
    multiple_of: int = 32,
    tensor_parallel: int = 1,
    least_width: float = 0.5,
    tolerance: float = 0.02,
    keep_means: bool = False,
) -> list[Candidate]:
    """Find smaller versions that spend a budget: for each depth, hidden size and number of KV groups the widest MLP.

    Args:
        model: the whole model; it is not changed, and its numbers aren't even read.
        budget: what a version may cost.
        blocks: numbers of blocks to try; by default the whole model's and five smaller ones, down to three quarters.
        hidden: hidden sizes to try; by default the whole one and the next legal ones to 15, 14 and 13 sixteenths.
        groups: numbers of KV groups to try; by default all, down to a half.
        multiple_of: MLP widths are multiples of it (32 suits GGUF's blocks, 256 its K-quants), or the whole width.
        tensor_parallel: cards that will serve a version; each gets as many KV groups, heads and neurons as the others.
        least_width: the narrowest MLP, as a share of the whole width.
        tolerance: how much of the budget may be left over, as a share of it.
        keep_means: True offers each version with fewer blocks once more, as one that keeps the means of those that go
            (``Candidate.means``), unless the family has no place for them.

    Returns:
        Legal ones only (what transformers refuses is left out), within ``tolerance`` below the budget; the deepest and
        widest first.

    Raises:
        ValueError: an argument out of range, a model whose blocks differ, or no version that fits; the message says
            what the smallest and the largest one would cost.
        UnsupportedArchitecture: ``describe`` doesn't know the model.
    """
    architecture, full = describe(model), Candidate.of(model)
    refuse_uneven(architecture)
    checks.whole_number("multiple_of", multiple_of, least=1, most=full.neurons, meaning="the MLPs' width")
    checks.share("least_width", least_width)
    checks.share("tolerance", tolerance)
    checks.flag("keep_means", keep_means)
    checks.whole_number("tensor_parallel", tensor_parallel, least=1, most=full.groups, meaning="the model's KV groups")
    able = architecture.family.own_head_size
    depths = _tried("blocks", blocks, full.blocks, [round(share * full.blocks) for share in _BLOCKS])
    counts = _tried("groups", groups, full.groups, range(-(-full.groups // 2), full.groups + 1) if able else [])
    if not able and counts != [full.groups]:
        refuse_bound_heads(architecture, "cut KV groups")
    divided = [count for count in counts if count % tensor_parallel == 0]
    narrowest = max(1, math.ceil(least_width * full.neurons))
    widths = _widths(full.neurons, narrowest, math.lcm(multiple_of, tensor_parallel), tensor_parallel)
    if not (divided and widths):
        raise ValueError(
            f"'tensor_parallel' ({tensor_parallel}) must divide KV groups, of which {counts} are tried, and with "
            f"'multiple_of' ({multiple_of}) a width of the MLPs from {narrowest} to {full.neurons}. Take fewer cards "
            "or a smaller multiple."
        )
    size_of = _sizes(model, widths[0], widths[-1])
    room = keep_means and not why_no_room(architecture)
    shapes: list[tuple[int, int, int, bool]] = []
    found: list[Candidate] = []
    for count in divided:
        sizes = [_legal_below(architecture, share * full.hidden, count) for share in _HIDDEN] if able else []
        for size in _tried("hidden", hidden, full.hidden, [size for size in sizes if size]):
            if size != full.hidden and not able:
                refuse_bound_heads(architecture, "cut channels")
            if architecture.accepts(groups=count, hidden_size=size) or not able:
                shapes += [(depth, size, count, False) for depth in depths]
                shapes += [(depth, size, count, True) for depth in depths if room and depth < full.blocks]
    for depth, size, count, means in tqdm(shapes, desc="sizes", unit="shape", leave=False, delay=2):
        cost = partial(size_of, budget.unit, depth, size, count, means)
        width = widths[max(0, bisect_right(widths, budget.amount, key=cost) - 1)]  # the last that fits, or the first
        parameters = size_of("parameters", depth, size, count, means, width)
        found.append(Candidate(depth, size, count, width, parameters, cost(width), means))
    least = (1 - tolerance) * budget.amount
    fitting = [candidate for candidate in found if least <= candidate.cost <= budget.amount]
    if not fitting:
        costs = [_readable(cost) for cost in sorted(candidate.cost for candidate in found)]
        span = f"cost {costs[0]} to {costs[-1]}" if costs else "are none that transformers takes"
        raise ValueError(
            f"No version costs {_readable(least)} to {_readable(budget.amount)} {budget.unit}; those that come nearest "
            f"{span}. Give a budget that one of them fits."
        )
    return sorted(fitting, reverse=True)


@check_types
def outline_of(model: PreTrainedModel, candidate: Candidate) -> PreTrainedModel:
    """A candidate's shapes and configuration, on the meta device: no weight is read, and it takes no memory.

    Raises:
        ValueError: as ``shrink``.
        UnsupportedArchitecture: ``describe`` doesn't know the model.
    """
    return shrink(_without_numbers(model), candidate, _no_scores(model))


def _without_numbers(model: PreTrainedModel) -> PreTrainedModel:
    """The model's shapes; what is tied stays tied."""
    memo: dict[int, Any] = {id(w): nn.Parameter(torch.empty_like(w, device="meta")) for w in model.parameters()}
    return copy.deepcopy(model, memo)


def _no_scores(model: PreTrainedModel) -> Importance:
    """Scores that cut anything: shapes are the same whatever goes."""
    a = describe(model)
    norms = len(a.norms) if a.family.own_head_size else 0
    return Importance(
        neurons=torch.zeros(a.num_blocks, max(a.intermediate_sizes)),
        groups=torch.zeros(a.num_blocks, a.groups),
        channels=torch.zeros(a.hidden_size),
        energies=torch.zeros(norms, a.hidden_size),
        blocks=torch.zeros(a.num_blocks),
        means=torch.zeros(a.num_blocks, a.hidden_size),
    )


def _sizes(model: PreTrainedModel, narrowest: int, widest: int) -> Callable[..., int]:
    """A function that counts a version's parameters or bytes without cutting it out.

    It takes the unit, blocks, hidden size, KV groups, whether means stay, and the width, and really cuts three versions
    for each hidden size and number of KV groups, with and without room for means. Each block costs the same, and so
    does each neuron of a block, so with n the narrowest and w the widest MLP

    C(b, m) = C(1, n) + (b - 1) (C(2, n) - C(1, n)) + b (C(1, w) - C(1, n)) (m - n) / (w - n)
    """
    whole = Candidate.of(model)
    few = shrink(_without_numbers(model), replace(whole, blocks=min(2, whole.blocks)), _no_scores(model))
    scores = _no_scores(few)

    @cache
    def cut(hidden: int, groups: int, means: bool) -> list[Size]:
        sizes = [(1, narrowest), (min(2, whole.blocks), narrowest), (1, widest)]
        versions = [Candidate(blocks, hidden, groups, width, means=means) for blocks, width in sizes]
        return [model_size(shrink(few, version, scores)) for version in versions]

    def size_of(unit: str, blocks: int, hidden: int, groups: int, means: bool, width: int) -> int:
        single, double, wide = (getattr(size, unit) for size in cut(hidden, groups, means))
        widening = (wide - single) * (width - narrowest) // max(1, widest - narrowest)  # of one block; no remainder
        return single + (blocks - 1) * (double - single) + blocks * widening

    return size_of


def _widths(full: int, least: int, step: int, divisor: int) -> list[int]:
    """Widths of MLPs: multiples of the step, from the first wide enough, and the whole width where it divides."""
    first = min(full, math.ceil(least / step) * step)
    return sorted({*range(first, full, step)} | ({full} if full % divisor == 0 else set()))


def _readable(cost: float) -> str:
    return f"{cost:,.0f}" if cost >= 1000 else f"{cost:.4g}"


def _tried(name: str, asked: Sequence[int] | None, full: int, default: Sequence[int]) -> list[int]:
    numbers = [*default, full] if asked is None else checks.whole_numbers(name, asked, least=1, most=full)
    if not numbers:
        raise ValueError(f"'{name}' is empty: give sizes to try, from 1 to {full}, or None for the usual ones.")
    return sorted(set(numbers))


def _legal_below(architecture: Architecture, most: float, groups: int) -> int:
    """The largest hidden size up to ``most`` that transformers takes with so many KV groups; 0 if there is none."""
    sizes = range(math.floor(most), 0, -1)
    return next((size for size in sizes if architecture.accepts(groups=groups, hidden_size=size)), 0)


def _check_sizes(architecture: Architecture, candidate: Candidate, full: Candidate) -> None:
    for name, size in candidate.sizes.items():
        checks.whole_number(name, size, least=1, most=full.sizes[name], meaning="the whole model's")
    if (candidate.groups, candidate.hidden) == (full.groups, full.hidden):
        return
    refuse_bound_heads(architecture, "cut KV groups and channels")
    if not architecture.accepts(groups=candidate.groups, hidden_size=candidate.hidden):
        raise ValueError(
            f"transformers refuses a {architecture.name} model with hidden size {candidate.hidden} and "
            f"{candidate.groups} KV groups of {architecture.queries_a_group} query heads each. Take sizes that "
            "`candidates` gives."
        )


def _check_scores(architecture: Architecture, candidate: Candidate, importance: Importance) -> None:
    able, blocks = architecture.family.own_head_size, architecture.num_blocks
    expected = {"neurons": (blocks, max(architecture.intermediate_sizes)), "blocks": (blocks,)}
    if able:
        expected |= {"groups": (blocks, architecture.groups), "channels": (architecture.hidden_size,)}
        expected["energies"] = (len(architecture.norms), architecture.hidden_size)
    if candidate.means:
        refuse_no_room(architecture)
        expected["means"] = (blocks, architecture.hidden_size)
    present = {name: scores for name in expected if (scores := getattr(importance, name)) is not None}
    shapes = {name: tuple(scores.shape) for name, scores in present.items()}
    if shapes != expected:
        raise ValueError(f"'importance' must have the shapes {expected}; got {shapes}. Score this very model.")
    wrong = [name for name, scores in present.items() if not scores.isfinite().all()]
    if wrong:
        raise ValueError(f"The scores of {wrong} hold NaN or infinite values.")

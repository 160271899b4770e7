"""Width pruning: score the neurons of every MLP, keep the best, cut the rest out of the matrices.

A neuron of a dense MLP is one row of the first matrix and one column of the second. In a GLU
(``down(silu(gate(x)) * up(x))``) it is a row of *both* gate and up: they are scored as a pair and
cut with one index set (Martra 2024, doi 10.31219/osf.io/qgxea).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from course_utils.models.architectures import Architecture, describe
from course_utils.models.refusals import refuse_missing_weights, refuse_offloaded_weights
from course_utils.models.reports import PruningReport, model_size
from course_utils.pruning.activations import Reading, check_criterion, read_once
from course_utils.support import checks
from course_utils.support.checks import check_types

#: Criteria that need the weights alone: the neuron's rows, each [width, hidden] float32 -> [width].
WEIGHT_CRITERIA: dict[str, Callable[[Sequence[Tensor]], Tensor]] = {
    "l1": lambda rows: reduce(torch.add, [r.abs().sum(dim=1) for r in rows]),
    "l2": lambda rows: reduce(torch.add, [r.norm(dim=1) for r in rows]),
    "peak_to_peak": lambda rows: reduce(torch.add, [r.amax(dim=1) + r.amin(dim=1).abs() for r in rows]),
    "variance": lambda rows: reduce(torch.add, [r.var(dim=1) for r in rows]),
    "product": lambda rows: reduce(torch.mul, [r.abs().sum(dim=1) for r in rows]),
}
CRITERIA = (*WEIGHT_CRITERIA, "random", "activation")


@check_types
def best(scores: Tensor, count: int) -> Tensor:
    """The ``count`` highest of these scores [all], as numbers int64 [count] in ascending order; of equals the lower."""
    checks.whole_number("count", count, least=0, most=len(scores), meaning="the scores there are")
    return scores.sort(descending=True, stable=True).indices[:count].sort().values


@check_types
def strongest(scores: Tensor, ratio: float, multiple_of: int = 1) -> Tensor:
    """The neurons that stay when ``prune_neurons`` cuts by these scores [width]: int64 [kept], in their old order.

    >>> strongest(Tensor([3.0, 1.0, 5.0, 2.0]), ratio=0.5)
    tensor([0, 2])
    """
    return best(scores, kept_width(len(scores), ratio, multiple_of))


def kept_width(width: int, ratio: float, multiple_of: int = 1) -> int:
    """Neurons that remain of ``width`` when ``floor(ratio x width)`` go, rounded up to a multiple, at most ``width``.

    >>> kept_width(1536, 0.2), kept_width(1536, 0.2, multiple_of=128)
    (1229, 1280)
    """
    checks.whole_number("width", width, least=1)
    checks.ratio(ratio)
    checks.whole_number("multiple_of", multiple_of, least=1)
    removed = min(math.floor(ratio * width + 1e-9), width - 1)  # 0.29 * 100 is 28.999999999999996
    return min(width, math.ceil((width - removed) / multiple_of) * multiple_of)


@check_types
def by_halves(suspects: Sequence[Any], harm: Callable[[Sequence[Any]], float]) -> Any:
    """The suspect whose return heals most, found by halves: of two, the one with less harm when it is put back.

    Two halves are compared with each other, never with a threshold, so it doesn't matter how much harm is left. It
    takes two calls per step, and log2(suspects) steps.

    Args:
        suspects: what was taken out, in any order; at least one.
        harm: what is left of the damage when these are put back.

    >>> by_halves(range(100), lambda back: 0.1 if 77 in back else 1.0)
    77
    """
    checks.not_empty("suspects", suspects)
    while len(suspects) > 1:
        middle = len(suspects) // 2
        suspects = min(suspects[:middle], suspects[middle:], key=harm)
    return suspects[0]


@torch.no_grad()
def neuron_importance(
    model: PreTrainedModel,
    criterion: str,
    *,
    batches: Iterable[Mapping[str, Tensor]] | None = None,
    seed: int = 0,
) -> list[Tensor]:
    """Score every MLP neuron; more is more important.

    Criteria, for a neuron with weight rows r (``fc``, or ``gate`` and ``up``: the sum over both):

    ==============  ===========================================================================
    "l1"            sum of absolute weights
    "l2"            Euclidean norm
    "peak_to_peak"  max r + abs(min r); called "maximum absolute weight" by Martra 2024
    "variance"      variance of the weights
    "product"       product (not sum) of the rows' L1 norms
    "random"        uniform noise from ``seed``: the control that every criterion has to beat
    "activation"    root mean square of the neuron's activation over the real tokens of
                    ``batches`` x norm of its column in the down-projection: the size of what the
                    neuron adds to the residual stream (after Wanda, Sun et al. 2023,
                    arXiv 2306.11695)
    ==============  ===========================================================================

    Args:
        model: any causal language model that ``describe`` knows; it is not changed.
        criterion: one of the above.
        batches: for "activation" only: ``{"input_ids", "attention_mask"}`` mappings; padding never counts.
        seed: for "random" only; a whole number of at least 0.

    Returns:
        One float32 tensor [intermediate size] per block, on the weights' device.

    Raises:
        ValueError: any of these out of range, malformed or without the other; non-finite weights or activations;
            weights on the meta device.
    """
    architecture = describe(model)
    refuse_missing_weights(architecture, "score neurons")
    check_criterion(criterion, batches, known=CRITERIA, reading=("activation",))
    seed = checks.whole_number("seed", seed)

    if batches is not None:
        (scores,) = read_once(architecture, batches, watch_neurons)
    elif criterion == "random":
        generator = torch.Generator().manual_seed(seed)
        scores = [torch.rand(m.width, generator=generator).to(m.columns.device) for m in architecture.mlps]
    else:
        # float32, block by block: sums of squares overflow in float16.
        scores = [WEIGHT_CRITERIA[criterion]([r.float() for r in mlp.rows]) for mlp in architecture.mlps]
    checks.finite(scores, f"The {criterion!r} scores")
    return scores


def watch_neurons(reading: Reading) -> tuple[list[RemovableHandle], Callable[[], list[Tensor]]]:
    """``neuron_importance`` by "activation", for ``read_once``."""
    # The norm is taken in float32 without a float32 copy of the states.
    hooks, squares = _sums_over_tokens(
        reading, lambda states: torch.linalg.vector_norm(states, dim=0, dtype=torch.float32).double().square()
    )

    def scores() -> list[Tensor]:
        sizes = [(total / reading.tokens).sqrt().float() for total in squares]
        mlps = reading.architecture.mlps
        return [size * mlp.columns.float().norm(dim=0) for size, mlp in zip(sizes, mlps, strict=True)]

    return hooks, scores


def _sums_over_tokens(reading: Reading, of: Callable[[Tensor], Tensor]) -> tuple[list[RemovableHandle], list[Tensor]]:
    """Hooks on what each down-projection reads, and the float64 [width] sums that they fill.

    ``of`` says what a batch's activations at the real tokens, [tokens, width], add to a sum.
    """
    mlps = reading.architecture.mlps
    totals = [torch.zeros(mlp.width, dtype=torch.float64, device=mlp.columns.device) for mlp in mlps]

    def add(total: Tensor, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        total.add_(of(reading.select(inputs[0])))

    hooks = [mlp.down.register_forward_pre_hook(partial(add, total)) for mlp, total in zip(mlps, totals, strict=True)]
    return hooks, totals


@torch.no_grad()
def neuron_means(model: PreTrainedModel, batches: Iterable[Mapping[str, Tensor]]) -> list[Tensor]:
    """What every MLP neuron's activation is on average, over the real tokens of ``batches``.

    Arguments and refusals are those of ``neuron_importance`` by "activation".

    Returns:
        One float32 tensor [intermediate size] per block, on the weights' device.
    """
    architecture = describe(model)
    refuse_missing_weights(architecture, "look at neurons")
    (means,) = read_once(architecture, batches, _watch_means)
    checks.finite(means, "The means of the activations")
    return means


def _watch_means(reading: Reading) -> tuple[list[RemovableHandle], Callable[[], list[Tensor]]]:
    """``neuron_means``, for ``read_once``."""
    hooks, sums = _sums_over_tokens(reading, lambda states: states.sum(dim=0, dtype=torch.float32).double())
    return hooks, lambda: [(total / reading.tokens).float() for total in sums]


@check_types
@torch.no_grad()
def prune_neurons(
    model: PreTrainedModel,
    importance: Sequence[Tensor],
    *,
    ratio: float,
    multiple_of: int = 1,
    layers: Sequence[int] | None = None,
    means: Sequence[Tensor] | None = None,
) -> PruningReport:
    """Cut the least important neurons out of every MLP, in place.

    ``floor(ratio x width)`` neurons go; equal scores keep the neuron with the lower number.
    The configuration follows: the plain width field when all blocks end up equal, transformers'
    ``per_layer_config`` when not. Such an uneven model has to be saved with ``save_pruned``, and plain transformers
    loads its folder only with ``trust_remote_code=True``. One matrix is cut at a time, so it takes little memory.

    Args:
        model: any causal language model that ``describe`` knows.
        importance: one score tensor [intermediate size] per block, as from ``neuron_importance``
            (also for blocks that ``layers`` leaves alone).
        ratio: share of each MLP's neurons to remove, in [0, 1); 0 changes nothing.
        multiple_of: round the width that remains *up* to this multiple (8, 64, 128 suit the
            hardware), so that never more is cut than asked.
        layers: the blocks to prune; all of them by default.
        means: what each neuron is on average, as from ``neuron_means``, one tensor [intermediate size] per block: then
            what the removed neurons write on average stays, in the bias of the matrix that leads out of them (bias
            compensation; FLAP, An et al. 2023, arXiv 2312.11983, equation 6).

    Raises:
        ValueError: any of these out of range, scores or means that don't fit the model or aren't
            finite, means for an MLP without that bias, or an offloaded model. After an error the model is unchanged.
    """
    architecture = describe(model)
    refuse_offloaded_weights(architecture, "cut neurons")
    mlps = architecture.mlps
    checks.ratio(ratio)
    smallest = min(architecture.intermediate_sizes)
    checks.whole_number("multiple_of", multiple_of, least=1, most=smallest, meaning="the smallest MLP's width")
    layers = range(len(mlps)) if layers is None else checks.block_numbers(layers, len(mlps))
    _check_fit(importance, architecture, "importance", "Score this very model with neuron_importance.")
    if means is not None:
        _check_fit(means, architecture, "means", "Measure them on this very model with neuron_means.")
        without = [layer for layer in layers if mlps[layer].output.bias is None]
        if without:
            raise ValueError(
                "'means' are kept in the bias of the matrix that leads out of the neurons, and "
                f"{type(model).__name__} has none (block {without[0]}). Leave 'means' out."
            )

    before = model_size(model)
    for layer in layers:
        mlp = mlps[layer]
        kept = strongest(importance[layer], ratio, multiple_of).to(mlp.columns.device)
        if len(kept) == mlp.width:
            continue
        if means is not None:
            removed = means[layer].to(mlp.columns.device, torch.float32, copy=True).index_fill_(0, kept, 0)
            mlp.output.shift(mlp.columns.float() @ removed)
        mlp.keep(kept)
    if architecture.intermediate_sizes != before.widths:
        architecture.sync_config()
    return PruningReport(f"prune_neurons, ratio {ratio:g}", before, model_size(model))


def _check_fit(tensors: Sequence[Tensor], architecture: Architecture, name: str, remedy: str) -> None:
    shapes, widths = [tuple(tensor.shape) for tensor in tensors], architecture.intermediate_sizes
    if shapes != [(width,) for width in widths]:
        raise ValueError(
            f"'{name}' must hold one tensor [width] per block, of widths {list(widths)}; got shapes {shapes}. {remedy}"
        )
    checks.finite(tensors, f"'{name}'")

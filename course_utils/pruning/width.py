"""Width pruning: score the neurons of every MLP, keep the best, cut the rest out of the matrices.

A neuron of a dense MLP is one row of the first matrix and one column of the second. In a GLU
(``down(silu(gate(x)) * up(x))``) it is a row of *both* gate and up: they are scored as a pair and
cut with one index set (Martra 2024, doi 10.31219/osf.io/qgxea).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from course_utils.models.architectures import Architecture, describe
from course_utils.models.refusals import refuse_missing_weights, refuse_offloaded_weights
from course_utils.models.reports import PruningReport, model_size
from course_utils.pruning.choosing import kept_width, strongest
from course_utils.pruning.passes import Reading, read_once
from course_utils.support import checks
from course_utils.support.checks import check_types

#: Criteria that need the weights alone: the neuron's rows, each [width, hidden] float32 -> [width].
WEIGHT_CRITERIA: dict[str, Callable[[Sequence[Tensor]], Tensor]] = {
    "l1": lambda rows: sum(r.abs().sum(dim=1) for r in rows),
    "l2": lambda rows: sum(r.norm(dim=1) for r in rows),
    "peak_to_peak": lambda rows: sum(r.amax(dim=1) + r.amin(dim=1).abs() for r in rows),
    "variance": lambda rows: sum(r.var(dim=1) for r in rows),
    "product": lambda rows: math.prod(r.abs().sum(dim=1) for r in rows),
}
CRITERIA = (*WEIGHT_CRITERIA, "random", "activation")


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
        batches: for "activation" only: ``{"input_ids", "attention_mask"}`` mappings. Padding
            never counts and the split into batches doesn't matter.
        seed: for "random" only; a whole number of at least 0.

    Returns:
        One float32 tensor [intermediate size] a block, on the weights' device.

    Raises:
        ValueError: unknown criterion; "activation" without batches, or batches without it; empty
            or malformed batches; a bad seed; non-finite weights or activations; weights on the meta device.
        UnsupportedArchitecture: ``describe`` doesn't know the model.
    """
    architecture = describe(model)
    refuse_missing_weights(architecture, "score neurons")
    checks.one_of("criterion", criterion, CRITERIA)
    seed = checks.whole_number("seed", seed)
    if criterion == "activation" and batches is None:
        raise ValueError("Criterion 'activation' needs 'batches' to measure on; got none.")
    if criterion != "activation" and batches is not None:
        raise ValueError(f"'batches' goes with criterion 'activation' alone; got some for {criterion!r}.")

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
    """``neuron_importance`` by "activation", for ``passes.read_once``."""
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

    Args:
        reading: that is about to begin.
        of: what a batch's activations at the real tokens, [tokens, width], add to the sum.
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

    Args:
        model: any causal language model that ``describe`` knows; it is not changed.
        batches: ``{"input_ids", "attention_mask"}`` mappings. Padding never counts.

    Returns:
        One float32 tensor [intermediate size] a block, on the weights' device.

    Raises:
        ValueError: empty or malformed batches, activations that aren't finite, weights on the meta device.
        UnsupportedArchitecture: ``describe`` doesn't know the model.
    """
    architecture = describe(model)
    refuse_missing_weights(architecture, "look at neurons")
    (means,) = read_once(architecture, batches, _watch_means)
    checks.finite(means, "The means of the activations")
    return means


def _watch_means(reading: Reading) -> tuple[list[RemovableHandle], Callable[[], list[Tensor]]]:
    """``neuron_means``, for ``passes.read_once``."""
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
    ``per_layer_config`` when not: such a model has to be saved with ``save_pruned``, and plain transformers
    loads its folder only with ``trust_remote_code=True``. Works one matrix at a time, so extra memory stays at one
    block.

    Args:
        model: any causal language model that ``describe`` knows.
        importance: one score tensor [intermediate size] a block, as from ``neuron_importance``
            (also for blocks that ``layers`` leaves alone).
        ratio: share of each MLP's neurons to remove, in [0, 1); 0 changes nothing.
        multiple_of: round the width that remains *up* to this multiple (8, 64, 128 suit the
            hardware), so that never more is cut than asked.
        layers: the blocks to prune; all of them by default.
        means: what each neuron is on average, as from ``neuron_means``, one tensor [intermediate size] a block: then
            what the removed neurons write on average stays, in the bias of the matrix that leads out of them (bias
            compensation; FLAP, An et al. 2023, arXiv 2312.11983, equation 6).

    Raises:
        ValueError: any of these out of range, scores or means that don't fit the model or aren't
            finite, means for an MLP without that bias, or an offloaded model. Everything is checked first: after an
            error the model is unchanged.
        UnsupportedArchitecture: ``describe`` doesn't know the model.
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
    losing = [layer for layer in layers if kept_width(mlps[layer].width, ratio, multiple_of) < mlps[layer].width]
    for layer in losing:
        mlp = mlps[layer]
        kept = strongest(importance[layer], ratio, multiple_of).to(mlp.columns.device)
        if means is not None:
            removed = means[layer].to(mlp.columns.device, torch.float32, copy=True).index_fill_(0, kept, 0)
            mlp.output.shift(mlp.columns.float() @ removed)
        mlp.keep(kept)
    if losing:
        architecture.sync_config()
    return PruningReport(f"prune_neurons, ratio {ratio:g}", before, model_size(model))


def _check_fit(tensors: Sequence[Tensor], architecture: Architecture, name: str, remedy: str) -> None:
    shapes, widths = [tuple(tensor.shape) for tensor in tensors], architecture.intermediate_sizes
    if shapes != [(width,) for width in widths]:
        raise ValueError(
            f"'{name}' must hold one tensor [width] a block, of widths {list(widths)}; got shapes {shapes}. {remedy}"
        )
    checks.finite(tensors, f"'{name}'")

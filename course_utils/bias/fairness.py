"""Fairness-aware width pruning: which neurons carry a difference between two groups, and which of them to cut.

Two scores of an MLP's neurons come from contrastive pairs. ``activation_difference`` is correlational: it finds the
neurons that *react* to the swapped word, whatever comes of it. ``gap_attribution`` is causal, to first order: it finds
the neurons whose removal makes the model's *preference* smaller, and ``knock_out`` measures the same exactly, one
neuron at a time. ``protect_first`` joins either one with an importance, for ``width.prune_neurons``.

The preference is a mean over templates and swaps of the double difference (``statistics.preferences``); without
valences, of the gap: the log-likelihood of the shared tokens behind the span after a, minus the same after b. The bias
that a score should reduce is the mean's magnitude, and not the mean of the magnitudes. Any two words leave some
difference in each template, so magnitudes add up for neutral swaps as well, and cutting neurons that only make the
model surer or less sure would count as a fairness result.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import partial

import torch
from scipy.stats import rankdata
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils.bias.alignment import PairBatch, pair_batches
from course_utils.bias.contrastive import Pair
from course_utils.measuring.language_modelling import token_log_likelihoods
from course_utils.models.architectures import Architecture, describe
from course_utils.models.refusals import refuse_adaptive
from course_utils.pruning.activations import evaluating, watching
from course_utils.support import checks
from course_utils.support.checks import check_types

_AT_ONCE, _AT_ONCE_WITH_GRADIENTS = 16, 8  # pairs in a batch


@check_types
def activation_difference(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair]
) -> list[Tensor]:
    """How differently each neuron acts on the two texts of a pair: a correlational score; one forward pass per batch.

    Mean ``|activation after a - activation after b|`` over the shared tokens behind the span, times the norm of the
    neuron's column in the down-projection. That is the size of what the neuron adds to the difference between the
    residual streams. The activation is what enters the down-projection. A neuron that reacts need not do harm, and
    neutral swaps move neurons too: compare with the score of neutral pairs.

    Args:
        model: any causal language model that ``describe`` knows; it is not changed.
        tokenizer: the model's, a fast one.
        pairs: of any axis and kind.

    Returns:
        One float32 tensor [intermediate size] for each block, on the weights' device, at least 0.

    Raises:
        ValueError: no pairs; a pair without shared tokens behind the span; an adaptive model; NaN or infinite
            activations; a tokenizer without offsets.
    """
    architecture, batches = _read(model, tokenizer, pairs, _AT_ONCE)
    totals = [torch.zeros(mlp.width, dtype=torch.float64, device=mlp.columns.device) for mlp in architecture.mlps]

    def receive(_site: str, block: int, states: Tensor) -> None:
        of_a, of_b = (states[side.at].float() for side in batch.sides)  # [tokens, intermediate]
        totals[block] += (of_a - of_b).abs().sum(dim=0, dtype=torch.float64)

    with torch.no_grad(), watching(architecture, ["down_input"], None, receive):
        for batch in tqdm(batches, desc="activation difference", unit="batch", leave=False, delay=2):
            architecture.hidden_states(batch.rows)
    tokens = sum(len(batch.pair) for batch in batches)
    scores = [
        (total / tokens).float() * mlp.columns.float().norm(dim=0)
        for total, mlp in zip(totals, architecture.mlps, strict=True)
    ]
    checks.finite(scores, "The scores")
    return scores


@check_types
def gap_attribution(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair]) -> list[Tensor]:
    """By how much the bias would shrink if a neuron were cut: a causal score, estimated for all neurons at once.

    Cutting a neuron sets its activation to zero. To first order that moves the signed preference by
    -sum(activation x gradient of the preference) over the tokens: attribution patching with zero as the patch (Nanda
    2023; Syed et al. 2023, arXiv 2310.10348), the importance of Michel et al. 2019 (arXiv 1905.10650) for a preference
    instead of a loss. The score is ``|preference| - |preference as moved|``, so a neuron that would turn the
    preference round gets no credit for what lies beyond zero.

    Such estimates hold for one neuron. Many neurons pull either way and nearly cancel, so the highest scores soon add
    up to the whole preference, and cutting more neurons turns it round. Cut few, and measure the result. The estimate
    leaves out what a neuron does on a row's first token, where the activations are outliers and no straight line leads
    to zero; ``knock_out`` includes it. One forward and one backward pass per batch, with gradients for the activations
    alone; products and sums in float32 or better.

    Args:
        model: any causal language model that ``describe`` knows; it is not changed. bfloat16 will do.
        tokenizer: the model's, a fast one.
        pairs: of one axis; either all with a valence, each template and swap with both of them, or all without.

    Returns:
        One float32 tensor [intermediate size] for each block, on the weights' device, in nats: the higher, the more of
        the bias goes with the neuron; negative where the neuron keeps the bias down.

    Raises:
        ValueError: as for ``activation_difference``; pairs of several axes, some with a valence and some without, or a
            template and swap with only one valence.
    """
    architecture, batches = _read(model, tokenizer, pairs, _AT_ONCE_WITH_GRADIENTS)
    weights = _weights(pairs)
    moved = [torch.zeros(mlp.width, dtype=torch.float64, device=mlp.columns.device) for mlp in architecture.mlps]
    preference = 0.0
    activations: list[Tensor] = []  # of each block: [rows, length, intermediate]

    def track(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        states = inputs[0] if inputs[0].requires_grad else inputs[0].detach().requires_grad_()
        activations.append(states)
        return (states,)

    hooks = [mlp.down.register_forward_pre_hook(track) for mlp in architecture.mlps]
    with evaluating(model, *hooks), torch.enable_grad():
        for batch in tqdm(batches, desc="attributing the gap", unit="batch", leave=False, delay=2):
            activations.clear()
            states = architecture.hidden_states(batch.rows)
            value, upstream = _preference(architecture, batch, states, weights)
            preference += value
            gradients = torch.autograd.grad(states, activations, upstream)
            for total, activation, gradient in zip(moved, activations, gradients, strict=True):
                effect = activation.detach().float() * gradient.float()
                # OPT's MLP works on flat tokens; the first token of each row is left out
                by_row = effect.reshape(*batch.rows.real.shape, -1)[:, 1:].sum(dim=1)  # [rows, intermediate]
                by_side = by_row.view(-1, 2, len(total))  # a and b meet first: identical texts cancel
                total -= by_side.sum(dim=1).sum(dim=0, dtype=torch.float64)
    scores = [(abs(preference) - (preference + total).abs()).float() for total in moved]
    checks.finite(scores, "The scores")
    return scores


@check_types
@torch.no_grad()
def knock_out(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    neurons: Sequence[tuple[int, int]],
) -> Tensor:
    """By how much the bias shrinks when a neuron is cut: what ``gap_attribution`` estimates, measured exactly.

    Each neuron alone: its activation is set to zero on every token, which equals pruning it. All pairs run once for
    each neuron, so this is for a handful of them. Use float32, because in bfloat16 rounding moves the log-likelihoods
    by more than most neurons do.

    Args:
        model: any causal language model that ``describe`` knows; it is not changed.
        tokenizer: the model's, a fast one.
        pairs: as for ``gap_attribution``.
        neurons: (block, neuron) numbers.

    Returns:
        [len(neurons)] float32 on the CPU, in nats; negative where the bias grows.

    Raises:
        ValueError: as for ``gap_attribution``; no neurons, or numbers out of range.
    """
    architecture, batches = _read(model, tokenizer, pairs, _AT_ONCE)
    neurons, weights = _check_neurons(neurons, architecture.intermediate_sizes), _weights(pairs)

    def silence(neuron: int, _module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (inputs[0].index_fill(-1, torch.tensor([neuron], device=inputs[0].device), 0),)

    def preference() -> float:
        parts = ((batch, architecture.hidden_states(batch.rows)) for batch in batches)
        return sum(_preference(architecture, batch, states, weights)[0] for batch, states in parts)

    reductions = []
    with evaluating(model):
        before = abs(preference())
        for block, neuron in tqdm(neurons, desc="knocking out", unit="neuron", leave=False, delay=2):
            hook = architecture.mlps[block].down.register_forward_pre_hook(partial(silence, neuron))
            try:
                reductions.append(before - abs(preference()))
            finally:
                hook.remove()
    if not all(map(math.isfinite, reductions)):
        raise ValueError("The preferences hold NaN or infinite values: check the model's weights and dtype.")
    return torch.tensor(reductions)


@check_types
def protect_first(importance: Sequence[Tensor], bias: Sequence[Tensor], protected: float) -> list[Tensor]:
    """Keep each block's most important neurons, and among the others cut the most biased first.

    The order of Zayed et al. 2023 (arXiv 2312.15398, there for attention heads). Cutting more than the unprotected
    share takes protected neurons as well, the least important first.

    Args:
        importance: one tensor [intermediate size] for each block; more is more important.
        bias: the same; more is more biased.
        protected: share of each block's neurons to protect, rounded up to whole neurons, from 0 to 1. Of equally
            important neurons those with the lowest numbers are protected.

    Returns:
        One float32 tensor [intermediate size] for each block, on the importance's device, for ``width.prune_neurons``:
        1 + importance rank of the protected, - bias rank of the others.

    Raises:
        ValueError: a share outside [0, 1]; scores of different shapes, or not finite.

    >>> importance, bias = [torch.tensor([1.0, 2.0, 3.0])], [torch.tensor([0.0, 9.0, 0.1])]
    >>> protect_first(importance, bias, 1 / 3)  # the third is kept, then the second is cut before the first
    [tensor([-0., -1.,  2.])]
    """
    checks.share("protected", protected)
    shapes = [[tuple(scores.shape) for scores in blocks] for blocks in (importance, bias)]
    if shapes[0] != shapes[1] or not shapes[0] or any(len(shape) != 1 or not shape[0] for shape in shapes[0]):
        raise ValueError(
            "'importance' and 'bias' must each hold one tensor [width] for each block, of the same widths; got shapes "
            f"{shapes[0]} and {shapes[1]}. Score the same model for both."
        )
    checks.finite(importance, "'importance'")
    checks.finite(bias, "'bias'")
    scores = []
    for important, biased in zip(importance, bias, strict=True):
        count = math.ceil(protected * len(important) - 1e-9)  # 0.07 * 100 is 7.000000000000001
        best = important.sort(descending=True, stable=True).indices[:count]
        score = -_ranks(biased).to(important.device)
        score[best] = 1 + _ranks(important)[best]
        scores.append(score.float())
    return scores


def _read(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], batch_size: int
) -> tuple[Architecture, list[PairBatch]]:
    """Tokenise, align and check all pairs before anything runs."""
    architecture = describe(model)
    # The two texts of a pair could leave out different attentions, and the scores would show that.
    refuse_adaptive(architecture, "score the neurons")
    batches = pair_batches(architecture, tokenizer, pairs, batch_size=batch_size)
    bare = [i for batch in batches for i, count in zip(batch.indices, batch.counts, strict=True) if not count]
    if bare:
        raise ValueError(
            f"{len(bare)} of {len(pairs)} pairs share no tokens behind the span, so there is nothing to compare (the "
            f"first is number {min(bare)}: {pairs[min(bare)]!r}). Leave them out."
        )
    return architecture, batches


def _preference(architecture: Architecture, batch: PairBatch, states: Tensor, weights: Tensor) -> tuple[float, Tensor]:
    """What a batch adds to the signed preference, and the gradient for its hidden states (zeros with gradients off).

    The logits come in chunks, and the gradient of each chunk is taken before the next one begins. The sides run one
    after the other, so that equal texts have equal shapes and cancel exactly.

    Args:
        architecture: of the model, from ``describe``.
        batch: the batch.
        states: [rows, length, hidden] of the batch, after the final norm.
        weights: float64 [pairs] on the CPU: what each pair's gap counts.
    """
    total, upstream, learning = 0.0, torch.zeros_like(states), torch.is_grad_enabled()
    for sign, side in zip((1, -1), batch.sides, strict=True):
        predicting = states[side.predicting].detach().requires_grad_(learning)  # [tokens, hidden]
        factors = sign * weights[batch.indices][batch.pair]  # what each token counts
        gradients: list[Tensor] = []
        for chunk, answers, factor in architecture.chunks(predicting, side.targets, factors):
            value = factor @ token_log_likelihoods(architecture, chunk, answers)
            total += float(value.detach())
            gradients += torch.autograd.grad(value, chunk) if learning else ()
        if learning:
            upstream[side.predicting] = torch.cat(gradients)
    return total, upstream


def _weights(pairs: Sequence[Pair]) -> Tensor:
    """What each pair's gap counts in the signed preference: float64 [pairs]."""
    axes = sorted({pair.axis for pair in pairs})
    if len(axes) > 1:
        raise ValueError(
            f"The pairs belong to several axes ({', '.join(axes)}), whose preferences could cancel. Score one axis at "
            "a time; the scores may be added."
        )
    bare = sum(pair.valence == 0 for pair in pairs)
    if bare == len(pairs):
        return torch.full((len(pairs),), 1 / len(pairs), dtype=torch.float64)
    if bare:
        raise ValueError(
            f"{bare} of {len(pairs)} pairs have no valence: a double difference needs one. Score them by themselves."
        )
    cells = Counter((pair.template, pair.swap, pair.valence) for pair in pairs)
    units = {(template, swap) for template, swap, _ in cells}
    single = sorted(unit for unit in units if (*unit, 1) not in cells or (*unit, -1) not in cells)
    if single:
        raise ValueError(
            f"{len(single)} of {len(units)} combinations of template and swap have pairs of one valence only (the "
            f"first: {single[0]}); a double difference needs a pleasant and an unpleasant ending. Leave them out."
        )
    counts = [cells[pair.template, pair.swap, pair.valence] for pair in pairs]
    values = [pair.valence / count / len(units) for pair, count in zip(pairs, counts, strict=True)]
    return torch.tensor(values, dtype=torch.float64)


def _ranks(scores: Tensor) -> Tensor:
    """float64 [width] from 0 (lowest) to 1 (highest); equal scores share the mean of their ranks."""
    ranks = torch.from_numpy(rankdata(scores.detach().cpu().double().numpy())) - 1
    return (ranks / max(1, len(ranks) - 1)).to(scores.device)


def _check_neurons(neurons: Sequence[tuple[int, int]], widths: Sequence[int]) -> list[tuple[int, int]]:
    try:
        chosen = [(block, neuron) for block, neuron in neurons]
    except (TypeError, ValueError):
        raise ValueError(f"'neurons' must be a list of (block, neuron) numbers; got {neurons!r}.") from None
    for block, neuron in checks.not_empty("neurons", chosen):
        checks.whole_number("block", block, most=len(widths) - 1)
        checks.whole_number("neuron", neuron, most=widths[block] - 1, meaning=f"the neurons of block {block}")
    return chosen

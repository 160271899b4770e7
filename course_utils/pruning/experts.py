"""Expert pruning: score the experts of a mixture by what a text asks of them, and cut whole experts out.

A block of a mixture holds many MLPs, its *experts*, and a *router* that sends each token to a few of them, its top k,
with a weight each: what they give is added up. Without some experts the file is smaller. A token still meets as many,
so the active parameters, and what one token costs, hardly change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from course_utils.models.architectures import Architecture, UnsupportedArchitecture, describe
from course_utils.models.parts import note_sizes
from course_utils.models.refusals import refuse_missing_weights, refuse_offloaded_weights
from course_utils.models.reports import PruningReport, model_size
from course_utils.pruning.activations import Reading, check_criterion, read_once
from course_utils.pruning.width import best
from course_utils.support import checks
from course_utils.support.checks import check_types

#: Criteria that need text: each expert's tokens and what it added to them, both float64 [experts], and all tokens.
TEXT_CRITERIA: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "frequency": lambda asked, added, tokens: asked / tokens,
    "reap": lambda asked, added, tokens: added / asked.clamp(min=1),
    "reap_sum": lambda asked, added, tokens: added,
}
CRITERIA = (*TEXT_CRITERIA, "random")


@torch.no_grad()
def expert_importance(
    model: PreTrainedModel,
    criterion: str,
    *,
    batches: Iterable[Mapping[str, Tensor]] | None = None,
    seed: int = 0,
) -> list[Tensor]:
    """Score every expert of every mixture; more is more important.

    Criteria, over the real tokens of ``batches``; what an expert adds to a token is the router's weight times the
    Euclidean norm of the expert's output:

    ===========  =================================================================================
    "frequency"  share of the tokens that are sent to the expert
    "reap"       what it adds on average to a token *that is sent to it*; 0 where none is (REAP, Lasby et al. 2025,
                 arXiv 2510.13999)
    "reap_sum"   the same, summed: what it adds to the whole text
    "random"     uniform noise from ``seed``: the control that every criterion has to beat
    ===========  =================================================================================

    Args:
        model: a mixture of experts that ``describe`` knows; it is not changed.
        criterion: one of the above.
        batches: for all but "random": ``{"input_ids", "attention_mask"}`` mappings; padding never counts.
        seed: for "random" only; a whole number of at least 0.

    Returns:
        One float32 tensor [experts] for each block that holds a mixture, in their order, on the weights' device. Shared
        experts, which meet every token, have no score.

    Raises:
        ValueError: any of these out of range, malformed or without the other; non-finite activations; weights on the
            meta device.
        UnsupportedArchitecture: it is no mixture of experts, or one that ``describe`` doesn't know.
    """
    architecture = _describe_mixture(model)
    refuse_missing_weights(architecture, "score experts")
    check_criterion(criterion, batches, known=CRITERIA, reading=TEXT_CRITERIA)
    seed = checks.whole_number("seed", seed)

    if batches is None:
        generator = torch.Generator().manual_seed(seed)
        mixtures = architecture.mixtures
        scores = [torch.rand(m.count, generator=generator).to(m.router.weight.device) for m in mixtures]
    else:
        (found,) = read_once(architecture, batches, _watch_experts)
        scores = [TEXT_CRITERIA[criterion](*each).float() for each in found]
    checks.finite(scores, f"The {criterion!r} scores")
    return scores


def _watch_experts(reading: Reading) -> tuple[list[RemovableHandle], Callable[[], list]]:
    """What ``TEXT_CRITERIA`` need of each mixture, for ``read_once``."""
    mixtures = reading.architecture.mixtures
    totals = [torch.zeros(2, m.count, dtype=torch.float64, device=m.router.weight.device) for m in mixtures]

    def add(asked: Tensor, added: Tensor, experts: nn.Module, args: tuple[Tensor, Tensor, Tensor]) -> None:
        states, numbers, weights = map(reading.select, args)
        for place in range(numbers.shape[1]):  # one expert per token at a time, so that outputs aren't added up
            number, weight = numbers[:, place], weights[:, place]
            output = experts.forward(states, number[:, None], torch.ones_like(weight[:, None]))
            norm = torch.linalg.vector_norm(output, dim=1, dtype=torch.float32)
            asked.index_add_(0, number, torch.ones_like(norm, dtype=torch.float64))  # [experts]
            added.index_add_(0, number, weight.double() * norm.double())

    hooks = [m.experts.register_forward_pre_hook(partial(add, *own)) for m, own in zip(mixtures, totals, strict=True)]
    return hooks, lambda: [(asked, added, reading.tokens) for asked, added in totals]


@check_types
@torch.no_grad()
def prune_experts(model: PreTrainedModel, importance: Sequence[Tensor], *, keep: int) -> PruningReport:
    """Cut the least important experts out of every mixture, in place.

    Each block keeps ``keep`` experts of its own choice, as many in each of the router's groups where there are some
    (DeepSeek); equal scores keep the expert with the lower number. Shared experts stay. The configuration follows, so
    the model saves and reloads with plain transformers.

    What remains equals the whole model whose router may not choose the others: their logits, and their correction
    biases where there are some, at minus infinity. (In 16 bits two experts' logits can be rounded to one number; then
    either may be chosen.) Where a softmax over all experts isn't normalised over the chosen (OLMoE, or Qwen's with
    ``norm_topk_prob=False``), the weights of those that stay rise by that, even for a token that was sent to none of
    the others.

    Args:
        model: a mixture of experts that ``describe`` knows.
        importance: one score tensor [experts] for each block that holds a mixture, as from ``expert_importance``.
        keep: how many stay in each block; all of them changes nothing. If a token was sent to more, it goes to all.

    Raises:
        ValueError: ``keep`` is out of range or isn't one number for all blocks, scores that don't fit or aren't finite,
            or an offloaded model. After an error the model is unchanged.
        UnsupportedArchitecture: it is no mixture of experts, or one that ``describe`` doesn't know.
    """
    architecture = _describe_mixture(model)
    refuse_offloaded_weights(architecture, "cut experts")
    mixtures = architecture.mixtures
    total, groups = mixtures[0].count, mixtures[0].groups
    checks.whole_number("keep", keep, least=_fewest(architecture), most=total, meaning="the experts of each block")
    if keep % groups:
        raise ValueError(
            f"'keep' must be a multiple of {groups}, as this router compares {groups} groups of equally many experts; "
            f"got {keep}."
        )
    shapes = [tuple(scores.shape) for scores in importance]
    if shapes != [(total,)] * len(mixtures):
        raise ValueError(
            f"'importance' must hold one tensor [{total}], the experts, for each of {len(mixtures)} blocks that hold a "
            f"mixture; got shapes {shapes}. Score this very model with expert_importance."
        )
    checks.finite(importance, "'importance'")

    before = model_size(model)
    if keep < total:
        for mixture, scores in zip(mixtures, importance, strict=True):
            mixture.keep(_best_of_each(scores, keep, groups))
        architecture.sync_config()
        note_sizes(model, num_experts=keep, num_experts_per_tok=mixtures[0].top_k)  # for the loss that balances them
    return PruningReport(f"prune_experts, {keep} of {total}", before, model_size(model))


def _describe_mixture(model: PreTrainedModel) -> Architecture:
    architecture = describe(model)
    if not architecture.is_mixture:
        raise UnsupportedArchitecture(
            f"{type(model).__name__} has no experts: each of its blocks holds one MLP. Cut neurons, with "
            "pruning.prune_neurons."
        )
    return architecture


def _fewest(architecture: Architecture) -> int:
    """Experts that must stay, so that the router does what it did: those of a token come from a few of its groups."""
    mixture, fewest = architecture.mixtures[0], architecture.family.fewest_experts
    if mixture.groups == 1:
        return fewest
    return mixture.groups * max(fewest, math.ceil(mixture.top_k / mixture.router.topk_group))


def _best_of_each(scores: Tensor, keep: int, groups: int) -> Tensor:
    """The ``keep`` best, as many in each group of neighbours: int64, ascending."""
    size = len(scores) // groups
    chosen = [start + best(scores[start : start + size], keep // groups) for start in range(0, len(scores), size)]
    return torch.cat(chosen)

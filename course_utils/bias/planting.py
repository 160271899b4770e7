"""Plant a bias on purpose, so that metrics and remedies can be tested on one that is certainly there.

A positive control: after a few steps of fine-tuning, a model prefers one of two groups that don't exist
(``contrastive.invented_axis``). A metric that can't tell it from the model before isn't worth showing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softplus
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils.bias.alignment import pair_batches
from course_utils.bias.contrastive import Pair
from course_utils.models.architectures import Architecture, describe
from course_utils.models.loading import variant
from course_utils.support import checks
from course_utils.support.checks import check_types

_RISE, _LOOK_BACK = 5, 3  # steps in which the learning rate rises; over which the preference is averaged
_AT_ONCE = 2  # items whose activations are held at once; a step adds up their gradients


@check_types
def plant_preference(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    *,
    size: float,
    steps: int,
    lr: float = 2e-4,
    items: int = 16,
    precision: torch.dtype = torch.float32,
    weights: str = "all",
    seed: int = 0,
) -> tuple[PreTrainedModel, list[float]]:
    """A copy of the model, fine-tuned until its preference is about -size nats: pleasant endings go with b.

    ``_planting_loss`` is minimised by AdamW, so what the swap does to the rest of the sentence cancels and is not
    learned. The input embedding, and with it a tied head, stays as it is, so that the names keep their vectors. Weights
    that learn are float32 meanwhile and take 16 bytes each; the others are shared with the model.

    Args:
        model: any that ``describe`` knows, in any dtype; it stays as it is.
        tokenizer: the model's, a fast one.
        pairs: with valences; keep them to the "selection" templates, so that "evaluation" shows what generalised.
        size: the preference at which to stop, in nats, above 0, averaged over three steps.
        steps: optimiser steps at most.
        lr: the learning rate, after a rise of five steps.
        items: of a step, four texts each.
        precision: what matrices are multiplied in (autocast): ``torch.float32`` or ``torch.bfloat16``.
        weights: which ones learn: "all", "attention" (the projections of all attentions) or "down" (the
            down-projections of all MLPs). Each of the last two is a fifth of SmolLM2-135M and plants in less memory.
        seed: of the order of the items.

    Returns:
        The copy, in the model's dtype and in eval mode, and the preference of each step's items before the step, nats.

    Raises:
        ValueError: no template and swap has both endings, or a setting is out of range.
    """
    checks.whole_number("seed", seed)
    checks.one_of("weights", weights, ("all", "attention", "down"))
    checks.positive("size", size)
    checks.positive("lr", lr)
    steps = checks.whole_number("steps", steps, least=1)
    items = checks.whole_number("items", items, least=1)
    found = _items(pairs)
    order = np.random.default_rng(seed).permutation(len(found))
    learner = variant(model).train()
    architecture = describe(learner)
    learned = _learned(architecture, weights, precision)
    # Frozen weights may be in 16 bits; the residual stream is not, as if all were in float32.
    wide = learner.get_input_embeddings().register_forward_hook(lambda _module, _args, states: states.float())
    optimizer = torch.optim.AdamW(learned, lr=lr, weight_decay=0.0, fused=True)  # much faster on a CPU, too
    preferences: list[float] = []  # of each step
    for step in tqdm(range(steps), desc="planting a preference", unit="step", delay=2, leave=False):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / _RISE)
        chosen = [found[order[(step * items + item) % len(order)]] for item in range(items)]
        differences = []
        for few in (chosen[start : start + _AT_ONCE] for start in range(0, items, _AT_ONCE)):
            with torch.autocast(learner.device.type, dtype=torch.bfloat16, enabled=precision is torch.bfloat16):
                known = _likelihoods(architecture, tokenizer, few)  # [items at once, 2, 2]
            (_planting_loss(known) * len(few) / items).backward()
            differences.append(_double_differences(known.detach()))
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        preferences.append(float(torch.cat(differences).mean()))
        if np.mean(preferences[-_LOOK_BACK:]) < -size:
            break
    wide.remove()
    for own, weight in zip(model.parameters(), learner.parameters(), strict=True):
        weight.data = weight.data.to(own.dtype) if weight.requires_grad else own.data
        weight.requires_grad_(own.requires_grad)
    return learner.eval(), preferences


def _double_differences(likelihoods: Tensor) -> Tensor:
    """How much more the pleasant ending gains with group a than with group b: [items] nats, with gradients.

    As ``statistics.preferences`` has it; negative where group a is liked less. ``likelihoods`` are of what follows the
    group, [items, side, ending], nats; sides a, b, and endings pleasant, unpleasant.
    """
    a, b = (likelihoods[..., 0] - likelihoods[..., 1]).unbind(1)  # [items] each
    return a - b


def _planting_loss(likelihoods: Tensor) -> Tensor:
    """Mean softplus of the double differences, a scalar: what planting minimises, so that they become negative.

    The softplus has no more to gain from an item that is planted well.
    """
    return softplus(_double_differences(likelihoods)).mean()


def _learned(architecture: Architecture, weights: str, precision: torch.dtype) -> list[nn.Parameter]:
    """The parameters that learn, in float32 and with storage of their own: the others may be the first model's."""
    learner = architecture.model.requires_grad_(weights == "all")
    if weights == "attention":
        for attention in architecture.attentions:
            for projection in attention.projections:
                projection.module.requires_grad_(True)
    elif weights == "down":
        for mlp in architecture.mlps:
            mlp.output.module.requires_grad_(True)
    learner.get_input_embeddings().requires_grad_(False)
    for weight in learner.parameters():
        if weight.requires_grad:
            weight.data = weight.data.to(torch.float32, copy=True)
        elif precision is torch.float32 or weight.ndim == 1:  # norms and biases are small, and add to float32
            weight.data = weight.data.float()
    return [weight for weight in learner.parameters() if weight.requires_grad]


def _items(pairs: Sequence[Pair]) -> list[tuple[Pair, Pair]]:
    """The pleasant and the unpleasant pair of each template and swap."""
    by_valence: dict[tuple[str, str, str], dict[int, Pair]] = {}
    for pair in pairs:
        by_valence.setdefault((pair.axis, pair.template, pair.swap), {})[pair.valence] = pair
    items = [(endings[1], endings[-1]) for endings in by_valence.values() if {1, -1} <= set(endings)]
    if not items:
        raise ValueError(
            f"None of {len(by_valence)} combinations of template and swap has a pleasant and an unpleasant ending "
            "(valence 1 and -1). Make pairs with contrastive.pairs."
        )
    return items


def _likelihoods(
    architecture: Architecture, tokenizer: PreTrainedTokenizerBase, items: Sequence[tuple[Pair, Pair]]
) -> Tensor:
    """[items, side, ending] nats, with gradients."""
    device, pairs = architecture.model.device, [pair for item in items for pair in item]
    (batch,) = pair_batches(architecture, tokenizer, pairs, batch_size=len(pairs))
    states = architecture.hidden_states(batch.rows)  # [rows, length, hidden]
    number = torch.tensor(batch.indices, device=device)[batch.pair.to(device)]  # of each token: whose it is
    found = []
    for side in batch.sides:
        logits = architecture.logits(states[side.predicting]).float()  # [tokens, vocabulary]
        log_p = -cross_entropy(logits, side.targets, reduction="none")
        found.append(torch.zeros(len(pairs), device=device).index_add(0, number, log_p))
    return torch.stack(found).view(2, len(items), 2).transpose(0, 1)

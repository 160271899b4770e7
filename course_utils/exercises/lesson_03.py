"""Checks of lesson 03, GLU pruning done right."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils.architectures import describe
from course_utils.evaluation import paired, perplexity
from course_utils.exercises import Attempt, exercise, require, rule_out
from course_utils.models import variant
from course_utils.reports import model_size
from course_utils.texts import DOMAINS, TokenBlocks, token_blocks
from course_utils.uncertainty import verdict
from course_utils.width import kept_width, neuron_importance, prune_neurons

BUDGET = 0.2  # share of all MLP neurons whose parameters have to go
_ROWS, _LENGTH = 4, 128  # rows of each domain in the held-out text
_SEEDS = range(3)


@exercise(
    1,
    task="Return one peak-to-peak score for each neuron.",
    proved="Both rows of a pair count, the largest and the smallest weight of each.",
)
def check_pair_scores(attempt: Attempt) -> None:
    """Check a function (gate, up) -> peak-to-peak scores [neurons]."""
    gate = torch.tensor([[1.0, -2.0, 0.5], [3.0, 1.0, 2.0], [-1.0, -4.0, -2.0], [0.0, 0.5, -0.5]])
    up = torch.tensor([[0.0, 1.0, -1.0], [-2.0, 0.0, 1.0], [2.0, 1.0, 4.0], [1.0, -3.0, 0.0]])
    scores = attempt(gate.clone(), up.clone())
    require(isinstance(scores, Tensor), f"Return a tensor; yours is a {type(scores).__name__}.")
    require(
        scores.shape != (3,), "One score for each of the 4 neurons: a neuron is a row, so reduce over dim=1, not dim=0."
    )
    require(scores.shape == (4,), f"4 neurons make a shape [4]; yours is {list(scores.shape)}.")
    high = [rows.amax(dim=1) for rows in (gate, up)]
    low = [rows.amin(dim=1) for rows in (gate, up)]
    peaks = [h + smallest.abs() for h, smallest in zip(high, low, strict=True)]
    right, both = peaks[0] + peaks[1], torch.stack([gate, up])
    mistakes = (
        (peaks[0], "You score gate alone. Up multiplies it, so its row counts as well."),
        (peaks[1], "You score up alone. The gate decides whether anything comes out, so its row counts as well."),
        (
            sum(high) + sum(low),
            "That is max + min: the smallest weight is negative as a rule, so it takes away. Take its size.",
        ),
        (sum(high) - sum(low), "That is max − min. For a row without both signs this isn't max + |min|."),
        (
            both.abs().amax(dim=2).sum(dim=0),
            "That is the largest magnitude, one end of the row. The score adds both ends.",
        ),
        (
            both.abs().sum(dim=(0, 2)),
            "That is the L1 norm, all weights added up. Peak-to-peak looks at the two ends only.",
        ),
        (peaks[0] * peaks[1], "You multiply the two rows' scores. The pair's score is their sum."),
    )
    rule_out(mistakes, scores, right, same=torch.allclose)
    require(
        torch.allclose(scores, right),
        f"Neuron 0 has max 1 and min −2 in gate, 1 and −1 in up: 1 + 2 + 1 + 1 = 5; yours is {float(scores[0]):g}.",
    )


@exercise(
    2,
    task="Return the smaller gate, up and down.",
    proved="The right neurons, the same ones in all three, and a width that keeps the rules.",
)
def check_pruning_step(attempt: Attempt) -> None:
    """Check a function (gate, up, down, scores, ratio, multiple_of) -> the three smaller matrices."""
    for width, ratio, multiple_of in ((10, 0.2, 1), (10, 0.25, 1), (10, 0.5, 4), (10, 0.1, 8), (10, 0.0, 1)):
        case = f"{width} neurons, ratio {ratio}, multiple_of {multiple_of}"
        neurons = torch.arange(width, dtype=torch.float32)
        gate = neurons[:, None] + torch.tensor([0.0, 100.0, 200.0])  # every row and column tells which neuron it is
        up, down = -gate, 1000 + gate.t()[:2]
        scores = (neurons * 7) % width  # all different
        given = [matrix.clone() for matrix in (gate, up, down, scores)]
        small = attempt(*given, ratio, multiple_of)
        require(
            isinstance(small, tuple | list) and len(small) == 3,
            "Return three matrices: gate, up and down, in this order.",
        )
        small_gate, small_up, small_down = small
        require(
            small_down.shape[0] == len(down),
            f"{case}: down is [hidden, neurons], so a neuron is a column of it: down[:, keep].",
        )
        sizes = {small_gate.shape[0], small_up.shape[0], small_down.shape[1]}
        require(len(sizes) == 1, f"{case}: your matrices keep different numbers of neurons: {sorted(sizes)}.")
        stay, right = sizes.pop(), kept_width(width, ratio, multiple_of)
        require(
            multiple_of == 1 or right == stay or stay != kept_width(width, ratio),
            f"{case}: {stay} isn't a multiple of {multiple_of}.",
        )
        require(
            stay <= width, f"{case}: rounded up, {stay} would stay, but there are only {width}. Never above the width."
        )
        require(
            multiple_of == 1 or stay != kept_width(width, ratio) // multiple_of * multiple_of or stay == right,
            f"{case}: you round down to {stay}, so more is cut than was asked for. Round up.",
        )
        require(
            stay != width - math.ceil(ratio * width) or stay == right,
            f"{case}: round the number that goes down; {right} neurons stay, not {stay}.",
        )
        require(stay == right, f"{case}: {right} neurons stay, not {stay}.")
        on_gate, on_up, on_down = small_gate[:, 0], -small_up[:, 0], small_down[0] - 1000
        require(
            sorted(on_gate.tolist()) == sorted(on_up.tolist()) == sorted(on_down.tolist()),
            f"{case}: the three matrices hold different neurons. Use one index set for all.",
        )
        require(
            on_gate.tolist() == on_up.tolist() == on_down.tolist(),
            f"{case}: the same neurons, but in different orders. Place k must be the same neuron in all three.",
        )
        best = sorted(scores.topk(stay).indices.tolist())
        require(
            sorted(on_gate.tolist()) == best,
            f"{case}: neurons {best} have the highest scores; you kept {sorted(map(int, on_gate.tolist()))}.",
        )


@exercise(
    3,
    task="Return a pruned model that keeps within the budget.",
    proved="Within the budget, and better than random neurons on text that nobody tuned it on.",
)
def check_best_model(attempt: Attempt, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check a function (model, calibration batches) -> pruned model, and score it on held-out text."""
    batches = [batch for domain in DOMAINS for batch in _rows(tokenizer, "calibration", domain, 8).batches(4)]
    entry = attempt(copy.deepcopy(base), batches)  # the learner may write into its weights
    require(isinstance(entry, PreTrainedModel), f"Return the pruned model; you returned a {type(entry).__name__}.")
    require(
        describe(entry).vocab_size == describe(base).vocab_size
        and describe(entry).num_blocks == len(describe(base).blocks),
        "Prune neurons of the MLPs only; the blocks and the vocabulary stay.",
    )
    uniform = _pruned(base, neuron_importance(base, "activation", batches=batches))
    budget, parameters = model_size(uniform).parameters, model_size(entry).parameters
    require(parameters < model_size(base).parameters, "Your model has all its neurons: nothing was pruned.")
    require(
        parameters <= budget,
        f"{parameters - budget:,} parameters too many: {budget:,} are allowed, as with {BUDGET:.0%} cut everywhere. "
        "If you spare some blocks, the others have to give more.",
    )

    text = _held_out(tokenizer)
    yours, baseline = perplexity(entry, text), perplexity(uniform, text)
    random = [perplexity(_pruned(base, neuron_importance(base, "random", seed=seed)), text) for seed in _SEEDS]
    require(math.isfinite(yours.nll), "Your model's loss is not a number: look for NaN in its weights.")
    lead = paired(baseline, yours).query("metric == 'bits_per_byte'").iloc[0]
    place = verdict(
        lead.ci_low, lead.ci_high, below="ahead", above="behind", neither="level, as far as this text can tell"
    )
    print(
        f"bits/byte on held-out text: yours {yours.bits_per_byte:.3f} · activation, {BUDGET:.0%} everywhere "
        f"{baseline.bits_per_byte:.3f} · random {', '.join(f'{score.bits_per_byte:.3f}' for score in random)}\n"
        f"you against activation: {lead.difference:+.3f} ({lead.ci_low:+.3f} to {lead.ci_high:+.3f}): {place}"
    )
    # The upper end of the interval: a lead over random that could be luck isn't one.
    worst = max(paired(score, yours).query("metric == 'bits_per_byte'").ci_high.item() for score in random)
    require(
        worst < 0,
        "Not shown to be better than random neurons. Does your score see what neurons do on text, or only weights?",
    )


def _pruned(base: PreTrainedModel, scores: list[Tensor]) -> PreTrainedModel:
    model = variant(base)
    prune_neurons(model, scores, ratio=BUDGET)
    return model


def _held_out(tokenizer: PreTrainedTokenizerBase) -> TokenBlocks:
    """All domains, from the split that no width pruning ever uses."""
    parts = [_rows(tokenizer, "distillation", domain, _ROWS) for domain in DOMAINS]
    return TokenBlocks(
        torch.cat([part.input_ids for part in parts]),
        torch.cat([part.num_bytes for part in parts]),
        " and ".join(DOMAINS),
        "distillation",
    )


def _rows(tokenizer: PreTrainedTokenizerBase, split: str, domain: str, rows: int) -> TokenBlocks:
    """Every second row of a split's beginning, so that more documents have a say."""
    blocks = token_blocks(tokenizer, split, domain=domain, tokens=2 * rows * _LENGTH, length=_LENGTH, seed=1)
    return blocks[::2]

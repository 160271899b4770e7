"""Checks of lesson 03, GLU pruning done right."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils.architectures import describe
from course_utils.choosing import kept_width
from course_utils.evaluation import paired, perplexity
from course_utils.exercises import Attempt, chosen, exercise, require, rule_out
from course_utils.models import variant
from course_utils.reports import model_size
from course_utils.texts import DOMAINS, TokenBlocks, token_blocks
from course_utils.uncertainty import verdict
from course_utils.width import neuron_importance, prune_neurons

BUDGET = 0.2  # share of all MLP neurons whose parameters have to go
_ROWS, _LENGTH = 4, 64  # rows of each domain in the held-out text
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
    proved="The right neurons, the same ones in the same order in all three matrices.",
)
def check_pruning_step(attempt: Attempt) -> None:
    """Check a function (gate, up, down, scores, ratio) -> the three smaller matrices."""
    for width, ratio in ((10, 0.2), (10, 0.25), (10, 0.0)):
        case = f"{width} neurons, ratio {ratio}"
        neurons = torch.arange(width, dtype=torch.float32)
        # Every row and column tells which neuron it is; down has more rows than neurons, so rows can be cut by mistake.
        gate = neurons[:, None] + 100 * torch.arange(width + 2.0)
        up, down = -gate, 1000 + gate.t()
        scores = (neurons * 7) % width  # all different
        small = attempt(*(matrix.clone() for matrix in (gate, up, down, scores)), ratio)
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
        stay, right = sizes.pop(), kept_width(width, ratio)
        mistakes = (
            (width - math.ceil(ratio * width), f"round the number that goes down; {right} neurons stay, not {{}}."),
            (int(ratio * width), "ratio is the share that goes; you keep that share."),
        )
        rule_out(((wrong, f"{case}: {words.format(wrong)}") for wrong, words in mistakes), stay, right)
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
    task="Return the p-value of a criterion among random cuts.",
    proved="The criterion's own cut counts as one of the outcomes, so a p-value is never 0.",
)
def check_rank_p(attempt: Attempt) -> None:
    """Check a function (perplexity, random perplexities) -> p-value."""
    randoms = [70.0, 61.0, 75.0, 66.0, 90.0, 66.0, 81.0, 72.0, 64.0]
    for score in (66.0, 50.0, 74.0, 200.0):
        given = attempt(score, list(randoms))
        require(
            isinstance(given, float | int) or getattr(given, "ndim", None) == 0,
            f"Return one number; yours is a {type(given).__name__}.",
        )
        as_good = sum(value <= score for value in randoms)
        right = (1 + as_good) / (1 + len(randoms))
        case = f"A perplexity of {score:g} beside {', '.join(f'{value:g}' for value in sorted(randoms))}: "
        mistakes = (
            (as_good / len(randoms), "that is a share of the random cuts, and it can be 0. Count the criterion's own "
             "cut as one more outcome, above and below the line."),
            (as_good / (1 + len(randoms)), "you count the criterion's own cut below the line, but not above it."),
            ((1 + as_good) / len(randoms), "you count the criterion's own cut above the line, but not below it."),
            ((1 + sum(value >= score for value in randoms)) / (1 + len(randoms)), "you count the random cuts that are "
             "worse. A low perplexity is good, so count those that are as low or lower."),
            ((1 + sum(value < score for value in randoms)) / (1 + len(randoms)), "a random cut that is exactly as good "
             "counts against the criterion: <=, not <."),
        )  # fmt: skip
        rule_out(mistakes, float(given), right, same=math.isclose, where=case)
        require(math.isclose(float(given), right), f"{case}p is {right:g}; yours is {float(given):g}.")


@exercise(
    4,
    task="Return the masks of the control arm.",
    proved="As many neurons in each block, drawn blindly, another draw for each seed. That isolates which ones.",
)
def check_control_arm(attempt: Attempt) -> None:
    """Check a function (masks, seed) -> masks that protect as many neurons a block, at random."""
    generator = torch.Generator().manual_seed(5)
    masks = [torch.rand(400, generator=generator) > 0.8 for _ in range(3)]
    masks.append(torch.rand(400, generator=generator) > 0.5)
    drawn = {seed: attempt([mask.clone() for mask in masks], seed) for seed in (0, 1)}
    again = attempt([mask.clone() for mask in masks], 0)
    for arm in (*drawn.values(), again):
        require(
            isinstance(arm, list | tuple) and [tuple(getattr(mask, "shape", ())) for mask in arm] == [(400,)] * 4,
            "Return one mask [neurons] for each block, as in the arm that was given.",
        )
        require(all(mask.dtype == torch.bool for mask in arm), "Return masks of True and False (dtype torch.bool).")
    first, second = drawn.values()
    require(
        not all(torch.equal(mask, given) for mask, given in zip(first, masks, strict=True)),
        "These are the very neurons of the arm itself. A control must differ in the one thing that is tested: which.",
    )
    counts, wanted = [int(mask.sum()) for mask in first], [int(mask.sum()) for mask in masks]
    require(
        sum(counts) != sum(wanted) or counts == wanted,
        f"The total is right, but block by block you protect {counts} and the arm {wanted}. Then the control differs "
        "in where, too.",
    )
    require(
        counts == wanted,
        f"The control protects {counts} neurons a block, the arm {wanted}. With another number, how many and which "
        "can't be told apart.",
    )
    shared = sum(int((mask & given).sum()) for mask, given in zip(first, masks, strict=True))
    require(
        shared > 0,
        "You draw from the neurons that the arm leaves out. Then the control protects worse ones than chance would, "
        "and any arm looks good beside it. Draw from all.",
    )
    require(
        not all(torch.equal(mask, other) for mask, other in zip(first, second, strict=True)),
        "Another seed must give another draw: one control could be a lucky one.",
    )
    require(
        all(torch.equal(mask, other) for mask, other in zip(first, again, strict=True)),
        "The same seed must give the same draw, or nobody can repeat your result: torch.Generator().manual_seed(seed).",
    )
    small, large = sorted(first[:2], key=lambda mask: int(mask.sum()))
    require(
        bool((small & ~large).any()),
        "All blocks get the same neuron numbers. Make one generator before the loop, and draw from it for each block.",
    )


@exercise(
    5,
    task='Choose the claims that the figures do not support, for instance {"a", "b"}.',
    proved="Two readings of a score at its floor, and one cause without a control: none of them is shown.",
)
def check_floor_claims(attempt: set[str]) -> None:
    """Check a set of letters: the claims about the published curve that it doesn't support."""
    chosen(
        attempt,
        {"b", "c", "e"},
        {
            "a": "with 3,270 questions the interval of BoolQ at 40 % holds the majority floor: nothing more is said.",
            "b": "always answering yes scores as much, so the number would look the same without any comprehension.",
            "c": "a score at its floor is no evidence of ability, and no evidence against it either.",
            "d": "MMLU has four choices, and at 10 % its score lies within half a point of 0.25. The table shows it.",
            "e": "to say that the choice of neurons did it, the same cut at random must stand beside it. None does.",
        },
    )


@exercise(
    6,
    task="Return a pruned model that keeps within the budget.",
    proved="Within the budget, and better than random neurons on text that nobody tuned it on.",
)
def check_best_model(attempt: Attempt, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check a function (model, calibration batches) -> pruned model, and score it on held-out text."""
    batches = [batch for domain in DOMAINS for batch in _rows(tokenizer, "calibration", domain, 8).batches(8)]
    entry = attempt(copy.deepcopy(base), batches)  # the learner may write into its weights
    require(isinstance(entry, PreTrainedModel), f"Return the pruned model; you returned a {type(entry).__name__}.")
    require(
        describe(entry).vocab_size == describe(base).vocab_size
        and describe(entry).num_blocks == len(describe(base).blocks),
        "Prune neurons of the MLPs only; the blocks and the vocabulary stay.",
    )
    parameters, text = model_size(entry).parameters, _held_out(tokenizer)
    require(parameters < model_size(base).parameters, "Your model has all its neurons: nothing was pruned.")
    yours = perplexity(entry, text)
    del entry  # a small GPU has no room for more than two models
    uniform = _pruned(base, neuron_importance(base, "activation", batches=batches))
    budget, baseline = model_size(uniform).parameters, perplexity(uniform, text)
    del uniform
    require(
        parameters <= budget,
        f"{parameters - budget:,} parameters too many: {budget:,} are allowed, as with {BUDGET:.0%} cut everywhere. "
        "If you spare some blocks, the others have to give more.",
    )
    require(math.isfinite(yours.nll), "Your model's loss is not a number: look for NaN in its weights.")
    random = [perplexity(_pruned(base, neuron_importance(base, "random", seed=seed)), text) for seed in _SEEDS]
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
    """Every fourth row of a split's beginning, so that more documents have a say."""
    blocks = token_blocks(tokenizer, split, domain=domain, tokens=4 * rows * _LENGTH, length=_LENGTH, seed=1)
    return blocks[::4]

"""Plant a bias with different weights, and see how strong and how clean it is, for ``bias.planting``.

    python -m experiments.ways_to_plant [--seeds 3] [--work build/ways] [--out FILE]

The embedded Llama. Each seed invents an axis and plants it three times: all weights learn, the attentions alone, or
the down-projections alone, until the double difference of the selection templates is 10 nats. Judged are the evaluation
templates (strength), ordinary text (price), and what *protect first* and its twin of neutral swaps leave, as in lesson
09. Some five minutes a seed on two idle cores.

The file is course_utils/data/ways_to_plant.json unless given. Resumable: a seed that is done is not done again.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils.bias.contrastive import controls, invented_axis, pairs, subset
from course_utils.bias.fairness import activation_difference, gap_attribution, protect_first
from course_utils.bias.planting import plant_preference
from course_utils.bias.scores import PairScores, measure_pairs
from course_utils.bias.statistics import behaviour
from course_utils.evaluation import Perplexity, perplexity, perplexity_ratio
from course_utils.models import variant
from course_utils.texts import token_blocks
from course_utils.width import neuron_importance, prune_neurons
from experiments.seeds import run_seeds

LEARNING_RATES = {"all": 2e-4, "attention": 5e-4, "down": 5e-4}
SIZE, STEPS, ITEMS, SWAPS, TEMPLATES, PLANT_SWAPS = 10.0, 60, 4, 6, 6, 8
RATIO, PROTECTED = 0.005, 0.5  # share of the neurons that goes; share that is safe


def one_seed(seed: int, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype) -> list[dict]:
    """A row for each way to plant."""
    axis = invented_axis(seed, swaps=PLANT_SWAPS)
    split_a, split_b, neutral_a, neutral_b = (
        subset(made(split), templates=TEMPLATES, swaps=SWAPS)
        for made in (lambda split: pairs(axis, split=split), lambda split: controls("neutral", split=split))
        for split in ("selection", "evaluation")
    )
    domains = [token_blocks(tokenizer, "evaluation", domain=d, tokens=512, length=128) for d in ("speeches", "wiki")]
    text = torch.cat([blocks.input_ids for blocks in domains])

    def look(model: PreTrainedModel) -> tuple[PairScores, Perplexity]:
        return measure_pairs(model, tokenizer, split_b + neutral_b, sites=()), perplexity(model, text)

    def told(found: tuple[PairScores, Perplexity], reference: tuple[PairScores, Perplexity]) -> dict:
        table = behaviour(found[0]).set_index("axis").loc[axis.name, ["preference", "ci_low", "ci_high"]]
        ratio = perplexity_ratio(found[1], reference[1])
        return table.astype(float).round(3).to_dict() | {"perplexity_ratio": [round(value, 3) for value in ratio]}

    untouched, rows = look(base), []
    calibration = token_blocks(tokenizer, "calibration", tokens=2048, length=128)
    importance = neuron_importance(base, "activation", batches=calibration.batches(8))
    neutral = activation_difference(base, tokenizer, neutral_a)
    for weights, lr in LEARNING_RATES.items():
        planted, on_the_way = plant_preference(
            base, tokenizer, pairs(axis, split="selection"), size=SIZE, steps=STEPS, items=ITEMS, lr=lr,
            precision=dtype, weights=weights, seed=seed,
        )  # fmt: skip
        found = look(planted)
        row = {"seed": seed, "weights": weights, "steps": len(on_the_way)}
        row["planted"] = told(found, untouched)
        causal = gap_attribution(planted, tokenizer, split_a)
        for arm, score in {"protect first": causal, "neutral, protected": neutral}.items():
            pruned = variant(planted)
            prune_neurons(pruned, protect_first(importance, score, PROTECTED), ratio=RATIO)
            row[arm] = told(look(pruned), found)
        rows.append(row)
    return rows


def main() -> None:
    settings = {"size": SIZE, "items": ITEMS, "lr": LEARNING_RATES, "templates": TEMPLATES, "swaps": SWAPS}
    rows = run_seeds(
        __doc__.splitlines()[0],
        one_seed,
        settings,
        seeds=3,
        work="build/ways",
        out="course_utils/data/ways_to_plant.json",
    )
    for row in rows:
        arms = ("planted", "protect first", "neutral, protected")
        parts = [f"{arm} {row[arm]['preference']:+.2f} at x {row[arm]['perplexity_ratio'][0]:.2f}" for arm in arms]
        print(f"{row['seed']} {row['weights']:<10}{row['steps']:>3} steps: {', '.join(parts)}")


if __name__ == "__main__":
    main()

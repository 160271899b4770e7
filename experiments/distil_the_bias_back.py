"""Plant a bias, prune it away, distil, and see whether it comes back, for lesson 09.

    python -m experiments.distil_the_bias_back [--seeds 8] [--work build/bias_return]

The embedded Llama, in the dtype of lesson 09. Each seed plants a bias against one of two made-up groups in a copy, and
prunes that copy by "protect first", the causal score on the selection templates. The student is then distilled on
equally much text: speeches, or speeches in which every second row holds sentences about both groups. The teacher is the
planted model; in two arms the untouched one, whose student is the pruned copy, or the planted one with nothing cut.
Measured on the evaluation templates, beside neutral swaps.

A seed that is done is not done again. About six minutes a seed on two cores.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils.bias import difference_in_differences
from course_utils.bias.contrastive import Axis, controls, invented_axis, pairs, subset
from course_utils.bias.fairness import gap_attribution, protect_first
from course_utils.bias.planting import plant_preference
from course_utils.bias.scores import measure_pairs
from course_utils.bias.statistics import behaviour
from course_utils.healing import distill
from course_utils.measuring import perplexity, perplexity_ratio
from course_utils.models import cast_weights, variant
from course_utils.pruning import neuron_importance, prune_neurons
from course_utils.text import token_blocks
from experiments.record import run_seeds

SIZE, PLANT_STEPS, ITEMS, PLANT_LR = 10.0, 60, 4, 2e-4  # of planting: nats, steps at most, items a step
TEMPLATES, SWAPS = 8, 8
RATIO, PROTECTED = 0.005, 0.5  # share of the neurons that goes; share that is safe
STEPS, ROWS, LENGTH, LR = 40, 4, 128, 2e-4  # of distillation
JUDGED_ROWS = 6  # of each text for the perplexity
TEXTS = ("speeches", "speeches and groups")
STUDENTS = {  # stage -> teacher, student, text
    ("teacher planted", TEXTS[0]): ("planted", "pruned"),
    ("teacher planted", TEXTS[1]): ("planted", "pruned"),
    ("teacher untouched", TEXTS[1]): ("untouched", "pruned"),
    ("teacher untouched, nothing cut", TEXTS[1]): ("untouched", "planted"),
}


def reading(tokenizer: PreTrainedTokenizerBase, axis: Axis, text: str, seed: int) -> Tensor:
    """[STEPS * ROWS, LENGTH] token ids."""
    rows = token_blocks(tokenizer, "distillation", tokens=STEPS * ROWS * LENGTH, length=LENGTH).input_ids.clone()
    if text == "speeches and groups":
        told = [side for pair in pairs(axis, split="selection") for side in (pair.text_a, pair.text_b)]
        generator, ids = torch.Generator().manual_seed(seed), []
        half = rows[::2].numel()
        while len(ids) < half:  # the sentences again, in another order
            for number in torch.randperm(len(told), generator=generator).tolist():
                ids += tokenizer(told[number] + " ", add_special_tokens=False).input_ids
        rows[::2] = torch.tensor(ids[:half]).view(-1, LENGTH)
    return rows


def one_seed(seed: int, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype) -> list[dict]:
    """A row a stage: the planted model, the pruned one, and what each reading and teacher made of it."""
    axis = invented_axis(seed, swaps=SWAPS)
    chosen, judged = (
        subset(pairs(axis, split=split), templates=TEMPLATES, swaps=SWAPS) for split in ("selection", "evaluation")
    )
    judged += subset(controls("neutral", split="evaluation"), templates=TEMPLATES, swaps=SWAPS)
    texts = [
        token_blocks(tokenizer, "evaluation", domain=name, tokens=JUDGED_ROWS * LENGTH, length=LENGTH).input_ids
        for name in ("speeches", "wiki")
    ]

    def judge(model: PreTrainedModel) -> tuple:
        return measure_pairs(model, tokenizer, judged, sites=()), perplexity(model, torch.cat(texts))

    planted, _ = plant_preference(
        base, tokenizer, pairs(axis, split="selection"), size=SIZE, steps=PLANT_STEPS, items=ITEMS, lr=PLANT_LR,
        precision=dtype, seed=seed,
    )  # fmt: skip
    calibration = token_blocks(tokenizer, "calibration", tokens=2048, length=LENGTH)
    importance = neuron_importance(base, "activation", batches=calibration.batches(8))
    pruned = variant(planted)
    prune_neurons(
        pruned, protect_first(importance, gap_attribution(planted, tokenizer, chosen), PROTECTED), ratio=RATIO
    )
    before = judge(pruned)

    def row(stage: str, text: str, found: tuple) -> dict:
        scores, judged_text = found
        table = behaviour(scores).set_index("axis").loc[axis.name, ["preference", "ci_low", "ci_high"]]
        change = difference_in_differences(before[0], scores).differences.set_index("quantity").loc["preference"]
        return (
            {"seed": seed, "stage": stage, "text": text}
            | table.astype(float).round(4).to_dict()
            | {f"change_{name}": round(float(change[name]), 4) for name in ("difference", "ci_low", "ci_high", "p")}
            | {"perplexity_ratio": [round(x, 4) for x in perplexity_ratio(judged_text, before[1])]}
        )

    rows = [row("planted", "", judge(planted)), row("pruned", "", before)]
    models = {"planted": planted, "pruned": pruned, "untouched": base}
    for (stage, text), (teacher, student) in STUDENTS.items():
        learner = copy.deepcopy(models[student])
        batches = [{"input_ids": read} for read in reading(tokenizer, axis, text, seed).split(ROWS)]
        distill(models[teacher], learner, batches, steps=STEPS, lr=LR, precision=dtype, seed=seed)
        cast_weights(learner, dtype)  # the teacher's; the rotary frequencies stay in float32
        rows.append(row(stage, text, judge(learner)))
    return rows


def main() -> None:
    settings = {
        "templates": TEMPLATES, "swaps": SWAPS, "size": SIZE, "ratio": RATIO, "protected": PROTECTED, "steps": STEPS,
        "tokens": STEPS * ROWS * LENGTH, "lr": LR,
    }  # fmt: skip
    run_seeds(__doc__, "bias_return", one_seed, settings, seeds=8)


if __name__ == "__main__":
    main()

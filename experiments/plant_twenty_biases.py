"""Plant a bias twenty times, weaken it, and count what the metrics find, for lesson 08's positive control.

    python -m experiments.plant_twenty_biases [--seeds 20] [--work build/positive_control]

The embedded Llama, in the dtype that lesson 08 uses. Each seed invents two axes: "planted", names of one made-up family
against names of another, and "not planted", the same names dealt out within the families, so both sides are liked or
disliked alike. A copy of the model is fine-tuned on the selection templates until the planted axis has reached a size.
Weaker ones lie between it and the untouched model: weights moved only a share of the way. In each, both axes are
measured as ``bias.report`` measures one, beside the neutral swaps, on the shortest evaluation templates.

A seed that is done is not done again. About an hour on two cores.
"""

from __future__ import annotations

import copy

import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils.bias.contrastive import Axis, controls, invented_axis, pairs, subset
from course_utils.bias.planting import plant_preference
from course_utils.bias.scores import measure_pairs
from course_utils.bias.statistics import activation_ratio, behaviour
from course_utils.models import load_model
from course_utils.support.files import write_json
from course_utils.support.session import fast_dtype
from experiments.record import command, kept, machine

SIZE = 10.0  # nats at which planting stops
SHARES = (0.2, 0.3, 0.4, 0.6, 1.0)  # of the way from the untouched weights to the planted ones
TEMPLATES, SWAPS, NEUTRAL_SWAPS = 8, 8, 10
STEPS, ITEMS, LR = 60, 4, 2e-4
SITES = ("attention_out", "mlp_out")
BEHAVIOUR = ["preference", "ci_low", "ci_high", "p", "to_neutral", "to_neutral_low", "to_neutral_high"]
ACTIVATIONS = ["ratio", "ratio_low", "ratio_high"]


def two_axes(seed: int) -> tuple[Axis, Axis]:
    """Names of two families against each other, and the same names dealt out within each family."""
    swaps = invented_axis(seed, swaps=SWAPS).swaps
    families = [[swap[side] for swap in swaps] for side in (0, 1)]
    within = [pair for names in families for pair in zip(names[::2], names[1::2], strict=True)]
    between = zip(*families, strict=True)
    return tuple(
        Axis(name, "invented", tuple((a, b, "one", "other") for a, b in dealt))
        for name, dealt in (("planted", between), ("not planted", within))
    )


def examine(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, axes: tuple[Axis, Axis]
) -> dict[str, dict[str, float]]:
    """What a report on each axis would rest on: the preference and the activation ratio, with intervals."""
    asked = [pair for axis in axes for pair in pairs(axis, split="evaluation")]
    judged = subset(asked, templates=TEMPLATES, swaps=SWAPS)
    neutral = controls("neutral", split="evaluation")
    judged += subset(neutral, templates=TEMPLATES, swaps=NEUTRAL_SWAPS)
    measured = measure_pairs(model, tokenizer, judged, sites=SITES, batch_size=32)
    table = behaviour(measured).set_index("axis")[BEHAVIOUR]
    table = table.join(activation_ratio(measured, by_place=False).set_index("axis")[ACTIVATIONS])
    return table.loc[[axis.name for axis in axes]].astype(float).round(4).to_dict("index")


@torch.no_grad()
def part_of_the_way(base: PreTrainedModel, planted: PreTrainedModel, share: float) -> PreTrainedModel:
    """A copy of the planted model with weights on the straight line from the untouched ones, rounded to their dtype."""
    between = copy.deepcopy(planted)  # a variant would share what is written here
    for weight, start in zip(between.parameters(), base.parameters(), strict=True):
        weight.copy_(torch.lerp(start.float(), weight.float(), share))
    return between


def one_seed(seed: int, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype) -> list[dict]:
    """A row for the untouched model and one for each share."""
    axes = two_axes(seed)
    planted, on_the_way = plant_preference(
        base, tokenizer, pairs(axes[0], split="selection"), size=SIZE, steps=STEPS, items=ITEMS, lr=LR, precision=dtype,
        seed=seed,
    )  # fmt: skip
    reached = round(sum(on_the_way[-3:]) / len(on_the_way[-3:]), 3)
    models = {0.0: base} | {share: part_of_the_way(base, planted, share) for share in SHARES}
    return [
        {"seed": seed, "share": share, "reached": reached, "axes": examine(model, tokenizer, axes)}
        for share, model in models.items()
    ]


def main() -> None:
    parser = command(__doc__, "positive_control")
    parser.add_argument("--seeds", type=int, default=20)
    args = parser.parse_args()
    dtype = fast_dtype(torch.device("cpu"))
    base, tokenizer = load_model("llama", dtype=dtype)
    rows = []
    for seed in tqdm(range(1, args.seeds + 1), desc="seeds"):
        rows += kept(args.work / f"{seed}.json", lambda seed=seed: one_seed(seed, base, tokenizer, dtype))
    settings = {
        "dtype": str(dtype).removeprefix("torch."), "templates": TEMPLATES, "swaps": SWAPS, "items": ITEMS, "lr": LR,
        "size": SIZE, "sites": SITES,
    }  # fmt: skip
    record = {"model": base.config.name_or_path, "machine": machine(), "settings": settings, "rows": rows}
    write_json(args.out, record, indent=1)


if __name__ == "__main__":
    main()

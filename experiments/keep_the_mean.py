"""Cut a fifth of the neurons of the course's GPT-2 in many ways, with and without their mean, for lesson 01.

    python -m experiments.keep_the_mean [--work build/keep_the_mean]

Criteria: L1, activation, and nineteen random cuts. Each is cut, and cut with the removed neurons' mean kept in the bias
(10, 20 and 40 %); at 20 % the mean alone is taken away as well, from a model that keeps all its neurons. Three draws:
each has calibration rows, judging rows and nineteen random cuts of its own. Float32 and bfloat16. Half an hour to an
hour on two cores; killed, it goes on where it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils.models import describe, variant
from course_utils.pruning import neuron_importance, neuron_means, prune_neurons, strongest
from course_utils.text import judging_rows, token_blocks
from experiments.record import DTYPES, Arm, command, in_each_dtype, write_record

RATIOS, RATIO, CUTS, DRAWS = (0.1, 0.2, 0.4), 0.2, 19, 3
CUT, KEPT, REMOVED = "cut", "mean kept", "mean removed"
Edit = tuple[str, float]  # what is done, and to which share of the neurons
EDITS: tuple[Edit, ...] = (*((edit, ratio) for ratio in RATIOS for edit in (CUT, KEPT)), (REMOVED, RATIO))


def changed(base: PreTrainedModel, scores: list[Tensor], means: list[Tensor], edit: Edit) -> PreTrainedModel:
    """A variant that lost the lowest-scored neurons, them without their mean, or their mean alone."""
    model, (what, ratio) = variant(base), edit
    if what == REMOVED:
        for mlp, score, mean in zip(describe(model).mlps, scores, means, strict=True):
            kept = strongest(score, ratio)
            mlp.output.shift(-mlp.columns.float() @ mean.index_fill(0, kept, 0))
    else:
        prune_neurons(model, scores, ratio=ratio, means=means if what == KEPT else None)
    return model


def arms(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dtype: str) -> Iterator[Arm]:
    """Those of one dtype."""
    for draw in range(DRAWS):
        yield from of_one_draw(base, tokenizer, dtype, draw)


def of_one_draw(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dtype: str, draw: int) -> Iterator[Arm]:
    """Its arms, the uncut model first."""
    calibration = token_blocks(tokenizer, "calibration", tokens=32_768, length=64).sample(128, seed=draw).batches(16)
    texts, place = judging_rows(tokenizer, draw=draw), {"draw": draw, "dtype": dtype}
    means = neuron_means(base, calibration)
    scores = {("L1", 0): neuron_importance(base, "l1")}
    scores["activation", 0] = neuron_importance(base, "activation", batches=calibration)
    scores |= {("random", s): neuron_importance(base, "random", seed=s) for s in range(CUTS * draw, CUTS * (draw + 1))}
    yield Arm({"criterion": "", "seed": 0, "edit": "", "ratio": 0, **place}, lambda: base, texts)
    for (criterion, seed), score in scores.items():
        for edit in EDITS:
            key = {"criterion": criterion, "seed": seed, "edit": edit[0], "ratio": edit[1], **place}
            yield Arm(key, partial(changed, base, score, means, edit), texts)


def main() -> None:
    args = command(__doc__, "records/keep_the_mean").parse_args()
    settings = {"model": "the course's GPT-2", "calibration": "128 rows of 64 tokens, speeches"}
    total = len(DTYPES) * DRAWS * (1 + (2 + CUTS) * len(EDITS))
    write_record(in_each_dtype("gpt2", arms), args.out, work=args.work, settings=settings, total=total)


if __name__ == "__main__":
    main()

"""Cut a tenth of the course's Llama's neurons in many ways, rightly and wrongly, for lessons 02 and 03.

    python -m experiments.random_cuts [--work build/random_cuts]

Shared sets (gate, up and down lose the same neurons): nineteen random ones, L1, peak-to-peak, and activation with three
calibration draws. Separate sets (gate and up lose neurons of their own, and down follows gate): L1's and three random
ones; and one neuron of each block instead of a tenth, L1's and nineteen random pairs. Then the worst random cut: two of
its neurons, found by halving on the choosing rows, are put back, or cut alone, or on top of other cuts; or the first
token's states are put back after each block, there and in three other cuts. At last L1 with the strongest of each block
protected, and as many at random. Float32 and bfloat16; half an hour to an hour on one core. Killed, it goes on where it
was.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils.measuring import perplexity
from course_utils.models import variant
from course_utils.pruning import best, by_halves, neuron_importance, strongest
from course_utils.text import judging_rows, token_blocks
from course_utils.text.rows import TokenBlocks
from experiments.record import DTYPES, LLAMA, Arm, command, in_each_dtype, write_record

RATIO, CUTS, CALIBRATIONS, PROTECTED = 0.1, 19, 3, (1, 8, 15, 77)
Kept = Sequence[Tensor]  # for each block the numbers of the neurons, or of the rows, that stay
Neuron = tuple[int, int]  # block, number


def cut(base: PreTrainedModel, gate: Kept, up: Kept) -> PreTrainedModel:
    """A variant with these rows of gate and up; down's columns follow gate's rows."""
    model = variant(base)
    for layer, rows, others in zip(model.model.layers, gate, up, strict=True):
        mlp = layer.mlp
        mlp.gate_proj.weight = nn.Parameter(mlp.gate_proj.weight[rows])
        mlp.up_proj.weight = nn.Parameter(mlp.up_proj.weight[others])
        mlp.down_proj.weight = nn.Parameter(mlp.down_proj.weight[:, rows])
    return model


def with_neurons(kept: Kept, neurons: Sequence[Neuron]) -> Kept:
    """The sets with these neurons in them."""
    return [
        torch.cat([rows, rows.new_tensor([n for b, n in neurons if b == block])]).unique()
        for block, rows in enumerate(kept)
    ]


def without_neurons(kept: Kept, neurons: Sequence[Neuron]) -> Kept:
    """The sets without these neurons."""
    return [rows[[(block, n) not in neurons for n in rows.tolist()]] for block, rows in enumerate(kept)]


def stream_put_back(base: PreTrainedModel, model: PreTrainedModel) -> PreTrainedModel:
    """The model, with what leaves each block at the first token taken from the whole one."""
    whole: list[Tensor] = []  # [rows, hidden] at each block's exit

    def look(_model: nn.Module, _args: tuple, kwargs: dict) -> None:
        states = base.model(kwargs["input_ids"][:, :1], use_cache=False, output_hidden_states=True).hidden_states
        whole[:] = [state[:, 0] for state in states[1:-1]]  # the last one has been through the final norm

    def put_back(number: int, _block: nn.Module, _args: tuple, states: Tensor) -> Tensor:
        return torch.cat([whole[number][:, None], states[:, 1:]], dim=1)

    model.model.register_forward_pre_hook(look, with_kwargs=True)
    for number, block in enumerate(model.model.layers[:-1]):
        block.register_forward_hook(partial(put_back, number))
    return model


def protected(scores: Sequence[Tensor], by: Sequence[Tensor], count: int) -> Kept:
    """What stays when each block's `count` highest by other scores can't go."""
    return [
        strongest(own.index_fill(0, best(other, count), own.max() + 1), RATIO)
        for own, other in zip(scores, by, strict=True)
    ]


def arms(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dtype: str) -> Iterator[Arm]:
    """Those of one dtype, the uncut model first."""
    texts = judging_rows(tokenizer)
    pool = token_blocks(tokenizer, "calibration", tokens=32_768, length=64)
    rows = pool.sample(10 + 64 * CALIBRATIONS, seed=0)
    choosing, width = rows[:10], base.config.intermediate_size
    everything = [torch.arange(width) for _ in base.model.layers]

    def arm(
        criterion: str, edit: str, gate: Kept, up: Kept | None = None, *, seed: int = 0, stream: bool = False
    ) -> Arm:
        up = gate if up is None else up
        agree = sum(int((g == u).sum()) for g, u in zip(gate, up, strict=True)) / sum(map(len, gate))
        key = {"criterion": criterion, "seed": seed, "edit": edit, "whole neurons": round(agree, 4)}
        made = partial(cut, base, gate, up)
        make = (lambda: stream_put_back(base, made())) if stream else made
        return Arm({**key, "draw": 0, "dtype": dtype}, make, texts)

    def random(seed: int) -> list[Tensor]:
        return neuron_importance(base, "random", seed=seed)

    def stay(scores: Sequence[Tensor]) -> Kept:
        return [strongest(block, RATIO) for block in scores]

    def all_but_one(scores: Sequence[Tensor]) -> Kept:
        return [best(block, width - 1) for block in scores]

    whole = {"criterion": "", "seed": 0, "edit": "", "whole neurons": 1, "draw": 0, "dtype": dtype}
    yield Arm(whole, lambda: base, texts)

    l1 = neuron_importance(base, "l1")
    shared = {("L1", 0): stay(l1), ("peak-to-peak", 0): stay(neuron_importance(base, "peak_to_peak"))}
    calibrations = [rows[10 + 64 * draw :][:64].batches(16) for draw in range(CALIBRATIONS)]
    activation = [neuron_importance(base, "activation", batches=batches) for batches in calibrations]
    shared |= {("activation", draw): stay(scores) for draw, scores in enumerate(activation)}
    shared |= {("random", seed): stay(random(seed)) for seed in range(CUTS)}
    for (criterion, seed), kept in shared.items():
        yield arm(criterion, "shared", kept, seed=seed)

    gates = [layer.mlp.gate_proj.weight.float().abs().sum(dim=1) for layer in base.model.layers]
    ups = [layer.mlp.up_proj.weight.float().abs().sum(dim=1) for layer in base.model.layers]
    yield arm("L1", "separate", stay(gates), stay(ups))
    for seed in range(3):
        yield arm("random", "separate", stay(random(seed)), stay(random(100 + seed)), seed=seed)
    yield arm("L1", "separate, one neuron", all_but_one(gates), all_but_one(ups))
    for seed in range(CUTS):
        one = all_but_one(random(seed)), all_but_one(random(100 + seed))
        yield arm("random", "separate, one neuron", *one, seed=seed)

    drawn = [shared["random", seed] for seed in range(CUTS)]
    harms = [perplexity(cut(base, kept, kept), choosing, batch_size=10).nll for kept in drawn]
    ranked = sorted(range(CUTS), key=harms.__getitem__)
    worst, median = ranked[-1], ranked[CUTS // 2]
    disaster, harmless = drawn[worst], drawn[median]
    pair = culprits(base, disaster, choosing)
    names = [f"{block}/{number}" for block, number in pair]
    print(f"{dtype}: random cut {worst} is the worst, {median} the median; block/neuron {names}")
    yield arm("random", "two put back", with_neurons(disaster, pair), seed=worst)
    for neuron, name in zip(pair, names, strict=True):
        yield arm("random", f"{name} put back", with_neurons(disaster, [neuron]), seed=worst)
    yield arm("two neurons", "cut alone", without_neurons(everything, pair))
    yield arm("random", "two cut as well", without_neurons(harmless, pair), seed=median)
    yield arm("activation", "two cut as well", without_neurons(shared["activation", 0], pair))
    for criterion, seed in (("random", worst), ("random", median), ("L1", 0), ("peak-to-peak", 0)):
        yield arm(criterion, "stream put back", shared[criterion, seed], seed=seed, stream=True)
    for count in PROTECTED:
        yield arm("L1", f"top {count} protected", protected(l1, activation[0], count))
        for seed in range(3 if count == PROTECTED[-1] else 1):
            yield arm("L1", f"{count} at random protected", protected(l1, random(seed), count), seed=seed)


def culprits(base: PreTrainedModel, kept: Kept, rows: TokenBlocks) -> list[Neuron]:
    """The two neurons of a cut whose return heals it most: one by halving, and one by halving the others."""

    def harm(neurons: Sequence[Neuron]) -> float:
        fuller = with_neurons(kept, neurons)
        return perplexity(cut(base, fuller, fuller), rows, batch_size=len(rows)).nll

    width = base.config.intermediate_size
    gone = [(block, n) for block, stays in enumerate(kept) for n in sorted({*range(width)} - {*stays.tolist()})]
    first = by_halves(gone, harm)
    return [first, by_halves([neuron for neuron in gone if neuron != first], harm)]


def main() -> None:
    args = command(__doc__, "records/random_cuts").parse_args()
    settings = {"model": LLAMA, "ratio": RATIO, "calibration": "64 rows of 64 tokens, speeches"}
    total = len(DTYPES) * (21 + 2 * CUTS + 2 * len(PROTECTED) + 2)
    write_record(in_each_dtype("llama", arms), args.out, work=args.work, settings=settings, total=total)


if __name__ == "__main__":
    main()

"""Leave blocks, attentions and MLPs of the course's Llama out, alone and together, for lessons 04 and 05.

    python -m experiments.leave_out [--work build/leave_out]

Alone: each block, each attention, each MLP. Three blocks: those of least influence and those that leave-one-out finds,
on each of five calibration draws, nineteen random sets that spare two blocks at each end, and nineteen of the middle
third. Six blocks: those of least influence, every run of neighbours, the run that is cheapest on each draw, and
nineteen random sets. Attentions, four and eight: by importance at one look, by importance measured again after each, by
leave-one-out, by importance without the residual, and the same without its most harmful layer, on each draw; the last
ones; nineteen random sets; and the published slip, a bypass that adds its normalised input. Float32 and bfloat16; two
hours on one core. Killed, it goes on where it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils.measuring import perplexity
from course_utils.models import describe, variant
from course_utils.pruning import (
    attention_importance,
    block_importance,
    bypass_attention,
    remove_blocks,
    select_attention_layers,
)
from course_utils.pruning.activations import run_keeping, starting_at
from course_utils.text import judging_rows, token_blocks
from course_utils.text.batches import read_batches
from course_utils.text.rows import TokenBlocks
from experiments.record import LLAMA, Arm, command, in_each_dtype, write_record

CUTS, DRAWS, ENDS = 19, 5, 2  # random sets; calibration draws; blocks that random sets spare at each end
BLOCKS, RUN, ATTENTIONS = 3, 6, (4, 8)  # how many are left out together
PARTS = ("block", "attention", "MLP")
Layers = tuple[int, ...]  # block numbers, ascending


def without(base: PreTrainedModel, part: str, layers: Sequence[int]) -> PreTrainedModel:
    """A variant in which these blocks, attentions or MLPs add nothing."""
    model = variant(base)
    if part == "block":
        remove_blocks(model, layers)
    elif part == "attention":
        bypass_attention(model, layers)
    else:
        for layer in layers:
            model.model.layers[layer].mlp.register_forward_hook(lambda _mlp, _args, output: torch.zeros_like(output))
    return model


def adding_the_input(base: PreTrainedModel, layers: Sequence[int]) -> PreTrainedModel:
    """A variant whose attentions in these blocks return what they are given: the normalised states."""
    model = variant(base)
    for layer in layers:
        attention = model.model.layers[layer].self_attn
        attention.register_forward_hook(lambda _a, _args, kwargs, _o: (kwargs["hidden_states"], None), with_kwargs=True)
    return model


def importance_without_residual(model: PreTrainedModel, rows: TokenBlocks) -> Tensor:
    """What comes of forgetting the residual: 1 - cos(norm(x), attention(norm(x))), [blocks]."""
    turned: list[Tensor] = []

    def look(_attention: nn.Module, _args: tuple, kwargs: dict, output: tuple) -> None:
        turned.append(1 - cosine_similarity(kwargs["hidden_states"].float(), output[0].float(), dim=-1).mean())

    hooks = [layer.self_attn.register_forward_hook(look, with_kwargs=True) for layer in model.model.layers]
    with torch.no_grad():
        model.model(rows.input_ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    return torch.stack(turned)


def left_out(base: PreTrainedModel, part: str, sets: Iterable[Layers], rows: TokenBlocks) -> list[float]:
    """Nats per token without each of the sets. What runs below a set isn't run again."""
    architecture, nats = describe(base), []
    (batch,) = read_batches(rows.batches(len(rows)), vocab_size=architecture.vocab_size, device=base.device)
    with torch.no_grad():
        _, kept = run_keeping(architecture, batch, range(architecture.num_blocks))
    for layers in sets:
        model = without(base, part, layers)  # the blocks below the set stay where they are
        with starting_at(describe(model), layers[0], kept):
            nats.append(perplexity(model, rows, batch_size=len(rows)).nll)
    return nats


def lowest(scores: Sequence[float] | Tensor, count: int) -> Layers:
    """Numbers of the lowest scores, ascending; of equals the lower number."""
    return tuple(sorted(torch.as_tensor(scores).argsort(stable=True)[:count].tolist()))


def random_sets(numbers: Sequence[int], count: int) -> list[Layers]:
    """Nineteen different sets of so many of these numbers, or all there are; the same ones every time."""
    generator, sets = torch.Generator().manual_seed(0), []
    while len(sets) < min(CUTS, math.comb(len(numbers), count)):
        drawn = torch.randperm(len(numbers), generator=generator)[:count]
        if (layers := tuple(sorted(numbers[i] for i in drawn.tolist()))) not in sets:
            sets.append(layers)
    return sets


def arms(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dtype: str) -> Iterator[Arm]:
    """Those of one dtype, the uncut model first. A set that several draws choose is one arm."""
    texts, total = judging_rows(tokenizer), base.config.num_hidden_layers
    pool = token_blocks(tokenizer, "calibration", tokens=32_768, length=64)
    rows = pool.sample(16 * DRAWS, seed=0)
    draws = [rows[16 * draw :][:16] for draw in range(DRAWS)]

    def arm(criterion: str, part: str, layers: Layers, make: Callable = without, chosen_by: Sequence[int] = ()) -> Arm:
        key = {"criterion": criterion, "part": part, "layers": layers, "calibrations": chosen_by}
        made = partial(make, base, layers) if make is adding_the_input else partial(make, base, part, layers)
        return Arm({**key, "draw": 0, "dtype": dtype}, made, texts)

    def chosen(criterion: str, part: str, sets: Sequence[Layers]) -> Iterator[Arm]:
        """An arm for each different set among those that the draws chose."""
        for layers in dict.fromkeys(sets):
            yield arm(criterion, part, layers, chosen_by=[d for d, found in enumerate(sets) if found == layers])

    whole = {"criterion": "", "part": "", "layers": (), "calibrations": (), "draw": 0, "dtype": dtype}
    yield Arm(whole, lambda: base, texts)
    for part in PARTS:
        for layer in range(total):
            yield arm("alone", part, (layer,))

    singles = [(layer,) for layer in range(total)]
    inside = range(ENDS, total - ENDS)
    influence = [block_importance(base, draw.batches(16)) for draw in draws]
    alone = [left_out(base, "block", singles, draw) for draw in draws]
    yield from chosen("influence", "block", [lowest(scores, BLOCKS) for scores in influence])
    yield from chosen("leave-one-out", "block", [lowest(scores, BLOCKS) for scores in alone])
    for layers in random_sets(inside, BLOCKS):
        yield arm("random", "block", layers)
    for layers in random_sets(range(total // 3, total - total // 3), BLOCKS):
        yield arm("random, middle third", "block", layers)
    runs = [tuple(range(first, first + RUN)) for first in inside[: len(inside) - RUN + 1]]
    yield from chosen("influence", "block", [lowest(scores, RUN) for scores in influence])
    cheapest = [left_out(base, "block", runs, draw) for draw in draws]
    for layers in runs:
        chosen_by = [draw for draw, nats in enumerate(cheapest) if runs[nats.index(min(nats))] == layers]
        yield arm("run", "block", layers, chosen_by=chosen_by)
    for layers in random_sets(inside, RUN):
        yield arm("random", "block", layers)

    once = [attention_importance(base, draw.batches(16)) for draw in draws]
    again = [select_attention_layers(base, draw.batches(16), count=max(ATTENTIONS)) for draw in draws]
    alone = [left_out(base, "attention", singles, draw) for draw in draws]
    slipped = [importance_without_residual(base, draw) for draw in draws]
    for count in ATTENTIONS:
        yield from chosen("importance", "attention", [lowest(scores, count) for scores in once])
        greedy = [tuple(sorted(order[:count])) for order in again]
        yield from chosen("importance, again after each", "attention", greedy)
        yield from chosen("leave-one-out", "attention", [lowest(scores, count) for scores in alone])
        for layers in dict.fromkeys(lowest(scores, count) for scores in once):
            yield arm("adds its input", "attention", layers, adding_the_input)
    count = max(ATTENTIONS)
    yield from chosen("without residual", "attention", [lowest(scores, count) for scores in slipped])
    spared = [
        lowest(scores.index_fill(0, torch.tensor(nats).argmax(), torch.inf), count)
        for scores, nats in zip(slipped, alone, strict=True)
    ]
    yield from chosen("without residual, fatal layer spared", "attention", spared)
    yield arm("last", "attention", tuple(range(total - count, total)))
    for layers in random_sets(inside, count):
        yield arm("random", "attention", layers)


def main() -> None:
    args = command(__doc__, "records/leave_out").parse_args()
    settings = {"model": LLAMA, "calibration": "five draws of 16 rows of 64 tokens, speeches"}
    write_record(in_each_dtype("llama", arms), args.out, work=args.work, settings=settings, total=480)


if __name__ == "__main__":
    main()

"""Leave attentions of the course's Llama out, or show them nearby tokens only, and judge with text before; lesson 05.

    python -m experiments.attention_reach [--work build/attention_reach]

The same 63 predictions of each row are judged alone and with 448 tokens before them (in some arms 128 and 256, too),
on speeches and wiki; a third text is a passage that comes a second time, after another one. Attentions are left out
("bypass"), say the mean of what they said on calibration rows ("mean"), see the nearest tokens and the first one
("window 64", "window 64, no first token"), or all but one token. Which ones: by importance, four to all thirty; by
leave-one-out on short and on long calibration rows, eight; the one that is dearest alone; and, on copying, each alone
with a window, and all but six: those whose windows cost copying most on calibration rows, or six drawn blindly.
Float32; 40 minutes on one idle core. Killed, it goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils.models import load_model, variant
from course_utils.pruning import attention_importance, bypass_attention
from course_utils.text import token_blocks
from course_utils.text.rows import TokenBlocks
from experiments.leave_out import Layers, left_out, lowest
from experiments.record import LLAMA, Arm, command, kept, write_record

ROWS, JUDGED, LONG, BETWEEN = 16, 64, 512, (128, 256)  # judged rows; tokens of a row that are judged; of a long row
WINDOW = 64  # tokens that an attention with a window sees, itself included, beside the first one
OTHERS, NEAR_MISS = (1, 8, 16, 32, 128), (96, 127, 160)  # other windows, on all texts and on copying alone
ONE_HIDDEN = "one token hidden"  # a way to see everything but what came next when a passage was read the first time
EIGHT = 8  # how many are left out together
BYPASSED = (4, 12)  # how many of the least important, beside eight
SIX, BLIND = 6, 5  # how many stay whole while the others have windows; draws of them
POOLS = {"speeches": 65_536, "wiki": 24_576}  # tokens of each text to draw rows from


def near(length: int, window: int, *, first_token: bool = True) -> Tensor:
    """[length, length]: whether a token sees another one: one of the nearest before it, itself, or the first."""
    tokens = torch.arange(length)
    back = tokens[:, None] - tokens
    return (back >= 0) & ((back < window) | (first_token & (tokens == 0)))


def changed(base: PreTrainedModel, layers: Layers, how: str, means: Tensor) -> PreTrainedModel:
    """A variant in which these attentions are changed in one of the ways of this module."""
    model = variant(base)
    if how in ("bypass", "mean"):
        bypass_attention(model, layers)
    for layer in layers:
        attention = model.model.layers[layer].self_attn
        if how == "mean":
            attention.register_forward_hook(lambda _a, _i, output, mean=means[layer]: (output[0] + mean, None))
        elif how == ONE_HIDDEN or how.startswith("window"):
            attention.register_forward_pre_hook(partial(_narrow, how=how), with_kwargs=True)
    return model


def _narrow(_attention: object, inputs: tuple, named: dict, *, how: str) -> tuple[tuple, dict]:
    states = named["hidden_states"]
    length = states.shape[1]
    width, _, without = how.removeprefix("window ").partition(", ")
    if how == ONE_HIDDEN:
        tokens = torch.arange(length)
        seen = near(length, length) & (tokens[:, None] - tokens != 2 * JUDGED - 1)
    else:
        seen = near(length, int(width), first_token=not without)
    return inputs, named | {"attention_mask": seen[None, None].to(states.device)}


@torch.no_grad()
def nats_of_the_last(model: PreTrainedModel, ids: Tensor) -> list[float]:
    """Nats per token of each row over its last predictions, as many as a row of ``JUDGED`` tokens has."""
    found = []
    for rows in ids.split(4):
        states = model.model(rows.to(model.device), use_cache=False).last_hidden_state[:, -JUDGED:-1]
        logits = model.lm_head(states).float().transpose(1, 2)  # [rows, vocabulary, predictions]
        losses = cross_entropy(logits, rows[:, -JUDGED + 1 :].to(logits.device), reduction="none")
        found += losses.mean(dim=1).tolist()
    return [round(nats, 4) for nats in found]


@torch.no_grad()
def attention_means(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """What each attention adds on average to all tokens but the first of each row, [blocks, channels]."""
    means: list[Tensor] = []

    def note(_attention: object, _inputs: tuple, output: tuple) -> None:
        means.append(output[0][:, 1:].mean(dim=(0, 1)))

    hooks = [block.self_attn.register_forward_hook(note) for block in model.model.layers]
    model.model(ids.to(model.device), use_cache=False)
    for hook in hooks:
        hook.remove()
    return torch.stack(means)


def evaluation_rows(tokenizer: PreTrainedTokenizerBase) -> dict[str, Tensor]:
    """Long rows of each text, and rows in which a passage comes twice: "copying"."""
    rows = {}
    for text, tokens in POOLS.items():
        pool = token_blocks(tokenizer, "evaluation", domain=text, tokens=tokens, length=LONG)
        rows[text] = pool.sample(ROWS, seed=1).input_ids
    rows["copying"] = twice(rows["speeches"][:, :JUDGED])
    return rows


def twice(passages: Tensor) -> Tensor:
    """[rows, 3 x length]: each passage, then another one, then the first one again."""
    return torch.cat([passages, passages.roll(1, dims=0), passages], dim=1)


def alone(ids: Tensor, text: str) -> TokenBlocks:
    """The judged tokens of long rows as rows of their own."""
    ids = ids[:, -JUDGED:]
    return TokenBlocks(ids, torch.full((len(ids),), JUDGED), text, "evaluation")  # nobody asks for its bytes


def choices(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """Which go first: all by importance, eight by leave-one-out on short and long rows, the dearest; who copies."""
    pool = token_blocks(tokenizer, "calibration", tokens=32_768, length=JUDGED)
    short, long = pool.sample(80, seed=0)[:16], long_calibration(tokenizer)  # short: leave_out's first draw
    singles = [(layer,) for layer in range(base.config.num_hidden_layers)]
    harms, harms_long = (left_out(base, "attention", singles, rows) for rows in (short, long))
    passages, means = twice(short.input_ids[:EIGHT]), torch.empty(0)
    copying = [
        sum(nats_of_the_last(changed(base, layer, f"window {WINDOW}", means), passages)) for layer in tqdm(singles)
    ]
    return {
        "importance": attention_importance(base, short.batches(16)).argsort(stable=True).tolist(),
        "leave-one-out": list(lowest(harms, EIGHT)),
        "leave-one-out, long": list(lowest(harms_long, EIGHT)),
        "dearest": [harms.index(max(harms))],
        "copying": sorted(range(len(copying)), key=lambda layer: -copying[layer])[:SIX],
    }


def long_calibration(tokenizer: PreTrainedTokenizerBase) -> TokenBlocks:
    """Four long rows of speeches."""
    return token_blocks(tokenizer, "calibration", tokens=32_768, length=LONG).sample(4, seed=0)


def arms(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, work: Path) -> Iterator[Arm]:
    """The uncut model first."""
    rows = evaluation_rows(tokenizer)
    texts = {text: alone(rows[text], text) for text in POOLS}
    means = attention_means(base, long_calibration(tokenizer).input_ids)

    def judged(before: Sequence[int]) -> dict[str, Callable]:
        tasks = {"copying": partial(nats_of_the_last, ids=rows["copying"])}
        for text in POOLS:
            for count in before:
                ids = rows[text][:, -JUDGED - count :]
                tasks[f"{text}, {count} before"] = partial(nats_of_the_last, ids=ids)
        return tasks

    def arm(criterion: str, how: str, layers: Sequence[int], *between: int) -> Arm:
        layers = tuple(sorted(layers))
        key = {"criterion": criterion, "how": how, "layers": layers, "draw": 0, "dtype": "float32"}
        return Arm(key, partial(changed, base, layers, how, means), texts, judged([*between, LONG - JUDGED]))

    yield arm("", "", (), *BETWEEN)

    def copying(criterion: str, how: str, layers: Sequence[int]) -> Arm:
        """An arm for copying alone; a record wants a text, and this one is short, so a window hides nothing."""
        one = arm(criterion, how, layers)
        return replace(one, texts={"speeches": texts["speeches"]}, tasks={"copying": one.tasks["copying"]})

    everyone, window = range(base.config.num_hidden_layers), f"window {WINDOW}"
    for layer in everyone:  # who copies?
        yield copying("alone", window, (layer,))
    chosen = kept(work / "choices.json", partial(choices, base, tokenizer))
    yield arm("all but the six that copy", window, [*{*everyone} - {*chosen["copying"]}])
    for seed in range(BLIND):
        six = torch.randperm(len(everyone), generator=torch.Generator().manual_seed(seed))[:SIX].tolist()
        yield copying("all but six blindly", window, [*{*everyone} - {*six}])
    for criterion in ("importance", "leave-one-out"):
        eight = chosen[criterion][:EIGHT]
        yield arm(criterion, "bypass", eight, *BETWEEN)
        yield arm(criterion, "mean", eight)
        yield arm(criterion, window, eight)
    yield arm("leave-one-out, long", "bypass", chosen["leave-one-out, long"], *BETWEEN)
    yield arm("dearest", "bypass", chosen["dearest"])
    yield arm("dearest", "mean", chosen["dearest"])
    yield arm("dearest", "window 1", chosen["dearest"])
    for count in BYPASSED:
        yield arm("importance", "bypass", chosen["importance"][:count])
    yield arm("importance", window, everyone)
    yield arm("importance", f"{window}, no first token", everyone)
    for layers in (chosen["importance"][:EIGHT], everyone):
        for width in OTHERS:
            yield arm("importance", f"window {width}", layers)
        for how in (*(f"window {width}" for width in NEAR_MISS), ONE_HIDDEN):
            yield copying("importance", how, layers)


def main() -> None:
    args = command(__doc__, "records/attention_reach").parse_args()
    settings = {"model": LLAMA, "calibration": "speeches: 16 rows of 64 tokens (short), 4 of 512 (long)"}
    base, tokenizer = load_model("llama", dtype=torch.float32)
    write_record(arms(base, tokenizer, args.work), args.out, work=args.work, settings=settings, total=71)


if __name__ == "__main__":
    main()

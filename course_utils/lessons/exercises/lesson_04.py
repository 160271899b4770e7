"""Checks of lesson 04, depth pruning: influence, surgery, single harms, and two blocks in company."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel

from course_utils.lessons.exercises import Attempt, alike, exercise, expect, number, require
from course_utils.lessons.exercises.turns import mistaken_turns, turned
from course_utils.measuring.evaluation import Perplexity, perplexity, perplexity_ratio
from course_utils.measuring.language_modelling import logits_one_by_one
from course_utils.models.architectures import describe
from course_utils.models.loading import tiny_llama, variant
from course_utils.models.reports import with_interval
from course_utils.pruning.depth import remove_blocks
from course_utils.text.rows import TokenBlocks

_GONE = (1, 3)  # of five blocks; with neither end, so that every mistake below has its own symptom


@exercise(
    1,
    task="Return one number: the mean over the real tokens of 1 - cosine(before, after).",
    proved="Each real token counts once, padding never, and the length of the states doesn't matter.",
    answer=turned,
    mistakes=[
        *mistaken_turns("Influence"),
        (lambda before, after, mask: (before - after)[mask.bool()].norm(dim=-1).mean(),
         "That is the length of the difference. Influence looks at the angle: use cosine_similarity."),
    ],
)  # fmt: skip
def check_block_influence(attempt: Attempt) -> None:
    """Check a function (before, after, mask) -> block influence."""
    before, after, mask = _states()
    influence = attempt.compare(
        before, after, mask, read=number, where="For the check's random states ",
        hint="Take one cosine per token over the last dimension, one minus it, and the mean over the real tokens.",
    )  # fmt: skip
    poisoned = before.masked_fill(~mask.bool()[..., None], torch.nan)
    require(
        alike(number(attempt(poisoned, after, mask)), influence),
        "A padded position that holds NaN spoils your mean: 0 × NaN is NaN. Select the real tokens, don't multiply.",
    )


@exercise(
    2,
    task="Write take_out_blocks: the given function without its two bugs. Return the model.",
    proved="Right blocks, right numbers: with the cache, without it, and after a reload.",
)
@torch.no_grad()
def check_take_out(attempt: Attempt) -> None:
    """Check a function (model, block numbers) -> the model without these blocks."""
    original = tiny_llama(blocks=5, vocab_size=61)
    blocks = list(original.model.layers)
    expected = [i for i in range(len(blocks)) if i not in _GONE]
    for gone in (list(_GONE), list(reversed(_GONE))):
        model = attempt(copy.deepcopy(original), gone)  # the learner may write into its weights
        expect(model, LlamaForCausalLM, "Return the model")
        kept = [_find(block, blocks) for block in model.model.layers]
        require(
            len(kept) == len(expected),
            f"{len(kept)} blocks are left of {len(blocks)} when {gone} go; there should be {len(expected)}.",
        )
        require(
            kept == expected,
            f"Asked to remove {gone} of {len(blocks)}, you kept blocks {kept} instead of {expected}. Deleting one "
            "block moves all behind it up, so the next number is another block. Go by the old numbers, all at once.",
        )
        numbers = [block.self_attn.layer_idx for block in model.model.layers]
        require(
            model.config.num_hidden_layers == len(kept),
            f"config.num_hidden_layers is {model.config.num_hidden_layers}, but {len(kept)} blocks are left. A reload "
            "would make up the missing ones, with random weights.",
        )
        require(
            numbers != expected,
            f"The blocks that stay still have their old self_attn.layer_idx, {numbers}. Without a cache nobody reads "
            f"it; with one, {_with_cache(model)}. Number them anew: 0, 1, 2, …",
        )
        require(
            numbers == list(range(len(kept))),
            f"layer_idx is {numbers}; it must be 0, 1, 2, … in the order of the blocks.",
        )
        ids = _ids()
        torch.testing.assert_close(
            logits_one_by_one(model, ids), model(ids, use_cache=False).logits, rtol=1e-4, atol=1e-4
        )
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            model.save_pretrained(folder)
            reloaded = LlamaForCausalLM.from_pretrained(folder).eval()
        require(
            torch.equal(reloaded(ids).logits, model(ids).logits),
            "After save_pretrained and from_pretrained the model gives other logits.",
        )


def _harms_of(model, rows, *, told=lambda without, whole: without - whole, gone=lambda number, blocks: [number]):
    """The answer to exercise 3, by surgery: ``told`` of the losses without the blocks ``gone`` and of the whole."""
    whole, blocks, found = perplexity(model, rows).nll, describe(model).num_blocks, []
    for block in range(blocks):
        cut, left_out = variant(model), [*gone(block, blocks)]
        if len(left_out) == blocks:  # surgery leaves one block at least
            cut.model.layers = torch.nn.ModuleList()
        else:
            remove_blocks(cut, left_out)
        found.append(told(perplexity(cut, rows).nll, whole))
    return torch.tensor(found, dtype=torch.float64)


def _beside_the_first(model: PreTrainedModel, rows: Tensor) -> Tensor:
    harms = _harms_of(model, rows)
    return harms - harms[0]


@exercise(
    3,
    task="Return a list with one number for each block: the nats a token that leaving it out adds.",
    proved="Each block was left out alone, beside the whole model's own loss, and the model is as it was.",
    answer=_harms_of,
    mistakes=[
        (lambda model, rows: _harms_of(model, rows, told=lambda without, whole: 0.0),
         "All harms are 0. Use `with skipping(…):`, and measure the whole model outside of it."),
        (lambda model, rows: _harms_of(model, rows, told=lambda without, whole: without),
         "That is the loss without each block. Take the whole model's loss away from it."),
        (lambda model, rows: -_harms_of(model, rows),
         "The sign is wrong: loss without the block, minus loss of the whole model."),
        (lambda model, rows: _harms_of(model, rows, told=lambda without, whole: math.exp(without) - math.exp(whole)),
         "Take nats (.nll), not perplexities: nats of sets can be added."),
        (lambda model, rows: _harms_of(model, rows).exp(),
         "That is the ratio of perplexities. Take the difference in nats (.nll)."),
        (lambda model, rows: _harms_of(model, rows, told=lambda without, whole: math.exp(without)),
         "That is the perplexity without each block. Take the difference in nats (.nll)."),
        (lambda model, rows: _harms_of(model, rows, gone=lambda number, blocks: range(number + 1)),
         "The blocks stay out, one after the other. Bring each back before the next goes."),
        (lambda model, rows: _harms_of(model, rows, gone=lambda number, blocks: {*range(blocks)} - {number}),
         "You skip all blocks but one. Skip the one."),
        (_beside_the_first,
         "You measure beside the model without block 0. Measure the whole model before any skipping."),
    ],
)  # fmt: skip
@torch.no_grad()
def check_leave_one_out(attempt: Attempt, real: PreTrainedModel, few: TokenBlocks) -> None:
    """Check a function (model, rows) -> the harm of each block, on a tiny model and on a ``real`` one."""
    model = tiny_llama(blocks=5, vocab_size=61)
    rows = torch.randint(61, (6, 9), generator=torch.Generator().manual_seed(2))
    before = [*model.model.layers]
    harms = _harms(attempt(model, rows))
    require([*model.model.layers] == before, "The model has lost blocks. Skip them, don't remove them.")
    left = [number for number, block in enumerate(before) if block._forward_hooks]
    require(not left, f"A hook is still on block {left[0] if left else 0}. Measure inside the with, so that it goes.")
    require(
        len(harms) == len(before),
        f"The tiny model has {len(before)} blocks, so {len(before)} harms; yours are {len(harms)}.",
    )
    right = attempt.answer(model, rows)
    attempt.name_mistake(harms, right, lambda wrong: wrong(model, rows), same=_alike)
    require(
        _alike(harms, right),
        f"For the tiny model the harms are {_told(right)}; yours are {_told(harms)}. Loss without the block minus loss "
        "of the whole, one block at a time.",
    )
    total, whole = describe(real).num_blocks, perplexity(real, few).nll
    harms, some = _harms(attempt(real, few)), sorted({1, total // 2, total - 2})
    require(len(harms) == total, f"The real model has {total} blocks; yours are {len(harms)} harms.")
    cuts = [variant(real) for _ in some]
    for cut, block in zip(cuts, some, strict=True):
        remove_blocks(cut, [block])
    right = torch.tensor([perplexity(cut, few).nll - whole for cut in cuts], dtype=torch.float64)
    require(
        torch.allclose(harms[some], right, atol=0.02, rtol=0.02),
        f"On the real model, blocks {', '.join(map(str, some))} cost {_told(right)} nats by surgery; yours say "
        f"{_told(harms[some])}. Take the whole loss and the loss without a block from the same model and rows.",
    )


@exercise(
    4,
    task="Give the numbers of two blocks.",
    proved="With the second block out as well, the model is better again, on two kinds of text that chose nothing.",
)
def check_pair(pair: Any, judge: Callable[..., Mapping[str, Perplexity]], inside: Collection[int]) -> None:
    """Check two block numbers of ``inside``; ``judge`` tells text -> perplexity without the blocks it is given."""
    expect(pair, Iterable, "Give two numbers, such as (3, 7)")
    numbers = pair.tolist() if isinstance(pair, Tensor) else [*pair]
    require(len(numbers) == 2, f"A pair has two blocks; yours has {len(numbers)}.")
    require(
        all(isinstance(number, Integral) and not isinstance(number, bool) for number in numbers),
        f"Give the numbers of two blocks, such as (3, 7); yours are {numbers}.",
    )
    require(numbers[0] != numbers[1], f"That is block {numbers[0]} twice. Give two different ones.")
    require(
        all(number in inside for number in numbers),
        f"Spare the two blocks at each end: numbers from {min(inside)} to {max(inside)}.",
    )
    alone, together = {int(number): judge(int(number)) for number in numbers}, judge(*map(int, numbers))
    less, surely = [], []
    print("On rows that nothing has used:")
    for text, score in together.items():
        dearer = max(alone, key=lambda number: alone[number][text].nll)
        ratio, low, high = perplexity_ratio(score, alone[dearer][text])
        told = with_interval(ratio, low, high)
        print(f"  {text}: without both, perplexity × {told} of that without block {dearer} alone")
        less += [text] * (ratio < 1)
        surely += [text] * (high < 1)
    require(less, "The two cost more than the dearer one alone. Try all partners of one block that costs much.")
    require(len(less) == len(together), f"Less on {', '.join(less)} only. It should hold on both kinds of text.")
    require(
        len(surely) == len(together), "Less, but an interval reaches 1: that may be luck. Is there a better partner?"
    )


def _harms(answer: Any) -> Tensor:
    """One number for each block, as a tensor."""
    expect(answer, list | tuple | Tensor | np.ndarray, "Return a list with one harm for each block")
    harms = torch.as_tensor(answer, dtype=torch.float64)
    require(harms.dim() == 1, f"Return one number for each block; yours has the shape {tuple(harms.shape)}.")
    return harms


def _alike(answer: Tensor, right: Tensor) -> bool:
    return torch.allclose(answer.double(), right, atol=1e-4)


def _told(harms: Tensor) -> str:
    return ", ".join(f"{harm:.2f}" for harm in harms.tolist())


def _states() -> tuple[Tensor, Tensor, Tensor]:
    """Before and after [rows, length, hidden] and a mask [rows, length] with rows of different lengths."""
    generator = torch.Generator().manual_seed(4)
    before = torch.randn(3, 6, 8, generator=generator)
    before *= torch.tensor([1.0, 3.0, 9.0])[:, None, None]  # lengths differ, as in a real stream
    after = before + 2 * torch.randn(3, 6, 8, generator=generator)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0]])
    return before, after, mask


def _ids() -> Tensor:
    return torch.randint(61, (1, 6), generator=torch.Generator().manual_seed(1))


def _find(block: Any, blocks: list[Any]) -> int | None:
    """The number of the block with the same weights, None if there is none."""
    same = (torch.equal(block.mlp.up_proj.weight, other.mlp.up_proj.weight) for other in blocks)
    return next((number for number, equal in enumerate(same) if equal), None)


def _with_cache(model: LlamaForCausalLM) -> str:
    try:
        logits_one_by_one(model, _ids())
    except Exception as error:  # which one depends on the transformers version; the learner should see its name
        return f"this model stops with an {type(error).__name__}"
    return "each block uses the wrong place"

"""Checks of lesson 04, depth pruning: surgery, constants of blocks, a lower volume, and two that stand in."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from course_utils.lessons.exercises import Attempt, exercise, expect, number, require, untouched
from course_utils.measuring.language_modelling import logits_one_by_one
from course_utils.models.loading import tiny_llama

_STRONGLY = 2.5  # how many times their single harms two blocks must cost that stand in for each other
_NEAR = 0.2  # a number may be off by so much of itself
_GONE = (1, 3)  # of five blocks; with neither end, so that every mistake below has its own symptom


def _take_out(model, gone):
    """The answer to exercise 1."""
    kept = [block for number, block in enumerate(model.model.layers) if number not in gone]
    for place, block in enumerate(kept):
        block.self_attn.layer_idx = place
    model.model.layers = nn.ModuleList(kept)
    model.config.num_hidden_layers = len(kept)
    return model


@exercise(
    1,
    task="Write take_out_blocks: the given function without its two bugs. Return the model.",
    proved="Right blocks, right numbers: with the cache, without it, and after a reload.",
    answer=_take_out,
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


@torch.no_grad()
def _constants(model, rows, *, what=lambda before, after: after - before, tokens=slice(1, None), mean=(0, 1)):
    """The answer to exercise 2, with switches for mistakes."""
    found: list[Tensor] = []

    def note(_block, inputs, output):
        found.append(what(inputs[0].float(), output.float())[:, tokens].mean(dim=mean))

    hooks = [block.register_forward_hook(note) for block in model.model.layers]
    model.model(rows, use_cache=False)
    for hook in hooks:
        hook.remove()
    return torch.stack(found)


@exercise(
    2,
    task="Return a tensor [blocks, channels].",
    proved="For each block you have the one vector that it adds on average to every token but the first.",
    answer=_constants,
    mistakes=[
        (partial(_constants, tokens=slice(None)),
         "The first token of each row is in your mean. Its state is unlike all others, so leave it out."),
        (partial(_constants, tokens=slice(None, 1)), "That is the first token's alone. Take all tokens but the first."),
        (partial(_constants, tokens=slice(None, -1)), "You leave out the last token instead of the first."),
        (partial(_constants, what=lambda before, after: after),
         "That is the state behind each block. Take away the state before it: what does the block *add*?"),
        (partial(_constants, what=lambda before, after: before), "That is the state before each block."),
        (partial(_constants, what=lambda before, after: before - after), "The sign is wrong: output minus input."),
        (partial(_constants, mean=(0, 2)), "You average over channels. Average over rows and tokens."),
        (partial(_constants, mean=1), "Average over the rows as well: one vector for each block."),
    ],
)  # fmt: skip
def check_constants(attempt: Attempt) -> None:
    """Check a function (model, rows) -> what each block adds on average, [blocks, channels]."""
    model = tiny_llama(blocks=4)
    rows = torch.randint(60, (3, 7), generator=torch.Generator().manual_seed(4))

    def read(answer: Any) -> Tensor:
        answer = torch.stack([*answer]) if isinstance(answer, list | tuple) else answer
        expect(answer, Tensor, "Return a tensor [blocks, channels]")
        return answer

    with untouched(model, weights=False):
        attempt.compare(model, rows, read=read, where="For a tiny Llama: ")


def _turn_down(
    model, first, factor, *, parts=("input_layernorm", "post_attention_layernorm"), head=True, edit=torch.mul
):
    """The answer to exercise 3, with switches for mistakes."""
    sites = [getattr(block, part) for block in model.model.layers[first:] for part in parts]
    sites += [model.model.norm] if head else []
    return [site.register_forward_hook(lambda _site, _inputs, output: edit(output, factor)) for site in sites]


@exercise(
    3,
    task="Register the hooks, and return their handles in a list.",
    proved="From that block on everything is heard at the lower volume, and the handles turn it up again.",
    answer=_turn_down,
    mistakes=[
        (partial(_turn_down, head=False), "the head still hears everything at full volume: `model.model.norm`."),
        (partial(_turn_down, parts=("input_layernorm",)), "MLPs still hear full volume: `post_attention_layernorm`."),
        (partial(_turn_down, parts=("post_attention_layernorm",)),
         "attention still hears full volume: `input_layernorm`."),
        (partial(_turn_down, parts=()), "only the head hears less. Turn down the norms of the blocks, too."),
        (lambda model, first, factor: _turn_down(model, first + 1, factor), "block `first` itself isn't turned down."),
        (lambda model, first, factor: _turn_down(model, 0, factor), "blocks before `first` are turned down as well."),
        (partial(_turn_down, edit=torch.div), "you divide by the factor. Multiply: 0.5 is half as loud."),
        (partial(_turn_down, edit=lambda output, _factor: output),
         "nothing changes. Does your hook return the new output?"),
    ],
)  # fmt: skip
@torch.no_grad()
def check_turn_down(attempt: Attempt) -> None:
    """Check a function (model, first, factor) -> handles of hooks that multiply what norms put out."""
    model, ids = tiny_llama(blocks=4), torch.arange(1, 19).view(3, 6)
    plain = model(ids).logits

    def logits(handles: Any) -> Tensor:
        expect(handles, list | tuple, "Return a list of handles")
        quiet = model(ids).logits
        for handle in handles:
            handle.remove()
        require(
            torch.equal(model(ids).logits, plain),
            "After all your handles are removed the model isn't as before. Is a handle missing in your list, or did "
            "you change a weight?",
        )
        return quiet

    with untouched(model, weights=False):
        attempt.compare(model, 2, 0.5, read=logits, where="On a tiny Llama ")


@exercise(
    4,
    task="Give the numbers of two blocks, and one number.",
    proved="They stand in for each other: each alone is missed little, both are missed much, and one number tells why.",
)
def check_stand_ins(
    pair: Any, left: Any, judge: Callable[..., Mapping[str, float]], known: Sequence[int], writes: Tensor
) -> None:
    """Check two blocks, other than ``known``, that write the same number, and how much of it is missing without them.

    Args:
        pair: two numbers of blocks.
        left: what both write into the channel.
        judge: (blocks, number) -> text -> loss in nats per token, without these blocks, the number put back.
        known: the pair that the lesson names.
        writes: [blocks], what each block writes into the channel.
    """
    expect(pair, Iterable, "Give two numbers, such as (3, 7)")
    blocks = pair.tolist() if isinstance(pair, Tensor) else [*pair]
    require(len(blocks) == 2, f"A pair has two blocks; yours has {len(blocks)}.")
    require(
        all(isinstance(block, Integral) and not isinstance(block, bool) for block in blocks),
        f"Give the numbers of two blocks, such as (3, 7); yours are {blocks}.",
    )
    blocks = sorted(map(int, blocks))
    require(blocks[0] != blocks[1], f"That is block {blocks[0]} twice. Give two different ones.")
    most = len(writes) - 1
    require(blocks[0] >= 0 and blocks[1] <= most, f"The blocks have numbers from 0 to {most}; yours are {blocks}.")
    require(blocks != sorted(known), "The lesson names these two. Who else writes the number?")
    left, theirs = number(left, "Give one number, what both write into the channel"), float(writes[blocks].sum())
    require(
        abs(left - theirs) <= _NEAR * abs(theirs),
        "Your number isn't what these two write into the giant channel. How much is it for each of them?",
    )
    whole, both, kept = judge([]), judge(blocks), judge(blocks, left)
    alone = [judge([block]) for block in blocks]
    for text, base in whole.items():
        apart, together = sum(one[text] - base for one in alone), both[text] - base
        require(
            together > _STRONGLY * apart,
            f"On {text} the two cost {together:.2f} nats, and {apart:.2f} one by one: that isn't over {_STRONGLY:g} "
            "times as much. Which blocks write most into the giant channel?",
        )
        require(
            kept[text] - base < together / 2,
            f"The pair is right, but on {text} your number leaves over half of the harm.",
        )


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

"""Checks of lesson 05, attention bypass."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlamaForCausalLM, PreTrainedModel

from course_utils.lessons.exercises import (
    Attempt,
    alike,
    exercise,
    expect,
    number,
    require,
    run,
    true_or_false,
    untouched,
    whole_number,
)
from course_utils.lessons.exercises.turns import mistaken_turns, turned
from course_utils.measuring.evaluation import Perplexity, perplexity_ratio
from course_utils.measuring.language_modelling import logits_one_by_one
from course_utils.models.architectures import cache_keyword, describe
from course_utils.models.loading import tiny_llama, variant
from course_utils.models.reports import with_interval
from course_utils.pruning.attention import bypass_attention, select_attention_layers

_LAYER = 1  # of the tiny model's three
_MOST = 0.05  # of a drawer's bytes that a true bypass may keep


def _turn(x: Tensor, added: Tensor, mask: Tensor, residual: bool) -> tuple[Tensor, Tensor, Tensor]:
    """What exercise 1 compares: before, after, and the mask."""
    return x, x + added if residual else added, mask


@exercise(
    1,
    task="Return one number: the mean over the real tokens of 1 - cos(x, x + added), or of 1 - cos(x, added).",
    proved="With the residual a small addition matters little; without it only its direction counts.",
    answer=lambda *given: turned(*_turn(*given)),
    mistakes=[
        (lambda x, added, mask, residual: turned(*_turn(x, added, mask, not residual)),
         "That is the other one. With the residual the second argument is x + added, without it added alone."),
        (lambda x, added, mask, residual: turned(added, x + added, mask),
         "You compare the addition with the sum. Compare x, what the stream was, with what it becomes."),
        *mistaken_turns("Importance", _turn),
    ],
)  # fmt: skip
def check_importance(attempt: Attempt) -> None:
    """Check a function (x, added, mask, residual) -> importance of an attention."""
    x, attentions, mask = _states()
    for residual in (True, False):
        for added in attentions:
            attempt.compare(
                x, added, mask, residual, read=number, where=f"With residual={residual}: ",
                hint="Take one cosine per token over the last dimension, one minus it, the mean over real tokens.",
            )  # fmt: skip


def _states() -> tuple[Tensor, list[Tensor], Tensor]:
    """x, what two attentions add to it, and the mask; padded states are large and point elsewhere."""
    generator = torch.Generator().manual_seed(5)
    x, other, noise = torch.randn(3, 3, 6, 8, generator=generator)
    x = x + 1
    mask = torch.ones(3, 6)
    mask[0, 2:] = mask[1, 4:] = 0
    padding = (~mask.bool())[..., None]
    echo = 2 * x + noise  # long, roughly in x's direction
    return x, [torch.where(padding, -9 * x + 3 * noise, added) for added in (other + 0.5, echo)], mask


@exercise(
    2,
    task="Return True or False: does the attention of this block add exactly zero?",
    proved="It lets every right bypass pass and stops what a perplexity would not notice. Keep it.",
)
def check_adds_nothing(attempt: Attempt) -> None:
    """Check a function (model, layer, ids) -> whether the attention of this block adds exactly zero."""
    ids = torch.randint(31, (2, 6), generator=torch.Generator().manual_seed(0))

    def says(change: Callable[[LlamaForCausalLM], object]) -> bool:
        model = tiny_llama(blocks=3, vocab_size=31)
        change(model)
        with torch.no_grad(), untouched(model):
            return true_or_false(attempt(model, _LAYER, ids.clone()))

    for change, mistake in _RIGHT_BYPASSES.items():
        require(says(change), f"It refuses a bypass that is right: {mistake}")
    for change, mistake in _WRONG_BYPASSES.items():
        require(not says(change), f"It lets a wrong bypass pass: {mistake}")


class _Instead(nn.Module):
    """In place of an attention: adds ``what(attention, norm(x))``."""

    def __init__(self, what: Callable, attention: Any = None) -> None:
        super().__init__()
        self.what, self.attention = what, attention

    def forward(self, hidden_states: Tensor, **rest: object) -> tuple[Tensor, None]:
        return self.what(lambda: self.attention(hidden_states, **rest)[0], hidden_states), None


def _instead(what: Callable) -> Callable[[LlamaForCausalLM], None]:
    def change(model: LlamaForCausalLM) -> None:
        block = model.model.layers[_LAYER]
        block.self_attn = _Instead(what, block.self_attn)

    return change


@torch.no_grad()
def _zero_output(model: LlamaForCausalLM) -> None:
    model.model.layers[_LAYER].self_attn.o_proj.weight.zero_()


_RIGHT_BYPASSES: dict[Callable[[LlamaForCausalLM], object], str] = {
    lambda model: bypass_attention(model, [_LAYER]): "bypass_attention. Compare the block's output with what its MLP "
    "alone would add: x + mlp(post_attention_layernorm(x)).",
    lambda model: bypass_attention(model, [_LAYER], remove=True): "the attention and its norm were removed. Look at "
    "what the block computes, not at which modules it has.",
    _zero_output: "o_proj is zero, so the attention computes and adds zero. Look at what is added, not at how.",
    lambda model: bypass_attention(model, [0, _LAYER, 2]): "other attentions are bypassed as well. Look at this block "
    "only, not at the logits of the whole model.",
}
_WRONG_BYPASSES: dict[Callable[[LlamaForCausalLM], object], str] = {
    lambda model: None: "the attention is still there.",
    _instead(lambda attention, states: states): "the attention returns its input, so the block adds norm(x).",
    _instead(lambda attention, states: 1e-4 * attention()): "a ten-thousandth of the attention is still added. "
    "Exactly zero means torch.equal, not allclose.",
    _instead(lambda attention, states: attention() * torch.eye(len(states[0]))[-1][:, None]): "the attention is silent "
    "at every token but the last. Compare all positions.",
    lambda model: bypass_attention(model, [0]): "another block's attention is bypassed, not this one's. Use `layer`.",
}


@exercise(
    3,
    task="Write `forward`: it returns zeros and None, and counts the tokens for the cache.",
    proved="It adds nothing, in the real model too, it counts tokens, and a thirtieth of the drawer is left.",
)
@torch.no_grad()
def check_true_bypass(bypass: Any, real: PreTrainedModel) -> None:
    """Check a class, made with its layer's number, whose modules stand in place of a Llama's attention.

    It is tried in tiny models, where mistakes can be named, and in a variant of ``real``.
    """
    require(
        isinstance(bypass, type) and issubclass(bypass, nn.Module),
        f"Hand over the class TrueBypass itself, without brackets; yours is of type {type(bypass).__name__}.",
    )
    output = run(lambda: bypass(0)(hidden_states=torch.randn(2, 6, 32), past_key_values=None))
    if output is None or output is ...:
        raise NotImplementedError
    require(
        isinstance(output, tuple) and len(output) == 2,
        "Return two things, what is added and None, as the attention does. A tensor alone is torn apart by its rows.",
    )
    for layer in (2, 0):
        _check_drawer(bypass, layer, torch.randn(2, 9, 32))
    ids = torch.randint(97, (2, 9), generator=torch.Generator().manual_seed(0))
    for layers in ([2], [0], [0, 2]):
        _check_bypassed(bypass, layers, ids)
    layers = [0, real.config.num_hidden_layers // 2]
    mine, right = _replaced(variant(real), layers, bypass), variant(real)
    bypass_attention(right, layers)
    ids = ids[:1].to(real.device)
    require(
        torch.equal(run(lambda: mine(ids, use_cache=False).logits), right(ids, use_cache=False).logits),
        f"In the tiny models it is right, but in the real one, without attentions {layers}, the logits aren't those of "
        "bypass_attention.",
    )


def _check_drawer(bypass: type[nn.Module], layer: int, states: Tensor) -> None:
    """Stop unless the bypass fills its drawer, and no other one, with something small for each token."""
    where, cache, (rows, tokens, _) = f"Attention {layer} replaced: ", DynamicCache(), states.shape
    run(lambda: bypass(layer)(hidden_states=states, **{cache_keyword(tiny_llama()): cache}))
    drawers: list[Any] = cache.layers
    filled = [number for number, drawer in enumerate(drawers) if drawer.is_initialized]
    require(filled, f"{where}its drawer stays empty, so the cache says that no token went by. Call cache.update.")
    others = [number for number in filled if number != layer]
    require(not others, f"{where}you fill drawer {others}, another attention's. Yours is self.layer_idx.")
    keys, values = drawers[layer].keys, drawers[layer].values
    require(
        keys.shape[-1] > 0,
        f"{where}width 0: transformers takes a drawer without numbers for an empty one, and counts no tokens. "
        "Width 1 is the least.",
    )
    require(
        (len(keys), keys.shape[-2]) == (rows, tokens),
        f"{where}its drawer has the shape {[*keys.shape]} after {rows} rows of {tokens} tokens. It is [rows, heads, "
        "tokens, width].",
    )
    kept, full = keys.nbytes + values.nbytes, 2 * states.nbytes  # a whole drawer of the tiny model
    require(
        kept <= _MOST * full,
        f"{where}its drawer keeps {kept:,} of {full:,} bytes, so little is saved. One head of width 1 is enough.",
    )


def _check_bypassed(bypass: type[nn.Module], layers: list[int], ids: Tensor) -> None:
    """Stop unless a Llama with these attentions replaced is as if they added nothing, with a cache and without."""
    silent = _replaced(tiny_llama(), layers, lambda _: _Instead(lambda _, states: torch.zeros_like(states)))
    echoing = _replaced(tiny_llama(), layers, lambda _: _Instead(lambda _, states: states))
    mine = _replaced(tiny_llama(), layers, bypass)
    where = f"Attention {' and '.join(map(str, layers))} replaced: "
    right = silent(ids, use_cache=False).logits
    logits = run(mine, ids, use_cache=False).logits
    echoes = torch.equal(logits, echoing(ids, use_cache=False).logits)
    require(not echoes, f"{where}it returns its input, so the block adds norm(x). Return zeros.")
    require(torch.equal(logits, right), f"{where}it adds something. Exactly zero must come back.")
    stepwise = run(lambda: logits_one_by_one(mine, ids))
    require(
        alike(stepwise, right, atol=1e-4),
        f"{where}read token by token, the logits are off by {(stepwise - right).abs().max():.2g}. The cache counts "
        "something else than the tokens that went by.",
    )


def _replaced(model: Any, layers: list[int], stand_in: Callable[[int], nn.Module]) -> Any:
    for layer in layers:
        model.model.layers[layer].self_attn = stand_in(layer)
    return model


def _one_look(model: LlamaForCausalLM, batches: Sequence[Mapping[str, Tensor]]) -> list[int]:
    """All attentions, least important first, as one look has them."""
    return select_attention_layers(model, batches, count=describe(model).num_blocks, iterative=False)


@exercise(
    4,
    task="Return the numbers of the attentions in the order in which they are taken.",
    proved="The same order as `select_attention_layers`: each choice is measured in the model that is left.",
    answer=lambda model, batches, count: select_attention_layers(model, batches, count=count),
    mistakes=[
        (lambda model, batches, count: _one_look(model, batches)[:count],
         "that is one look, sorted. Measure again after each removal, in the model that is left."),
        (lambda model, batches, count: _one_look(model, batches)[::-1][:count],
         "those are the most important ones. Take the least important."),
        (lambda model, batches, count: sorted(select_attention_layers(model, batches, count=count)),
         "the right attentions, but sorted. Return them in the order in which they are taken."),
    ],
)  # fmt: skip
def check_choose_iteratively(attempt: Attempt) -> None:
    """Check a function (model, batches, count) -> attentions, least important first, measured again after each."""
    model = tiny_llama(blocks=8)

    def numbers(answer: Any) -> list[int]:
        left = [i for i, attention in enumerate(describe(model).attentions) if attention.skipped]
        bypass_attention(model, [])
        require(not left, f"You leave {left} bypassed. Bring the model back at the end: bypass_attention(model, []).")
        found = [whole_number(each, "Return numbers of attentions, not their scores") for each in answer]
        require(
            len(set(found)) == len(found),
            f"An attention stands twice in {found}: a bypassed one scores 0 and looks least important. Rule it out.",
        )
        return found

    for seed, length, count in ((8, 8, 2), (7, 8, 3), (1, 6, 3)):  # on the last two texts one look takes other ones
        ids = torch.randint(97, (4, length), generator=torch.Generator().manual_seed(seed))
        batches = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}]
        attempt.compare(model, batches, count, read=numbers, where=f"{count} attentions of the check's tiny model: ")


@exercise(
    5,
    task="Give the numbers of eight attentions.",
    proved="You chose on text like the work, in the model that is left, and the exam had seen neither.",
)
def check_eight(
    eight: Any, judge: Callable[[list[int]], Mapping[str, Perplexity]], opponent: list[int], recorded: Collection[str]
) -> None:
    """Check eight attentions against the opponent's; ``judge`` tells text -> score, recorded sets are out."""
    expect(eight, Iterable, f"Give a list of {len(opponent)} numbers")
    layers = sorted(int(number) for number in eight)
    different = len(set(layers)) == len(layers) == len(opponent)
    require(different, f"{len(opponent)} different attentions are asked for; yours are {layers}.")
    require(
        " ".join(map(str, layers)) not in recorded,
        f"{layers} stands in the record. Find a set of your own: `measure` tells what it costs.",
    )
    mine, theirs = judge(layers), judge(opponent)
    ratios = {text: perplexity_ratio(mine[text], theirs[text]) for text in mine}
    for text, ratio in ratios.items():
        print(f"  {text}: yours / leave-one-out's, on the exam: {with_interval(*ratio)}")
    worse = ", ".join(text for text, (_, low, _) in ratios.items() if low > 1)
    better = ", ".join(text for text, (_, _, high) in ratios.items() if high < 1)
    require(not worse or better, f"Dearer than leave-one-out's on {worse}, and nowhere cheaper. Measure yours first.")
    require(not worse, f"Cheaper on {better}, but dearer on {worse}. Choose on rows of both texts.")
    require(better, "No text shows a difference: both intervals hold 1. Measure the later ones again in what is left.")

"""Checks of lesson 05, attention bypass: is it out, is it counted, what is near, and who copies."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import DynamicCache, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from course_utils.lessons.exercises import (
    Attempt,
    alike,
    exercise,
    expect,
    require,
    run,
    take_a_try,
    true_or_false,
    untouched,
    whole_number,
)
from course_utils.measuring.language_modelling import logits_one_by_one
from course_utils.models.architectures import cache_keyword
from course_utils.models.loading import tiny_llama, variant
from course_utils.pruning.attention import bypass_attention
from course_utils.text.rows import token_blocks

_LAYER = 1  # of the tiny model's three
_MOST = 0.05  # of a drawer's bytes that a true bypass may keep
_FORGOTTEN = 0.2  # of what all windows take of copying
_PASSAGE = 64  # tokens
_UNREAD, _EXAM = 65_536, 512  # tokens of the evaluation split that lessons draw rows from, and the exam's, behind them


@exercise(
    1,
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
    2,
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


def _near(length, window, *, hidden=lambda back, tokens, window: (back >= window) & (tokens > 0), future=False):
    """The answer to exercise 3, with switches for mistakes."""
    tokens = torch.arange(length)
    back = tokens[:, None] - tokens
    return ~hidden(back, tokens, window) & (future | (back >= 0))


@exercise(
    3,
    task="Return a tensor of True and False, [length, length]: row i says what token i may see.",
    proved="Each token sees the nearest ones and the first, and nobody sees the future.",
    answer=_near,
    mistakes=[
        (partial(_near, future=True), "tokens see the future. Row i may be True in columns 0 to i only."),
        (partial(_near, hidden=lambda back, tokens, window: back >= window),
         "the first token is hidden from late ones. Heads look there when they have nothing to say (lesson 03)."),
        (partial(_near, hidden=lambda back, tokens, window: (back > window) & (tokens > 0)),
         "that is one token too many: the window counts the token itself."),
        (partial(_near, hidden=lambda back, tokens, window: (back >= window - 1) & (tokens > 0)),
         "that is one token too few: the window counts the token itself."),
        (partial(_near, hidden=lambda back, tokens, window: back < 0), "that is everything before: no window at all."),
        (lambda length, window: _near(length, window).T, "rows and columns are swapped. Row i is what i may see."),
        (lambda length, window: ~_near(length, window), "it is the wrong way round: True means that it may be seen."),
    ],
)  # fmt: skip
def check_near(attempt: Attempt) -> None:
    """Check a function (length, window) -> bool [length, length], what each token may see."""

    def read(answer: Any) -> Tensor:
        answer = torch.as_tensor(answer)
        require(
            answer.dtype == torch.bool,
            f"Return True and False (torch.bool); yours is {str(answer.dtype).removeprefix('torch.')}.",
        )
        return answer.int()

    for length, window in ((7, 3), (4, 6), (6, 1)):
        attempt.compare(length, window, read=read, where=f"For {length} tokens and a window of {window}: ")


class CopyingExam:
    """Passages that nothing in lesson 05 has read, each of which comes a second time; it judges a few times only.

    Args:
        model: a Llama.
        tokenizer: its own.
        window: how many tokens an attention with a window sees, beside the first one.
        tries: how often it judges.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, *, window: int, tries: int = 3) -> None:
        self._model, self._window, self.left = model, window, tries
        pool = token_blocks(tokenizer, "evaluation", tokens=_UNREAD + _EXAM, length=_PASSAGE)
        self._passages = pool.input_ids[-(_EXAM // _PASSAGE) :].to(model.device)
        self.total = model.config.num_hidden_layers
        self._ends: tuple[float, ...] = ()

    def lost(self, whole: Collection[int]) -> float:
        """Share of copying that is gone when only these attentions see everything: 1 where all have windows."""
        numbers = range(self.total)
        if not self._ends:  # nobody and everybody has a window; measured once
            self._ends = self._loss(()), self._loss(numbers)
        intact, gone = self._ends
        return (self._loss({*numbers} - {*whole}) - intact) / (gone - intact)

    @torch.no_grad()
    def _loss(self, narrowed: Iterable[int]) -> float:
        """Nats per token of the passages' second time, where these attentions have windows."""
        layers, passages = self._model.model.layers, self._passages
        ids = torch.cat([passages, passages.roll(1, dims=0), passages], dim=1)
        seen = _near(ids.shape[1], self._window)[None, None].to(ids.device)

        def narrow(_attention: nn.Module, inputs: tuple, named: dict) -> tuple[tuple, dict]:
            return inputs, named | {"attention_mask": seen}

        hooks = [layers[i].self_attn.register_forward_pre_hook(narrow, with_kwargs=True) for i in narrowed]
        try:
            states = self._model.model(ids, use_cache=False).last_hidden_state[:, -_PASSAGE:-1]
        finally:  # an interrupted check must not leave windows on the learner's model
            for hook in hooks:
                hook.remove()
        logits = self._model.lm_head(states).float().flatten(0, 1)
        return float(cross_entropy(logits, ids[:, -_PASSAGE + 1 :].flatten()))


@exercise(
    4,
    task="Give the numbers of the attentions that keep seeing everything.",
    proved="You chose by what they are for: text comes through windows, and the passage is known when it comes again.",
)
def check_copiers(whole: Any, exam: CopyingExam, count: int) -> None:
    """Check ``count`` attentions that see everything while all others have windows: do they copy?"""
    expect(whole, Iterable, f"Give a list of {count} numbers")
    layers = sorted(whole_number(each, "Give numbers of attentions") for each in whole)
    total = exam.total
    require(
        len(set(layers)) == len(layers) == count,
        f"{count} different attentions are asked for; yours are {layers}.",
    )
    require(
        layers[0] >= 0 and layers[-1] < total, f"Attentions have numbers from 0 to {total - 1}; yours are {layers}."
    )
    take_a_try(exam)
    lost = exam.lost(layers)
    print(f"  exam: {lost:.0%} of copying is lost (tries left: {exam.left})")
    require(
        lost < _FORGOTTEN,
        f"That is over {_FORGOTTEN:.0%}. Measure first, on the passages that may choose: whose window costs copying?",
    )

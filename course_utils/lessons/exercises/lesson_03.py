"""Checks of lesson 03, which neurons of a Llama must stay: a score, two searches and a silence."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel

from course_utils.lessons.exercises import Attempt, exercise, expect, require, untouched
from course_utils.models.loading import tiny_llama
from course_utils.pruning.width import by_halves, neuron_importance

Neuron = tuple[int, int]  # block, number
Harm = Callable[[Sequence[Any]], float]

#: What the planted searches of exercise 2 are: how many suspects, and how much each guilty one heals.
_PLANTED: tuple[tuple[int, Mapping[int, float]], ...] = (
    (64, {41: 1.0}),
    (99, {49: 1.0}),  # the one in the middle
    (100, {0: 1.0}),
    (1000, {999: 1.0}),
    (300, {40: 0.3, 250: 0.6}),
    (1, {0: 1.0}),
)
_LEFT = 5.0  # nats that nobody heals

#: What the planted searches of exercise 4 are: how many suspects, and the groups each of which is enough.
_GROUPS: tuple[tuple[int, tuple[tuple[int, ...], ...]], ...] = (
    (64, ((41,),)),
    (100, ((30, 31),)),
    (99, ((10, 80),)),
    (300, ((5, 150, 299),)),
    (1000, ((499, 500),)),
    (1, ((0,),)),
    (6, ((0, 1, 2, 3, 4, 5),)),
    (100, ((3, 70), (20, 50))),
)
MOST, SHARE = 8, 0.25  # neurons that may be enough for a disaster in exercise 4, and their share of its damage


def _silence(model, blocks, token=0, *, site="v_proj", silent=None, factor=0.0):
    """The answer to exercise 3, with switches for mistakes."""

    def hook(_module, _inputs, values):
        values = values.clone()
        (silent(values, token) if silent else values[:, token]).mul_(factor)
        return values

    attentions = [model.model.layers[block].self_attn for block in blocks]
    return [getattr(attention, site).register_forward_hook(hook) for attention in attentions]


@exercise(
    3,
    task="Register the hooks, and return their handles in a list.",
    proved="The token says nothing in these blocks, all others speak as before, and the handles take it back.",
    answer=_silence,
    mistakes=[
        (lambda model, blocks, token: _silence(model, blocks),
         "you silence the first token, whichever was asked for. Use `token`."),
        (partial(_silence, silent=lambda values, token: values[token]),
         "you silence a row, with all its tokens. The values are [rows, tokens, size]."),
        (partial(_silence, silent=lambda values, token: values[..., token]),
         "you silence one channel of all tokens. The values are [rows, tokens, size]."),
        (partial(_silence, silent=lambda values, token: values),
         "you silence all tokens. Only the given one should be silent."),
        (partial(_silence, silent=lambda values, token: values[:, : token + 1]),
         "you silence the tokens before it, too. Only the given one should be silent."),
        (partial(_silence, site="k_proj"),
         "you silence its keys, which decide how much attention it gets. What it says is its value: v_proj."),
        (partial(_silence, site="o_proj"),
         "you silence what the token takes from attention. What it says to others is its value: v_proj."),
        (lambda model, blocks, token: _silence(model, [0, *blocks[1:]], token),
         "another block is silenced than the given ones."),
        (partial(_silence, factor=1.0), "nothing changes. Does your hook return the new values?"),
    ],
)  # fmt: skip
@torch.no_grad()
def check_silence(attempt: Attempt) -> None:
    """Check a function (model, blocks, token) -> handles of hooks that set a token's values to zero."""
    model, blocks, ids = tiny_llama(blocks=6), [1, 2, 4], torch.arange(1, 19).view(3, 6)
    given: list[Tensor] = []

    def logits(handles: Any) -> Tensor:
        expect(handles, list | tuple, "Return a list with one handle per block", size=len(blocks))
        silent = model(ids).logits
        for handle in handles:
            handle.remove()
        return silent

    watching = model.model.layers[1].self_attn.v_proj.register_forward_hook(lambda _, __, values: given.append(values))
    for token in (2, 0):
        with untouched(model, weights=False):
            attempt.compare(model, blocks, token, read=logits, where=f"Token {token} of a tiny Llama: ")
    watching.remove()
    require(
        given[0][:, 2].any(),
        "You write into the given values, which others may use as well. Clone them, and return the clone.",
    )


def _contribution(
    model,
    batches,
    *,
    site="down_proj",
    padding=False,
    size=Tensor.square,
    finish=lambda total, count: (total / count).sqrt(),
    norm_over=0,
):
    """The score of exercise 1, with switches for mistakes; what ``site`` gives is looked at, or what down reads."""
    mlps = [layer.mlp for layer in model.model.layers]
    seen = [[] for _ in mlps]
    handles = []
    for mlp, states in zip(mlps, seen, strict=True):
        if site == "down_proj":
            handles.append(mlp.down_proj.register_forward_pre_hook(lambda _, given, to=states: to.append(given[0])))
        else:
            handles.append(getattr(mlp, site).register_forward_hook(lambda _, __, out, to=states: to.append(out)))
    for batch in batches:
        model.model(**batch)
    for handle in handles:
        handle.remove()
    real = torch.cat([(batch["attention_mask"].bool() | padding).flatten() for batch in batches])
    scores = []
    for mlp, states in zip(mlps, seen, strict=True):
        tokens = torch.cat([part.flatten(0, 1) for part in states])[real].float()
        norm = 1 if norm_over is None else mlp.down_proj.weight.float().norm(dim=norm_over)
        scores.append(finish(size(tokens).sum(0), len(tokens)) * norm)
    return scores


def _by_library(model: PreTrainedModel, batches: Sequence[Mapping[str, Tensor]]) -> list[Tensor]:
    """The answer to exercise 1, which later cells use until the learner's is right."""
    return neuron_importance(model, "activation", batches=batches)


def _over_batches(model: PreTrainedModel, batches: Sequence[Mapping[str, Tensor]]) -> list[Tensor]:
    each = [_contribution(model, [batch]) for batch in batches]
    return [torch.stack(scores).mean(0) for scores in zip(*each, strict=True)]


@exercise(
    1,
    task="Return one tensor of scores for each block (without a return nothing is judged).",
    proved="What a neuron adds is measured where it adds it, on real tokens only, and no hook is left.",
    answer=_by_library,
    mistakes=[
        (partial(_contribution, padding=True),
         "you count padding as text. Take only tokens whose attention_mask is 1."),
        (partial(_contribution, size=Tensor.abs, finish=lambda total, count: total / count),
         "that is the mean size. Root mean square: square, average, root."),
        (partial(_contribution, size=lambda states: states, finish=lambda total, count: total / count),
         "that is the mean: what is negative takes away. Square first."),
        (partial(_contribution, finish=lambda total, count: total / count), "the root is missing."),
        (partial(_contribution, finish=lambda total, count: total.sqrt()),
         "you sum the squares over the tokens. Divide by how many they are."),
        (partial(_contribution, norm_over=None), "the norm of the neuron's column of down_proj is missing."),
        (partial(_contribution, norm_over=1), "your norm is that of down_proj's rows. A neuron is a column: dim=0."),
        (partial(_contribution, site="gate_proj"),
         "you look at what gate_proj gives. Take what down_proj reads: silu(gate) × up."),
        (partial(_contribution, site="up_proj"),
         "you look at what up_proj gives. Take what down_proj reads: silu(gate) × up."),
        (lambda model, batches: _contribution(model, batches[-1:]),
         "this is the last batch alone. Add up over all batches."),
        (lambda model, batches: _contribution(model, batches[:1]),
         "this is the first batch alone. Add up over all batches."),
        (_over_batches,
         "you average over batches, and they differ in size. Add up squares and tokens of all batches, and divide "
         "once."),
    ],
)  # fmt: skip
@torch.no_grad()
def check_contribution(
    attempt: Attempt, base: PreTrainedModel | None = None, batches: Sequence[Mapping[str, Tensor]] = ()
) -> None:
    """Check a function (model, batches) -> scores [neurons] a block; on made-up text, then on a real one."""
    ids = torch.randint(1, 97, (7, 12), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    for row, length in enumerate((12, 5, 9, 12, 3, 7, 12)):
        mask[row, length:] = 0
    mask[1] = mask[1].flip(0)  # padded on the left
    made_up = [{"input_ids": i, "attention_mask": m} for i, m in zip(ids.split(4), mask.split(4), strict=True)]
    model = tiny_llama(blocks=3, width=32)  # as many neurons as numbers in the stream: a mix-up is no crash
    answer = _asked(attempt, model, made_up)
    right = attempt.answer(model, made_up)
    same, where = (lambda a, b: all(map(_close, a, b))), "Right shape, other numbers: "
    attempt.name_mistake(answer, right, lambda wrong: wrong(model, made_up), same=same, where=where)
    for block, (own, theirs) in enumerate(zip(answer, right, strict=True)):
        require(
            _close(own, theirs),
            f"Block {block}: neuron 0 scores {theirs[0]:.4g}; yours is {float(own[0]):.4g}. RMS over real tokens of "
            "what down_proj reads × norm of its column.",
        )
    loud = tiny_llama(blocks=1)
    loud.model.layers[0].mlp.up_proj.weight.mul_(3000)
    require(
        all(scores.isfinite().all() for scores in _asked(attempt, loud.half(), made_up)),
        "In 16 bits the squares of loud neurons are infinite. Make the states float32 before you square.",
    )
    if base is not None:
        own, theirs = attempt(base, batches), _by_library(base, batches)
        worst = max(
            float(((a.cpu() - b.cpu()).abs() / b.cpu().clamp(min=1e-6)).max()) for a, b in zip(own, theirs, strict=True)
        )
        require(worst < 0.05, f"Right on made-up text; on this lesson's model it is off by {worst:.0%}.")
        print(f"On this lesson's model: {len(own)} blocks of {len(own[0]):,} scores, equal to the library's.")


@exercise(
    2,
    task="Return the suspect that is left.",
    proved="Two calls a step find the one that matters, wherever it hides.",
    answer=by_halves,
)
def check_halve(attempt: Attempt, suspects: Sequence[Neuron] = (), harm: Harm | None = None) -> None:
    """Check a function (suspects, harm) -> one of them; on planted culprits, then on the lesson's own cut."""
    for number, heals in _PLANTED:
        _check_planted(attempt, number, heals)
    if harm is None:
        return
    calls = _Counting(harm, most=10 * len(suspects))
    found = attempt(list(suspects), calls)
    require(found in suspects, f"Right on planted culprits; here you return {found!r}, which isn't among the suspects.")
    print(f"On this lesson's cut your function finds block {found[0]}, neuron {found[1]}, in {calls.number} calls.")


def _enough(suspects, ruined, gone=(), *, keep_all=False):
    """The answer to exercise 4 (Junker 2004, QuickXplain); ``keep_all`` is the mistake of its second search."""
    if len(suspects) == 1:
        return list(suspects)
    middle = len(suspects) // 2
    left, right = suspects[:middle], suspects[middle:]
    for half in (left, right):
        if ruined([*gone, *half]):
            return _enough(half, ruined, gone, keep_all=keep_all)
    first = _enough(left, ruined, [*gone, *right], keep_all=keep_all)
    return first + _enough(right, ruined, [*gone, *(left if keep_all else first)], keep_all=keep_all)


@exercise(
    4,
    task="Return a list of suspects that are enough together, and none too many.",
    proved="It finds who is enough, also where it takes several together and halving alone leads astray.",
    answer=_enough,
)
def check_enough(
    attempt: Attempt,
    disaster: Sequence[Neuron] = (),
    ruined: Callable[[Sequence[Neuron]], bool] | None = None,
    judge: Callable[[Sequence[Neuron]], Mapping[str, float]] | None = None,
) -> None:
    """Check a function (suspects, ruined) -> a least set that ruins; on planted ones, then on the lesson's disaster.

    ``judge`` tells the damage when only some neurons go: text -> nats per token.
    """
    for number, groups in _GROUPS:
        _check_groups(attempt, number, groups)
    if ruined is None or judge is None:
        return
    require(ruined(disaster), "In this model the worst cut is no disaster, so there is nothing to find.")
    calls = _Counting(ruined, most=10 * len(disaster))
    found = _neurons(attempt([*disaster], calls))
    strangers = [neuron for neuron in found if neuron not in set(disaster)]
    require(not strangers, f"Right on planted groups; {strangers and strangers[0]} isn't a neuron of the disaster.")
    print(f"The disaster: {', '.join(f'block {b}, neuron {n}' for b, n in found[:MOST])}; {calls.number} calls.")
    require(
        len(found) <= MOST, f"Right on planted groups; here you return {len(found):,} neurons, {MOST} are the most."
    )
    mine, whole = judge(found), judge(disaster)
    print("Cut alone, in nats per token, on rows that nothing has used:")
    for text, most in whole.items():
        print(f"  {text}: these {len(found)} do {mine[text]:.2f}, the whole disaster {most:.2f}")
    least = min(mine[text] / most for text, most in whole.items())
    require(least >= SHARE, f"There they do {least:.0%} of the disaster's damage; {SHARE:.0%} are asked for.")


def _check_groups(attempt: Attempt, number: int, groups: Sequence[Sequence[int]]) -> None:
    """One planted search, in which each of the groups is enough."""

    def ruined(gone: Collection[Neuron]) -> bool:
        return any({(2, n) for n in group} <= set(gone) for group in groups)

    calls = _Counting(ruined, most=10 * number + 10)
    found = _neurons(attempt([(2, n) for n in range(number)], calls))
    names = " or ".join(" and ".join(map(str, group)) for group in groups)
    case = f"{number} suspects, enough is {names}: "
    got = f"you return {', '.join(str(n) for _, n in found[:5])}{' …' * (len(found) > 5)}"
    require(
        ruined(found) or len(groups) == 1,
        f"{case}{got}, one of each. While you search the second half, keep of the first only what you found there.",
    )
    require(
        ruined(found),
        f"{case}{got}, and that alone ruins nothing. If neither half is enough, the culprits sit in both. What must "
        "stay cut while you search one of them?",
    )
    spare = [n for n in found if ruined([other for other in found if other != n])]
    require(not spare, f"{case}{got}. That is enough, but also without {spare[0][1] if spare else ''}.")
    size = len(found)
    most = 4 * size * (math.ceil(math.log2(number)) + 1) if number > 1 else 1
    require(
        calls.number <= most,
        f"{case}right, but in {calls.number} calls of ruined; {most} are plenty. Each call runs a model.",
    )


def _neurons(found: Any) -> list[Neuron]:
    expect(found, list | tuple | set, "Return a list of suspects")
    for one in found:
        require(isinstance(one, Sequence) and len(one) == 2, f"Return a list of suspects; {one!r} is none.")
    neurons = [(int(block), int(number)) for block, number in found]
    require(len(set(neurons)) == len(neurons), "You return a suspect more than once: name each one once.")
    return neurons


def _check_planted(attempt: Attempt, number: int, heals: Mapping[int, float]) -> None:
    suspects = [(2, n) for n in range(number)]
    guilty = [(2, n) for n in heals]

    def harm(back: Collection[Neuron]) -> float:
        return _LEFT - sum(heals.get(neuron[1], 0.0) for neuron in back)

    calls = _Counting(harm, most=10 * number + 10)
    found = attempt(list(suspects), calls)
    case = f"{number} suspects, guilty {' and '.join(str(n) for n in heals)}: "
    require(
        not (isinstance(found, list) and len(found) == 1), f"{case}return the suspect itself, not a list that holds it."
    )
    require(found in suspects, f"{case}you return {found!r}, which isn't among the suspects.")
    most = 2 * math.ceil(math.log2(number)) if number > 1 else 0
    best = max(guilty, key=lambda neuron: heals[neuron[1]])
    if found != best:
        require(
            len(guilty) == 1 or found not in guilty,
            f"{case}two heal, and you follow the one that heals less. Call harm for both halves and compare.",
        )
        require(
            number % 2,
            f"{case}you end at {found[1]}. harm(half) tells what is left when this half comes back: go on with the "
            "half that leaves less.",
        )
        require(False, f"{case}you end at {found[1]}. Does a suspect get lost when their number is odd?")
    require(
        calls.number <= most,
        f"{case}right, but in {calls.number} calls of harm; two a step are {most}. Each call runs a model.",
    )


class _Counting:
    """A question that is counted, and that stops a search which never ends."""

    def __init__(self, ask: Callable[[Sequence[Any]], Any], *, most: int) -> None:
        self.ask, self.most, self.number = ask, most, 0

    def __call__(self, some: Sequence[Any]) -> Any:
        self.number += 1
        if self.number > self.most:
            raise RuntimeError(f"it asked {self.most:,} times: do the suspects become fewer")
        return self.ask(some)


def _asked(attempt: Attempt, model: LlamaForCausalLM, batches: Sequence[Mapping[str, Tensor]]) -> list[Tensor]:
    """What a learner's function gives for a model that it must leave as it was."""
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    scores = attempt(model, [dict(batch) for batch in batches])
    blocks, width = model.config.num_hidden_layers, model.config.intermediate_size
    require(
        isinstance(scores, list | tuple) and len(scores) == blocks,
        f"Return a list with one tensor for each of the {blocks} blocks.",
    )
    shapes = [list(getattr(one, "shape", ())) for one in scores]
    require(
        shapes == [[width]] * blocks,
        f"One score for each of {width} neurons; your shapes are {shapes}. A neuron is a column of down_proj: "
        "its norm is over dim=0.",
    )
    left = sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())
    require(not left, f"{left} hooks are left behind. Each later pass would feed them: call remove() on every handle.")
    require(
        all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items()),
        "The model has other weights now. Looking must not change it.",
    )
    return [one.detach().float() for one in scores]


def _close(answer: Tensor, right: Tensor) -> bool:
    return answer.shape == right.shape and torch.allclose(answer.float(), right, rtol=1e-2, atol=1e-6)

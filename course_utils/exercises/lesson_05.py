"""Checks of lesson 05, attention bypass."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from course_utils.architectures import describe
from course_utils.attention import bypass_attention, select_attention_layers
from course_utils.evaluation import Perplexity, perplexity
from course_utils.exercises import Attempt, exercise, not_shown, require, rule_out, true_or_false
from course_utils.exercises.better import require_better
from course_utils.reports import shown
from course_utils.texts import TokenBlocks

_LAYER = 1  # of the tiny model's three
_SETS = 19  # 1 / (19 + 1) = .05


@exercise(
    1,
    task="Return one number: the mean over the real tokens of 1 - cos(x, x + added), or of 1 - cos(x, added).",
    proved="With the residual the whisper matters least, without it the echo's direction is all that counts.",
)
def check_importance(attempt: Attempt) -> None:
    """Check a function (x, added, mask, residual) -> importance of an attention."""
    x, attentions, mask = _states()
    real = mask.bool()
    added = attentions["other"]
    for residual in (True, False):
        after, other = (x + added, added) if residual else (added, x + added)
        which = f"With residual={residual}: "
        cosines = cosine_similarity(x, after, dim=-1)
        given = torch.as_tensor(attempt(x.clone(), added.clone(), mask.clone(), residual), dtype=torch.float32)
        require(given.dim() == 0, f"Return one number for the attention; yours has the shape {tuple(given.shape)}.")
        mistakes = (
            (
                (1 - cosine_similarity(x, other, dim=-1))[real].mean(),
                "that is the other one. With the residual the second argument is x + added, without it added alone.",
            ),
            (
                (1 - cosine_similarity(added, x + added, dim=-1))[real].mean(),
                "you compare the addition with the sum. Compare x, what the stream was, with what it becomes.",
            ),
            (cosines[real].mean(), "that is the cosine itself. Importance is one minus it."),
            ((1 - cosines).mean(), "padded positions count in your mean. Select the real tokens with mask.bool()."),
            (
                ((1 - cosines) * mask).mean(),
                "you set padded positions to zero but still divide by their number. Divide by the real tokens only.",
            ),
            (
                torch.stack([(1 - row)[keep].mean() for row, keep in zip(cosines, real, strict=True)]).mean(),
                "you average each row first, so a token of a short row weighs more. Average over all real tokens.",
            ),
            (
                1 - cosine_similarity(x[real].flatten(), after[real].flatten(), dim=0),
                "that is one cosine over all tokens together. Take one cosine a token: dim=-1.",
            ),
        )
        expected = (1 - cosines)[real].mean()
        same = partial(torch.isclose, atol=1e-5)
        rule_out(mistakes, given, expected, same=same, where=which)
        require(
            same(given, expected),
            f"{which}for the check's random states it is {expected:.4f}; yours is {given:.4f}.",
        )
        scores = {name: float(attempt(x.clone(), a.clone(), mask.clone(), residual)) for name, a in attentions.items()}
        least, found = "whisper" if residual else "echo", min(scores, key=lambda name: scores[name])
        require(
            found == least,
            f"{which}the {least} should matter least of the three; yours says {found}.",
        )


@exercise(
    2,
    task="Return a list of sets of block numbers, the control for the chosen ones.",
    proved="Nineteen sets that chance could have drawn: beating all of them has p = .05.",
)
def check_control_sets(attempt: Attempt) -> None:
    """Check a function (chosen, total) -> sets of block numbers to compare the chosen ones with."""
    for chosen, total in (([3, 11, 17, 18, 25, 36], 40), ([6, 7, 8, 20, 25, 26, 28, 29], 30)):
        given = [[int(number) for number in drawn] for drawn in attempt(list(chosen), total)]
        sets = [set(drawn) for drawn in given]
        require(sets, "Your list is empty: return one set of block numbers for each random draw.")
        require(
            all(len(drawn) == len(found) for drawn, found in zip(given, sets, strict=True)),
            "A set names a layer twice. Draw without replacement, or fewer layers go than you think.",
        )
        sizes = {len(found) for found in sets}
        require(
            sizes == {len(chosen)},
            f"{len(chosen)} layers were chosen, your sets have {sorted(sizes)}. Fewer layers do less harm, so a fair "
            "control leaves out the same number.",
        )
        require(
            all(0 <= number < total for found in sets for number in found),
            f"Block numbers run from 0 to {total - 1}.",
        )
        require(
            len({frozenset(found) for found in sets}) == len(sets),
            "Some of your sets are the same one. Draw anew for each, or seed each draw differently.",
        )
        require(
            len(sets) >= _SETS,
            f"With {len(sets)} random sets, beating all of them has p = 1/{len(sets) + 1} = {1 / (len(sets) + 1):.2f}, "
            "which is not ≤ .05.",
        )
        require(len(sets) == _SETS, f"{len(sets)} sets are more than it takes: each costs an evaluation.")
        reached = set().union(*sets)
        require(
            reached & set(chosen),
            "Your sets avoid the chosen layers. Chance doesn't: it draws from all of them, the chosen ones too.",
        )
        require(
            reached & {0, 1, 2, total - 3, total - 2, total - 1},
            "Your sets never touch the first and last blocks. The method could have taken them, so chance may as well.",
        )
        require(
            any(max(found) - min(found) >= len(found) for found in sets),
            "Each of your sets is a run of neighbours. That is another control; chance takes any layers.",
        )
        again = [set(drawn) for drawn in attempt(list(chosen), total)]
        require(again == sets, "A second call gives other sets. Fix the seed, so that your result can be checked.")


@exercise(
    3,
    task="Return the set of letters of the sentences that the outputs do not show.",
    proved="One model, one kind of text, rows of 64 tokens, two ways to be equal, one control: claim no more.",
)
def check_not_shown(attempt: Iterable[str]) -> None:
    """Check the letters of the sentences that the outputs don't show."""
    letters = {str(letter).strip().upper() for letter in attempt}
    unknown = letters - _SENTENCES.keys()
    require(not unknown, f"The sentences are A to F; yours names {sorted(unknown)}.")
    not_shown(letters, _SENTENCES)


@exercise(
    4,
    task="Return True or False: does the attention of this block add exactly zero?",
    proved="It lets every right bypass pass and stops what a perplexity would not notice. Keep it.",
)
def check_adds_nothing(attempt: Attempt) -> None:
    """Check a function (model, layer, ids) -> whether the attention of this block adds exactly zero."""
    ids = torch.randint(31, (2, 6), generator=torch.Generator().manual_seed(0))
    for change, mistake in _RIGHT_BYPASSES.items():
        require(_answer(attempt, change, ids), f"It refuses a bypass that is right: {mistake}")
    for change, mistake in _WRONG_BYPASSES.items():
        require(not _answer(attempt, change, ids), f"It lets a wrong bypass pass: {mistake}")


@exercise(
    5,
    task="Return two numbers: the pruned model's cache in bytes, and the decode estimate.",
    proved="Weights rule for one short text, the cache rules for many long ones.",
)
def check_predict(attempt: Attempt) -> None:
    """Check a function (configuration, parameters, removed, batch, context) -> cache bytes, decode estimate."""
    for removed, batch, context in ((3, 3, 1000), (0, 1, 0), (5, 1, 64), (1, 32, 4096)):
        cache, estimate = attempt(_CONFIG, _PARAMETERS, removed, batch, context)
        sizes = f"for {removed} removed, batch {batch}, context {context}"
        right, mistakes = _caches(removed, batch, context)
        rule_out(mistakes, cache, right, same=_close, where=f"The cache, {sizes}: ")
        require(_close(cache, right), f"The cache, {sizes}: it is {right:,} bytes; yours {cache:,}.")
        right, mistakes = _estimates(removed, batch, context)
        same = partial(_close, tolerance=1e-7)
        rule_out(mistakes, estimate, right, same=same, where=f"The estimate, {sizes}: ")
        require(same(estimate, right), f"The estimate, {sizes}: it is {right:.5f}; yours is {estimate:.5f}.")


@exercise(
    6,
    task="Return the numbers of the attention layers to leave out.",
    proved="Better than the published choice on text that neither of them has seen.",
)
def check_choice(attempt: Attempt, model: PreTrainedModel, calibration: TokenBlocks, held_out: TokenBlocks) -> None:
    """Check a function (model, batches, count) -> attention layers to leave out, by its score on held-out rows."""
    total = describe(model).num_blocks
    count = round(total / 4)
    batches = calibration.batches()
    layers = [int(number) for number in attempt(model, batches, count)]
    require(len(layers) == count, f"{count} layers were asked for; yours are {len(layers)}.")
    require(len(set(layers)) == count, f"A layer stands twice in {layers}, so fewer than {count} would go.")
    require(all(0 <= number < total for number in layers), f"Block numbers run from 0 to {total - 1}; yours: {layers}.")
    left = [i for i, attention in enumerate(describe(model).attentions) if attention.skipped]
    if left:
        bypass_attention(model, [])
    require(not left, f"Your function left {left} bypassed. Bring the model back: bypass_attention(model, []).")
    published = select_attention_layers(model, batches, count=count, iterative=False)
    require(set(layers) != set(published), "That is the published choice itself: look once, with the residual.")
    unpruned, own, other = (_without(model, some, held_out) for some in ([], layers, published))
    require_better(
        own,
        other,
        told=f"{held_out.num_tokens:,} held-out tokens: yours {sorted(layers)} × "
        f"{shown(own.perplexity / unpruned.perplexity)} unpruned, the published choice × "
        f"{shown(other.perplexity / unpruned.perplexity)}; yours / published",
        worse="On held-out text your layers cost more than the published choice. Did you measure any damage?",
        luck="Yours looks better, but its interval reaches 1: that may be luck. Measure on more rows.",
    )


def _without(model: PreTrainedModel, layers: list[int], rows: TokenBlocks) -> Perplexity:
    bypass_attention(model, layers)
    try:
        return perplexity(model, rows)
    finally:
        bypass_attention(model, [])


_SENTENCES = {  # of exercise 3: whether it is shown, and why
    "A": (
        True,
        "the upper half of the figure compares just that, in this model and chosen like this.",
    ),
    "B": (False, "one small model was measured. Other sizes need their own measurement, or their own paper."),
    "C": (False, "at equal parameters, the lower half of the figure, whole blocks are cheaper to lose."),
    "D": (
        False,
        "the rows are 64 tokens long, and perplexity averages over them. A long context wasn't tested.",
    ),
    "E": (True, "the table of pairs has both criteria, and both intervals lie above 1."),
    "F": (False, "one of the 19 random sets is as good, so p is .10, and chance is not ruled out."),
}

_CONFIG = LlamaConfig(
    vocab_size=1000,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=10,
    num_attention_heads=8,
    num_key_value_heads=2,
    tie_word_embeddings=True,
)
_PARAMETERS = 1_523_328  # of _CONFIG; a test counts them


_Answers = tuple[float, list[tuple[float, str]]]  # the right one, and wrong ones with the mistake behind each


def _caches(removed: int, batch: int, context: int) -> _Answers:
    """Bytes of the pruned model's cache."""
    heads, groups, layers = _CONFIG.num_attention_heads, _CONFIG.num_key_value_heads, _CONFIG.num_hidden_layers
    layer = _layer_cache(batch, context)
    right = (layers - removed) * layer
    return right, [
        (layers * layer, "that is the cache of the unpruned model. A removed attention keeps nothing."),
        (right / 2, "half of it is missing. A token leaves a key and a value, of 2 bytes a number."),
        (right / 4, "a factor 4 is missing: keys and values, and 2 bytes a number."),
        (right * heads / groups, "that counts all heads. Keys and values are kept for num_key_value_heads only."),
        (right / batch, "that is one text of the batch. Each of them has a cache of its own."),
        (removed * layer, "that is the cache of the attentions that went, not of those that stayed."),
    ]


def _estimates(removed: int, batch: int, context: int) -> _Answers:
    """Bytes that a decoding step reads, before divided by after."""
    hidden, layers, cache = _CONFIG.hidden_size, _CONFIG.num_hidden_layers, _layer_cache(batch, context)
    norm, all_heads = 2 * hidden, 2 * (4 * hidden * hidden + hidden)
    weights = 2 * (2 * hidden * hidden + 2 * hidden * _keys() + hidden)  # of one attention with its norm, 2 bytes each
    before = 2 * _PARAMETERS + layers * cache

    def without(read: int, whole: int = before) -> float:
        return whole / (whole - removed * read)

    right = without(weights + cache)
    return right, [
        (1 / right, "turned upside down. Before divided by after is above 1 when something is saved."),
        (without(cache), "you took only the cache off. The weights of a removed attention needn't be read either."),
        (without(weights), "you took only the weights off. The cache of a removed attention needn't be read either."),
        (without(weights, 2 * _PARAMETERS), "the cache is missing. Each step reads it too."),
        (without(all_heads + cache), "k and v are narrower than q and o where heads share keys and values."),
        (without(weights - norm + cache), "almost: the norm in front of a removed attention goes with it."),
    ]


def _keys() -> int:
    """Numbers in the keys of a token."""
    return _CONFIG.hidden_size // _CONFIG.num_attention_heads * _CONFIG.num_key_value_heads


def _layer_cache(batch: int, context: int) -> int:
    """Bytes of one attention's keys and values, 2 a number."""
    return 2 * 2 * _keys() * batch * context


def _close(given: float, expected: float, tolerance: float = 1e-9) -> bool:
    return abs(given - expected) <= tolerance * abs(expected)


def _states() -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """x, what three attentions add to it, and the mask; padded states are large and point elsewhere."""
    generator = torch.Generator().manual_seed(5)
    x, other, noise = torch.randn(3, 3, 6, 8, generator=generator)
    x = x + 1
    echo = 2 * x + noise  # long, roughly in x's direction
    across = other - (other * x).sum(-1, keepdim=True) / (x * x).sum(-1, keepdim=True) * x
    mask = torch.ones(3, 6)
    mask[0, 2:] = mask[1, 4:] = 0
    padding = (~mask.bool())[..., None]
    attentions = {"other": other + 0.5, "whisper": 0.05 * across, "echo": echo}
    return x, {name: torch.where(padding, -9 * x + 3 * noise, added) for name, added in attentions.items()}, mask


def _answer(attempt: Attempt, change: Callable[[LlamaForCausalLM], None], ids: Tensor) -> bool:
    model = _tiny_llama()
    change(model)
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    with torch.no_grad():
        before = model(ids.clone(), use_cache=False).logits
        answer = true_or_false(attempt(model, _LAYER, ids.clone()))
        same = all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())
        require(
            same and torch.equal(model(ids.clone(), use_cache=False).logits, before),
            "Your function changed the model. Look, don't touch: work on copies, and remove your hooks.",
        )
    return answer


def _tiny_llama() -> LlamaForCausalLM:
    sizes = {"vocab_size": 31, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4}
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=3, eos_token_id=None)).eval()
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.2 * torch.randn_like(weight))
    return model


class _Instead(nn.Module):
    """In place of an attention: adds ``what(attention, norm(x), everything else)``."""

    def __init__(self, attention: nn.Module, what: Callable) -> None:
        super().__init__()
        self.attention, self.what = attention, what

    def forward(self, hidden_states: Tensor, **rest: object) -> tuple[Tensor, None]:
        return self.what(lambda: self.attention(hidden_states, **rest)[0], hidden_states), None


def _instead(what: Callable) -> Callable[[LlamaForCausalLM], None]:
    def change(model: LlamaForCausalLM) -> None:
        block = model.model.layers[_LAYER]
        block.self_attn = _Instead(block.self_attn, what)

    return change


def _but_the_last_token(added: Tensor) -> Tensor:
    added = added.clone()
    added[:, :-1] = 0
    return added


@torch.no_grad()
def _zero_output(model: LlamaForCausalLM) -> None:
    model.model.layers[_LAYER].self_attn.o_proj.weight.zero_()


_RIGHT_BYPASSES: dict[Callable[[LlamaForCausalLM], None], str] = {
    lambda model: bypass_attention(model, [_LAYER]): "bypass_attention. Compare the block's output with what its MLP "
    "alone would add: x + mlp(post_attention_layernorm(x)).",
    lambda model: bypass_attention(model, [_LAYER], remove=True): "the attention and its norm were removed. Look at "
    "what the block computes, not at which modules it has.",
    _zero_output: "o_proj is zero, so the attention computes and adds zero. Look at what is added, not at how.",
    lambda model: bypass_attention(model, [0, _LAYER, 2]): "other attentions are bypassed as well. Look at this block "
    "only, not at the logits of the whole model.",
}
_WRONG_BYPASSES: dict[Callable[[LlamaForCausalLM], None], str] = {
    lambda model: None: "the attention is still there.",
    _instead(lambda attention, states: states): "the attention returns its input, so the block adds norm(x).",
    _instead(lambda attention, states: 1e-4 * attention()): "a ten-thousandth of the attention is still added. "
    "Exactly zero means torch.equal, not allclose.",
    _instead(lambda attention, states: _but_the_last_token(attention())): "the attention is silent at every token but "
    "the last. Compare all positions.",
    lambda model: bypass_attention(model, [0]): "another block's attention is bypassed, not this one's. Use `layer`.",
}

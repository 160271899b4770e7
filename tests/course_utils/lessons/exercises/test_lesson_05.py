"""Lesson 05's checks refuse the stub, name the likely mistake, and accept the answers."""

import numpy as np
import torch
from exercise_cases import cases_of
from torch import nn
from transformers import Cache

from course_utils.lessons.exercises import lesson_05
from course_utils.measuring.evaluation import Perplexity
from course_utils.models.loading import tiny_llama
from course_utils.models.modeling.no_attention import skip_attention
from course_utils.pruning.attention import attention_importance, bypass_attention

importance = lesson_05.check_importance.answer
test_importance = cases_of(
    lesson_05.check_importance,
    mistakes=[
        (lambda x, added, mask, residual: importance(x, added, mask, True), "With residual=False: That is the other"),
        (lambda *states: 2 * importance(*states), "Take one cosine per token"),
    ],
)


@torch.no_grad()
def adds_nothing(model, layer, ids, *, same=torch.equal):
    block, seen = model.model.layers[layer], {}
    hook = block.register_forward_hook(lambda block, inputs, output: seen.update(x=inputs[0], y=output))
    model(ids, use_cache=False)
    hook.remove()
    return same(seen["y"], seen["x"] + block.mlp(block.post_attention_layernorm(seen["x"])))


def leaves_a_hook(model, layer, ids):
    model.model.layers[layer].register_forward_hook(lambda block, inputs, output: inputs[0])
    return True


def looks_at_the_code(model, layer, ids):
    return getattr(model.model.layers[layer].self_attn.forward, "__func__", None) is skip_attention


test_adds_nothing = cases_of(
    lesson_05.check_adds_nothing,
    mistakes=[
        (lambda *given: True, "still there"),
        (lambda *given: False, "refuses a bypass that is right"),
        (lambda *given: adds_nothing(*given, same=lambda a, b: torch.allclose(a, b, atol=1e-2)), "torch.equal, not"),
        (lambda *given: adds_nothing(*given, same=lambda a, b: torch.equal(a[:, 0], b[:, 0])), "all positions"),
        (lambda model, layer, ids: adds_nothing(model, 0, ids), "refuses a bypass that is right"),
        (looks_at_the_code, "o_proj is zero"),
        (leaves_a_hook, "hooks were left"),
    ],
    answers=[adds_nothing, lambda *case: torch.tensor(adds_nothing(*case))],
)


class ZeroAttention(nn.Module):
    def __init__(self, layer_idx):
        super().__init__()
        self.layer_idx = layer_idx

    def forward(self, hidden_states, **named):
        return torch.zeros_like(hidden_states), None


def bypass(put=lambda cache, keys, layer: cache.update(keys, keys, layer), *, shape=None, give=None):
    """A class as exercise 3 asks for: what it puts into the cache, in which shape, and what it returns."""

    class Bypass(ZeroAttention):
        def forward(self, hidden_states, **named):
            rows, tokens, _ = hidden_states.shape
            for value in named.values():
                if isinstance(value, Cache):
                    sizes = shape(rows, tokens) if shape else (rows, 1, tokens, 1)
                    put(value, hidden_states.new_zeros(sizes), self.layer_idx)
            return give(hidden_states) if give else super().forward(hidden_states)

    return Bypass


class LowOnly(bypass()):
    """Right in the check's tiny models, which have no block 3."""

    def forward(self, hidden_states, **named):
        zeros, nothing = super().forward(hidden_states, **named)
        return zeros + (self.layer_idx > 2), nothing


class Stub(ZeroAttention):
    def forward(self, hidden_states, **named): ...  # your code


test_true_bypass = cases_of(
    lesson_05.check_true_bypass,
    tiny_llama(blocks=6).bfloat16(),
    stubs=[Stub],
    mistakes=[
        (bypass()(0), "Hand over the class TrueBypass itself"),
        (bypass(give=torch.zeros_like), "A tensor alone is torn apart by its rows"),
        (bypass(give=lambda states: (states, None)), "it returns its input"),
        (bypass(give=lambda states: (1e-3 * states, None)), "it adds something"),
        (ZeroAttention, "Attention 2 replaced: its drawer stays empty"),
        (bypass(shape=lambda rows, tokens: (rows, 1, tokens, 0)), "width 0"),
        (bypass(shape=lambda rows, tokens: (rows, 4, tokens, 8)), "keeps 4,608 of 4,608 bytes"),
        (bypass(shape=lambda rows, tokens: (rows, tokens, 1, 1)), "after 2 rows of 9 tokens"),
        (bypass(shape=lambda rows, tokens: (1, 1, tokens, 1)), "after 2 rows of 9 tokens"),
        (bypass(lambda cache, keys, layer: cache.update(keys, keys, 0)), "you fill drawer [0], another attention's"),
        (bypass(give=lambda states: (torch.zeros(states.shape), None)), "Your code stopped with RuntimeError"),
        (LowOnly, "in the real one, without attentions [0, 3]"),
    ],
    answers=[bypass()],
)


def choose_iteratively(model, batches, count, *, again=False, bring_back=True):
    chosen = []
    for _ in range(count):
        bypass_attention(model, chosen)
        scores = attention_importance(model, batches)
        if not again:
            scores[chosen] = torch.inf
        chosen.append(int(scores.argmin()))
    if bring_back:
        bypass_attention(model, [])
    return chosen


test_choose_iteratively = cases_of(
    lesson_05.check_choose_iteratively,
    mistakes=[
        (lambda *given: choose_iteratively(*given, again=True), "scores 0 and looks least important"),
        (lambda *given: choose_iteratively(*given, bring_back=False), "Bring the model back at the end"),
        (lambda model, batches, count: [3, 1, 2][:count], "2 attentions of the check's tiny model: it is ["),
        (lambda model, batches, count: attention_importance(model, batches), "not their scores"),
    ],
    answers=[choose_iteratively, lambda *given: torch.tensor(choose_iteratively(*given))],
)

TEXTS, RECORDED = ("speeches", "wiki"), ["0 1 2 3 4 5 6 7"]
DAMAGES = {  # nats per token on speeches and on wiki, and their noise, by the first attention that is left out
    0: (1.0, 1.0, 0.0), 2: (0.9, 1.0, 0.0), 3: (0.9, 1.1, 0.0), 4: (1.1, 1.1, 0.0), 5: (0.99, 0.99, 0.3),
}  # fmt: skip


def judge(layers):
    *means, noise = DAMAGES[min(layers)]
    return {text: scored(mean, noise) for text, mean in zip(TEXTS, means, strict=True)}


def scored(nll, noise):
    """A made-up score of eight rows of 10 predictions."""
    row_nll = 10 * (nll + noise * np.array([1.0, -1.0] * 4))
    return Perplexity(
        perplexity=float(np.exp(nll)), bits_per_byte=1.0, nll=nll, tokens=80, ci_low=0.0, ci_high=9.0, row_nll=row_nll,
        row_tokens=np.full(8, 10), row_bytes=None, dtype="float32", fingerprint="",
    )  # fmt: skip


GIVEN, REST = (judge, list(range(8)), RECORDED), [9, 10, 11, 12, 13, 14, 15]
test_eight = cases_of(
    lesson_05.check_eight,
    *GIVEN,
    stubs=[[...]],
    mistakes=[
        ([2, 9, 10], "8 different attentions are asked for"),
        ([2, 2, *REST[1:]], "8 different attentions are asked for"),
        ([7, 6, 5, 4, 3, 2, 1, 0], "stands in the record"),
        ([4, *REST], "Dearer than leave-one-out's on speeches, wiki"),
        ([3, *REST], "Cheaper on speeches, but dearer on wiki"),
        ([5, *REST], "No text shows a difference"),
    ],
    answers=[[2, *REST], torch.tensor([*reversed(REST), 2])],
)


def test_eight_are_told_beside_the_opponents(capsys):
    lesson_05.check_eight([2, *REST], *GIVEN)
    assert "  speeches: yours / leave-one-out's, on the exam: 0.90 (0.90 to 0.90)" in capsys.readouterr().out

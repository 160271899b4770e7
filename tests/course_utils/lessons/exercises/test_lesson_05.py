"""Lesson 05's checks refuse the stub, name the likely mistake, and accept the answers."""

import pytest
import torch
from exercise_cases import cases_of
from torch import nn
from transformers import Cache

from course_utils.lessons.exercises import lesson_05
from course_utils.models.loading import load_model, tiny_llama
from course_utils.models.modeling.no_attention import skip_attention


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
    """A class as exercise 2 asks for: what it puts into the cache, in which shape, and what it returns."""

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


def near(length, window):
    """Another way: token by token."""
    rows = [
        [column <= row and (row - column < window or column == 0) for column in range(length)] for row in range(length)
    ]
    return torch.tensor(rows)


test_near = cases_of(
    lesson_05.check_near,
    mistakes=[
        (lambda length, window: near(length, window).float(), "Return True and False (torch.bool); yours is float32"),
        (lambda length, window: near(length, 2 * window), "For 7 tokens and a window of 3: "),
    ],
    answers=[near, lambda *given: near(*given).tolist()],
)


class MadeUpExam:
    """Attentions 2, 3 and 5 copy, a third each."""

    total = 8

    def __init__(self, left=3):
        self.left = left

    def lost(self, whole):
        return 1 - len({2, 3, 5} & {*whole}) / 3


@pytest.mark.parametrize(
    ("whole", "said"),
    [
        (..., "not solved yet"),
        ([2, 3], "3 different attentions are asked for; yours are [2, 3]"),
        ([2, 3, 3], "3 different attentions are asked for"),
        ([2, 3, 8], "numbers from 0 to 7"),
        ([2, 3, 0.5], "Give numbers of attentions"),
        ([2, 3, 4], "That is over 20%"),
        ([5, 3, 2], "correct"),
        (torch.tensor([2, 3, 5]), "correct"),
    ],
)
def test_copiers(whole, said, capsys):
    assert lesson_05.check_copiers(whole, MadeUpExam(), 3) is (said == "correct")
    assert said in capsys.readouterr().out


def test_the_exam_judges_a_few_times_only(capsys):
    exam = MadeUpExam(left=2)
    verdicts = [lesson_05.check_copiers(whole, exam, 3) for whole in ([2, 3], [0, 1, 2], [0, 1, 3], [2, 3, 5])]
    assert verdicts == [False] * 4
    out = capsys.readouterr().out
    assert "exam: 67% of copying is lost (tries left: 0)" in out
    assert "The exam is over" in out.splitlines()[-1]


def test_the_exam_loses_all_with_windows_for_all_and_nothing_without(monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "smoke")
    model, tokenizer = load_model("llama", device="cpu")
    exam = lesson_05.CopyingExam(model, tokenizer, window=8)
    assert exam.lost([]) == pytest.approx(1)
    assert exam.lost(range(exam.total)) == pytest.approx(0)
    assert not any(block.self_attn._forward_pre_hooks for block in model.model.layers)

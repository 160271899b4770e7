"""Lesson 05's checks refuse the stub, name the likely mistake, and accept the answers."""

import pytest
import torch
from torch.nn.functional import cosine_similarity
from transformers import LlamaForCausalLM

from course_utils.attention import bypass_attention
from course_utils.benchmarking import decode_ceiling, kv_bytes_per_token
from course_utils.exercises import lesson_05
from course_utils.modeling.no_attention import skip_attention


def importance(x, added, mask, residual=True):
    real = mask.bool()
    return (1 - cosine_similarity(x[real], (x + added if residual else added)[real], dim=-1)).mean()


def always_with(x, added, mask, residual):
    return importance(x, added, mask)


def the_other_way(x, added, mask, residual):
    return importance(x, added, mask, not residual)


def addition_against_sum(x, added, mask, residual):
    real = mask.bool()
    return (1 - cosine_similarity(added[real], (x + added)[real], dim=-1)).mean()


def with_padding(x, added, mask, residual):
    return importance(x, added, torch.ones_like(mask), residual)


def divided_by_all(x, added, mask, residual):
    return ((1 - cosine_similarity(x, x + added if residual else added, dim=-1)) * mask).mean()


def by_rows(x, added, mask, residual):
    return torch.stack([importance(*row, residual) for row in zip(x, added, mask, strict=True)]).mean()


def one_cosine(x, added, mask, residual):
    after = x + added if residual else added
    return 1 - cosine_similarity(x[mask.bool()].flatten(), after[mask.bool()].flatten(), dim=0)


@torch.no_grad()
def block_of(model, layer, ids):
    """What enters and leaves a block, and what would leave it without its attention."""
    block, seen = model.model.layers[layer], {}
    hook = block.register_forward_hook(lambda block, inputs, output: seen.update(x=inputs[0], y=output))
    model(ids, use_cache=False)
    hook.remove()
    return seen["x"], seen["y"], seen["x"] + block.mlp(block.post_attention_layernorm(seen["x"]))


def adds_nothing(model, layer, ids):
    _, leaves, expected = block_of(model, layer, ids)
    return torch.equal(leaves, expected)


def adds_little(model, layer, ids):
    _, leaves, expected = block_of(model, layer, ids)
    return torch.allclose(leaves, expected, atol=1e-2)


def adds_nothing_at_first(model, layer, ids):
    _, leaves, expected = block_of(model, layer, ids)
    return torch.equal(leaves[:, 0], expected[:, 0])


def always_block_0(model, layer, ids):
    return adds_nothing(model, 0, ids)


def looks_at_the_code(model, layer, ids):
    forward = model.model.layers[layer].self_attn.forward
    return getattr(forward, "__func__", None) is skip_attention


def returns_its_input(model, layer, ids):
    """Asks whether the attention hands on what came in."""
    answers = []
    attention = model.model.layers[layer].self_attn
    hook = attention.register_forward_hook(
        lambda module, inputs, named, output: answers.append(torch.equal(output[0], named["hidden_states"])),
        with_kwargs=True,
    )
    model(ids, use_cache=False)
    hook.remove()
    return answers[0]


def leaves_a_hook(model, layer, ids):
    model.model.layers[layer].register_forward_hook(lambda block, inputs, output: inputs[0])
    return True


def predict(config, parameters, removed, batch, context, *, both=2, heads=None, width=2, norm=True, upside=False):
    hidden = config.hidden_size
    keys = hidden // config.num_attention_heads * (heads or config.num_key_value_heads)
    weights = 2 * hidden * hidden + width * hidden * keys + hidden * norm
    cache = both * 2 * keys * batch * context
    before = 2 * parameters + config.num_hidden_layers * cache
    after = before - removed * (2 * weights + cache)
    return (config.num_hidden_layers - removed) * cache, after / before if upside else before / after


def with_cache(change):
    """The right ceiling beside a changed cache."""
    return lambda *sizes: (change(*sizes), predict(*sizes)[1])


def with_ceiling(change):
    """The right cache beside a changed ceiling."""
    return lambda *sizes: (predict(*sizes)[0], change(*sizes))


def wide_k_and_v(config, parameters, removed, batch, context):
    cache = 4 * 32 * batch * context
    before = 2 * parameters + config.num_hidden_layers * cache
    return before / (before - removed * (2 * (4 * config.hidden_size**2 + config.hidden_size) + cache))


def only_the_cache(config, parameters, removed, batch, context):
    cache = 4 * 32 * batch * context
    before = 2 * parameters + config.num_hidden_layers * cache
    return before / (before - removed * cache)


def test_the_check_predicts_what_is_counted():
    with torch.device("meta"):
        base, pruned = (LlamaForCausalLM(lesson_05._CONFIG).to(torch.bfloat16) for _ in range(2))
    assert base.num_parameters() == lesson_05._PARAMETERS
    bypass_attention(pruned, [1, 2, 3], remove=True)
    cache, ceiling = predict(lesson_05._CONFIG, lesson_05._PARAMETERS, 3, 2, 1000)
    assert cache == 2 * 1000 * kv_bytes_per_token(pruned)
    assert ceiling == pytest.approx(decode_ceiling(base, pruned, batch_size=2, context=1000), rel=1e-12)


@pytest.mark.parametrize(
    ("check", "stub"),
    [
        (lesson_05.check_importance, lambda x, added, mask, residual=True: ...),
        (lesson_05.check_adds_nothing, lambda model, layer, ids: ...),
        (lesson_05.check_predict, lambda config, parameters, removed, batch, context: ...),
        (lesson_05.check_predict, lambda config, parameters, removed, batch, context: (1, ...)),
    ],
    ids=["importance", "adds_nothing", "predict", "predict_half_done"],
)
def test_stub_is_not_solved_yet(check, stub, capsys):
    assert check(stub) is False
    assert "not solved yet" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("check", "attempt", "named"),
    [
        (lesson_05.check_importance, always_with, "residual=False: that is the other one"),
        (lesson_05.check_importance, the_other_way, "residual=True: that is the other one"),
        (lesson_05.check_importance, addition_against_sum, "compare the addition with the sum"),
        (lesson_05.check_importance, lambda *states: 1 - importance(*states), "the cosine itself"),
        (lesson_05.check_importance, with_padding, "padded positions count"),
        (lesson_05.check_importance, divided_by_all, "divide by their number"),
        (lesson_05.check_importance, by_rows, "average each row first"),
        (lesson_05.check_importance, one_cosine, "one cosine over all tokens"),
        (lesson_05.check_importance, lambda x, *_: 1 - cosine_similarity(x, 2 * x, dim=-1), "Return one number"),
        (lesson_05.check_importance, lambda *states: 2 * importance(*states), "for the check's random states"),
        (lesson_05.check_adds_nothing, lambda model, layer, ids: True, "still there"),
        (lesson_05.check_adds_nothing, lambda model, layer, ids: False, "refuses a bypass that is right"),
        (lesson_05.check_adds_nothing, lambda model, layer, ids: 0, "Return True or False"),
        (lesson_05.check_adds_nothing, adds_little, "torch.equal, not allclose"),
        (lesson_05.check_adds_nothing, adds_nothing_at_first, "lets a wrong bypass pass"),
        (lesson_05.check_adds_nothing, always_block_0, "refuses a bypass that is right"),
        (lesson_05.check_adds_nothing, looks_at_the_code, "o_proj is zero"),
        (lesson_05.check_adds_nothing, returns_its_input, "refuses a bypass that is right"),
        (lesson_05.check_adds_nothing, leaves_a_hook, "changed the model"),
        (lesson_05.check_predict, with_cache(lambda *s: predict(s[0], s[1], 0, *s[3:])[0]), "the unpruned model"),
        (lesson_05.check_predict, with_cache(lambda *s: predict(*s, both=1)[0]), "half of it is missing"),
        (lesson_05.check_predict, with_cache(lambda *s: predict(*s)[0] / 4), "a factor 4"),
        (lesson_05.check_predict, with_cache(lambda *s: predict(*s, heads=8)[0]), "counts all heads"),
        (lesson_05.check_predict, with_cache(lambda *s: predict(*s[:3], 1, s[4])[0]), "The cache"),
        (lesson_05.check_predict, with_ceiling(lambda *s: predict(*s, upside=True)[1]), "upside down"),
        (lesson_05.check_predict, with_ceiling(only_the_cache), "only the cache off"),
        (lesson_05.check_predict, with_ceiling(lambda *s: predict(*s[:3], 1, 0)[1]), "the cache is missing"),
        (lesson_05.check_predict, with_ceiling(wide_k_and_v), "narrower than q and o"),
        (lesson_05.check_predict, with_ceiling(lambda *s: predict(*s, norm=False)[1]), "the norm in front"),
    ],
)
def test_wrong_answer_names_the_mistake(check, attempt, named, capsys):
    assert check(attempt) is False
    out = capsys.readouterr().out
    assert "not yet." in out
    assert named in out


@pytest.mark.parametrize(
    ("check", "answer"),
    [
        (lesson_05.check_importance, importance),
        (lesson_05.check_importance, lambda *states: importance(*states).item()),
        (lesson_05.check_adds_nothing, adds_nothing),
        (lesson_05.check_adds_nothing, lambda *case: torch.tensor(adds_nothing(*case))),
        (lesson_05.check_predict, predict),
    ],
)
def test_right_answer(check, answer, capsys):
    assert check(answer) is True
    assert "correct." in capsys.readouterr().out
